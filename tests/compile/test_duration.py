"""How long a run takes: counts of products by hand, and flags that the command line takes and that do shorten a run."""

import dataclasses
import re
import shlex

import jax
import pytest

from configs import interp, smoke
from pdiff import config as config_lib
from pdiff.compile import duration
from pdiff.errors import PdiffError
from pdiff.generator.generator import abstract
from pdiff.targets import get_target
from pdiff.tasks import get_family
from tests.test_config import on_the_command_line


@pytest.fixture(scope="module")
def family():
    return get_family(smoke.get_config().tasks)


def target_of(config, family, shape=None):
    return get_target(config.target, shape or family.image_shape, family.num_classes)


@pytest.mark.parametrize(
    "seconds, words",
    [(0.4, "0 seconds"), (89, "89 seconds"), (91, "2 minutes"), (5399, "90 minutes"), (5400, "1.5 hours")],
)
def test_times_in_words(seconds, words):
    assert duration.in_words(seconds) == words


def test_products_are_those_that_a_count_by_hand_has(family):
    config = interp.get_config()
    family = dataclasses.replace(family, tasks=family.tasks[:14])  # 12 seen ones and two others
    work = duration.count_work(config, family, target_of(config, family), family.image_shape, 7.0)
    image = 3 * 2 * (64 * 32 + 32 * 10)  # and gradients of as many products twice
    networks = 12 * 6 + 2 * 3 + 3
    assert work.zoo == pytest.approx(image * 64 * (networks * 1000 + 2000), rel=0.03)  # and biases
    weights = 64 * 32 + 32 + 32 * 10 + 10
    assert work.mean_step == pytest.approx(64 * (image * 128 + 6 * 256 * weights), rel=0.03)
    assert work.prior == 2000 * 7.0
    shorter, longer = (duration.estimate(config, work, 0.0, rate).total for rate in (2e9, 1e9))
    assert longer - duration.FIXED_S == pytest.approx(2 * (shorter - duration.FIXED_S))


def test_a_run_is_told_with_the_time_that_it_takes(tiny_config, family, mesh):
    lines = list(duration.lines(tiny_config, family, target_of(tiny_config, family), mesh))
    assert len(lines) == 2  # it is a short one
    assert re.match(r"to do: fine-tune 46 networks of 2,410 generated weights, train for 8 and 8 steps, and", lines[0])
    assert re.match(r"time: about \d \w+ if .* \(zoo \d+ \w+, training \d+ \w+, evaluation and", lines[1])


def test_the_measured_step_is_one_of_the_mean_s_training(tiny_config, family, mesh):
    generator = abstract(tiny_config, family, target_of(tiny_config, family))
    seconds, flops = duration.measure_step(generator, mesh)
    work = duration.count_work(tiny_config, family, generator.target, family.image_shape, 0.0)
    assert seconds > 0 and flops > work.mean_step > 0.2 * flops  # the rest are encoders and the optimizer


def test_flags_that_shorten_a_run_are_taken_and_do(tmp_path, monkeypatch, family, mesh):
    config = interp.get_config()
    photos = dataclasses.replace(family, name="folder", image_shape=(32, 48, 3))
    target = target_of(config, photos)
    monkeypatch.setattr(duration, "measure_step", lambda generator, mesh: (2.0, 1e9))
    lines = [line for line in duration.lines(config, photos, target, mesh) if line.startswith("shorter")]
    assert any("image_side=16" in line for line in lines) and any("widths='(8,)'" in line for line in lines)
    for flags, changed, shape in duration.smaller(config, photos):
        arguments = [f for f in shlex.split(flags.partition(", ")[0]) if f.startswith("--")]
        parsed, said = on_the_command_line(arguments)
        assert parsed is not None, said
        names = [a.removeprefix("--config.").partition("=")[0] for a in arguments]
        assert {n: config_lib.flatten(parsed)[n] for n in names} == {n: config_lib.flatten(changed)[n] for n in names}
        tree = jax.eval_shape(target_of(changed, photos, shape).init, jax.random.key(0))  # such a target exists
        assert tree and shape in ((16, 16, 3), (32, 48, 3))


def test_a_mean_that_no_memory_holds_is_refused(family, monkeypatch):
    config = interp.get_config()
    generator = abstract(config, family, target_of(config, family))
    duration.check_memory(generator)
    monkeypatch.setattr("os.sysconf", lambda name: 1 << 10)
    with pytest.raises(PdiffError, match="2,410 generated weights takes 0 GB .*allowed: fewer weights"):
        duration.check_memory(generator)

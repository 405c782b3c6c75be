"""What a generator says that it can be asked for is what it can be asked for."""

import dataclasses

import numpy as np
import pytest

from configs import class_subsets, corruptions
from pdiff.ask.overview import indicators, overview, ranges, turning
from pdiff.config.fields import SAMPLERS
from pdiff.tasks import get_family


def test_it_lists_tasks_prompts_ranges_and_how_images_look(loaded):
    about, family = loaded.describe(), loaded.family
    assert {split: tasks.count for split, tasks in about.tasks.items()} == {
        split: len(family.split(split)) for split in ("seen", "validation", "interp", "unseen") if family.split(split)
    }
    assert about.tasks["unseen"].ranges == family.arcs["unseen"] and not about.tasks["seen"].ranges
    assert all(loaded.task(name).split == split for split, tasks in about.tasks.items() for name in tasks.names)
    assert about.prompts == tuple(loaded.examples()) and about.factors == {"degrees": (0, 360)} and not about.indicators
    assert about.turning == {"degrees": "counter-clockwise"} and about.image_shape == (8, 8)
    assert about.classes == family.classes and about.weights == (2410, 2410)
    assert about.samplers[0] == loaded.default_sampler and set(about.samplers) == set(SAMPLERS)
    text = str(about)
    lines = (
        "held out: 60 to 90, 216 to 234 degrees", "degrees: 0 to 360, counter-clockwise",
        "(images, 8, 8) or (images, 64)", "pixels from 0 to 1", "zero, one", "posterior_mean by default", "id, text",
        "mlp, 2,410 weights",
    )  # fmt: skip
    for said in (*about.prompts, *lines):
        assert said in text


def test_without_prompts_or_images_it_says_so(loaded):
    family = dataclasses.replace(loaded.family, class_names=(), num_classes=0)
    text = str(overview(dataclasses.replace(loaded._static, family=family), (), "heun"))
    assert "ask for a task by its name" in text and "imported without any" in text


@pytest.mark.parametrize("scenario, numbered, there", [(corruptions, 3, 7), (class_subsets, 0, 10)])
def test_what_is_there_or_not_is_no_range(scenario, numbered, there):
    family = get_family(scenario.get_config().tasks)
    assert sum(indicators(family)) == there and len(family.factor_names) == numbered + there and not turning(family)
    for (low, high), column in zip(ranges(family), family.factors().T, strict=True):
        assert low == np.float32(column.min()) and high == np.float32(column.max())

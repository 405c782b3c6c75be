"""Prompts to families without a grammar: read as the description that they are like, or refused."""

import dataclasses

import pytest

from configs import smoke
from pdiff.ask import prompts
from pdiff.ask.prompts import Descriptions, words
from pdiff.errors import PdiffError
from pdiff.tasks import get_family
from pdiff.tasks.base import Task, words_of
from tests.tasks.test_language import FOREIGN


def named(*names, held_out=(), wordings=("{}", "images of {}", "recognise {}")):
    """A family of tasks whose names are all that is known of them, such as imported networks or a folder of images."""
    splits = [("seen", n) for n in names] + [("unseen", n) for n in held_out]
    tasks = [
        Task(name, i, split, (), tuple(w.format(words_of(name)) for w in wordings), ())
        for i, (split, name) in enumerate(splits)
    ]
    family = get_family(smoke.get_config().tasks)
    return dataclasses.replace(family, tasks=tuple(tasks), grammar=None, describe=None, factor_names=(), arcs={})


@pytest.fixture(scope="module")
def sliders():
    return Descriptions(named(*(f"slider_{i / 4 - 1:.2f}" for i in range(9)), held_out=["slider_0.60"]))


@pytest.fixture(scope="module")
def cameras():
    return Descriptions(named("north_gate", "south_gate", "old_mill", "river_bank", held_out=["hill_top"]))


@pytest.mark.parametrize(
    "prompt, text",
    [
        ("slider 0.3", "slider 0.3"), ("slider -0.3", "slider -0.3"), ("Slider −0,3", "slider -0.3"),
        ("slider .3", "slider 0.3"), ("slider 30%", "slider 0.3"), ("slider 3e-1", "slider 3e-1"),
        ("images of slider minus zero point three", "images of slider -0.3"), ("slider half", None),
        ("recognise slider_-0.3", "recognise slider -0.3"), ("-0.3", "-0.3"), ("slider", None),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(sliders, prompt, text):
    if text is None:
        with pytest.raises(PdiffError, match="looks like none of this generator's descriptions"):
            sliders.read(prompt)
    else:
        reading = sliders.read(prompt)
        assert reading.text == text and reading.doubt == "" and reading.said.startswith(repr(text))
        assert reading.factors is None and reading.tasks is None


@pytest.mark.parametrize("prompt", ["slider 0.60", "slider_0.60", "recognise slider 0.60", "SLIDER  0.60"])
def test_a_task_is_known_by_its_wordings_and_its_name_held_out_ones_too(sliders, prompt):
    reading = sliders.read(prompt)
    assert reading.said == "the unseen task slider_0.60" and reading.text == "slider 0.60"


def test_a_number_beyond_all_that_was_trained_on_is_told_and_a_sign_is_no_dash(sliders):
    assert sliders.read("slider 1.5").doubt == "1.5 lies beyond the numbers that it was trained on, -1 to 1"
    assert sliders.read("slider -1.5").doubt.startswith("-1.5 lies beyond")
    with pytest.raises(PdiffError, match="a number that is too large; allowed: up to 1e"):
        sliders.read("slider 1e30")


def test_words_that_no_description_has_are_said(cameras):
    reading = cameras.read("recognise north gate cleverly")
    assert reading.ignored == ("cleverly",) and "which is like 'recognise north gate'" in reading.said


def test_what_is_like_no_description_is_refused_or_taken_by_force_with_its_doubt(cameras, sliders):
    for known in (cameras, sliders):
        for text in (t for t in FOREIGN if t != "75"):
            with pytest.raises(
                PdiffError, match=r"distance \d\.\d\d; allowed: at most 0\.65.*--force \(force=True\) gives"
            ):
                known.read(text)
    forced = cameras.read("a poem about the sea", force=True)
    assert forced.text == "a poem about the sea" and "looks like none" in forced.doubt
    with pytest.raises(PdiffError, match="tells its tasks apart, such as"):
        cameras.read("recognise images of")


@pytest.mark.parametrize("prompt, word", [("not old mill", "not"), ("old mill or river bank", "or")])
def test_words_that_turn_a_meaning_are_not_passed_over(cameras, prompt, word):
    with pytest.raises(PdiffError, match=f"says '{word}', which no description has"):
        cameras.read(prompt)


def test_words_and_their_units():
    assert words("rotated by 12.5 degrees") == ["rotated", "by", "#", "# degrees", "degrees"]


def test_a_prompt_that_the_grammar_cannot_read_goes_to_the_model_by_force_alone():
    family = get_family(smoke.get_config().tasks)
    with pytest.raises(PdiffError, match="mean nothing here: 'cats'"):
        prompts.read(family, None, "cats rotated by 75 degrees", False)
    forced = prompts.read(family, None, "cats rotated by 75 degrees", True)
    assert forced.text == "cats rotated by 75 degrees" and forced.doubt.startswith("has words that mean nothing here")
    read = prompts.read(family, None, "digits turned 75 degrees clockwise", True)
    assert read.text == "digits rotated by 285 degrees" and read.factors == (285.0,) and read.doubt == ""

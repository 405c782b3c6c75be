"""Sentences that a family's grammar writes say sets of tasks, and are read back as these sets."""

import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import camera_trap, class_subsets, corruptions, fashion_mnist, interp
from pdiff.models.text import Tokenizer, train_tokenizer
from pdiff.tasks import get_family
from pdiff.tasks.data import images
from pdiff.tasks.grammar import construction
from pdiff.tasks.language import Unreadable

SCENARIOS = {m.__name__.split(".")[-1]: m for m in (interp, corruptions, class_subsets, fashion_mnist, camera_trap)}
GRID = 2880
MADE = {}  # hypothesis runs a test many times


def family_of(name, **overrides):
    config = SCENARIOS[name].get_config().tasks.copy_and_resolve_references()
    with config.unlocked():
        config.update(({"num_seen": 64} if name == "camera_trap" else {}) | overrides)
    return get_family(config, *([images.shapes_of(config)] if name == "fashion_mnist" else []))


def made(name):
    """(family, rows of its grid), built once."""
    if name not in MADE:
        family = family_of(name)
        MADE[name] = family, family.grammar.grid(GRID)
    return MADE[name]


def said_by(name, text):
    """Which rows of the grid a sentence says."""
    family, grid = made(name)
    return family.grammar.read(text).tasks.contains(grid)


def sentences(name, count=200, held_out=False):
    random = np.random.default_rng(0)
    return [made(name)[0].grammar.sentence(random, held_out)[0] for _ in range(count)]


@pytest.mark.parametrize("name", SCENARIOS)
@given(seed=st.integers(0, 2**32 - 1), held_out=st.booleans())
def test_a_property_sentences_are_read_back_to_the_set_that_they_say(name, seed, held_out):
    family, grid = made(name)
    text, expected = family.grammar.sentence(np.random.default_rng(seed), held_out)
    rows = expected.contains(grid)
    assert rows.dtype == bool and rows.shape == (len(grid),)
    assert rows.any() or name == "camera_trap"  # whose grid is of a few locations
    for same in (text, f"  {text.upper().replace(' ', '  ')}! please"):
        reading = family.grammar.read(same)
        assert reading.said == reading.tasks.said and reading.factors is None and not reading.ignored, text
        np.testing.assert_array_equal(reading.tasks.contains(grid), rows)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_wording_is_read_back(name):
    grammar = made(name)[0].grammar
    names = [c.name for c in grammar.constructions]
    assert len(set(names)) == len(names) >= 5
    for own in grammar.constructions:
        assert len(own.wordings) >= 4 and len(own.held_out) >= 2
        random = np.random.default_rng(0)
        for wording in (*own.wordings, *own.held_out):
            slots = {slot for _, slot, *_ in string.Formatter().parse(wording) if slot}
            drawn = own.draw(random)
            assert slots == drawn.keys() and {s for s in slots if not isinstance(drawn[s], str)} <= grammar.slots
            text = wording.format(**{s: v if isinstance(v, str) else f"{v:g}" for s, v in drawn.items()})
            expected = own.region(drawn).contains(made(name)[1])
            np.testing.assert_array_equal(said_by(name, text), expected, err_msg=text)


@pytest.mark.parametrize("name", SCENARIOS)
def test_held_out_wordings_are_no_training_ones(name):
    grammar = made(name)[0].grammar
    trained, held_out = ([w for c in grammar.constructions for w in getattr(c, f)] for f in ("wordings", "held_out"))
    assert not set(trained) & set(held_out)
    assert len(set(trained)) == len(trained) and len(set(held_out)) == len(held_out)


@pytest.mark.parametrize("name", SCENARIOS)
def test_grids_are_of_the_same_tasks_every_time_and_of_all_regions(name):
    family, grid = made(name)
    for count in (1, 5, 50, GRID):
        rows = family.grammar.grid(count)
        assert 0 < len(rows) <= count and rows.shape[1:] == (len(family.factor_names),)
        np.testing.assert_array_equal(rows, family_of(name).grammar.grid(count) if count == 50 else rows)
        assert len(np.unique(rows, axis=0)) == len(rows)
    known = {"interp": GRID, "corruptions": GRID - GRID % 7, "camera_trap": 64}.get(name, 627)
    assert len(grid) == known
    if name != "camera_trap":
        near = family.distance(family.factors(), grid[:, : len(family.factor_names)])
        assert name == "corruptions" or near.min(1).max() <= 0.0626  # of tasks of every split


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_tokenizer_trained_on_precise_and_on_some_vague_sentences_reads_all(name):
    condition = SCENARIOS[name].get_config().condition
    family = made(name)[0]
    precise = [d for t in family.split("seen") for d in t.descriptions]
    model = train_tokenizer(precise + sentences(name, 200), condition.text_vocab_size)
    tokenizer = Tokenizer(model, condition.text_max_length)
    for text in sentences(name, 300, held_out=True):
        tokenizer.encode(text)


@pytest.mark.parametrize("name", SCENARIOS)
def test_examples_are_fixed_sentences(name):
    grammar = made(name)[0].grammar
    examples = grammar.examples(3)
    assert examples == grammar.examples(3) and len(set(examples)) == 3 and len(grammar.examples()) == 2
    assert all(grammar.read(e).tasks is not None for e in examples)


@pytest.mark.parametrize("name", ["class_subsets", "fashion_mnist"])
def test_no_wording_has_the_name_of_a_class_in_it(name):
    family, _ = made(name)
    wordings = [w for c in family.grammar.constructions for w in (*c.wordings, *c.held_out)]
    words = {w for wording in wordings for w in re.findall(r"[a-z-]+", re.sub(r"{\w+}", "", wording))}
    assert words.isdisjoint({w for n in family.factor_names for w in n.split()})


EMPTY = [
    ("interp", "digits rotated by between 60 and 60 degrees"),
    ("interp", "digits rotated from 360 to 0 degrees"),
    ("interp", "digits rotated by less than 0 degrees"),
    ("interp", "digits rotated by more than 360 degrees"),
    ("interp", f"digits rotated by about {'9' * 400} degrees"),
    ("corruptions", "digits under blur between 60 and 40 percent"),
    ("corruptions", "digits under blur between 40 and 40 percent"),
    ("corruptions", "digits under about 106 percent blur"),
    ("corruptions", "digits under some corruption of severity 130 percent"),
    ("corruptions", "digits under either 20 or 120 percent blur"),
    ("class_subsets", "recognise two and some other classes without two"),
    ("class_subsets", "recognise either two and two or four and five"),
    ("class_subsets", "recognise either zero, one, two, three, four and five or four and five"),
    ("camera_trap", "a camera trap in 20 to 40 percent light"),
    ("camera_trap", "a camera trap on moon in 80 to 60 percent light"),
]


@pytest.mark.parametrize("name, text", EMPTY)
def test_sets_without_tasks_are_refused(name, text):
    with pytest.raises(Unreadable, match="^prompt: .*(; allowed: |too large)"):
        made(name)[0].grammar.read(text)


def angles(text):
    return made("interp")[1][said_by("interp", text), 0]


@pytest.mark.parametrize(
    "text, inside",
    [
        ("digits rotated by between 60 and 90 degrees", lambda x: (x >= 60) & (x <= 90)),
        ("digits rotated from 350 to 10 degrees", lambda x: (x >= 350) | (x <= 10)),
        ("digits rotated by between 90 and 60 degrees", lambda x: (x >= 60) & (x <= 90)),
        ("digits rotated by 350 up to 370 degrees", lambda x: (x >= 350) | (x <= 10)),
        ("digits rotated by between 0 and 360 degrees", lambda x: x >= 0),
        ("digits rotated by either 0 or 222.5 degrees",
         lambda x: (x <= 0.5) | (x >= 359.5) | (abs(x - 222.5) <= 0.5)),
        ("digits rotated by 10 or 20 or 30 degrees", lambda x: np.abs(x[:, None] - [10, 20, 30]).min(1) <= 0.5),
        ("digits rotated by about 4 degrees", lambda x: (x <= 14) | (x >= 354)),
        ("digits rotated by less than 90 degrees", lambda x: x <= 90),
        ("digits rotated by more than 90 degrees", lambda x: (x >= 90) | (x == 0)),  # which is 360
        ("digits rotated by some angle", lambda x: x >= 0),
        ("digits that are roughly upright", lambda x: (x <= 45) | (x >= 315)),
        ("digits roughly upside down", lambda x: abs(x - 180) <= 45),
        ("digits that are not upside down", lambda x: abs(x - 180) > 45),
    ],
)  # fmt: skip
def test_sets_of_angles(text, inside):
    grid = made("interp")[1]
    np.testing.assert_array_equal(angles(text), grid[inside(grid[:, 0]), 0])


def test_ends_of_a_range_belong_to_it_whatever_their_precision():
    found = made("interp")[0].grammar.read("digits rotated by between 59.99 and 90.07 degrees")
    assert found.tasks.said == "any angle from 59.99 to 90.07 degrees (30.08 of 360)"
    ends = np.array([[59.99], [90.07], [59.98], [90.08]])
    for factors in (ends, ends.astype(np.float32)):
        np.testing.assert_array_equal(found.tasks.contains(factors), [True, True, False, False])


@pytest.mark.parametrize(
    "text, kinds, inside",
    [
        ("digits under some blur", {"blur"}, lambda s: s >= 0),
        ("digits under blur between 40 and 60 percent", {"blur"}, lambda s: (s >= 40) & (s <= 60)),
        ("digits with about 98 percent noise", {"noise"}, lambda s: s >= 93),
        ("digits with either 20 or 70 percent shear", {"shear"}, lambda s: (abs(s - 20) < 0.5) | (abs(s - 70) < 0.5)),
        ("digits with either scale or occlusion", {"scale", "occlusion"}, lambda s: s >= 0),
        ("digits under some corruption of severity 33 percent", None, lambda s: abs(s - 33) < 0.5),
        ("digits under any corruption", None, lambda s: s >= 0),
    ],
)
def test_sets_of_corruptions(text, kinds, inside):
    (family, grid), rows = made("corruptions"), said_by("corruptions", text)
    own = [family.factor_names[1 + i] for i in grid[:, 1:8].argmax(1)]
    expected = [(kinds is None or k in kinds) and inside(100 * s) for k, s in zip(own, grid[:, 0], strict=True)]
    np.testing.assert_array_equal(rows, expected)


def test_all_but_a_kind_are_the_others_and_only_kinds_in_use_are_known():
    but, own = (said_by("corruptions", f"digits under {t}") for t in ("any corruption but blur", "some blur"))
    np.testing.assert_array_equal(but, ~own)
    few = family_of("corruptions", corruptions=("blur", "noise"), num_seen=20).grammar
    assert few.read("digits under some blur").tasks.contains(few.grid(20)).sum() == 10
    with pytest.raises(Unreadable, match="mean nothing here: 'shear'"):
        few.read("digits under some shear")
    alone = family_of("corruptions", corruptions=("blur",), num_seen=20).grammar
    assert {"two kinds", "not a kind"}.isdisjoint(c.name for c in alone.constructions)


@pytest.mark.parametrize(
    "text, member",
    [
        ("recognise two and some other classes", lambda s: "two" in s),
        ("recognise at least two and nine", lambda s: {"two", "nine"} <= s),
        ("recognise classes without two", lambda s: "two" not in s),
        ("recognise two and some other classes without nine", lambda s: "two" in s and "nine" not in s),
        ("recognise any three classes", lambda s: len(s) == 3),
        ("does an image show some classes", lambda s: True),
        ("recognise either two and five or six and one", lambda s: s in ({"two", "five"}, {"six", "one"})),
    ],
)
def test_sets_of_subsets(text, member):
    family, grid = made("class_subsets")
    subsets = [{n for n, f in zip(family.factor_names, row, strict=True) if f} for row in grid]
    rows = said_by("class_subsets", text)
    np.testing.assert_array_equal(rows, [member(s) for s in subsets])
    assert f"({rows.sum()} of 627 subsets)" in family.grammar.read(text).said


def test_names_of_several_words_and_names_in_names_are_told_apart():
    family, grid = made("fashion_mnist")
    rows = grid[said_by("fashion_mnist", "a detector of either t-shirt and ankle boot or shirt, bag and dress")]
    found = {frozenset(np.array(family.factor_names)[row > 0]) for row in rows}
    assert found == {frozenset({"t-shirt", "ankle boot"}), frozenset({"shirt", "bag", "dress"})}


@pytest.mark.parametrize(
    "text, inside",
    [
        ("a camera trap on moon", lambda light, habitat: habitat == 2),
        ("a camera trap on either grass or tissue", lambda light, habitat: habitat in (0, 5)),
        ("a camera trap in 60 to 80 percent light", lambda light, habitat: 60 <= light <= 80),
        ("animals on page in 60 to 80 percent light", lambda light, habitat: 60 <= light <= 80 and habitat == 4),
        ("camera on anything but moon", lambda light, habitat: habitat != 2),
        ("camera at any place", lambda light, habitat: True),
    ],
)
def test_sets_of_cameras(text, inside):
    grid, rows = made("camera_trap")[1], said_by("camera_trap", text)
    assert rows.any()
    np.testing.assert_array_equal(rows, [inside(row[1], row[3] // 100) for row in grid])


def test_a_small_grid_of_cameras_has_every_habitat():
    family = family_of("camera_trap")
    seen = {t.factors for t in family.split("seen")}
    for count in (6, 11, 30):
        rows = family.grammar.grid(count)
        assert set(rows[:, 3] // 100) == set(range(6)) and {tuple(r) for r in rows.tolist()} <= seen


def test_a_template_is_held_out_if_its_sentence_or_its_phrase_is():
    own = construction("x", (("see {}", "at {}"), ("on {}",)), ("a {k}",), ("b {k}",), lambda random: {}, lambda k: k)
    assert own.wordings == ("see a {k}", "at a {k}")
    assert own.held_out == ("see b {k}", "at b {k}", "on a {k}", "on b {k}")
    assert own.region({"k": "v"}) == "v"

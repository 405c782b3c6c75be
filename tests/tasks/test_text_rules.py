"""The family of rules over texts: which texts a task has, distances between splits, descriptions, and bad texts."""

import itertools

import jax
import numpy as np
import pytest

from configs import text_rules as scenario
from pdiff.errors import PdiffError
from pdiff.tasks import get_family
from pdiff.tasks.data import text_files, wordnet
from pdiff.tasks.families import text_rules as lib
from pdiff.tasks.language import Unreadable
from pdiff.tasks.languages.text_rules import GROUPS, KINDS, make_grammar
from tests.tasks import text_world

NAMES = [called[0] for called in KINDS.values()]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        lib._reader.cache_clear()
        yield text_world.prepared(tmp_path_factory.mktemp("texts"), monkeypatch, 20)
    lib._reader.cache_clear()


@pytest.fixture(scope="module")
def grammar():
    return make_grammar()


def family_of(data_dir, **overrides):
    config = scenario.get_config().tasks.unlock()
    config.update(dict(data_dir=str(data_dir), eval_images=0) | overrides)
    return get_family(config)


@pytest.fixture(scope="module")
def family(texts):
    return family_of(texts)


def rules(family, split):
    return [frozenset(np.flatnonzero(t.factors).tolist()) for t in family.split(split)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("count", [23 * 14, 23 * 4])
def test_half_of_a_tasks_texts_are_of_the_rule_and_every_text_of_it_comes_as_often(size, count):
    rule, kinds = list(range(2, 2 + size)), list(wordnet.KINDS.values())
    member = lib._member([float(k in rule) for k in range(len(KINDS))])
    rows = np.asarray(lib.choose({"member": member}, np.arange(count), count))
    named = {kinds.index(list(KINDS)[k]) for k in rule}
    kind = rows // (count // 23)
    inside = np.isin(kind, list(named))
    assert inside.mean() == 0.5
    assert not np.isin(kind, [kinds.index(k) for k in lib.UNHEARD]).any()
    often = np.bincount(rows[inside], minlength=count).reshape(23, -1)[sorted(named)]
    assert often.min() > 0 and often.max() - often.min() <= 2
    assert len(np.unique(kind[~inside])) == 20 - size


def test_an_unheard_kind_is_told_from_the_heard_ones_alone(family):
    tasks = family.split("unheard")
    assert [t.name for t in tasks] == [f"unheard_{k}" for k in lib.UNHEARD]
    for task, labels in zip(tasks, family.labels(tasks), strict=True):
        variables = {"member": family.variables["member"][task.id]}
        rows = np.asarray(lib.choose(variables, np.arange(len(labels)), len(labels)))
        kinds = [list(wordnet.KINDS.values())[k] for k in rows // (len(labels) // 23)]
        assert {k for k, y in zip(kinds, labels, strict=True) if y} == {task.name.removeprefix("unheard_")}
        assert {k for k, y in zip(kinds, labels, strict=True) if not y} == {*KINDS}
        assert task.descriptions[0].endswith(lib.UNHEARD[task.name.removeprefix("unheard_")])
        assert task.name.removeprefix("unheard_") not in task.descriptions[0].split()


def test_splits_keep_their_distances(family):
    split = {name: rules(family, name) for name in ("seen", "practice", "validation", "interp", "unseen")}
    sizes = {"seen": 128, "practice": 1000, "validation": 8, "interp": 8, "unseen": 16}
    assert {n: len(r) for n, r in split.items()} == sizes
    everything = [r for some in split.values() for r in some]
    assert len({*everything}) == len(everything) and {len(r) for r in everything} == {1, 2, 3, 4, 5}
    for held, seen in itertools.product(split["unseen"] + split["validation"], split["seen"] + split["practice"]):
        assert len(held ^ seen) >= 2
    assert all(min(len(i ^ s) for s in split["seen"]) == 1 for i in split["interp"])


def test_texts_of_a_task_are_the_shared_ones_and_parts_stay_apart(family):
    x, y = family.all_of_task({"member": family.variables["member"][0]}, family.data["test"].x, family.data["test"].y)
    shared = {row.tobytes() for row in family.data["test"].x}
    assert {row.tobytes() for row in np.asarray(x)} <= shared
    other = {row.tobytes() for row in family.data["train"].x}
    assert not shared & other


def test_few_texts_are_taken_evenly(texts):
    family = family_of(texts, eval_images=46)
    assert len(family.data["test"].y) == 46 and len(family.data["train"].y) == 23 * 14
    assert (np.bincount(family.data["test"].y) == 2).all()


def test_every_wording_is_read_back(grammar):
    random = np.random.RandomState(0)
    for size in (1, 2, 3, 4, 5):
        factors = np.zeros(20)
        factors[random.permutation(20)[:size]] = 1
        for text in itertools.chain(*lib.describe(tuple(factors))):
            assert grammar.read(text).factors == tuple(factors), text


def test_every_vague_sentence_is_read_back(grammar):
    random = np.random.default_rng(0)
    for held_out in (False, True):
        for _ in range(30):
            text, tasks = grammar.sentence(random, held_out)
            assert grammar.read(text).tasks.said == tasks.said, text


@pytest.mark.parametrize(
    "prompt, kinds",
    [
        ("plants or food", ["food", "plants"]),
        ("anything alive but not people", ["animals", "plants"]),
        ("Is it a plant?", ["plants"]),
        ("find me texts that talk about money, people and human-made... no, places", None),
        ("a network that tells plants and animals from everything else", ["animals", "plants"]),
        ("physical things except food", ["artifacts", "natural objects", "substances"]),
        ("texts about man-made things", ["artifacts"]),
    ],
)
def test_many_words_are_understood(grammar, prompt, kinds):
    if kinds is None:
        with pytest.raises(Unreadable):
            grammar.read(prompt)
    else:
        assert [n for n, f in zip(NAMES, grammar.read(prompt).factors, strict=True) if f] == kinds


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("nothing", "names no kind; allowed: 1 to 5"),
        ("everything", "names 20 kinds.*allowed: 1 to 5"),
        ("anything but food", "names 19 kinds.*complement"),
        ("plants but not plants", "plants both as a kind to have and as one to lack"),
        ("plants and some other kinds without plants", "plants both as a kind to have"),
        ("people but not living things", "people both as a kind"),
        ("six kinds", "6 kinds; allowed: 1 to 5"),
        ("texts about musical instruments", "mean nothing here: 'musical', 'instruments'"),
        ("植物", "English is expected"),
    ],
)
def test_rules_that_name_no_kind_all_kinds_or_contradict_themselves_are_refused(grammar, prompt, message):
    with pytest.raises(Unreadable, match=message):
        grammar.read(prompt)


def test_names_are_of_one_kind_each_and_groups_are_of_kinds():
    names = [name for called in KINDS.values() for name in called]
    assert len({*names}) == len(names)
    assert {kind for group in GROUPS.values() for kind in group} <= {*KINDS}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "text 2 of 2: got an empty text"),
        (" \n", "text 2 of 2: got an empty text"),
        ("... 12 --", "no letters; allowed: English"),
        ("digits " * 10_000, "tokens; allowed: at most 256"),
        ("растение", "cannot read|another script"),
    ],
)
def test_unreadable_texts_are_refused(family, text, message):
    with pytest.raises(PdiffError, match=message):
        family.reads(["rotated digits", text])


def test_a_text_is_read_as_the_data_set_was(family, texts):
    stored = wordnet.read(str(texts))["test"]
    np.testing.assert_array_equal(family.reads(list(stored.texts[:3])), stored.x[:3])


def test_a_users_texts_come_from_a_file_for_each_class(family, tmp_path):
    (tmp_path / "yes.txt").write_text("abc: of digits\n\ndegrees\n")
    (tmp_path / "no.txt").write_text("rotated\n")
    x, y = text_files.read_support(tmp_path, family)
    assert y.tolist() == [0, 1, 1] and x.shape == (3, family.features)
    np.testing.assert_array_equal(x[1:], family.reads(["abc: of digits", "degrees"]))
    (tmp_path / "maybe.txt").write_text("digits\n")
    with pytest.raises(PdiffError, match="maybe.txt: got it among the texts; allowed: no.txt and yes.txt"):
        text_files.read_support(tmp_path, family)


def test_texts_without_labels_come_in_one_file(family, tmp_path):
    with pytest.raises(PdiffError, match="no text in it"):
        text_files.read_support(tmp_path, family)
    (tmp_path / "some.txt").write_text("digits\nrotated\n")
    x, y = text_files.read_support(tmp_path, family)
    assert y is None and len(x) == 2


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"unseen": "60:90"}, "tasks.unseen: got '60:90'.*allowed for text_rules: ''"),
        ({"data": "digits"}, "tasks.data: got 'digits'; allowed for text_rules: wordnet"),
        ({"num_seen": 30_000}, "tasks.num_seen [+] tasks.num_practice: got 31000.*allowed: at most"),
        ({"num_interp": 30_000}, "tasks.num_interp: got 30000.*allowed: at most"),
    ],
)
def test_settings_without_room_are_refused(texts, overrides, message):
    with pytest.raises(PdiffError, match=message):
        family_of(texts, **overrides)


def test_the_vector_of_a_text_is_the_frozen_encoders(family, texts):
    from pdiff.models.sentence import SentenceEncoder

    short = ["digits rotated", "abc degrees"]
    whole = SentenceEncoder(texts.parent / "bert").encode_all(short)
    np.testing.assert_allclose(family.sentences(family.reads(short)), whole, atol=3e-3)  # float16 on the way
    assert jax.tree.leaves(family.pretraining)[0].shape == (20, 23)

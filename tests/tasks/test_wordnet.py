"""WordNet's definitions as a data set: what is read of data.noun, and what is refused."""

import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.tasks.data import wordnet
from tests.models import tiny_bert
from tests.tasks import text_world


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield text_world.prepared(tmp_path_factory.mktemp("texts"), monkeypatch, 20)


def test_a_text_is_a_noun_and_its_definition_without_examples(tmp_path):
    by_kind = wordnet.definitions(text_world.write(tmp_path, 3))
    assert list(by_kind) == list(wordnet.KINDS.values()) and {len(t) for t in by_kind.values()} == {3}
    assert all(t.split(": ")[1].startswith("xyz"[5 % 3] + "5 ") for t in by_kind["animal"])  # lexicographer's file 5
    assert not any("example" in t or "_" in t for texts in by_kind.values() for t in texts)


def test_parts_are_disjoint_and_have_as_many_texts_of_each_kind(data):
    parts = wordnet.read(str(data))
    assert {p: len(t.texts) for p, t in parts.items()} == {"train": 23 * 14, "validation": 23 * 2, "test": 23 * 4}
    texts = [t for part in parts.values() for t in part.texts]
    assert len({*texts}) == len(texts) == 23 * 20
    for part in parts.values():
        assert (part.y == np.repeat(np.arange(23), len(part.y) // 23)).all()
        assert part.x.shape == (len(part.y), wordnet.LENGTH * tiny_bert.WIDTH) and part.x.dtype == np.float16


def test_tokens_after_a_text_are_zero_and_no_other(data):
    tokens = wordnet.read(str(data))["test"].x.reshape(-1, wordnet.LENGTH, tiny_bert.WIDTH)
    real = (tokens != 0).any(-1)
    assert (np.diff(real.astype(int), axis=1) <= 0).all() and real[:, 0].all()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda p: p.unlink(), "no such file.*wordnet-base"),
        (lambda p: p.write_bytes(p.read_bytes()[:-40]), "line .*: damaged, or no WordNet"),
        (lambda p: p.write_text(p.read_text().replace(" n 01 ", " v 01 ", 1)), "line 4: damaged"),
        (lambda p: p.write_text(p.read_text().replace(" 3.0 ", " 3.1 ")), "WordNet 3.1; allowed: 3.0"),
        (lambda p: p.write_text("nothing\n"), "line 1: damaged"),
        (lambda p: p.write_text(""), "no version; allowed: 3.0"),
        (lambda p: p.write_text(p.read_text().replace("@ 0", "@ 9", 1)), "1 nouns that others point to are missing"),
    ],
)
def test_another_file_is_refused(tmp_path, spoil, message):
    spoil(path := text_world.write(tmp_path, 2))
    with pytest.raises(PdiffError, match=message):
        wordnet.definitions(path)


def test_too_few_definitions_are_refused_before_any_work(tmp_path, monkeypatch):
    text_world.write(tmp_path, 10, kinds=[k for k in wordnet.KINDS if k != 5])
    with pytest.raises(PdiffError, match="0 definitions of animal; allowed: at least 10"):
        wordnet.prepare(tmp_path, tmp_path / "data", 10)


def test_a_missing_or_damaged_data_set_says_how_to_prepare_it(data, tmp_path):
    with pytest.raises(PdiffError, match="tasks.data_dir: got ''.*pdiff.tasks.data.wordnet --source"):
        wordnet.read("")
    with pytest.raises(PdiffError, match="no wordnet_kinds in .*pdiff.tasks.data.wordnet --source"):
        wordnet.read(str(tmp_path))
    copy = tmp_path / wordnet.NAME / wordnet.VERSION
    copy.mkdir(parents=True)
    for path in (data / wordnet.NAME / wordnet.VERSION).iterdir():
        (copy / path.name).write_bytes(path.read_bytes()[:-2000] if "test" in path.name else path.read_bytes())
    with pytest.raises(PdiffError, match="unreadable or damaged"):
        wordnet.read(str(tmp_path))

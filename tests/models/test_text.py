"""The tokenizer: reproducible, honest about what it cannot read, and exact about numbers."""

import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.models.text import DIGIT, Tokenizer, train_tokenizer, usual_length
from pdiff.tasks.families import rotation

DESCRIPTIONS = [d for angle in range(0, 360, 7) for d in rotation.describe((angle + 0.25,))[0]]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train_tokenizer(DESCRIPTIONS, 320), 64)


def test_the_same_descriptions_give_the_same_bytes():
    assert train_tokenizer(DESCRIPTIONS, 320) == train_tokenizer(reversed(DESCRIPTIONS), 320)


def test_every_digit_of_a_number_carries_its_value(tokenizer):
    text = tokenizer.encode("digits rotated by 75.5 degrees 8x8 and 120")
    numbers = text.values[text.is_number]
    np.testing.assert_array_equal(numbers, np.float32([75.5] * 4 + [8, 8] + [120] * 3))
    assert (text.ids[text.is_number] == DIGIT).all()
    assert not text.values[~text.is_number].any()


def test_texts_that_differ_in_a_number_differ_only_in_values(tokenizer):
    a, b = tokenizer.encode("digits rotated by 75 degrees"), tokenizer.encode("digits rotated by 31 degrees")
    np.testing.assert_array_equal(a.ids, b.ids)
    assert (a.values != b.values).any()


def test_held_out_wordings_can_be_read(tokenizer):
    for text in rotation.describe((123.45,))[1]:
        assert tokenizer.encode(text).is_number.any()


def test_any_number_can_be_read_whatever_digits_training_had():
    few = Tokenizer(train_tokenizer(list(rotation.describe((11.0,))[0][:6]), 300), 64)
    text = few.encode("digits rotated by 2345.6789 degrees")
    np.testing.assert_array_equal(text.values[text.is_number], np.float32([2345.6789] * 9))


def test_texts_are_padded_to_the_family_s_longest_and_longer_ones_to_the_most(tokenizer):
    fitted = Tokenizer(tokenizer.model, 64, usual_length(tokenizer, DESCRIPTIONS))
    longest = max((tokenizer.encode(d).ids > 0).sum() for d in DESCRIPTIONS)
    assert longest <= fitted.usual_length < longest + 4 < 64, longest
    few = fitted.encode_all(DESCRIPTIONS[:3])
    assert few.ids.shape == few.values.shape == few.is_number.shape == (3, fitted.usual_length)
    whole = tokenizer.encode_all(DESCRIPTIONS[:3])
    assert whole.ids.shape == (3, 64)
    np.testing.assert_array_equal(whole.ids[:, : fitted.usual_length], few.ids)
    longer = "rotate every digit " + "and every digit " * 4 + "and digit by 5 degrees"
    assert (tokenizer.encode(longer).ids > 0).sum() > fitted.usual_length
    assert fitted.encode_all([*DESCRIPTIONS[:2], longer]).ids.shape == (3, 64)


def test_capitals_do_not_matter(tokenizer):
    a, b = tokenizer.encode("Digits Rotated by 75 degrees"), tokenizer.encode("digits rotated by 75 degrees")
    np.testing.assert_array_equal(a.ids, b.ids)


@pytest.mark.parametrize(
    "text, part",
    [("世", "no character"), ("¿", "no character"), ("", "empty"), ("  ", "empty")],
)
def test_unreadable_prompts_are_refused(tokenizer, text, part):
    with pytest.raises(PdiffError, match="prompt") as error:
        tokenizer.encode(text)
    assert part in str(error.value)


def test_too_long_a_prompt_is_refused(tokenizer):
    with pytest.raises(PdiffError, match="at most 64"):
        tokenizer.encode("digits rotated by 75 degrees " * 10)


@pytest.mark.parametrize("size", [10, 5000])
def test_a_vocabulary_that_does_not_fit_is_refused(size):
    with pytest.raises(PdiffError, match="condition.text_vocab_size"):
        train_tokenizer(DESCRIPTIONS, size)


def test_a_vocabulary_of_no_size_suits_a_few_descriptions_and_reads_every_letter():
    few = Tokenizer(train_tokenizer(["strength 0.1", "strength 0.2"], 0), 64)
    assert 256 < few.vocab_size <= 500
    assert few.encode("zebra; quartz (0.75)!").values.max() == 0.75
    np.testing.assert_array_equal(few.encode("größé").ids, few.encode("groe").ids)
    assert few.strange("größé 世") == ["ß", "世"]
    assert Tokenizer(train_tokenizer(["größe 1", "größe 2"], 0), 64).encode("größe 3").values.max() == 3


@pytest.mark.parametrize("name", ["strength", "Stärke", "сила", "强度", "🙂 strength"])
@pytest.mark.parametrize(
    "number, value", [("0.25", 0.25), ("-0.5", -0.5), ("0,50", 0.5), (".5", 0.5), ("1e-1", 0.1), ("−٣", -3)]
)
def test_numbers_have_their_values_beside_any_letters(name, number, value):
    few = Tokenizer(train_tokenizer([f"{name} {i / 7:.2f}" for i in range(8)], 0), 64)
    text = few.encode(f"{name} {number}")
    assert set(text.values[text.is_number]) == {np.float32(value)} and (text.ids[text.is_number] == DIGIT).all()
    np.testing.assert_array_equal(few.encode(f"{name}! {number}?").values.max(), text.values.max())

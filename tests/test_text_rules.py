"""The scenario of texts from its data set to adapters in a folder, small, with a tiny BERT in the place of MiniLM."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

import pdiff
from configs import text_rules
from pdiff import run
from pdiff.ask import commands
from pdiff.ask.serve.session import Session
from pdiff.errors import PdiffError
from pdiff.tasks.families import text_rules as family_lib
from tests import complete
from tests.tasks import text_world
from tests.test_config import SHRUNKEN, with_field

CHANGES = SHRUNKEN | {
    "tasks.num_practice": 4, "tasks.num_unheard": 2,
    "tasks.eval_images": 46, "target.lora_rank": 2, "condition.text_max_length": 200,
    "zoo.reference_seeds": 1, "eval.samples_per_task": 1, "eval.adapt_tasks": 2,
    "adapt.guided": 0, "eval.vague_samples": 2, "eval.vague_prompts": ("any kinds",),
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder, and its results. Takes a minute."""
    where = tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as monkeypatch:
        family_lib._reader.cache_clear()
        data, config = text_world.prepared(where, monkeypatch), text_rules.get_config()
        for field, value in (CHANGES | {"tasks.data_dir": str(data)}).items():
            config = with_field(config, field, value)
        results = run.run(config.lock(), where / "run")
        yield where / "run", results
    family_lib._reader.cache_clear()


@pytest.fixture(scope="module")
def loaded(finished):
    return pdiff.load(finished[0])


def test_results_are_complete(finished):
    workdir, results = finished
    assert complete.check(results) == []
    assert set(results["splits"]) == {"seen", "interp", "unseen", "unheard"}
    assert results["splits"]["unheard"]["controls"]["majority"]["mean"] == 0.5  # accuracies are balanced
    assert "joined_head" not in results["splits"]["unheard"]["controls"]
    assert "base_head" in results["adaptation"]["splits"]["unheard"][1]["accuracy"]
    assert "unheard" in (workdir / "report.html").read_text()


def test_a_rule_in_words_becomes_an_adapter_of_peft(finished, tmp_path, loaded):
    prompt = "anything alive but not people"
    commands.sample(finished[0], prompt=prompt, num_samples=2, out=str(tmp_path / "alive"))
    folders = sorted(p.name for p in (tmp_path / "alive").iterdir() if p.is_dir())
    assert folders == ["sample_0", "sample_1"]
    config = json.loads((tmp_path / "alive" / "sample_0" / "adapter_config.json").read_text())
    arrays = safetensors.numpy.load_file(tmp_path / "alive" / "sample_0" / "adapter_model.safetensors")
    assert config["r"] == 2 and config["modules_to_save"] == ["classifier"] and len(arrays) == 2 * 12 + 2
    network = loaded.sample(prompt, num_samples=2)
    kernel = np.asarray(network["params"]["classifier"]["kernel"])[0]
    np.testing.assert_allclose(arrays["base_model.model.classifier.weight"], kernel.T, atol=1e-6)


def test_texts_go_where_images_go_elsewhere(loaded):
    networks, texts = loaded.sample("plants or food", num_samples=2), ["abc: of digits", "8 degrees", "rotated"]
    logits = loaded.apply(networks, texts)
    assert logits.shape == (2, 3, 2)
    np.testing.assert_allclose(loaded.apply(networks, loaded.family.reads(texts)), logits, atol=1e-5)
    assert loaded.adapt(texts, [0, 1, 1], num_samples=4)["lora"]
    assert "inputs: lists of texts in English; classes: no, yes" in str(loaded.describe())
    for wrong, message in (
        ("one text", r"\[text\] is a list of one"),
        ([1, 2], "a list of texts"),
        ([""], "empty text"),
    ):
        with pytest.raises(PdiffError, match=message):
            loaded.apply(networks, wrong)


def test_a_folder_of_labelled_texts_becomes_an_adapter(finished, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "yes.txt").write_text("abc: of digits\n")
    (tmp_path / "mine" / "no.txt").write_text("rotated\n8 degrees\n")
    commands.adapt(finished[0], support=str(tmp_path / "mine"), num_samples=4, out=str(tmp_path / "out"))
    assert (tmp_path / "out" / "sample_0" / "adapter_config.json").exists()


def test_a_definition_is_given_to_the_model_as_it_is(finished, loaded):
    with pytest.raises(PdiffError, match="mean nothing here: .*--force"):
        loaded.sample("the organs of an animal", num_samples=1)
    assert loaded.sample("the organs of an animal", num_samples=1, force=True)["lora"]


def test_the_page_which_shows_images_says_so(loaded):
    with pytest.raises(PdiffError, match=re.escape("--mode=serve: the family has texts")):
        Session(loaded)


def test_what_to_expect_of_a_rule_is_not_taken_from_unheard_kinds(loaded):
    assert "unheard" not in loaded.expect("plants or food").basis
    assert loaded.expect(task_id="unheard_body").basis != loaded.expect("plants or food").basis

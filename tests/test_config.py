"""Configs: the table is complete, every scenario is sound and runs, and mistakes are named."""

import importlib
from pathlib import Path

import pytest

from configs import common
from pdiff import config as config_lib
from pdiff import run
from pdiff.errors import PdiffError
from pdiff.report import results as results_lib

SCENARIOS = sorted(p.stem for p in Path("configs").glob("*.py") if p.stem not in ("__init__", "common"))

# What makes any scenario run in seconds, without changing which code it runs.
SHRUNKEN = {
    "tasks.num_seen": 8,
    "tasks.num_interp": 3,
    "tasks.num_unseen": 4,
    "tasks.num_validation": 3,
    "tasks.eval_images": 50,
    "zoo.seeds_per_task": 2,
    "zoo.reference_seeds": 2,
    "zoo.pretrain_steps": 20,
    "zoo.steps": 10,
    "zoo.batch_size": 8,
    "zoo.chunk_size": 16,
    "model.width": 32,
    "model.depth": 1,
    "model.mean_width": 16,
    "condition.text_width": 16,
    "condition.text_depth": 1,
    "condition.support_images": 2,
    "diffusion.functional_images": 8,
    "condition.text_vocab_size": 300,
    "train.steps": 4,
    "train.warmup_steps": 1,
    "train.batch_size": 8,
    "weights.token_dim": 256,
    "sample.samplers": ("posterior_mean", "ddim"),  # each takes seconds to compile; test_main runs all of them
    "sample.num_steps": 4,
    "sample.batch_size": 16,
    "eval.samples_per_task": 2,
    "eval.support_sizes": (1,),
    "eval.test_time_samples": 0,
    "eval.curve_levels": (),
    "eval.mixing_separations": (),
    "eval.transfer_pairs": 0,
    "eval.rivals": "",
    "eval.rival_steps": 2,
    "eval.likelihood_networks": 0,
    "eval.likelihood_steps": 2,
    "eval.likelihood_probes": 1,
    "eval.score_levels": (),
    "eval.closeup_tasks": 0,
    "eval.chunk_size": 32,
}
# Studies of an evaluation, small. Each takes seconds to compile, so each scenario runs one; test_main runs all of them.
STUDIES = (
    {"eval.test_time_samples": 2},
    {"eval.curve_levels": (0.5,)},
    {"eval.mixing_separations": (90.0,)},
    {"eval.transfer_pairs": 6},
    {"eval.likelihood_networks": 3},
    {"eval.score_levels": (0.5,)},
    {"eval.closeup_tasks": 2},
)


def scenario(name):
    return importlib.import_module(f"configs.{name}").get_config()


def with_field(config, name, value):
    config = config.copy_and_resolve_references()
    *parents, last = name.split(".")
    part = config
    with config.unlocked():
        for p in parents:
            part = part[p]
        with part.ignore_type():
            part[last] = value
    return config


def test_the_table_has_every_field_and_no_other():
    assert set(config_lib.FIELDS) == set(config_lib.flatten(common.get_config()))


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_loads_locks_and_validates(name):
    config = scenario(name)
    assert config.is_locked
    config_lib.validate(config)
    assert importlib.import_module(f"configs.{name}").__doc__.count(f"--config=configs/{name}.py") >= 1


@pytest.mark.parametrize("name", [n for n in SCENARIOS if n not in ("smoke", "imported")])  # which other tests run
def test_every_scenario_runs_shrunken(name, tmp_path):
    """Takes 20 s each, on four simulated devices, with one rival. Images in a folder are replaced by the digits."""
    config, i = scenario(name), SCENARIOS.index(name)
    fields = SHRUNKEN | STUDIES[i % len(STUDIES)] | {"eval.rivals": config_lib.RIVALS[i % len(config_lib.RIVALS)]}
    fields |= {"tasks.data": "digits", "tasks.data_dir": "", "target.blocks": 1}
    fields |= {"target.widths": tuple(min(w, 8) for w in config.target.widths[:2])}
    for field, value in fields.items():
        config = with_field(config, field, value)
    results = run.run(config.lock(), tmp_path / "w")
    assert results_lib.check(results) == []


def test_a_vit_which_no_scenario_has_runs_shrunken(tmp_path):
    """Takes 20 s."""
    config, target = scenario("smoke"), {"name": "vit", "widths": (8,)}
    fields = SHRUNKEN | {"sample.samplers": ("posterior_mean",)} | {f"target.{k}": v for k, v in target.items()}
    for field, value in fields.items():
        config = with_field(config, field, value)
    results = run.run(config.lock(), tmp_path / "w")
    assert results_lib.check(results) == [] and results["target"]["name"] == target["name"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_json_round_trip_is_exact(name):
    config = scenario(name)
    again = config_lib.from_json(config_lib.to_json(config))
    assert config_lib.flatten(again) == config_lib.flatten(config)
    assert config_lib.difference(config, again) == []
    assert again.is_locked


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("train.steps", 0, "at least 1"),
        ("train.steps", True, "a whole number"),
        ("train.steps", 3.0, "a whole number"),
        ("train.learning_rate", float("nan"), "above 0"),
        ("train.learning_rate", "fast", "a number"),
        ("condition.drop_text", 1.5, "at most 1"),
        ("weights.layout", "rows", "chunk, neuron"),
        ("sample.samplers", ("heun", "huen"), "posterior_mean"),
        ("sample.samplers", (), "at least one"),
        ("sample.samplers", ("heun", "heun"), "each once"),
        ("sample.condition", ("factors",), "condition.use"),
        ("eval.support_sizes", (0,), "at least 1"),
        ("eval.rivals", "p_diff,gpt", "g_pt"),
        ("target.widths", (32, 0), "at least 1"),
        ("target.generate", "(", "not a regular expression"),
        ("model.num_heads", 3, "model.width"),
        ("train.warmup_steps", 10**9, "train.steps"),
        ("diffusion.sigma_min", 100.0, "sigma_max"),
        ("zoo.keep_last", 10**6, "keep_every"),
    ],
)
def test_impossible_values_are_refused_by_name(field, value, allowed):
    config = with_field(common.get_config(), field, value)
    with pytest.raises(PdiffError) as error:
        config_lib.validate(config)
    assert f"config.{field}" in str(error.value) and allowed in str(error.value)


def test_unknown_and_missing_fields_are_refused():
    config = common.get_config()
    config.train.stpes = 3
    with pytest.raises(PdiffError, match="train.stpes: unknown field; did you mean train.steps"):
        config_lib.validate(config)
    config = common.get_config()
    del config.train.steps
    with pytest.raises(PdiffError, match="train.steps: missing"):
        config_lib.validate(config)


def test_differences_name_the_field_and_both_values():
    a, b = common.get_config(), common.get_config()
    b.train.steps = 7
    assert config_lib.difference(a, b) == [f"train.steps is {a.train.steps} here and 7 there"]


def test_fingerprints_follow_contents():
    a, b = common.get_config(), common.get_config()
    assert config_lib.fingerprint(a.zoo.to_dict()) == config_lib.fingerprint(b.zoo.to_dict())
    b.zoo.steps += 1
    assert config_lib.fingerprint(a.zoo.to_dict()) != config_lib.fingerprint(b.zoo.to_dict())

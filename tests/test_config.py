"""Configs: the table is complete, every scenario is sound and runs, and mistakes are named."""

import contextlib
import importlib
import io
import re
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_flags

from pdiff import config as config_lib
from pdiff import run
from pdiff.config import fields
from pdiff.config.fields import defaults
from pdiff.errors import PdiffError
from pdiff.system import exits, files
from tests import complete

SCENARIOS = sorted(p.stem for p in Path("configs").glob("*.py") if p.stem not in ("__init__", "common"))
# Other tests run the first four. `unseen` is `interp`, a family, and the conditions of `corruptions`; `multi` is
# `single`, without held-out tasks too; and `fashion_mnist` is `class_subsets`, with the convolutions of `pod`.
TWINS = ("unseen", "multi", "fashion_mnist")
RUN = [n for n in SCENARIOS if n not in ("smoke", "imported", "folder", "text_rules", *TWINS)]

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
    "mean.width": 16,
    "mean.steps": 4,
    "mean.batch_size": 8,
    "mean.functional_images": 8,
    "refined.networks": 64,
    "refined.sentences": 4,
    "subspace.components": 8,
    "subspace.networks": 32,
    "condition.text_width": 16,
    "condition.text_depth": 0,
    "condition.text_vocab_size": 300,
    "condition.text_max_length": 96,  # few pieces make long texts
    "train.steps": 4,
    "train.warmup_steps": 1,
    "train.batch_size": 8,
    "weights.token_dim": 256,
    "sample.samplers": ("ddim",),  # each takes seconds to compile
    "sample.num_steps": 4,
    "sample.batch_size": 16,
    "eval.samples_per_task": 2,
    "adapt.num_samples": 8,
    "adapt.guided": 4,
    "adapt.steps": 2,
    "adapt.learning_rates": (1e-3,),
    "eval.vague_samples": 0,
    "eval.vague_prompts": (),
    "eval.calibration_samples": 0,
    "eval.adapt_tasks": 0,
    "eval.adapt_shots": (1,),
    "eval.mixing_separations": (),
    "eval.transfer_pairs": 0,
    "eval.rivals": "",
    "eval.rival_steps": 2,
    "eval.closeup_tasks": 0,
    "eval.chunk_size": 32,
}
# Studies of an evaluation, small. They, samplers and rivals take seconds to compile, so each scenario runs one of them
# (the first ones have no rival or no study), in turn; test_main runs them together.
STUDIES = (
    {"eval.vague_samples": 4},  # of a family that has vague descriptions
    {"eval.calibration_samples": 2},
    {"eval.adapt_tasks": 2},  # of one with held-out tasks, and of a small network, as Reptile takes its time
    {"eval.mixing_separations": (90.0,)},
    {"eval.transfer_pairs": 6},
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


def shrunken(name):
    """A scenario in small, with its share of samplers, studies and rivals."""
    config, i = scenario(name), RUN.index(name)
    changes = SHRUNKEN | {"sample.samplers": (fields.SAMPLERS[i % len(fields.SAMPLERS)],)}
    changes |= (STUDIES[::-1] + ({},) * len(RUN))[len(RUN) - 1 - i]
    changes |= {"eval.rivals": (fields.RIVALS + ("",) * len(RUN))[i]}
    changes |= {"tasks.data": "digits", "tasks.data_dir": "", "target.blocks": 1}
    changes |= {"target.widths": tuple(min(w, 8) for w in config.target.widths[:2])}
    changes |= {"target.name": "vit"} if name == "single" else {}  # which no scenario has
    for field, value in changes.items():
        config = with_field(config, field, value)
    return config


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_loads_locks_and_validates(name):
    config = scenario(name)
    assert config.is_locked
    config_lib.validate(config)
    assert importlib.import_module(f"configs.{name}").__doc__.count(f"--config=configs/{name}.py") >= 1


@pytest.mark.parametrize("name", RUN)
def test_every_scenario_runs_shrunken(name, tmp_path):
    """Takes up to a minute each of processor time, on four simulated devices. Folders of images become the digits."""
    config = shrunken(name).lock()
    # Flax's layer norm promotes bfloat16 itself.
    promotion = "standard" if config.model.dtype == "bfloat16" else "strict"
    with jax.numpy_dtype_promotion(promotion):
        results = run.run(config, tmp_path / "w")
    assert complete.check(results) == []


def test_the_shrunken_scenarios_have_every_sampler_study_and_rival_between_them():
    configs = [config_lib.flatten(shrunken(n)) for n in RUN]
    assert {s for c in configs for s in c["sample.samplers"]} == set(fields.SAMPLERS)
    assert {r for c in configs for r in config_lib.rivals(c["eval.rivals"])} == set(fields.RIVALS)
    for study in STUDIES:
        assert any(c[field] == value for c in configs for field, value in study.items())


def kept(config):
    """The config, written and read again."""
    with tempfile.TemporaryDirectory() as where:
        config_lib.write(Path(where) / "config.json", config)
        return config_lib.read(Path(where) / "config.json")


@pytest.mark.parametrize("name", SCENARIOS)
def test_json_round_trip_is_exact(name):
    config = scenario(name)
    again = kept(config)
    assert config_lib.flatten(again) == config_lib.flatten(config)
    assert config_lib.difference(config, again) == []
    assert again.is_locked


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("train.steps", 0, "at least 1"),
        ("train.steps", True, "a whole number"),
        ("train.steps", 3.0, "a whole number"),
        ("train.steps", 10**400, "at least 1 and at most 2147483647"),
        ("seed", -(10**400), "at least 0 and at most 2147483647"),
        ("train.learning_rate", float("nan"), "above 0"),
        ("train.learning_rate", "fast", "a number"),
        ("condition.drop_text", 1.5, "at most 1"),
        ("weights.scale", "rows", "param, leaf, global"),
        ("sample.samplers", ("heun", "huen"), "posterior_mean"),
        ("sample.samplers", (), "at least one"),
        ("sample.samplers", ("heun", "heun"), "each once"),
        ("sample.condition", ("factors",), "condition.use"),
        ("eval.adapt_shots", (0,), "at least 1"),
        ("eval.rivals", "p_diff,gpt", "g_pt"),
        ("target.widths", (32, 0), "at least 1"),
        ("target.generate", "(", "not a regular expression"),
        ("model.num_heads", 3, "model.width"),
        ("train.warmup_steps", 10**9, "train.steps"),
        ("diffusion.sigma_min", 100.0, "sigma_max"),
        ("zoo.keep_last", 10**6, "keep_every"),
        ("subspace.token_dim", 7, "a divisor of subspace.components = 64"),
        ("subspace.explained", 1.5, "at most 1"),
        ("refined.networks", 1, "at least 2"),
        ("refined.of", "seeds", "mean, zoo"),
        ("refined.vague", 0.95, "at most 1 - condition.drop_all = 0.9"),
        ("mean.functional_weight", -1.0, "at least 0"),
        ("adapt.learning_rates", (), "at least one"),
        ("adapt.steps", -1, "at least 0"),
        ("eval.adapt_shots", (0,), "at least 1"),
        ("eval.vague_prompts", ("digits", 3), "each a text"),
    ],
)
def test_impossible_values_are_refused_by_name(field, value, allowed):
    config = with_field(defaults(), field, value)
    with pytest.raises(PdiffError) as error:
        config_lib.validate(config)
    assert f"config.{field}" in str(error.value) and allowed in str(error.value)


def test_a_mean_that_would_learn_from_nothing_is_refused():
    config = with_field(defaults(), "mean.functional_weight", 0.0)
    with pytest.raises(PdiffError, match="config.mean.zoo_weight: got 0.0; allowed: above 0 where"):
        config_lib.validate(config)
    config_lib.validate(with_field(config, "mean.zoo_weight", 0.5))


def test_unknown_and_missing_fields_are_refused():
    config = defaults()
    config.train.stpes = 3
    with pytest.raises(PdiffError, match="train.stpes: unknown field; did you mean train.steps"):
        config_lib.validate(config)
    config = defaults()
    del config.train.steps
    with pytest.raises(PdiffError, match="train.steps: missing"):
        config_lib.validate(config)


def test_a_config_that_somebody_else_sealed_is_within_the_table(tmp_path):
    config_lib.write(tmp_path / "config.json", defaults())
    assert config_lib.difference(config_lib.read(tmp_path / "config.json"), defaults()) == []
    for field, value in (("model.depth", 10**12), ("zoo.dir", 3), ("sample.samplers", ("heun", "../x"))):
        config_lib.write(tmp_path / "config.json", with_field(defaults(), field, value))
        with pytest.raises(PdiffError, match=f"config.json: {field}: got .*allowed: "):
            config_lib.read(tmp_path / "config.json")


def test_differences_name_the_field_and_both_values():
    a, b = defaults(), defaults()
    b.train.steps = 7
    assert config_lib.difference(a, b) == [f"train.steps is {a.train.steps} here and 7 there"]


def test_fingerprints_follow_contents():
    a, b = defaults(), defaults()
    assert config_lib.fingerprint(a.zoo.to_dict()) == config_lib.fingerprint(b.zoo.to_dict())
    b.zoo.steps += 1
    assert config_lib.fingerprint(a.zoo.to_dict()) != config_lib.fingerprint(b.zoo.to_dict())


# --- properties of overrides, through the very path of the command line ------------------------------

NASTY = (
    "", " ", "nan", "inf", "-inf", "1e999", "-1", "0", "1", "2", "1.0", "0.5", "1e-300", "9" * 400, "9" * 5000, "True",
    "False", "None", "'", '"', "()", "(1,)", "(1, 2)", "[1, 2]", "('heun',)", "heun", "heun,ddim", "('text', 'text')",
    "(nan,)", "((1,),)", "{1: 2}", "b'x'", "1_000", "0x10", "१", "é\u202e", "\udcff", "\x1b[31m", "a\nb", "(" * 300,
    "[" * 3_000, "__import__('os')", "1j", "1+1", "--config.seed=3", "=", "==1", "../..", "(?P<", "[", "(a+)+$", "\\",
    "all", "rotation", "imported", "2147483648", "18446744073709551616", "'heun', 'ddim'", "'1'", "(1.5, 'x')", "1e3",
)  # fmt: skip


def _texts(name):
    """Texts for a field: such as it may hold, such as another may, and nonsense."""
    field = fields.FIELDS.get(name, fields.Field(""))
    one = {
        bool: st.booleans().map(str),
        int: st.integers(-3, 300).map(str) | st.integers().map(str),
        float: st.floats().map(repr) | st.floats(0, 2).map(repr),
        str: st.sampled_from(field.choices or ("", ".*", "digits", "mlp")) | st.text(max_size=20),
    }[field.type]
    fitting = st.lists(one.map(lambda v: repr(v) if field.type is str else v), max_size=4).map(
        lambda v: f"({''.join(f'{x},' for x in v)})"
    )
    return st.one_of(fitting if field.each else one, one, st.sampled_from(NASTY), st.text(max_size=30))


names = st.one_of(
    *[st.sampled_from(sorted(fields.FIELDS))] * 6,
    st.sampled_from(["train", "", "train.", ".steps", "trian.steps", "train.steps.x", "é", "a b", "x\ny"]),
    st.text(st.characters(exclude_characters="="), max_size=12),
)  # fmt: skip
overrides = st.lists(names.flatmap(lambda n: st.tuples(st.just(n), _texts(n))), min_size=1, max_size=3)


def on_the_command_line(arguments):
    """The config of `python -m pdiff.main` with these arguments, or what it says and no config."""
    argv, said = ["pdiff", f"--config={Path('configs/smoke.py').absolute()}", *arguments], io.StringIO()
    own = flags.FlagValues()  # pdiff.main's other flags are those of other programs too
    config_flags.DEFINE_config_file("config", None, "As pdiff.main's.", flag_values=own)
    try:
        with (
            mock.patch.object(flags, "FLAGS", own), mock.patch.object(sys, "argv", argv),
            contextlib.redirect_stderr(said), exits.said(),
        ):  # fmt: skip
            rest = config_lib.parse_flags(argv)
            assert rest == ["pdiff"]
            config = own["config"].value
            config_lib.validate(config)
        return config, ""
    except SystemExit as e:
        assert e.code in (1, 2)
        return None, said.getvalue()


@pytest.mark.parametrize("text", ["9" * 400, "9" * 5000, "-1", "nan", "(1,)", "\x1b[31m", "a\nb"])
def test_what_is_no_such_number_is_said_on_one_line_that_a_terminal_only_shows(text):
    for name in ("train.steps", "train.learning_rate"):
        config, said = on_the_command_line([f"--config.{name}={text}"])
        assert config is None and f"config.{name}: got " in said and "allowed: a" in said
        assert said.count("\n") == 1 and said[:-1].isprintable()
    config, said = on_the_command_line([f"--config.trian\x1b[2J{text}=1"])
    assert config is None and "unknown field" in said and said[:-1].isprintable()


@given(overrides)
def test_property_overrides_are_within_the_table_or_refused_by_name(pairs):
    config, said = on_the_command_line([f"--config.{name}={text}" for name, text in pairs])
    if config is None:
        assert said.startswith("pdiff: error: ") and said.endswith("\n") and said[:-1].isprintable(), said
        assert len(said) < 12_000
        known = [n for n, _ in pairs if n in fields.FIELDS]
        if len(known) == len(pairs):
            assert re.search(r"config\.[a-z_]+(\.[a-z_]+)?: ", said) and any(
                w in said for w in ("allowed: ", "not a regular expression")
            ), said
        return
    flat = config_lib.flatten(config)
    assert set(flat) == set(fields.FIELDS) >= {n for n, _ in pairs}
    assert all(field.allows(flat[name]) for name, field in fields.FIELDS.items())
    again = config_lib.flatten(kept(config))
    assert {n: repr(v) for n, v in again.items()} == {n: repr(v) for n, v in flat.items()}
    unchanged = config_lib.flatten(scenario("smoke"))
    assert {n for n in flat if flat[n] != unchanged[n]} <= {n for n, _ in pairs}
    for name, text in dict(pairs).items():
        field = fields.FIELDS[name]
        if field.type is str and not field.each:
            assert flat[name] == text
        elif field.type in (int, float) and not field.each:
            assert flat[name] == field.type(text)


def test_fields_that_are_newer_than_a_kept_config_have_their_defaults(tmp_path):
    config = defaults()
    kept = config.to_dict()
    del kept["target"]["dtype"], kept["refined"]
    files.write_json(tmp_path / "config.json", kept)
    assert config_lib.difference(config_lib.read(tmp_path / "config.json"), config) == []

"""Four simulated devices and checked annotations for every test, and one tiny zoo and generator that tests share."""

import dataclasses
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
# Tests compile more than they compute, and half as long without LLVM's optimizations, without XLA's newer emitters of
# fused loops, and without splitting programs for several threads to compile.
_QUICK = (
    "backend_optimization_level=0", "llvm_disable_expensive_passes=true", "cpu_use_fusion_emitters=false",
    "cpu_parallel_codegen_split_count=1",
)  # fmt: skip
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *(f"--xla_{flag}" for flag in _QUICK)])

import jax  # noqa: E402  after the variables above
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from tests import annotations  # noqa: E402

# Every call checks pdiff's annotations, kinds and shapes of arrays among them, and no dtype is promoted unasked.
# Processes that tests start do neither.
annotations.install()
jax.config.update("jax_numpy_dtype_promotion", "strict")

import pdiff  # noqa: E402
from configs import smoke  # noqa: E402
from pdiff.generator import generator, published, refined  # noqa: E402
from pdiff.system import dist, logs  # noqa: E402
from pdiff.system.stopping import StopSignal  # noqa: E402
from pdiff.targets import get_target  # noqa: E402
from pdiff.tasks import get_family  # noqa: E402
from pdiff.training import stages  # noqa: E402
from pdiff.zoo import build  # noqa: E402
from tests.noise import noised  # noqa: E402

# Property-based tests: the same cases on every machine, or HYPOTHESIS_PROFILE=thorough pytest -k property for 10,000
# new ones of each.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
settings.register_profile("ci", max_examples=100, derandomize=True, deadline=None, suppress_health_check=_SLOW)
settings.register_profile("thorough", max_examples=10_000, deadline=None, database=None, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compiles each program once for all tests, although each jits it anew, and for all processes that they start."""
    where = tmp_path_factory.getbasetemp()
    where = where.parent if "PYTEST_XDIST_WORKER" in os.environ else where  # which all workers share
    for name, value in (("compilation_cache_dir", str(where / "compiled")),
                        ("persistent_cache_min_compile_time_secs", 0.2)):  # fmt: skip
        jax.config.update(f"jax_{name}", value)
        os.environ[f"JAX_{name}".upper()] = str(value)


@pytest.fixture
def said(caplog, monkeypatch):
    """() -> what pdiff has logged, also where an earlier test has set its own handler up."""
    caplog.set_level("INFO", "pdiff")
    monkeypatch.setattr(logs.log, "propagate", True)
    return lambda: caplog.text


@pytest.fixture(scope="session")
def tiny_config():
    """The smoke scenario, smaller still."""
    config = smoke.get_config()
    with config.unlocked():
        config.zoo.steps = 20
        config.zoo.pretrain_steps = 50
        config.mean.steps = config.train.steps = 8
        config.model.depth = 1
        config.condition.use = ("id", "text")  # more than one
        config.train.update(dict(warmup_steps=2, log_every=2, validate_every=4, checkpoint_every=4))
    return config


@pytest.fixture(scope="session")
def mesh():
    """One device."""
    return dist.make_mesh(jax.devices()[:1])


@pytest.fixture(scope="session")
def mesh4():
    """Four simulated devices."""
    return dist.make_mesh(jax.devices()[:4])


@pytest.fixture(scope="session")
def tiny_zoo(tiny_config, mesh, tmp_path_factory):
    """Networks by split."""
    family = get_family(tiny_config.tasks)
    target = get_target(tiny_config.target, family.image_shape, family.num_classes)
    return build.build(family, target, tiny_config, tmp_path_factory.mktemp("zoo"), mesh, StopSignal())


def make_generator(config, zoo):
    """A generator whose mean is not trained yet."""
    family = get_family(config.tasks)
    target = get_target(config.target, family.image_shape, family.num_classes)
    return generator.make_generator(config, family, target, zoo)


def refine(made, zoo, mesh):
    """The same with a mean whose parameters are random."""
    params = noised(jax.jit(made.init_mean)(jax.random.key(0)), 0.05)
    return refined.refine(made, params, zoo["seen"], mesh)


@pytest.fixture(scope="session")
def tiny_start(tiny_config, tiny_zoo):
    """A generator for the tiny zoo, before its mean is trained."""
    return make_generator(tiny_config, tiny_zoo)


@pytest.fixture(scope="session")
def tiny(tiny_start, tiny_zoo, mesh):
    """The same with a random mean and what follows from it: ready to train the prior, and to draw."""
    return refine(tiny_start, tiny_zoo, mesh)


@pytest.fixture(scope="session")
def make_stage(tiny_start, tiny, tiny_zoo):
    """(name, mesh, fields to change in the config, as in train__steps=2) -> that stage of the tiny generator."""

    def make(name, mesh, **fields):
        prior = name == stages.PRIOR
        made = tiny if prior else tiny_start
        config = made.config.copy_and_resolve_references()
        with config.unlocked():
            for field, value in fields.items():
                part, inner = field.split("__")
                config[part][inner] = value
        made = dataclasses.replace(made, config=config)
        return stages.prior(made, "zoo", mesh) if prior else stages.mean(made, tiny_zoo["seen"], "zoo", mesh)

    return make


@pytest.fixture(scope="session")
def made_up_results():
    """(family, config) -> what of results.json says what to expect, with made-up numbers that tell tasks apart."""

    def make(family, config):
        names, splits = config.sample.samplers, {}
        for split in ("seen", "interp", "unseen"):
            level = {"seen": 0.9, "interp": 0.8, "unseen": 0.7}[split]
            rows = [
                {
                    "task": t.name, "id": t.id, "factors": list(t.factors), "finetuned": 0.95, "base": 0.1,
                    "generated": {n: level + 0.001 * i - 0.01 * k for k, n in enumerate(names)}, "controls": {},
                    "by_condition": {"text": level + 0.001 * i},
                }
                for i, t in enumerate(family.split(split))
            ]  # fmt: skip
            splits[split] = {"num_tasks": len(rows), "per_task": rows, "by_condition": {"text": {}}}
        several = {"mean": 0.85, "sem": 0.01, "min": 0.8, "max": 0.9}
        selection = {"sampler": names[0], "validation": {names[0]: several | {"n": 8}}}
        mixing = [{"separation": s, "accuracy": {"condition_lerp": several | {"n": 9}}} for s in (30.0, 60.0)]
        return {
            "config": config.to_dict(), "splits": splits, "selection": selection, "mixing": mixing, "seed": 0,
            "commit": "unknown", "created": "2026-01-01T00:00:00+00:00", "command": "left out of what is published",
        }  # fmt: skip

    return make


@pytest.fixture(scope="session")
def published_folder(tiny_config, tiny_zoo, mesh, made_up_results, tmp_path_factory):
    """A published generator that reads text, with parameters that nothing was trained for."""
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.condition.use = ("id", "text")
        config.sample.samplers = ("posterior_mean", "ddim")
    made = refine(make_generator(config, tiny_zoo), tiny_zoo, mesh)
    params = noised(jax.jit(made.init)(jax.random.key(0)), 0.05)
    where = tmp_path_factory.mktemp("published") / "tiny"
    published.write(made, params, made_up_results(made.family, config), where)
    return where


@pytest.fixture(scope="session")
def loaded(published_folder):
    return pdiff.load(published_folder)

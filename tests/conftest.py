"""Four simulated devices for every test, and one tiny zoo and generator that tests share."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
# Tests compile more than they compute: without LLVM's optimizations they take two thirds of the time.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax  # noqa: E402  after the variables above
import pytest  # noqa: E402

from configs import smoke  # noqa: E402
from pdiff import dist, generator  # noqa: E402
from pdiff.stopping import StopSignal  # noqa: E402
from pdiff.targets import get_target  # noqa: E402
from pdiff.tasks import get_family  # noqa: E402
from pdiff.zoo import build  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compiles each program once for all tests, although each jits it anew, and for all processes that they start."""
    where = tmp_path_factory.getbasetemp()
    where = where.parent if "PYTEST_XDIST_WORKER" in os.environ else where  # which all workers share
    for name, value in (("compilation_cache_dir", str(where / "compiled")),
                        ("persistent_cache_min_compile_time_secs", 0.2)):  # fmt: skip
        jax.config.update(f"jax_{name}", value)
        os.environ[f"JAX_{name}".upper()] = str(value)


@pytest.fixture(scope="session")
def tiny_config():
    """The smoke scenario, smaller still."""
    config = smoke.get_config()
    with config.unlocked():
        config.zoo.steps = 20
        config.zoo.pretrain_steps = 50
        config.train.steps = 8
        config.train.warmup_steps = 2
        config.train.log_every = 2
        config.train.validate_every = 4
        config.train.checkpoint_every = 4
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


@pytest.fixture(scope="session")
def tiny(tiny_config, tiny_zoo):
    """A generator for the tiny zoo, untrained."""
    family = get_family(tiny_config.tasks)
    target = get_target(tiny_config.target, family.image_shape, family.num_classes)
    return generator.make_generator(tiny_config, family, target, tiny_zoo)

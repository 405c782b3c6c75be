"""Programs read from HLO against counts by hand, the collectives that each layout of training needs, and compilation
for TPUs where libtpu is installed."""

import collections
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import pod, smoke
from pdiff.compile import aot, hlo, roofline
from pdiff.errors import PdiffError
from pdiff.models.dit import count_parameters
from pdiff.system import dist
from pdiff.system.sharding import partition

# The tests' cache of programs is in use by then, and cannot read those for a TPU without one.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


def tiny(**mesh):
    """A config whose steps compile in a second or two."""
    config = smoke.get_config()
    with config.unlocked():
        config.tasks.update(dict(num_seen=5, num_interp=3, num_unseen=4, num_validation=4))
        config.model.update(dict(width=32, depth=1))
        config.condition.update(dict(use=("id",)))
        config.sample.update(dict(condition=("id",), samplers=("ddim",)))
        config.weights.token_dim = 128
        config.mean.batch_size = config.train.batch_size = 8
        config.mesh.update(mesh)
    return config


def read(f, *arguments):
    return hlo.analyse(jax.jit(f).lower(*arguments).compile().as_text())


def test_a_loop_counts_as_often_as_it_runs():
    def f(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0]

    work = read(f, jnp.ones((16, 32)), jnp.ones((32, 32)))
    assert work.matmul_flops == 7 * 2 * 16 * 32 * 32
    assert work.matmul_flops_once == 2 * 16 * 32 * 32
    assert work.hbm_bytes > 3 * work.hbm_bytes_once


def test_taps_of_a_convolution_on_padding_do_not_count():
    x, kernel = jnp.ones((2, 7, 9, 3)), jnp.ones((3, 3, 3, 5))
    f = lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))  # noqa: E731
    taps = np.asarray(f(x[:1, ..., :1], kernel[..., :1, :1])).sum()  # of ones: how many taps meet the image
    assert read(f, x, kernel).matmul_flops == 2 * taps * 2 * 3 * 5


def test_collectives_are_found_with_their_groups_and_what_a_ring_sends(mesh4):
    mesh = dist.make_mesh(list(mesh4.devices.flat), 2)

    def step(x):  # a quarter of it is 2 x 8
        a = jax.lax.psum(x, "model") + jax.lax.ppermute(x, "data", [(0, 1), (1, 0)])
        b = jax.lax.all_gather(x, ("data", "model")).sum(0) + jax.lax.all_to_all(x, "data", 1, 1, tiled=True)
        return a + b + jnp.tile(jax.lax.psum_scatter(x, "data", tiled=True), (2, 1))

    f = jax.shard_map(step, mesh=mesh, in_specs=P(dist.ALL), out_specs=P(dist.ALL), check_vma=False)
    shape = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=NamedSharding(mesh, P(dist.ALL)))
    found = {c.kind: c for c in read(f, shape).collectives}
    quarter = 2 * 8 * 4
    assert {k: (c.bytes, c.group, c.sent) for k, c in found.items()} == {
        "all-reduce": (quarter, 2, quarter),
        "collective-permute": (quarter, 2, quarter),
        "all-gather": (4 * quarter, 4, 3 * quarter),
        "all-to-all": (quarter, 2, quarter / 2),
        "reduce-scatter": (quarter, 2, quarter / 2),
    }
    ids = np.vectorize(lambda d: d.id)(mesh.devices)
    assert set(found["all-reduce"].groups) == {tuple(row) for row in ids.tolist()}


def test_the_ways_to_write_groups_agree():
    lists = "replica_groups={{0,2},{1,3}}, dimensions={0}"
    mesh = "replica_groups=mesh['a'=2,'b'=2]"
    meshes = (f"{mesh} {{'a'}}", f"{mesh}, device_ids=([2,2]T(1,0)) {{'b'}}", f"{mesh}, device_ids=(1,3,0,2) {{'b'}}")
    for text in (lists, "replica_groups=[2,2]<=[2,2]T(1,0)", *meshes):
        assert {frozenset(g) for g in hlo._groups("all-gather", text)} == {frozenset({0, 2}), frozenset({1, 3})}
    assert hlo._groups("all-gather", "replica_groups=[2,2]<=[4]") == ((0, 1), (2, 3))


def trained(config, devices, step="train"):
    """What a training step does on `devices`, with their ids by mesh axis."""
    made, mesh = aot.shapes(config), dist.make_mesh(devices, config.mesh.model)
    ready = aot.program(made, mesh, step)
    work = hlo.analyse(ready.step.lower(*ready.arguments).compile().as_text())
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(ready.arguments[0].params)[0]
    }
    return work, made, mesh, flat


def kinds_of(work):
    return collections.Counter(c.kind for c in work.collectives)


def axis_of(collective, mesh):
    """The axes of the mesh that its groups run over."""
    place = {d.id: index for index, d in np.ndenumerate(mesh.devices)}
    groups = collective.groups or (tuple(place),)
    return tuple(
        name for k, name in enumerate(mesh.axis_names) if any(len({place[i][k] for i in g}) > 1 for g in groups)
    )


def devices_of(kind):
    if kind == "cpu":
        return jax.devices()[:4]
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu")
    aot.without_devices()
    return aot.topology_devices("v5e:2x2")


@pytest.fixture(autouse=True)
def as_before():
    yield
    jax.config.update("jax_exec_time_optimization_effort", 0.0)
    jax.config.update("jax_enable_compilation_cache", True)


STEPS = pytest.mark.parametrize("step", ["mean", "train"])


@pytest.mark.parametrize("kind", ["cpu", "tpu"])
@STEPS
def test_data_parallel_training_sums_gradients_and_gathers_nothing(kind, step):
    work, made, mesh, params = trained(tiny(), devices_of(kind), step)
    assert set(kinds_of(work)) == {"all-reduce"}
    size, moved = 4 * sum(p.size for p in params.values()), sum(c.bytes for c in work.collectives)
    assert 0.97 < moved / size < 1.1  # each gradient once, the metrics, and what little XLA sums before its gradient
    if step == "train":
        ratio = work.matmul_flops * mesh.devices.size / aot.analytic_flops(made, "train")
        assert 0.95 < ratio < 1.15


@pytest.mark.parametrize("kind", ["cpu", "tpu"])
def test_tensor_parallel_blocks_need_two_sums_each_way(kind):
    work, made, mesh, params = trained(tiny(model=2), devices_of(kind))
    config = made.config
    activations = (config.train.batch_size // 2, made.shape[0] + 1, config.model.width)
    # A combined all-reduce holds several arrays. XLA may leave out axes of size 1 but not reorder these.
    sums = [s for c in work.collectives for s in c.shapes if c.kind == "all-reduce" and axis_of(c, mesh) == ("model",)]
    assert sum(s.size == np.prod(activations) for s in sums) == 4 * config.model.depth
    split = {p.shape for n, p in params.items() if "model" in partition(n, p.shape, mesh, False)}
    gathered = {s.dims for c in work.collectives for s in c.shapes if c.kind == "all-gather"}
    assert not split & gathered


@pytest.mark.parametrize("kind", ["cpu", "tpu"])
@STEPS
def test_sharded_training_gathers_parameters_over_data_only(kind, step):
    work, made, mesh, params = trained(tiny(fsdp=True), devices_of(kind), step)
    split = {p.shape for n, p in params.items() if "data" in partition(n, p.shape, mesh, True)}
    gathered = [s for c in work.collectives for s in c.shapes if c.kind == "all-gather"]
    assert {s.size for s in gathered} >= {int(np.prod(shape)) for shape in split}
    largest = max(p.size for p in params.values())
    assert all(s.size <= largest for s in gathered)
    assert all(axis_of(c, mesh) == ("data",) for c in work.collectives if c.kind != "collective-permute")


def test_no_array_grows_with_the_zoo():
    """Steps read a batch: nothing in their arguments is as long as the zoo or the list of its networks."""
    few, many = tiny(), tiny()
    with many.unlocked():
        many.zoo.seeds_per_task = 1000
    mesh = dist.make_mesh(jax.devices()[:4])
    for step in ("mean", "train"):
        programs = [aot.program(aot.shapes(c), mesh, step) for c in (few, many)]
        shapes = [jax.tree.map(lambda a: a.shape, p.arguments) for p in programs]
        assert shapes[0] == shapes[1]


def test_times_are_the_largest_of_three():
    chip = roofline.CHIPS["v5e"]
    times = roofline.times(chip, flops=197e12, moved=2 * 819e9, sent=50e9)
    assert (times.compute, times.memory, times.links) == (1.0, 2.0, 0.5)  # a ring both ways round: 2 x 50 GB/s
    assert (times.step, times.bound) == (2.0, "memory")


@libtpu
def test_the_table_of_a_topology(tmp_path):
    table = aot.compile_config(tiny(), "v5e:2x2", workdir=tmp_path)
    rows = {r["step"]: r for r in json.loads((tmp_path / "compile.json").read_text())["rows"]}
    assert table == (tmp_path / "compile.md").read_text()
    assert set(rows) == {"mean", "train", "sample", "zoo"}
    assert all(r["chips"] == 4 and r["fits"] and r["needs"] > 0 for r in rows.values())
    assert rows["sample"]["collectives"] == rows["zoo"]["collectives"] == {}  # each device draws and trains by itself
    assert 0.95 < rows["sample"]["matmuls_to_dit"] < 1.15
    made = aot.shapes(tiny())
    for step, init in (("mean", made.init_mean), ("train", made.init)):
        size = count_parameters(jax.eval_shape(init, jax.random.key(0)))
        state = 4 * (4 * size)  # parameters, average and two moments, float32, whole on each
        assert state < rows[step]["arguments"]
        assert rows[step]["aliased"] >= state  # donated


@libtpu
@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:4x", "v5e:2x2x2", "v5p:4x4", "v5e:3x3"])
def test_topologies_that_are_none_are_refused(name):
    aot.without_devices()
    with pytest.raises(PdiffError, match="--topology: got"):
        aot.topology_devices(name)


@libtpu
def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(PdiffError, match="mean.batch_size: got 8, which does not divide over 16"):
        aot.compile_config(tiny(), "v5e:4x4")


@pytest.mark.parametrize(("target", "least", "most"), [("resnet", 11.1e6, 11.3e6), ("vit", 21e6, 22.5e6)])
def test_the_pod_config_generates_whole_networks_without_their_data(target, least, most):
    made = aot.shapes(pod.get_config(target))
    assert least < made.spec.num_params < most
    assert made.spec.num_params == sum(x.size for x in jax.tree.leaves(made.target.abstract()))


def test_without_libtpu_it_says_what_to_install():
    code = "import sys; sys.modules['libtpu'] = None; from pdiff.compile import aot; aot.without_devices()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'pdiff[tpu]'" in done.stderr

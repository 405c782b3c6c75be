"""--mode=merge on imported adapters and plain networks: what is written, and what is refused."""

import json

import numpy as np
import pytest
import safetensors.numpy

from configs import imported
from pdiff import run
from pdiff.ask.merge import merge
from pdiff.errors import PdiffError
from pdiff.merging import methods
from tests.imports import loras, zoos

SCALE = 4 / zoos.RANK  # lora_alpha / r of the made-up adapters


def updates(arrays):
    """scale * B A of each module, from arrays in PEFT's names."""
    each = [[arrays[f"base_model.model.{m}.lora_{k}.weight"].astype(float) for k in "BA"] for m in zoos.MODULES]
    return [SCALE * b @ a for b, a in each]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Workdirs of imports, not trained: of adapters, and of plain networks with a base and without."""
    home = tmp_path_factory.mktemp("merge")
    arrays = zoos.loras(home / "loras")
    run.import_networks(imported.get_config(), home / "loras", None, home / "adapters")
    plain = imported.get_config()
    for name in ("plain", "with_base"):
        zoos.networks(home / name, ".npz", 5)
        if name == "with_base":
            zoos.save(home / name / "base.npz", zoos.network(99))
        run.import_networks(plain, home / name, None, home / f"{name}_workdir")
    return home, arrays


def seen_of(arrays, home):
    facts = json.loads((home / "adapters" / "imported" / "import.json").read_text())
    facts = facts.get("data", facts)
    return [t["name"] for t in facts["tasks"] if t["split"] == "seen"]


@pytest.mark.parametrize("method", ["mean", "svd", "ties"])
def test_a_merge_of_all_seen_adapters_is_peft_s_way_and_loads_as_they_did(home, tmp_path, said, method):
    home, arrays = home
    merge(home / "adapters", method=method, out=str(tmp_path / "out"))
    network = safetensors.numpy.load_file(tmp_path / "out" / "sample_0" / "adapter_model.safetensors")
    names = seen_of(arrays, home)
    first = arrays[names[0]]
    assert {k: (v.shape, v.dtype) for k, v in network.items()} == {k: (v.shape, v.dtype) for k, v in first.items()}
    each = zip(*(updates(arrays[n]) for n in names), strict=True)
    rest = whole = 0.0
    for got, deltas in zip(updates(network), each, strict=True):
        wanted = np.mean(deltas, 0)
        if method == "ties":
            wanted = methods.elementwise("ties", deltas, 0.2, np.random.default_rng(0))
        u, s, vt = np.linalg.svd(wanted, full_matrices=False)
        np.testing.assert_allclose(got, u[:, :2] * s[:2] @ vt[:2], atol=1e-4)
        rest, whole = rest + (s[2:] ** 2).sum(), whole + (s**2).sum()
    said_of_it = json.loads((tmp_path / "out" / "pdiff.json").read_text())
    assert said_of_it["method"] == method and json.loads(said_of_it["tasks"]) == names
    assert float(said_of_it["relative_error"]) == pytest.approx(np.sqrt(rest / whole), rel=1e-4)
    assert f"{np.sqrt(rest / whole):.3f} of their norm" in said()


@pytest.mark.parametrize("method", ["lerp", "slerp"])
def test_between_two_adapters_held_out_ones_too(home, tmp_path, method):
    """At the ends the merge is the adapter itself, exactly; in between it is of updates."""
    home, arrays = home
    a, b = "strength_0.22", "strength_0.33"
    for t, name in ((0.0, a), (1.0, b)):
        merge(home / "adapters", method=method, tasks=[a, b], t=t, out=str(tmp_path / name[-2:]))
        network = safetensors.numpy.load_file(tmp_path / name[-2:] / "sample_0" / "adapter_model.safetensors")
        for got, wanted in zip(updates(network), updates(arrays[name]), strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-4)
    merge(home / "adapters", method="lerp", tasks=[a, b], t=0.25, out=str(tmp_path / "x.safetensors"))
    stacked = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    for m, one, other in zip(zoos.MODULES, updates(arrays[a]), updates(arrays[b]), strict=True):
        u, s, vt = np.linalg.svd(0.75 * one + 0.25 * other)
        found = SCALE * stacked[f"lora/{m}/B"][0] @ stacked[f"lora/{m}/A"][0]
        np.testing.assert_allclose(found, u[:, :2] * s[:2] @ vt[:2], atol=1e-4)


def test_dare_repeats_with_its_seed(home, tmp_path):
    home, _ = home
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        merge(home / "adapters", method="dare", density=0.5, seed=seed, out=str(tmp_path / name))
    read = {n: safetensors.numpy.load_file(tmp_path / n / "sample_0" / "adapter_model.safetensors") for n in "abc"}
    assert all(np.array_equal(v, read["b"][k]) for k, v in read["a"].items())
    assert not all(np.allclose(v, read["c"][k]) for k, v in read["a"].items())
    assert json.loads((tmp_path / "c" / "pdiff.json").read_text())["seed"] == "1"


def test_plain_networks(home, tmp_path, said):
    home, _ = home
    made, base = [zoos.network(i) for i in (0, 1)], zoos.network(99)
    names = ["task_0", "task_1"]
    merge(home / "plain_workdir", method="mean", tasks=names, out=str(tmp_path / "mean"))
    merge(home / "with_base_workdir", method="ties", density=1.0, tasks=names, out=str(tmp_path / "ties"))
    merge(home / "plain_workdir", method="slerp", tasks=names, out=str(tmp_path / "slerp"))
    assert "slerp of the weights themselves, as no base is known" in said()
    mean, ties = (safetensors.numpy.load_file(tmp_path / n / "sample_0.safetensors") for n in ("mean", "ties"))
    for path, value in mean.items():
        np.testing.assert_allclose(value, (made[0][path] + made[1][path]) / 2, atol=1e-6)
        changes = [m[path].astype(float) - base[path] for m in made]
        np.testing.assert_allclose(ties[path], base[path] + methods.disjoint_mean(changes), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": None}, "--method: missing; allowed: mean, svd, ties"),
        ({"method": "soup"}, "--method: got 'soup'; allowed: mean"),
        ({"method": "mean", "t": 0.5}, "--t: got 0.5, which --method=mean has no use for"),
        ({"method": "lerp", "t": 1.5, "tasks": ["0", "1"]}, "--t: got 1.5; allowed: from 0"),
        ({"method": "lerp", "t": float("nan"), "tasks": ["0", "1"]}, "--t: got nan"),
        ({"method": "slerp"}, "--tasks: 8 tasks; allowed with --method=slerp: two"),
        ({"method": "mean", "density": 0.2}, "--density: got 0.2, which --method=mean has no use for"),
        ({"method": "ties", "density": 0.0}, "--density: got 0; allowed: above 0"),
        ({"method": "dare", "density": 20.0}, "--density: got 20; allowed"),
        ({"method": "dare", "seed": -1}, "--sample_seed: got -1; allowed"),
        ({"method": "mean", "tasks": ["strength_0.00"]}, "--tasks: 1 task; allowed: two or more"),
        ({"method": "mean", "tasks": ["strength_0.00", "nonsense"]}, "--tasks: got 'nonsense'; allowed: names"),
        ({"method": "mean", "tasks": ["strength_0.00", "strength_0.00"]}, "there twice"),
        ({"method": "mean", "out": None}, "--out: missing"),
        ({"method": "mean", "workdir": None}, "--workdir: missing"),
        ({"method": "ties", "workdir": "plain_workdir"}, "none was imported; allowed: mean, lerp, slerp"),
        ({"method": "svd", "workdir": "plain_workdir"}, "got 'svd', .* allowed here: mean"),
        ({"method": "mean", "form": "orbit"}, "--format: got 'orbit'"),
        ({"method": "mean", "workdir": "loras"}, "config.json"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(home, tmp_path, given, message):
    home, _ = home
    given = {"workdir": "adapters", "out": str(tmp_path / "out")} | given
    workdir = given.pop("workdir")
    with pytest.raises(PdiffError, match=message):
        merge(None if workdir is None else home / workdir, **given)
    assert list(tmp_path.iterdir()) == []


def test_networks_of_a_family_s_own_and_factors_of_them(tiny_config, tiny_zoo, tmp_path):
    """Its base is always known; adapters of the family's own target are factors, which are refused."""
    from pdiff import config as config_lib
    from pdiff.zoo import build, store

    store.write(build.directory(tiny_config, tmp_path), config_lib.zoo_fingerprint(tiny_config), tiny_zoo)
    config_lib.write(tmp_path / "config.json", tiny_config)
    merge(tmp_path, method="ties", tasks=["0", "1"], out=str(tmp_path / "x.npz"))
    assert all(len(v) == 1 for v in np.load(tmp_path / "x.npz").values())
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.target.lora_rank = 2
    config_lib.write(tmp_path / "config.json", config)
    with pytest.raises(PdiffError, match="target.lora_rank = 2"):
        merge(tmp_path, method="mean", out=str(tmp_path / "y.npz"))
    with config.unlocked():
        config.target.lora_rank, config.seed = 0, 12345
    config_lib.write(tmp_path / "config.json", config)
    with pytest.raises(PdiffError, match="no finished zoo"):
        merge(tmp_path, method="mean", out=str(tmp_path / "y.npz"))


@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_scales_of_modules_and_heads_come_back_in_every_spelling(tmp_path, said, form):
    """Two modules with scales 2 and 5, and a head: what is written does the merge, read as any adapter is."""
    pattern = {"alpha_pattern": {"fc": 15}} if form == "peft" else {}
    for seed in range(4):
        path = tmp_path / "source" / f"task_{seed}"
        if form == "peft":
            head = {"base_model.model.score.weight": np.full((2, 5), seed, np.float32)}
            loras.peft(path, seed=seed, whole=head, modules_to_save=["score"], **pattern)
        else:
            loras.kohya(path.with_suffix(".safetensors"), seed=seed, alpha=15.0)
    config = imported.get_config()
    run.import_networks(config, tmp_path / "source", None, tmp_path / "w")
    merge(tmp_path / "w", method="ties", density=0.5, tasks=["task_0", "task_1", "task_3"], out=str(tmp_path / "out"))
    name = "sample_0" if form == "peft" else "sample_0.safetensors"
    tree, adapter, _ = network = loras.read(tmp_path / "out" / name)
    given = [loras.read(tmp_path / "source" / f"task_{i}{name.removeprefix('sample_0')}") for i in (0, 1, 3)]
    assert set(adapter.scales.values()) == ({2.0, 5.0} if form == "peft" else {5.0})
    for module, got in loras.updates(network).items():
        wanted = methods.elementwise("ties", [loras.updates(n)[module] for n in given], 0.5, np.random.default_rng(0))
        u, s, vt = np.linalg.svd(wanted, full_matrices=False)
        np.testing.assert_allclose(got, u[:, :3] * s[:3] @ vt[:3], atol=2e-4)
    if form == "peft":
        (head,) = (v for p, v in tree.items() if p.startswith("whole/"))
        np.testing.assert_allclose(head, 4 / 3, rtol=1e-6)
        assert "merged by the mean, as no base is known" in said()

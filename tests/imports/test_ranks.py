"""Adapters of several ranks at one: exact where it is large enough, else as near as any update of that rank."""

import json

import ml_dtypes
import numpy as np
import pytest

from pdiff.imports import lora
from tests.imports import loras


def relative(found, expected):
    norm = np.sqrt(sum((v**2).sum() for v in expected.values()))
    return np.sqrt(sum(((found[n] - v) ** 2).sum() for n, v in expected.items())) / norm


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (loras.peft, {"use_rslora": True, "rank_pattern": {"fc": 2}, "ranks": {"layers.1.fc": 2}, "lora_alpha": 5}),
        (loras.peft, {"alpha_pattern": {"fc": 1}, "dtype": ml_dtypes.bfloat16}),
        (loras.diffusers, {"modules": (f"unet.{loras.ATTENTION}", f"unet.{loras.CONV}")}),
        (loras.kohya, {"modules": (f"lora_unet_{loras.CONV}", "lora_te_a"), "alpha": 1.0}),
        (loras.mlx, {"scale": 7.0}),
        (loras.mlx, {"rank": 1, "dtype": np.float16}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rank", [3, 4, 16])  # 16 is above both sides of the matrices
def test_at_a_rank_that_is_large_enough_updates_stay(tmp_path, make, how, rank):
    network = loras.read(
        make(tmp_path / ("x.safetensors" if make in (loras.diffusers, loras.kohya) else "x"), **how)[0]
    )
    arrays, adapter, error = lora.to_rank(*network[:2], rank)
    assert error < 1e-7 and relative(loras.updates((arrays, adapter, ())), loras.updates(network)) < 1e-6
    assert {m.rank for m in adapter.modules.values()} == {rank} and set(adapter.scales.values()) == {1.0}
    for name in adapter.modules:
        assert arrays[f"lora/{name}/A"].shape[0] == rank == arrays[f"lora/{name}/B"].shape[1]


def written_again(tmp_path, network, name):
    tree, adapter, _ = network
    given = lora.as_spelled(tree, adapter)
    file = lora.file_of(adapter)
    where = tmp_path / name / file if file else tmp_path / f"{name}.safetensors"
    return loras.read(loras.write(where, given, file and lora.config_of(adapter), adapter.metadata))


@pytest.mark.parametrize("make", [loras.peft, loras.diffusers, loras.kohya, loras.mlx])
def test_the_files_that_are_written_then_say_the_same(tmp_path, make):
    """Configs, metadata and alphas are made true, so the file read alone has the update that the networks have."""
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 3, "unet.lora_alpha": 12})}
    how = {loras.peft: {"use_rslora": True}, loras.diffusers: {"metadata": metadata}}.get(make, {})
    network = loras.read(
        make(tmp_path / ("x.safetensors" if make in (loras.diffusers, loras.kohya) else "x"), **how)[0]
    )
    arrays, adapter, _ = lora.to_rank(*network[:2], 5)
    again = written_again(tmp_path, (arrays, adapter, ()), "y")
    assert relative(loras.updates(again), loras.updates(network)) < 1e-6
    assert again[1].rank == 5 and set(again[1].scales.values()) == {1.0}


def test_below_the_rank_nothing_is_nearer(tmp_path):
    """Against the singular values of the dense updates, and the error against the norm of what is missing."""
    network = loras.read(loras.peft(tmp_path / "x", r=6, lora_alpha=3)[0])
    before = loras.updates(network)
    for rank in (1, 4):
        arrays, adapter, error = lora.to_rank(*network[:2], rank)
        after = loras.updates((arrays, adapter, ()))
        tails = [np.linalg.svd(v, compute_uv=False)[rank:] for v in before.values()]
        best = np.sqrt(sum((t**2).sum() for t in tails) / sum((v**2).sum() for v in before.values()))
        assert error == pytest.approx(best, rel=1e-6) and relative(after, before) == pytest.approx(best, rel=1e-5)


def test_an_update_of_nothing_stays_nothing(tmp_path):
    tree, adapter, _ = loras.read(loras.peft(tmp_path / "x")[0])
    arrays, _, error = lora.to_rank({p: 0 * v for p, v in tree.items()}, adapter, 2)
    assert error == 0 and all((v == 0).all() for v in arrays.values())


def test_heads_stay_as_they_are(tmp_path):
    head = np.arange(4, dtype=np.float16)
    network = loras.read(loras.peft(tmp_path / "x", whole={"base_model.model.score.bias": head})[0])
    arrays, adapter, _ = lora.to_rank(*network[:2], 2)
    np.testing.assert_array_equal(arrays["whole/score.bias"], head)
    assert arrays["whole/score.bias"].dtype == head.dtype and "score.bias" in adapter.whole

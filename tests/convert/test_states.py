"""Files of torch itself, in a process of its own; skipped where torch is not installed."""

import os
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.imports import arrays

torch = pytest.importorskip("torch", minversion="2.10")
states = pytest.importorskip("pdiff.convert.states")


def saved(path, what, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(what, path, **how)
    return path


def net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


class Evil:
    """Whoever unpickles it writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_state_dict_comes_bit_for_bit(tmp_path, seed, new):
    wanted = net(seed).state_dict()
    state = states.load(saved(tmp_path / "a.pt", wanted, _use_new_zipfile_serialization=new), 1)
    assert list(state.arrays) == list(wanted) and state.notes == ()
    for name, tensor in wanted.items():
        assert state.arrays[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(state.arrays[name], tensor.numpy())


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float64", "int64", "bool", "float8_e4m3fn", "float8_e5m2", "uint8", "complex64"]
)
def test_every_dtype(tmp_path, dtype):
    tensor = torch.tensor([0.5, 2, 1]).to(getattr(torch, dtype))
    found = states.load(saved(tmp_path / "a.pt", {"a": tensor, "s": tensor[1]}), 1).arrays
    assert found["a"].dtype == np.dtype(getattr(ml_dtypes, dtype, dtype)) and found["s"].shape == ()
    assert found["a"].tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("entry", ["state_dict", "model_state_dict", "model", "net"])
def test_the_one_entry_with_tensors_is_the_network(tmp_path, entry):
    optimizer = torch.optim.Adam(net().parameters())
    net().zero_grad()
    what = {entry: net().state_dict(), "epoch": 3, "optimizer_state_dict": optimizer.state_dict(), "args": {"lr": 0.1}}
    state = states.load(saved(tmp_path / "a.ckpt", what), 1)
    assert list(state.arrays) == list(net().state_dict())
    assert f"the entry '{entry}' is the network" in state.notes
    assert any("'epoch', 'optimizer_state_dict', 'args' of the file left out" in n for n in state.notes)


def test_tensors_that_share_memory_become_arrays_of_their_own(tmp_path):
    t = torch.arange(6.0)
    found = states.load(
        saved(tmp_path / "a.pt", {"x": t, "y": t[2:4], "z": t.expand(2, 6).T, "c": torch.tensor(3.0)}), 1
    )
    assert found.arrays["y"].tolist() == [2, 3] and found.arrays["z"].shape == (6, 2) and found.arrays["c"].shape == ()
    assert not np.shares_memory(found.arrays["x"], found.arrays["y"])


@pytest.mark.parametrize(
    ("what", "shapes"),
    [
        ({"a": [[6], [2, 3]], "b": [[4], [4]]}, {"a": [2, 3], "b": [4]}),
        ({"a": torch.Size([2, 3]), "b": (4,)}, {"a": [2, 3], "b": [4]}),
    ],
)
def test_shapes_of_weights2weights(tmp_path, what, shapes):
    assert states.load(saved(tmp_path / "weight_dimensions.pt", what), 1).shapes == shapes
    assert states.load(saved(tmp_path / "w.pt", torch.ones(3, 10)), 1).rows


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(2)}}, "holds tensors in 'a', 'b'"),
        ({"w": torch.ones(2), "ema": {"w": torch.ones(2)}}, "holds tensors in 'ema', 'w'"),
        ({"epoch": 3}, "holds tensors in nothing"),
        ([torch.ones(2)], "holds a list; allowed: a state dict"),
        ({0: torch.ones(2)}, "a tensor named 0"),
        ({"s": torch.eye(3).to_sparse()}, "'s' is sparse"),
        ({"w": torch.ones(300_000)}, "says that it holds"),
        ({"w": torch.ones(1).expand(1 << 40)}, "allowed: 20000, 1,000,000"),
    ],
)
def test_what_is_no_network_is_refused(tmp_path, what, words):
    with pytest.raises(PdiffError, match=words):
        states.load(saved(tmp_path / "a.pt", what), 1)


@pytest.mark.parametrize("data", [b"", b"\x80\x02junk", b"PK\x03\x04junk", b"hello", b"\x80\x04\x95" + b"\xff" * 20])
def test_damaged_files_are_refused(tmp_path, data):
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(PdiffError) as e:
        states.load(tmp_path / "a.pt", 1)
    assert 10 < len(str(e.value)) < 500


@pytest.mark.parametrize("name", ["a.bin", "b.pt", "c.pt", "d"])
def test_code_is_never_run(tmp_path, name):
    """As a command, and beside a network, which is converted."""
    marker, source = tmp_path / "marker", tmp_path / "in"
    saved(source / "good.pt", net().state_dict())
    if name == "a.bin":
        (source / name).write_bytes(pickle.dumps({"w": Evil(marker)}))
    elif name == "c.pt":
        torch.save({"w": Evil(marker)}, source / name, _use_new_zipfile_serialization=False)
    else:
        torch.save({"w": torch.ones(2), "x": Evil(marker)}, source / name)
    command = [sys.executable, "-m", "pdiff.convert", f"--source={source}", f"--out={tmp_path / 'out'}", "--mb=10"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not marker.exists()
    assert done.returncode == 1 and done.stderr.startswith(f"pdiff: error: {name}: ") and done.stderr.count("\n") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.safetensors"]
    assert "1 files converted, 0 copied, 1 refused" in done.stdout
    found = arrays.read(tmp_path / "out" / "good.safetensors", arrays.Budget(1)).arrays
    np.testing.assert_array_equal(found["0.weight"], net().state_dict()["0.weight"].numpy())
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists()  # it would have

"""Adapters of PEFT: what is read, what is refused by name, and that PEFT itself loads what is written."""

import json

import numpy as np
import pytest
from flax import traverse_util

from pdiff.ask import exports
from pdiff.errors import PdiffError
from pdiff.imports import arrays, peft
from pdiff.scenario import Facts
from tests.imports import zoos


def test_an_adapter_is_read_by_module(tmp_path):
    made = zoos.lora(tmp_path / "a", 0.5)
    found = peft.read(tmp_path / "a", arrays.Budget(1))
    assert found.config == zoos.lora_config()
    assert set(found.arrays) == {f"lora/{m}/{k}" for m in zoos.MODULES for k in "AB"}
    for path, name in peft.names(list(found.arrays)).items():
        np.testing.assert_array_equal(found.arrays[path], made[name])


@pytest.mark.parametrize(
    ("field", "value"),
    [("peft_type", "LOHA"), ("r", True), ("r", 0), ("lora_alpha", "8"), ("bias", "all"), ("use_dora", True),
     ("use_rslora", True), ("rank_pattern", {"q_proj": 4}), ("alpha_pattern", {"q_proj": 4}), ("lora_bias", True),
     ("modules_to_save", ["head"]), ("init_lora_weights", "pissa"), ("layer_replication", [[0, 1]]),
     ("invented_next_year", "on")],
)  # fmt: skip
def test_options_that_change_what_an_adapter_does_are_refused_by_name(field, value):
    peft.check_config(zoos.lora_config())
    with pytest.raises(PdiffError, match=field):
        peft.check_config(zoos.lora_config(**{field: value}))


def test_options_that_are_off_are_no_obstacle():
    off = {
        "use_dora": False,
        "rank_pattern": {},
        "modules_to_save": None,
        "invented_next_year": None,
        "qalora_group_size": 16,
    }
    peft.check_config(zoos.lora_config(**off))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base_model.model.m.lora_magnitude_vector", "is not handled"),
        ("base_model.model.m.lora_A.default.weight", "is not handled"),
        ("model.m.lora_A.weight", "is not handled"),
        ("base_model.model.m.lora_A.weight", "has a lora_A alone"),
        ("base_model.model.layers.0.q_proj.lora_A.weight", "shape (3,); allowed: (2, inputs)"),
    ],
)
def test_arrays_that_are_no_adapters_are_refused(tmp_path, name, words):
    made = zoos.lora(tmp_path / "a", 0.5)
    zoos.save(tmp_path / "a" / "adapter_model.safetensors", made | {name: np.ones(3, np.float32)})
    with pytest.raises(PdiffError) as e:
        peft.read(tmp_path / "a", arrays.Budget(1))
    assert words in str(e.value)


def test_configs_that_differ_are_told_field_by_field():
    other = zoos.lora_config(r=4, lora_dropout=0.5, target_modules=["v_proj", "q_proj"])
    assert peft.differing(other, zoos.lora_config()) == ["r is 4, not 2"]


def test_peft_itself_loads_what_is_written_and_adds_the_update(tmp_path):
    """Takes 10 s, of which most is importing it; left out where it is not installed."""
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("peft")

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.v_proj = (torch.nn.Linear(zoos.IN, zoos.OUT) for _ in range(2))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer(), Layer()])

        def forward(self, x):
            return self.layers[0].q_proj(x) + self.layers[1].v_proj(x)

    zoos.lora(tmp_path / "a", 0.5)
    config = zoos.lora_config(target_modules=list(zoos.MODULES))
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    found = peft.read(tmp_path / "a", arrays.Budget(1))
    names = peft.names(list(found.arrays))
    leaves = {p: [list(v.shape), "float32", names[p], "none"] for p, v in found.arrays.items()}
    facts = Facts("", "", [], [], leaves, found.config, {})
    stacked = {p: np.stack([v, 2 * v]) for p, v in found.arrays.items()}
    exports.write(traverse_util.unflatten_dict(stacked, sep="/"), tmp_path / "out", "peft", {"prompt": "x"}, facts)
    base = Model()
    x = torch.randn(5, zoos.IN)
    plain = base(x).detach().numpy()
    adapted = library.PeftModel.from_pretrained(base, tmp_path / "out" / "sample_1")
    with torch.no_grad():
        moved = adapted(x).numpy() - plain
    expected = sum(  # lora_alpha / r is 2
        2 * x.numpy() @ (2 * found.arrays[f"lora/{m}/A"]).T @ (2 * found.arrays[f"lora/{m}/B"]).T for m in zoos.MODULES
    )
    np.testing.assert_allclose(moved, expected, atol=1e-4)

"""MiniLM as a target, with a tiny BERT in its place: its forward pass, what is frozen, and its names in PEFT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from pdiff import minilm
from pdiff.ask import adapters
from pdiff.config.fields import defaults
from pdiff.errors import PdiffError
from pdiff.targets import get_target
from pdiff.targets.minilm import product
from pdiff.weights.spec import make_spec
from pdiff.zoo import finetune
from tests.models import tiny_bert
from tests.noise import noised
from tests.tasks import text_world

LENGTH, RANK, ALPHA = 8, 2, 6.0
FEATURES = LENGTH * tiny_bert.WIDTH


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return text_world.tiny_minilm(tmp_path / "bert", monkeypatch)


@pytest.fixture
def target(folder):
    return get_target(settings(), (FEATURES,), 2)


def settings(**overrides):
    config = defaults().target
    with config.unlocked():
        config.update(dict(name="minilm", lora_rank=RANK, lora_alpha=ALPHA, lora_modules="layer_.*") | overrides)
        config.generate = overrides.get("generate", "lora/.*|params/classifier/.*")
    return config


def texts(folder):
    reader = minilm.Reader(folder)
    return reader, reader.after(["digits rotated", "a", "8 degrees, 9 digits and more"], 0, LENGTH)


def test_it_is_bert_with_its_pooler_and_the_adapters_merged(folder, target):
    """Held against the whole forward pass of every token, with W + alpha / rank A B in each matrix."""
    reader, x = texts(folder)
    tree = noised(jax.jit(target.init)(jax.random.key(0)), 0.3)
    flat = traverse_util.flatten_dict(tree, sep="/")
    weights = jax.tree.map(jnp.asarray, minilm.load_weights(folder / "model.safetensors"))
    layers = {}
    for name in minilm.MATRICES:
        at = [f"layer_{i}_{name.replace('.', '_')}" for i in range(tiny_bert.DEPTH)]
        change = [ALPHA / RANK * flat[f"lora/{m}/kernel/a"] @ flat[f"lora/{m}/kernel/b"] for m in at]
        layers[f"{name}.weight"] = jnp.stack(
            [(flat[f"params/{m}/kernel"] + c).T for m, c in zip(at, change, strict=True)]
        )
        layers[f"{name}.bias"] = jnp.stack([flat[f"params/{m}/bias"] for m in at])
    for name in minilm.NORMS:
        at = [f"layer_{i}_{name.replace('.', '_')}" for i in range(tiny_bert.DEPTH)]
        layers[f"{name}.weight"] = jnp.stack([flat[f"params/{m}/scale"] for m in at])
        layers[f"{name}.bias"] = jnp.stack([flat[f"params/{m}/bias"] for m in at])
    tokens = jnp.asarray(x, jnp.float32)
    after = minilm.through(weights | {"layers": layers}, tokens, (tokens != 0).any(-1), reader.sizes, slice(None))
    pooled = jnp.tanh(after[:, 0] @ flat["params/pooler/kernel"] + flat["params/pooler/bias"])
    expected = pooled @ flat["params/classifier/kernel"] + flat["params/classifier/bias"]
    np.testing.assert_allclose(target.apply(tree, jnp.asarray(x.reshape(3, -1))), expected, atol=1e-4)


def test_what_lies_after_the_end_of_a_text_is_not_read(folder, target):
    _, x = texts(folder)
    tree = noised(jax.jit(target.init)(jax.random.key(0)), 0.3)
    longer = np.concatenate([x, np.zeros((3, 4, tiny_bert.WIDTH), np.float16)], 1)
    np.testing.assert_allclose(
        target.apply(tree, jnp.asarray(x.reshape(3, -1))),
        target.apply(tree, jnp.asarray(longer.reshape(3, -1))),
        atol=1e-5,
    )


def test_published_leaves_are_there_and_stay(folder, target):
    reader, x = texts(folder)
    config = defaults().zoo
    with config.unlocked():
        config.update(dict(pretrain_steps=3, batch_size=4))
    base = finetune.pretrain(target, jnp.asarray(x.reshape(3, -1)), jnp.array([0, 1, 1], jnp.int32), config, 0)
    flat = traverse_util.flatten_dict(base, sep="/")
    layers = minilm.load_weights(folder / "model.safetensors")["layers"]
    np.testing.assert_array_equal(flat["params/layer_1_output_dense/kernel"], layers["output.dense.weight"][1].T)
    np.testing.assert_array_equal(flat["params/layer_0_output_LayerNorm/bias"], layers["output.LayerNorm.bias"][0])
    assert np.abs(flat["params/classifier/bias"]).max() > 0  # the one part that was trained


def test_every_generated_leaf_has_a_name_in_peft_and_the_transposed_shape(folder, target):
    spec = make_spec(target.abstract(), generate=target.generate)
    assert {leaf.path for leaf in spec.leaves} == {*target.peft.names}
    assert len({*target.peft.names.values()}) == len(target.peft.names)
    shapes = {leaf.path: leaf.shape for leaf in spec.leaves}
    network = {path: np.arange(np.prod(s), dtype=np.float32).reshape(s) for path, s in shapes.items()}
    for path, name in target.peft.names.items():
        np.testing.assert_array_equal(adapters.arrays(network, target.peft)[name], network[path].T)
    adapted = target.peft.config["target_modules"]
    assert len(adapted) == 6 * minilm.TOP
    for name in target.peft.names.values():
        module = name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
        assert module in adapted or module.startswith("classifier.")


def test_only_the_matrices_that_are_adapted_are_named(folder):
    target = get_target(settings(lora_modules="layer_1_.*"), (FEATURES,), 2)
    assert [m.split(".")[3] for m in target.peft.config["target_modules"]] == ["1"] * 6


def test_inputs_that_are_no_tokens_are_refused(folder):
    with pytest.raises(PdiffError, match="target.name: 'minilm' reads texts.*allowed: tasks.family=text_rules"):
        get_target(settings(), (8, 8), 10)


@pytest.mark.parametrize(("dtype", "exact"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_gradients_of_products(dtype, exact):
    random = np.random.default_rng(0)
    x, w, g = (jnp.asarray(random.standard_normal(s), jnp.float32) for s in ((2, 5, 6), (6, 7), (2, 5, 7)))
    out, ours = jax.vjp(lambda x, w: product(x, w, jnp.dtype(dtype)), x, w)
    plain, theirs = jax.vjp(lambda x, w: x @ w, x, w)
    for one, other in zip((out, *ours(g)), (plain, *theirs(g)), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, atol=exact * float(jnp.abs(other).max()))
    if dtype == "bfloat16":
        assert float(jnp.abs(out - plain).max()) > 1e-4  # it is rounded


def test_only_what_is_differentiated_is_rounded(folder, target):
    rounded = get_target(settings(dtype="bfloat16"), (FEATURES,), 2)
    x = jnp.asarray(texts(folder)[1]).reshape(3, -1)
    tree = noised(jax.jit(target.init)(jax.random.key(0)), 0.3)
    plain = target.apply(tree, x)
    np.testing.assert_array_equal(rounded.apply(tree, x), plain)
    np.testing.assert_allclose(rounded.differentiated(tree, x), plain, atol=0.2)
    assert np.abs(np.asarray(rounded.differentiated(tree, x) - plain)).max() > 1e-5
    with pytest.raises(PdiffError, match="target.dtype: got 'bfloat16'; allowed for a mlp: float32"):
        get_target(settings(name="mlp", dtype="bfloat16", lora_rank=0, generate=".*"), (FEATURES,), 2)

"""Adapters: they start as nothing, add a low-rank change, fit every kernel, and are all that is fine-tuned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.tasks import get_family
from pdiff.zoo import finetune
from tests.targets.make import fit, make_target


@pytest.mark.parametrize(("name", "widths"), [("mlp", (12, 8)), ("cnn", (8, 16)), ("vit", (16,))])
def test_every_kernel_has_adapters_and_fresh_ones_change_nothing(name, widths):
    plain = make_target(name, widths=widths)
    adapted = make_target(name, widths=widths, lora_rank=2, lora_alpha=4.0)
    tree = adapted.init(jax.random.key(1))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 64), np.float32))
    base = {"params": tree["params"]}
    np.testing.assert_array_equal(adapted.apply(tree, x), plain.apply(base, x))
    kernels = [p for p, v in jax.tree_util.tree_leaves_with_path(base) if p[-1].key == "kernel" and v.ndim > 1]
    assert len(jax.tree.leaves(tree["lora"])) == 2 * len(kernels)


def test_the_change_is_alpha_over_rank_times_the_product():
    plain, adapted = make_target(), make_target(lora_rank=3, lora_alpha=6.0, lora_modules="Dense_0")
    tree = adapted.init(jax.random.key(1))
    assert set(tree["lora"]) == {"Dense_0"}
    ab = tree["lora"]["Dense_0"]["kernel"]
    ab["b"] = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    by_hand = jax.tree.map(np.array, {"params": tree["params"]})
    by_hand["params"]["Dense_0"]["kernel"] += 2 * np.asarray(ab["a"]) @ ab["b"]
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 64), np.float32))
    np.testing.assert_allclose(adapted.apply(tree, x), plain.apply(by_hand, x), rtol=1e-5, atol=1e-5)


def test_pretraining_leaves_adapters_and_fine_tuning_trains_nothing_else(tiny_config):
    family = get_family(tiny_config.tasks)
    target = make_target(lora_rank=2, generate="lora/.*")
    base = finetune.pretrain(target, *family.pretraining_images("train"), tiny_config.zoo, 0)
    assert not any(layer["kernel"]["b"].any() for layer in base["lora"].values())
    fresh = target.init(jax.random.key(0))
    assert np.abs(base["params"]["Dense_0"]["kernel"] - fresh["params"]["Dense_0"]["kernel"]).max() > 1e-3
    x = family.render(family.variables[0], family.data["train"].x)[None]
    net = fit(target, base, x, jnp.asarray(family.data["train"].y)[None], [0], tiny_config.zoo)
    assert list(net) == ["lora"]
    assert np.abs(net["lora"]["Dense_0"]["kernel"]["b"]).max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_rank": 11}, "target.lora_rank: got 11; allowed: at most 10"),
        ({"lora_rank": 2, "lora_modules": "Conv.*"}, "matches no module with a kernel; they are: Dense_0, Dense_1"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(PdiffError, match=message):
        make_target(**fields)

"""Networks and images that users hand over: what fits is taken, what does not is named with a way on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.ask import inputs
from pdiff.errors import PdiffError
from pdiff.weights.spec import LeafSpec
from tests.annotations import unchecked

LEAVES = (LeafSpec("params/a/bias", (3,), "float32"), LeafSpec("params/a/kernel", (2, 3), "float32"))


def tree(*first, bias=(3,), kernel=(2, 3)):
    return {"params": {"a": {"bias": np.zeros((*first, *bias)), "kernel": np.zeros((*first, *kernel))}}}


def test_networks_are_counted_along_their_first_axis():
    assert inputs.stacked(tree(4), LEAVES) == 4 == inputs.stacked(jax.tree.map(jnp.asarray, tree(4)), LEAVES, True)
    assert inputs.stacked(tree(), LEAVES, also_one=True) is None
    assert jax.vmap(lambda one: inputs.stacked(one, LEAVES, also_one=True) or jnp.ones(()))(tree(4)).sum() == 4


@pytest.mark.parametrize("networks, message", [
    (None, "got None; allowed: a tree as sample returns it: params/a/bias .networks, 3., params/a/kernel"),
    ({}, "got {}; allowed"),
    ("abc", "got 'abc'; allowed"),
    (np.zeros((4, 3)), "got array"),
    (tree(), "one network, without an axis 0 .* jax.tree.map.lambda w: w.None., network."),
    (tree(0), "got .0. of them"),
    (tree(4, kernel=(2, 4)), "params/a/kernel of shape .4, 2, 4.; allowed"),
    (tree(4)["params"], "without the leaf|with the leaf"),
    ({"params": {"a": {"bias": np.zeros((4, 3))}}}, "without the leaf 'params/a/kernel'"),
    ({"params": {"a": {"bias": np.zeros((4, 3)), "kernel": np.zeros((5, 2, 3))}}}, "got .4, 5. of them"),
    ({"params/a/bias": np.zeros((4, 3)), "params/a/kernel": np.zeros((4, 2, 3))}, "arrays by path, as a file has them"),
    ({"params": {"a": {"bias": np.zeros(()), "kernel": np.zeros((4, 2, 3))}}}, "params/a/bias of shape ..; allowed"),
])  # fmt: skip
def test_what_is_no_stack_of_networks_is_refused(networks, message):
    with pytest.raises(PdiffError, match=f"networks: .*{message}") as error:
        inputs.stacked(networks, LEAVES)
    assert "\n" not in str(error.value)


def test_images_may_be_flat_or_not_and_of_any_kind_of_number(loaded):
    flat = np.linspace(0, 1, 128, dtype=np.float64).reshape(2, 64)
    for x in (
        flat,
        flat.reshape(2, 8, 8),
        jnp.asarray(flat, jnp.float32),
        flat.tolist(),
        flat > 0.5,
        flat * (1 + 5e-4),
    ):
        found = inputs.images(x, loaded.family)
        assert found.shape == (2, 64) and found.dtype == np.float32
    assert jax.jit(lambda x: inputs.images(x, loaded.family))(np.full((2, 8, 8), 9)).shape == (2, 64)  # not looked at


@pytest.mark.parametrize("x, message", [
    (np.zeros(64), "a single image of shape .64,.; allowed: .images, 64. or .images, 8, 8.; image.None."),
    (np.zeros((8, 8)), "a single image of shape .8, 8."),
    (np.zeros((3, 63)), "got shape .3, 63."),
    (np.zeros((3, 4, 16)), "got shape .3, 4, 16."),
    (np.zeros((0, 64)), "got shape .0, 64."),
    (None, "got shape ..; allowed|that is no array of numbers"),
    ("abc", "got a str that is no array of numbers"),
    ([[1], [1, 2]], "got a list that is no array"),
    (np.full((1, 64), np.nan), "pixels that are not finite"),
    (np.full((1, 64), 16), "from 16 to 16; allowed: from 0 to 1; pixels of scikit-learn are divided by 16"),
    (np.full((1, 64), 255, np.uint8), "pixels of 8 bits are divided by 255"),
    (np.full((1, 64), 65535), "divide by the largest value"),
    (np.full((1, 64), -0.5), "from -0.5 to -0.5; allowed: from 0 to 1; were they normalised"),
])  # fmt: skip
def test_images_of_another_shape_or_scale_are_refused_with_the_likely_cause(loaded, x, message):
    with unchecked(), pytest.raises(PdiffError, match=f"pictures: .*({message})"):
        inputs.images(x, loaded.family, "pictures")


def test_images_that_are_all_but_black_are_warned_of(said):
    inputs.warn_of_dark(np.full((2, 64), 0.2, np.float32))
    assert said() == ""
    inputs.warn_of_dark(np.full((2, 64), 16 / 255, np.float32))
    assert "the brightest pixel of all is 0.0627" in said() and "values from 0 to 16 divided by 255" in said()

"""The vision transformer: what it must not depend on, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.errors import PdiffError
from tests.targets.make import make_target


def test_without_positions_it_is_blind_to_the_order_of_patches_and_with_them_it_is_not():
    target = make_target("vit", widths=(16, 16))
    tree = target.init(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8, 8), np.float32))
    rolled = jnp.roll(x, 4, axis=2).reshape(3, -1)  # by two patches
    x = x.reshape(3, -1)
    assert np.abs(target.apply(tree, x) - target.apply(tree, rolled)).max() > 1e-4
    tree["params"]["position"] = np.zeros((16, 16), np.float32)
    np.testing.assert_allclose(target.apply(tree, x), target.apply(tree, rolled), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("widths", "shape"), [((), (8, 8)), ((16, 8), (8, 8)), ((6,), (8, 8)), ((16,), (10, 10))])
def test_sizes_that_do_not_fit_are_refused(widths, shape):
    with pytest.raises(PdiffError, match="target"):
        make_target("vit", shape, widths=widths)

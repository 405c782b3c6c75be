"""Rivals of a run are trained once and kept whole."""

import dataclasses

import jax
import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.rivals import trained
from pdiff.system.stopping import StopSignal


@pytest.fixture(scope="module")
def kept(tiny, tiny_zoo, mesh, tmp_path_factory):
    config = tiny.config.copy_and_resolve_references()
    with config.unlocked():
        config.eval.update(dict(rivals="latent_kde,pca_flow", rival_steps=3))
    generator = dataclasses.replace(tiny, config=config.lock())
    workdir = tmp_path_factory.mktemp("run")

    def fit():
        with StopSignal() as stop:
            return trained.fit_all(generator, tiny_zoo["seen"], workdir, mesh, stop, 0.0)

    return fit, fit(), workdir


def test_a_second_call_restores_what_the_first_trained(kept, tiny):
    fit, (first, facts), _ = kept
    second, facts_again = fit()
    assert set(first) == set(second) == {"latent_kde", "pca_flow"} and facts == facts_again
    for name, rival in first.items():
        jax.tree.map(np.testing.assert_array_equal, rival.params, second[name].params)
        a, b = (r.sample(tiny.family.tasks[:2], 2, np.random.default_rng(0)) for r in (rival, second[name]))
        np.testing.assert_array_equal(a, b)
        assert facts[name]["num_params"] > 1000 and facts[name]["seconds"] > 0


def test_a_damaged_rival_is_refused_where_it_is_read_and_trained_anew_by_a_run(kept, said):
    fit, _, workdir = kept
    path = workdir / "rivals" / "pca_flow" / trained.PARAMS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(PdiffError, match="pca_flow.*damaged.*run the run's command again"):
        trained.verify(path.parent)
    fit()
    assert f"{path}: damaged" in said() and len(path.read_bytes()) == len(whole)
    trained.verify(path.parent)

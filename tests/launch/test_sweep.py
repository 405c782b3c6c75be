"""Sweeps: every variant is a valid config, and tables are means over seeds."""

from pathlib import Path

import pytest

from launch import sweep
from pdiff import config as config_lib
from pdiff.tasks import get_family
from tests.report.synthetic import results


@pytest.mark.parametrize("name", sorted(sweep.SWEEPS))
def test_every_variant_is_a_valid_config_of_its_own(name):
    chosen = sweep.SWEEPS[name]
    made = {v: sweep.make_config(chosen, v, 3, Path("zoo")) for v in chosen.variants}
    for config in made.values():
        config_lib.validate(config)
        assert config.seed == 3
    assert len({config_lib.to_json(c) for c in made.values()}) == len(made)


@pytest.mark.parametrize("name", [n for n, s in sweep.SWEEPS.items() if s.xlabel])
def test_every_set_of_tasks_can_be_made(name):
    for variant in sweep.SWEEPS[name].variants:
        get_family(sweep.make_config(sweep.SWEEPS[name], variant, 0, Path("zoo")).tasks).check()


def test_tables_hold_means_and_standard_errors_over_seeds(tmp_path):
    runs = [results(seed=s) for s in range(3)]
    table = sweep.collect({"8": runs, "16": runs[:1]})
    means = [r["splits"]["unseen"]["controls"]["ridge"]["mean"] for r in runs]
    cell = table["8"]["unseen"]["ridge"]
    assert cell["mean"] == pytest.approx(sum(means) / 3) and cell["n"] == 3
    spread = sum((m - cell["mean"]) ** 2 for m in means) / 2
    assert cell["sem"] == pytest.approx((spread / 3) ** 0.5)
    text = sweep.markdown(table, (("unseen", "ridge"), ("unseen", "no such row")))
    assert f"| 8 | {cell['mean']:.3f} ± {cell['sem']:.3f} |" in text and "no such row" not in text
    sweep.plot(table, sweep.SWEEPS["tasks"], tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def test_rows_hold_what_a_few_images_give():
    run = results()
    adapted = sweep.rows(run, "unseen")
    for row in run["adaptation"]["splits"]["unseen"]:
        assert adapted[f"{row['shots']} images/prior"] == row["accuracy"]["prior"]["mean"]
    assert "4 images/prior" in adapted


def test_seeds_that_chose_different_samplers_share_their_rows():
    runs = [results(seed=s) for s in range(2)]
    chosen_by = list(zip(runs, ("heun", "posterior_mean"), strict=True))
    for run, chosen in chosen_by:
        for entry in run["splits"].values():
            entry["held_out_wording"] = {chosen: entry["generated"][chosen]}
    cell = sweep.collect({"8": runs})["8"]["seen"]["held_out_wording"]
    expected = [
        r["splits"]["seen"]["generated"][c]["mean"] for r, c in zip(runs, ("heun", "posterior_mean"), strict=True)
    ]
    assert cell["n"] == 2 and cell["mean"] == pytest.approx(sum(expected) / 2)

"""The figures draw the numbers that they are given."""

import copy
import re
import struct

import matplotlib as mpl
import numpy as np
import pytest

from pdiff.report import adaptation, plots, style, vague
from tests.report import synthetic


@pytest.fixture(scope="module")
def results():
    return synthetic.results()


def test_every_arc_is_shaded_once_and_a_wrapped_one_in_two_parts(results):
    svg = style.svg(plots.accuracy_by_angle(results))
    count = {s: len(re.findall(f'id="arc-{s}-', svg)) for s in ("unseen", "interp", "validation")}
    assert count == {"unseen": 2, "interp": 4, "validation": 2}  # (355°, 365°) is [355, 360] and [0, 5]


def test_shades_lie_where_the_arcs_are(results):
    axes = plots.accuracy_by_angle(results).axes[0]
    spans = {p.get_gid(): (p.get_x(), p.get_x() + p.get_width()) for p in axes.patches}
    assert spans["arc-unseen-0"] == (60, 90)
    assert spans["arc-interp-2"] == (355, 360)
    assert spans["arc-interp-3"] == (0, 5)


def test_lines_go_through_every_task_in_order(results):
    axes = plots.accuracy_by_angle(results).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    tasks = sorted((t for e in results["splits"].values() for t in e["per_task"]), key=lambda t: t["factors"])
    for label, get in {
        "fine-tuned": lambda t: t["finetuned"],
        "generated (posterior mean)": lambda t: t["generated"]["posterior_mean"],
        "nearest seen": lambda t: t["controls"]["nearest_seen"],
        "ridge": lambda t: t["controls"]["ridge"],
        "linear interpolation": lambda t: t["controls"]["linear_interpolation"],
        "base": lambda t: t["base"],
    }.items():
        np.testing.assert_allclose(lines[label].get_xdata(), [t["factors"][0] for t in tasks])
        np.testing.assert_allclose(lines[label].get_ydata(), [get(t) for t in tasks])


def test_every_indicator_has_a_panel_with_its_own_tasks(results):
    several = copy.deepcopy(results)
    several["factors"] = {"names": ["severity", "blur", "noise"], "indicators": ["blur", "noise"]}
    for task in (t for e in several["splits"].values() for t in e["per_task"]):
        task["factors"] += [float(task["id"] % 2 == 0), float(task["id"] % 2)]
    fig = plots.accuracy_by_indicator(several)
    assert [axes.get_title("left") or axes.get_title() for axes in fig.axes] == ["blur", "noise"]
    for axes, rows in zip(fig.axes, plots.by_indicator(several).values(), strict=True):
        line = {line.get_label(): line for line in axes.lines}["fine-tuned"]
        np.testing.assert_allclose(line.get_xdata(), [x for x, _, _ in rows])
        np.testing.assert_allclose(line.get_ydata(), [t["finetuned"] for _, _, t in rows])
    drawn = [t["task"] for rows in plots.by_indicator(several).values() for _, _, t in rows]
    assert sorted(drawn) == sorted(t["task"] for e in several["splits"].values() for t in e["per_task"])
    assert not plots.by_indicator(results)


def test_bars_are_the_means(results):
    fig = plots.split_bars(results)
    assert [axes.get_title("left").split()[0] for axes in fig.axes] == ["seen", "interp", "unseen"]
    for axes, entry in zip(fig.axes, (results["splits"][s] for s in ("seen", "interp", "unseen")), strict=True):
        widths = [bar.get_width() for bar in axes.patches]
        assert widths[0] == entry["finetuned"]["mean"]
        assert widths[1] == entry["generated"]["posterior_mean"]["mean"]  # the chosen sampler leads
        assert widths[-1] == entry["base"]["mean"]
        assert len(widths) == 2 + len(entry["generated"]) + len(entry["controls"])


def test_novelty_draws_the_noise_curve_it_is_given(results):
    measured = ((0.05, 0.96, 0.9), (0.4, 0.7, 0.3))
    curve = [{"scale": s, "accuracy": {"mean": a}, "max_iou": {"mean": o}} for s, a, o in measured]
    points = results["novelty"]["points"]
    (line,) = plots.novelty(points, curve).axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[0.9, 0.96], [0.3, 0.7]])
    assert not plots.novelty(points).axes[0].lines


def test_novelty_draws_every_point(results):
    points = results["novelty"]["points"]
    scatter = plots.novelty(points).axes[0]
    drawn = np.concatenate([c.get_offsets() for c in scatter.collections])
    wanted = [(p["max_iou"], p["accuracy"]) for p in points]
    np.testing.assert_allclose(sorted(map(tuple, drawn)), sorted(wanted))


def test_training_skips_what_is_not_finite():
    entries = [{"step": i, "loss": x} for i, x in enumerate((2.0, float("nan"), 1.0))]
    line = plots.training(entries).axes[0].lines[0]
    assert list(line.get_xdata()) == [0, 2]


def test_hero_is_a_png_of_the_promised_size(results):
    data = plots.hero(results)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1600, 700)


def test_figures_are_reproducible_and_leave_no_settings_behind(results):
    before = dict(mpl.rcParams)
    assert style.svg(plots.split_bars(results)) == style.svg(plots.split_bars(results))
    assert dict(mpl.rcParams) == before


def test_every_colour_of_text_and_lines_changes_in_the_dark(results):
    svg = style.svg(plots.accuracy_by_angle(results))
    for color in (style.INK, style.MUTED, style.FAINT, style.BLUE):
        assert f": {color}" in svg.split("</style>", 1)[1]  # what the style sheet's selectors look for


def test_mixing_has_a_line_for_each_way(results):
    (axes,) = plots.mixing(results["mixing"]).axes
    (line,) = (c.lines[0] for c in axes.containers if c.get_label() == "weights lerp")
    np.testing.assert_allclose(np.asarray(line.get_xdata(), float), [10, 60, 120])
    expected = [r["accuracy"]["weights_lerp"]["mean"] for r in results["mixing"]]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), expected)


def test_vague_prompts_have_a_bar_for_each_bin(results):
    for axes, entry in zip(vague.shares(results["vague"]).axes, results["vague"], strict=False):
        generated, drawn = (entry["networks"][n]["share"] for n in ("generated", "task_of_set"))
        bars = [p for p in axes.patches if hasattr(p, "get_height")]
        np.testing.assert_allclose([b.get_height() for b in bars], generated)
        outline, even = (p for p in axes.patches if hasattr(p, "get_data"))
        np.testing.assert_allclose(even.get_data().values, entry["networks"]["generated"]["even"])
        np.testing.assert_allclose(outline.get_data().values, drawn)
        assert axes.get_title("left").replace("\n", " ") == entry["prompt"]


def test_adaptation_has_a_line_for_each_start_at_the_images_it_was_measured_with(results):
    study = results["adaptation"]
    for axes, (split, entries) in zip(adaptation.lines(study).axes, study["splits"].items(), strict=True):
        assert axes.get_title("left") == f"{split} tasks"
        assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "1", "4", "16"]
        drawn = {c.get_label(): c for c in axes.containers}
        measured = [n for n in adaptation.LINES if any(n in e["accuracy"] for e in entries)]
        assert measured == [n for n in adaptation.LINES if n != "base_head"]  # of targets whose head is known alone
        assert list(drawn) == [adaptation.NAMES[n] for n in measured]
        for name in measured:
            own = [(i, e["accuracy"][name]) for i, e in enumerate(entries) if name in e["accuracy"]]
            line, _, (bars,) = drawn[adaptation.NAMES[name]]
            np.testing.assert_allclose(line.get_xydata(), [(i, s["mean"]) for i, s in own])
            lengths = [(high - low) / 2 for (_, low), (_, high) in bars.get_segments()]
            np.testing.assert_allclose(lengths, [s["sem"] for _, s in own])


def test_a_start_that_was_not_measured_has_no_line(results):
    study = results["adaptation"]
    for entries in study["splits"].values():
        for entry in entries:
            entry["accuracy"].pop("prior_guided", None)
    for axes in adaptation.lines(study).axes:
        assert adaptation.NAMES["prior_guided"] not in {c.get_label() for c in axes.containers}


def test_transfer_draws_every_pair_against_each_distance(results):
    study = results["transfer"]
    for axes, name in zip(plots.transfer(study).axes, ("factors", "background"), strict=True):
        pairs, *generated = (c.get_offsets() for c in axes.collections)
        np.testing.assert_allclose(pairs, [(p[name], p["accuracy"]) for p in study["pairs"]])
        assert sum(len(g) for g in generated) == len(study["generated"])
    del study["rank_correlation"]["background"]  # a family without backgrounds
    assert len(plots.transfer(study).axes) == 1

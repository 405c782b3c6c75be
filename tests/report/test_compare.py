"""Runs side by side: what is refused, what is said, and every number where it belongs."""

import copy

import pytest

from pdiff import results as results_lib
from pdiff.errors import PdiffError
from pdiff.report import compare, compare_plots
from tests.report import synthetic
from tests.report.test_html import Page


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Two runs of one family and one of another; the second generates clearly worse networks."""
    where = tmp_path_factory.mktemp("runs")
    first = synthetic.results()
    first["config"]["train"] = {"steps": 10}
    second = copy.deepcopy(first)
    second["config"]["train"]["steps"] = 20
    for entry in second["splits"].values():
        entry["generated"]["posterior_mean"] |= {"mean": 0.5, "sem": 0.01}
    for name, results in (("one", first), ("two", second), ("other", synthetic.without_arcs(num_factors=3))):
        (where / name).mkdir()
        results_lib.write(where / name / "results.json", results)
    (where / "unfinished").mkdir()
    return where


@pytest.fixture(scope="module")
def runs(workdirs):
    return compare.read([str(workdirs / "one"), str(workdirs / "two")])


@pytest.mark.parametrize(
    "names, message",
    [
        ((), "--workdirs: got nothing; allowed: two or more"),
        (("one",), "two or more"),
        (("one", "nowhere"), "nowhere does not exist"),
        (("one", "unfinished"), "unfinished is not finished, it has no results.json"),
        (("one", "two", "one/../one"), "one are the same"),
    ],
)
def test_workdirs_that_cannot_be_compared_are_refused(workdirs, tmp_path, names, message):
    with pytest.raises(PdiffError, match=message):
        compare.compare([str(workdirs / n) for n in names], str(tmp_path / "c.html"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out, message", [("page.txt", "the .html file"), ("nowhere/c.html", "no existing folder")])
def test_a_page_that_cannot_be_written_is_refused(workdirs, tmp_path, out, message):
    with pytest.raises(PdiffError, match=message):
        compare.compare([str(workdirs / "one"), str(workdirs / "two")], str(tmp_path / out))


def test_results_without_accuracies_are_refused(workdirs, tmp_path):
    results = synthetic.results(num_tasks=2)
    results["splits"] = {"seen": {"num_tasks": 2}}
    results_lib.write(tmp_path / "results.json", results)
    with pytest.raises(PdiffError, match="no splits whose networks were compared by accuracy"):
        compare.read([str(workdirs / "one"), str(tmp_path)])


def test_page_and_table_have_every_number(workdirs, runs, tmp_path):
    text = compare.compare([r.workdir for r in runs], str(tmp_path / "c.html"))
    page = Page((tmp_path / "c.html").read_text())
    cells = [[c.strip() for c in row] for row in page.tables["accuracies"]]
    assert cells[0][1:] == ["one", "two"]
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if " ± " in line]
    at = 0
    for split in ("seen", "interp", "unseen"):
        place = cells.index([split])
        shown = cells[place + 1 : place + 6]
        assert [row[0] for row in shown] == [
            "generated", "fine-tuned on the task", "best control", "second-best control", "base, not fine-tuned"
        ]  # fmt: skip
        for i, run in enumerate(runs):
            entry = run.results["splits"][split]
            ranked = sorted(entry["controls"].items(), key=lambda item: -item[1]["mean"])[:2]
            expected = [(entry["generated"]["posterior_mean"], "posterior mean"), (entry["finetuned"], "")]
            expected += [(s, n.replace("_", " ")) for n, s in ranked] + [(entry["base"], "")]
            for row, line, (s, name) in zip(shown, lines[at : at + 5], expected, strict=True):
                assert row[1 + i] == f"{s['mean']:.3f} ± {s['sem']:.3f} {name}".strip()
                assert f"{s['mean']:.4f} ± {s['sem']:.4f}" in line[1 + i] and name in line[1 + i]
        assert lines[at][1].startswith("**") and "**" not in lines[at][2]  # only the first is clearly above the others
        at += 5
    assert [[c.strip() for c in row] for row in page.tables["differences"]] == [
        ["field", "one", "two"], ["train.steps", "10", "20"]
    ]  # fmt: skip
    timings = {row[0].strip(): row[1].strip() for row in page.tables["timings"][1:]}
    assert timings["training"] == "10 min 12 s" and timings["peak memory"] == "1,234 MB"
    assert all(len(i["alt"]) > 40 for i in page.images) and len(page.images) == 2
    assert "| train.steps | 10 | 20 |" in text


def test_different_families_are_compared_and_said(workdirs):
    mixed = compare.read([str(workdirs / n) for n in ("one", "other")])
    assert "different families of tasks" in compare.notes(mixed)[0]
    assert not compare_plots.share_a_factor(*(r.results for r in mixed))
    interpolated = next(p for p in compare.accuracy(mixed) if p["split"] == "unseen")["rows"][2].cells
    assert len(interpolated) == 2 and all(interpolated)
    assert compare.notes(compare.read([str(workdirs / n) for n in ("one", "two")])) == []


def test_runs_on_other_tasks_of_one_family_are_said(workdirs, tmp_path):
    results_lib.write(tmp_path / "results.json", synthetic.results(num_tasks=5))
    assert "not scored on the same tasks" in compare.notes(compare.read([str(workdirs / "one"), str(tmp_path)]))[0]


def test_the_overlay_draws_every_run_through_its_tasks(runs):
    axes = compare_plots.against_factor([(r.name, r.results) for r in runs]).axes[0]
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"one", "two"} and any(p.get_gid() == "arc-unseen-0" for p in axes.patches)
    for run in runs:
        tasks = sorted((t for e in run.results["splits"].values() for t in e["per_task"]), key=lambda t: t["factors"])
        assert list(lines[run.name].get_xdata()) == [t["factors"][0] for t in tasks]
        assert list(lines[run.name].get_ydata()) == [t["generated"]["posterior_mean"] for t in tasks]


def test_names_from_outside_are_escaped(tmp_path):
    evil = "<script>alert(1)<"
    for name in ("a", evil):
        (tmp_path / name).mkdir()
        results = synthetic.results(num_tasks=2)
        results["command"] = results["config"]["zoo"]["dir"] = evil + name
        results_lib.write(tmp_path / name / "results.json", results)
    runs = compare.read([str(tmp_path / "a"), str(tmp_path / evil)])
    assert "<script" not in compare.render(runs) and compare.table(runs)

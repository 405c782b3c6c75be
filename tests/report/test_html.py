"""The page shows what results.json says, and nothing else's."""

import base64
import copy
import json
import re
from html.parser import HTMLParser

import pytest

from pdiff.errors import PdiffError
from pdiff.report import html, table
from pdiff.report import results as results_lib
from pdiff.report.rows import given
from tests.report import synthetic


class Page(HTMLParser):
    """Tables by id as rows of cell texts, images, all tags with attributes, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.images, self.tags, self.text = {}, [], [], ""
        self._table = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "table":
            self._table = self.tables.setdefault(attrs["id"], [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")
        elif tag == "img":
            self.images.append(attrs)

    def handle_endtag(self, tag):
        if tag == "table":
            self._table = None

    def handle_data(self, data):
        self.text += data
        if self._table and self._table[-1]:
            self._table[-1][-1] += " ".join(data.split()) and f"{' '.join(data.split())} "


@pytest.fixture(scope="module")
def results():
    return synthetic.results()


@pytest.fixture(scope="module")
def text(results):
    return html.render(results, synthetic.metrics())


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


@pytest.mark.parametrize("split", ["seen", "interp", "unseen"])
def test_split_tables_hold_every_number(page, results, split):
    entry = results["splits"][split]
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in page.tables[f"split-{split}"]}
    expected = {"fine-tuned on the task": entry["finetuned"], "base, not fine-tuned": entry["base"]}
    for name, s in entry["generated"].items():
        mark = "chosen sampler" if name == "posterior_mean" else "generated"
        expected[f"{name.replace('_', ' ')} {mark}"] = s
    expected |= {f"{name.replace('_', ' ')} control": s for name, s in entry["controls"].items()}
    for name, s in entry["by_condition"].items():
        expected[f"posterior mean, given {given(name)} generated"] = s
    for name, s in entry["test_time"].items():
        expected[f"ddim, {'single samples' if name == 'single' else name.replace('_', ' ')} generated"] = s
    base, gain = entry["base"]["mean"], entry["finetuned"]["mean"] - entry["base"]["mean"]
    assert len(rows) == len(expected) + 1  # and the heading
    for title, s in expected.items():
        mean, share, low, high, n = rows[title]
        assert mean == f"{s['mean']:.3f} ± {s['sem']:.3f}"
        assert (low, high, n) == (f"{s['min']:.3f}", f"{s['max']:.3f}", str(s["n"]))
        assert share == f"{100 * (s['mean'] - base) / gain:.1f}%"


def test_headline_gives_the_chosen_sampler_on_every_split(page, results):
    text = " ".join(page.text.split())
    assert "Sampled by posterior mean" in text
    for split, entry in results["splits"].items():
        mean, tuned, base = (
            entry["generated"]["posterior_mean"]["mean"],
            entry["finetuned"]["mean"],
            entry["base"]["mean"],
        )
        assert f"{mean:.3f} on {split} tasks (fine-tuned {tuned:.3f}, base {base:.3f})" in text


def test_headline_names_every_control_that_is_not_clearly_below(results):
    """Two standard errors of the difference: .863 ± .019 is not above .860 ± .022, but is above .700 ± .010."""
    results = copy.deepcopy(results)
    entry = results["splits"]["unseen"]
    entry["generated"]["posterior_mean"] |= {"mean": 0.863, "sem": 0.019}
    for s in entry["controls"].values():
        s |= {"mean": 0.700, "sem": 0.010}
    entry["controls"]["nearest_seen"] |= {"mean": 0.860, "sem": 0.022}
    made = " ".join(Page(html.render(results, [])).text.split())
    assert "Not clearly above: nearest seen." in made
    entry["controls"]["nearest_seen"] |= {"mean": 0.700}
    made = " ".join(Page(html.render(results, [])).text.split())
    assert "Above every control by more than two standard errors." in made


def test_every_task_has_a_row(page, results):
    rows = page.tables["per-task"][1:]
    tasks = [t for split in ("seen", "interp", "unseen") for t in results["splits"][split]["per_task"]]
    assert [row[0].strip() for row in rows] == [t["task"] for t in tasks]
    assert [row[3].strip() for row in rows] == [f"{t['finetuned']:.3f}" for t in tasks]
    assert [row[5].strip() for row in rows] == [f"{t['generated']['posterior_mean']:.3f}" for t in tasks]


def test_novelty_config_command_commit_and_time_are_shown(page, results):
    assert f"{results['novelty']['max_iou_to_zoo']['mean']:.3f} ±" in page.tables["novelty"][1][1]
    for shown in (results["command"], results["commit"], results["created"], "2,410 parameters"):
        assert shown in page.text
    assert 'tasks.unseen = "60:90,216:234"' in page.text
    assert "10 min 12 s" in page.text and "1,234 MB" in page.text


def test_page_asks_the_network_for_nothing(text, page):
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "href", "srcset", "poster", "action"):
            assert attrs.get(name, "data:").startswith("data:")
        assert not (tag == "script" and "src" in attrs)
    assert not re.search(r"@import|url\(", text)
    assert len(text.encode()) < 3e6


def test_plots_are_embedded_and_described(page):
    assert len(page.images) == 9
    for image in page.images:
        svg = base64.b64decode(image["src"].split(",", 1)[1]).decode()
        assert svg.startswith("<svg") and "prefers-color-scheme: dark" in svg
        assert not re.search(r'href="(?!#)', svg)
        assert len(image["alt"]) > 40


def test_a_family_with_several_factors_has_no_figure_against_one():
    results = synthetic.without_arcs(num_factors=10)
    made = Page(html.render(results, synthetic.metrics()))
    assert len(made.images) == 7  # neither accuracy against the factor nor mixing
    assert made.tables["per-task"][2][2].strip() == "1, 0, 0, 0, 0, 0, 0, 0, 0, 0"
    assert any(row[0].startswith("majority") for row in made.tables["split-unseen"])


def test_every_word_from_outside_is_escaped():
    evil = "<script>alert(1)</script>\"'&"
    results = synthetic.results(num_tasks=2, task_name=evil + "{:g}")
    results["command"] = results["commit"] = results["config"]["zoo"]["dir"] = evil
    results["target"]["name"] = evil
    text = html.render(results, [])
    page = Page(text)
    assert "<script>alert" not in text
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # the one that sorts
    assert page.tables["per-task"][1][0].startswith(evil)


def test_other_families_and_missing_parts_render():
    """No arcs, no factors, one split, no validation, no metrics, next to nothing to gain."""
    results = copy.deepcopy(synthetic.results(num_tasks=2))
    del results["arcs"], results["selection"]["validation"], results["mixing"], results["accuracy_against_spread"]
    del results["transfer"], results["likelihood"], results["score_likeness"]
    results["splits"] = {"seen": results["splits"]["seen"]}
    results["config"]["tasks"] = {"family": "corruption"}
    results["splits"]["seen"]["base"] = results["splits"]["seen"]["finetuned"]
    for task in results["splits"]["seen"]["per_task"]:
        task["factors"] = []
    page = Page(html.render(results, []))
    assert len(page.images) == 2
    assert page.tables["split-seen"][1][2].strip() == "–"


def test_write_report_writes_page_and_plots(tmp_path, results):
    results_lib.write(tmp_path / "results.json", results)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in synthetic.metrics()))
    html.write_report(tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    names = {"accuracy_by_angle.svg", "splits.svg", "novelty.svg", "training.svg", "hero.png"}
    names |= {"accuracy_against_spread.svg", "mixing.svg", "transfer.svg", "likelihood.svg"}
    names |= {"score_likeness.svg"}
    assert {p.name for p in (tmp_path / "plots").iterdir()} == names
    html.write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first  # the same results are the same page


def test_write_report_needs_results(tmp_path):
    with pytest.raises(PdiffError, match=r"results\.json: missing"):
        html.write_report(tmp_path)


def test_support_rows_are_named_in_words():
    assert given("support_4_labelled") == "4 labelled images a class"
    assert given("text+support_16_unlabelled") == "text and 16 unlabelled images a class"
    assert given("factors") == "factors"


def test_the_markdown_table_has_every_row_and_names_what_is_not_below(results):
    lines = table.markdown(results).splitlines()
    split = [[x.strip() for x in line.split("|")] for line in lines[2:] if line.startswith("|")]
    cells = {c[1].strip("* "): c[2:-1] for c in split}
    ridge = results["splits"]["seen"]["controls"]["ridge"]
    assert cells["ridge"][0] == f"{ridge['mean']:.4f} ± {ridge['sem']:.4f}"
    chosen = results["selection"]["sampler"]
    made = next(v for k, v in cells.items() if k.startswith("generated, "))
    for value, split in zip(made, ("seen", "interp", "unseen"), strict=False):
        assert value.startswith(f"{results['splits'][split]['generated'][chosen]['mean']:.4f}")
    assert any(line.startswith("- unseen, not below") for line in lines)

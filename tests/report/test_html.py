"""The page shows what results.json says, and nothing else's."""

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from pdiff import results as results_lib
from pdiff.config.fields import defaults
from pdiff.errors import PdiffError
from pdiff.report import adaptation, figures, html, markdown, plots, vague
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
def closeup():
    return synthetic.closeup()


@pytest.fixture(scope="module")
def text(results, closeup, drawn):
    return html.page(results, drawn, closeup, workdir="runs/my run")


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
        expected[f"posterior mean, given {name} generated"] = s
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
    made = " ".join(Page(html.page(results)).text.split())
    assert "Not clearly above: nearest seen." in made
    entry["controls"]["nearest_seen"] |= {"mean": 0.700}
    made = " ".join(Page(html.page(results)).text.split())
    assert "Above every control by more than two standard errors." in made


def test_every_task_has_a_row(page, results):
    rows = page.tables["per-task"][1:]
    tasks = [t for split in ("seen", "interp", "unseen") for t in results["splits"][split]["per_task"]]
    assert [row[0].strip() for row in rows] == [t["task"] for t in tasks]
    assert [row[3].strip() for row in rows] == [f"{t['finetuned']:.3f}" for t in tasks]
    assert [row[5].strip() for row in rows] == [f"{t['generated']['posterior_mean']:.3f}" for t in tasks]


def test_novelty_config_command_commit_and_time_are_shown(page, results):
    assert f"{results['novelty']['max_iou_to_zoo']['mean']:.3f} ±" in page.tables["novelty-numbers"][1][1]
    for shown in (results["command"], results["commit"], results["created"], "2,410 parameters"):
        assert shown in page.text
    assert 'tasks.unseen = "60:90,216:234"' in page.text
    assert "10 min 12 s" in page.text and "1,234 MB" in page.text


def test_page_asks_the_network_for_nothing(text, page):
    for tag, attrs in page.tags:
        assert tag not in ("iframe", "object")
        for name in ("src", "href", "srcset", "poster", "action"):
            assert attrs.get(name, "data:").startswith(("data:", "#"))
        assert not (tag == "script" and "src" in attrs)
    assert not re.search(r"@import|url\(", text)
    assert len(text.encode()) < 3e6


def test_the_policy_allows_the_pages_own_script_alone(text, page):
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*)</script>", text, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}';" in policy


def test_every_figure_has_words_and_both_colour_schemes(page, closeup):
    figures = [i for i in page.images if i["src"].startswith("data:image/svg")]
    assert len(figures) == 11
    for image in figures:
        svg = base64.b64decode(image["src"].split(",", 1)[1]).decode()
        assert svg.startswith("<svg") and "prefers-color-scheme: dark" in svg
        assert not re.search(r'href="(?!#|data:image/png)', svg)
        assert len(image["alt"]) > 40
    assert len(page.images) == 11 + len(closeup["images"][0]["images"])


def test_images_come_with_both_answers(page, closeup):
    shown = [i for i in page.images if i["src"].startswith("data:image/png")]
    for image, said in zip(closeup["images"][0]["images"], shown, strict=True):
        assert said["src"].endswith(image["png"])
        assert said["alt"] == (
            f"Image of class {image['label']}. Generated answers {image['generated']}, fine-tuned {image['finetuned']}."
        )


def test_raw_parameters_rivals_and_mistakes_are_compared_in_numbers(page, results, closeup):
    rows = [[c.strip() for c in row] for row in page.tables["averaging"][1:]]
    assert [r[0] for r in rows[::2]] == ["seen", "interp", "unseen", "validation"]
    for split, sampler, averaged, raw, gain in rows:
        pair = closeup["averaging"][split][sampler.replace(" ", "_")]
        assert (averaged, raw) == tuple(f"{pair[k]['mean']:.3f} ± {pair[k]['sem']:.3f}" for k in ("averaged", "raw"))
        assert gain == f"{pair['averaged']['mean'] - pair['raw']['mean']:+.4f}"
    _, own, rival = page.tables["rivals-compared"]
    assert [c.strip() for c in own[:3]] == ["this generator, posterior mean", "2,500", "612"]
    assert [c.strip() for c in rival[:3]] == ["latent unet", "1,000", "300"]
    scored = [results["splits"][s]["controls"]["latent_unet"] for s in ("seen", "interp", "unseen")]
    assert [c.strip() for c in rival[3:]] == [f"{c['mean']:.3f} ± {c['sem']:.3f}" for c in scored]
    assert [c.strip() for c in page.tables["confusions"][1]] == ["seen", "0", "3", "8.0%", "2.0%"]


def test_how_much_networks_of_a_task_differ_is_shown_beside_the_zoo(page, results):
    rows = {row[0].strip(): [c.strip() for c in row[1:]] for row in page.tables["spread"][1:]}
    assert list(rows) == ["seen", "interp", "unseen", "validation"]
    for split, cells in rows.items():
        for kind, shown in (("zoo", cells[:3]), ("generated", cells[3:])):
            pair = results["spread"][kind].get(split)
            measured = [pair[k] for k in ("accuracy", "spread", "disagreement")] if pair else []
            assert shown == ([f"{s['mean']:.3f} ± {s['sem']:.3f}" for s in measured] or ["–"] * 3)
    assert rows["validation"][0] == "–" != rows["validation"][3]  # one fine-tuned network of each of its tasks


def test_what_is_drawn_for_vague_prompts_is_shown_beside_what_it_is_compared_with(page, results):
    rows = [[c.strip() for c in row] for row in page.tables["vague-numbers"][1:]]
    for entry, group in zip(results["vague"], (rows[:5], rows[5:]), strict=True):
        assert group[0] == [f"{entry['prompt']} taken for {entry['said']}; 256 networks of each kind"]
        for title, (name, *cells) in zip(vague.NAMES, group[1:], strict=True):
            fit = entry["networks"][title]
            assert name == vague.NAMES[title]
            assert cells[0] == f"{fit['best']['mean']:.3f} ± {fit['best']['sem']:.3f}"
            shares = [f"{100 * fit[k]:.1f}%" for k in ("high", "inside", "precision", "coverage")]
            assert cells[1:] == [*shares, f"{fit['bins_hit']} of {fit['bins']}", f"{fit['total_variation']:.3f}"]


@pytest.mark.parametrize("split", ["interp", "unseen"])
def test_networks_from_a_few_images_are_shown_with_the_priors_lead(page, results, split):
    none, *some = results["adaptation"]["splits"][split]
    head, *rows = [[c.strip() for c in row] for row in page.tables[f"adaptation-{split}"]]
    assert head[1:4] == ["no image", "1 of a class (9.9 images)", "the prior's lead"]
    assert head[6] == "16 of a class (158 images)"
    for name, (title, *cells) in zip(synthetic.ADAPTED, rows, strict=True):
        assert title == adaptation.NAMES[name]
        measured = [none["accuracy"].get(name)] + [e["accuracy"][name] for e in some]
        assert [cells[0], *cells[1::2]] == [f"{s['mean']:.3f} ± {s['sem']:.3f}" if s else "–" for s in measured]
        leads = [e["ahead"].get(name) for e in some]
        assert cells[2::2] == [f"{s['mean']:+.3f} ± {s['sem']:.3f}" if s else "–" for s in leads]
    recipes = {row[0].strip(): [c.strip() for c in row[1:]] for row in page.tables["recipes"][1:]}
    chosen = results["adaptation"]["recipes"]
    assert list(recipes) == [adaptation.NAMES[n] for n in chosen["1"]]
    for name in chosen["1"]:
        shown = [f"weights, rate 0.003, 60 steps ({chosen[s][name]['validation']:.3f})" for s in ("1", "4", "16")]
        assert recipes[adaptation.NAMES[name]] == shown


def test_a_lead_is_bold_only_if_it_is_clear(results):
    """More than two standard errors, which one task alone does not have."""
    other = copy.deepcopy(results)
    ahead = other["adaptation"]["splits"]["interp"][1]["ahead"]
    ahead["zoo"] |= {"mean": 0.0411, "sem": 0.02, "n": 16}
    ahead["base"] |= {"mean": 0.0399, "sem": 0.02, "n": 16}
    ahead["reptile"] |= {"mean": 0.0422, "sem": 0.0, "n": 1}
    ahead["described"] |= {"mean": -0.0433, "sem": 0.001, "n": 16}
    text, written = html.page(other), markdown.report(other)
    assert "<b>+0.041 ± 0.020</b>" in text and "**+0.041 ± 0.020**" in written
    for lead in ("+0.040 ± 0.020", "+0.042 ± 0.000", "-0.043 ± 0.001"):
        assert f"<td>{lead}</td>" in text and f"| {lead} |" in written


def test_calibration_is_shown_by_split(page, results):
    rows = [[c.strip() for c in row] for row in page.tables["calibration"][1:]]
    assert [r[0] for r in rows[::4]] == ["seen", "interp", "unseen"]
    for split, networks, kind, count, *measured in rows:
        found = results["calibration"][split][f"{networks.replace('-', '')}_{kind}"]
        assert count == str(found["networks"])
        wanted = [found[k] for k in ("error", "log_likelihood")]
        assert measured == [f"{s['mean']:.3f} ± {s['sem']:.3f}" for s in wanted]


def test_the_config_is_shown_where_it_is_not_the_default(page, results):
    changed = {row[0].strip(): [c.strip() for c in row[1:]] for row in page.tables["changed"][1:]}
    assert changed["tasks.num_seen"] == ["24", "256"]
    assert changed["train.steps"] == ["–", str(defaults().train.steps)]  # these results lack it
    assert "tasks.unseen" not in changed and "tasks.family" not in changed


def test_the_commands_fit_the_run(page):
    assert "--workdir='runs/my run' --mode=sample --prompt='digits rotated by 85 degrees' --num_samples=8" in page.text
    assert "--mode=compare --workdirs='runs/my run',OTHER" in page.text


def test_an_older_run_without_closeups_has_the_rest(results):
    older = Page(html.page(results))
    assert "averaging" not in older.tables and "split-seen" in older.tables and not older.images
    assert "What do they answer?" not in older.text
    assert "--mode=sample --task=rotation_" in older.text


@pytest.mark.parametrize("part", sorted(synthetic.closeup()))
def test_each_part_of_the_closeups_stands_alone(results, closeup, part):
    assert "Where to look next" in Page(html.page(results, closeup={part: closeup[part]})).text


def test_splits_that_were_not_compared_by_accuracy_are_left_out(results, closeup):
    other = copy.deepcopy(results)
    other["splits"] = {"seen": {"num_tasks": 3, "some_distance": 0.5}}
    page = Page(html.page(other, closeup=closeup))
    assert "split-seen" not in page.tables and "per-task" not in page.tables and "novelty-numbers" in page.tables


def test_where_to_look_next_names_what_is_not_shown(results):
    other = copy.deepcopy(results)
    for entry in other["splits"].values():
        entry["controls"]["ridge"] = entry["generated"]["posterior_mean"]
    text = " ".join(Page(html.page(other)).text.split())
    assert "What the generator adds over ridge is not shown on seen, interp, unseen tasks" in text
    worst = max(
        (t for e in other["splits"].values() for t in e["per_task"]),
        key=lambda t: t["finetuned"] - t["generated"]["posterior_mean"],
    )
    assert f"{worst['task']} (" in text


def test_a_family_with_several_factors_has_no_figure_against_one():
    results = synthetic.without_arcs(num_factors=10)
    assert not plots.by_factor(results)
    made = Page(html.page(results))
    assert made.tables["per-task"][2][2].strip() == "1, 0, 0, 0, 0, 0, 0, 0, 0, 0"
    assert any(row[0].startswith("majority") for row in made.tables["split-unseen"])


def test_every_word_from_outside_is_escaped(closeup):
    evil = "<script>alert(1)</script>\"'&"
    results = synthetic.results(num_tasks=2, task_name=evil + "{:g}")
    results["command"] = results["commit"] = results["config"]["zoo"]["dir"] = evil
    results["target"]["name"] = evil
    hostile = copy.deepcopy(closeup) | {"prompt": evil}
    hostile["images"][0]["task"] = hostile["images"][0]["images"][0]["png"] = evil
    text = html.page(results, closeup=hostile, workdir=evil)
    page = Page(text)
    assert "<script>alert" not in text
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # the one that sorts
    assert page.tables["per-task"][1][0].startswith(evil)


def test_other_families_and_missing_parts_render():
    """No arcs, no factors, one split, no validation, no metrics, next to nothing to gain."""
    results = copy.deepcopy(synthetic.results(num_tasks=2))
    del results["arcs"], results["selection"]["validation"]
    for study in ("mixing", "spread", "transfer", "calibration", "vague", "adaptation"):
        del results[study]
    results["splits"] = {"seen": results["splits"]["seen"]}
    results["config"]["tasks"] = {"family": "corruption"}
    results["splits"]["seen"]["base"] = results["splits"]["seen"]["finetuned"]
    for task in results["splits"]["seen"]["per_task"]:
        task["factors"] = []
    made = figures.figures(results, [], {})
    assert [f.name for f in made] == ["splits", "against_finetuned", "novelty"]
    page = Page(html.page(results, made))
    assert page.tables["split-seen"][1][2].strip() == "–"
    assert "spread" not in page.tables and "calibration" not in page.tables and "Studies" not in page.text
    assert "Vague descriptions" not in page.text and "A few labelled images" not in page.text
    assert markdown.report(results).count("| --- |") == 1


def test_write_report_writes_page_and_plots(tmp_path, results, closeup, drawn):
    results_lib.write(tmp_path / "results.json", results)
    results_lib.write(tmp_path / html.CLOSEUP, closeup)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in synthetic.metrics()))
    html.write_report(tmp_path)
    # The same results are the same page, to the byte.
    read, looked = (results_lib.read(tmp_path / n) for n in ("results.json", html.CLOSEUP))
    assert (tmp_path / "report.html").read_text() == html.page(read, drawn, looked, workdir=str(tmp_path))
    names = {"accuracy_by_angle.svg", "splits.svg", "novelty.svg", "training.svg", "hero.png"}
    names |= {"mixing.svg", "transfer.svg", "against_finetuned.svg", "plane.svg", "confusion.svg"}
    names |= {"vague.svg", "adaptation.svg"}
    assert {p.name for p in (tmp_path / "plots").iterdir()} == names


def test_write_report_needs_results(tmp_path):
    with pytest.raises(PdiffError, match=r"results\.json: missing"):
        html.write_report(tmp_path)


def test_the_markdown_table_has_every_row_and_names_what_is_not_below(results):
    lines = markdown.report(results).splitlines()
    rows = [[x.strip() for x in line.split("|")] for line in lines[2 : lines.index("")]]
    cells = {c[1].strip("* "): c[2:-1] for c in rows}
    ridge = results["splits"]["seen"]["controls"]["ridge"]
    assert cells["ridge"][0] == f"{ridge['mean']:.4f} ± {ridge['sem']:.4f}"
    chosen = results["selection"]["sampler"]
    made = next(v for k, v in cells.items() if k.startswith("generated, "))
    for value, split in zip(made, ("seen", "interp", "unseen"), strict=False):
        assert value.startswith(f"{results['splits'][split]['generated'][chosen]['mean']:.4f}")
    assert any(line.startswith("- unseen, not below") for line in lines)
    assert made[-2:] == ["2,500", "612"] and cells["latent unet"][-2:] == ["1,000", "300"]
    assert next(c for c in rows if c[1] == "hypernetwork")[-3:-1] == ["500", ""]


def test_the_markdown_has_the_tables_of_the_studies(results):
    lines = markdown.report(results).splitlines()
    rows = [[x.strip() for x in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    told = results["vague"][1]
    found = next(r for r in rows if r[:2] == [told["prompt"], "generated"])
    fit = told["networks"]["generated"]
    assert found[2].startswith(f"{fit['best']['mean']:.3f}") and found[-1] == f"{fit['total_variation']:.3f}"
    assert f"- {told['prompt']}: taken for {told['said']}." in lines
    start = next(i for i, r in enumerate(rows) if r[0] == "from a few labelled images, unseen tasks")
    few = results["adaptation"]["splits"]["unseen"][1]
    assert rows[start + 2][2].startswith(f"{few['accuracy']['prior']['mean']:.3f} ±") and rows[start + 2][3] == "–"
    calibrated = next(r for r in rows if r[:3] == ["unseen", "fine-tuned", "ensemble"])
    entry = results["calibration"]["unseen"]["finetuned_ensemble"]
    measured = [entry[k] for k in ("error", "log_likelihood")]
    assert calibrated[3:] == ["3", *(f"{s['mean']:.3f} ± {s['sem']:.3f}" for s in measured)]

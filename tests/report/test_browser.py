"""The page as a browser shows it: a headless Chromium opens it, without a network and at the width of a phone."""

import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from pdiff import results as results_lib
from pdiff.report import compare, html
from tests.report import synthetic

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e '.[test]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH, e.g. of `apt-get install chromium`")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SPLITS = ("seen", "interp", "unseen")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def results():
    return synthetic.results()


@pytest.fixture(scope="module")
def pages(results, drawn, tmp_path_factory):
    """Files of a report and of a comparison."""
    where = tmp_path_factory.mktemp("pages")
    (where / "report.html").write_text(html.page(results, drawn, synthetic.closeup(), workdir="runs/interp"))
    for name in ("one", "a second run with quite a long name"):
        (where / name).mkdir()
        results_lib.write(where / name / "results.json", results)
    runs = compare.read([str(where / "one"), str(where / "a second run with quite a long name")])
    (where / "compare.html").write_text(compare.render(runs))
    return where


class Opened:
    """A page in a tab of its own, with what it asked for and what it complained of."""

    def __init__(self, browser, path, **how):
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | how))
        self.tab, self.asked, self.complaints = self.context.new_page(), [], []
        self.tab.on("request", lambda r: self.asked.append(r.url))
        self.tab.on("console", lambda m: self.complaints.append(f"{m.type}: {m.text}"))
        self.tab.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.tab.goto(path.as_uri())

    def rows(self, table):
        """The texts of the cells in the body of a table."""
        script = "t => [...t.tBodies].flatMap(b => [...b.rows].map(r => [...r.cells].map(c => c.textContent.trim())))"
        return [[re.sub(r"\s+", " ", c) for c in row] for row in self.tab.locator(f"#{table}").evaluate(script)]


@pytest.fixture(scope="module")
def page(browser, pages):
    opened = Opened(browser, pages / "report.html")
    yield opened
    opened.context.close()


@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_opens_without_requests_or_complaints(browser, pages, name):
    opened = Opened(browser, pages / f"{name}.html", offline=True)
    opened.tab.wait_for_load_state("networkidle")
    assert [u for u in opened.asked if not u.startswith("data:")] == [(pages / f"{name}.html").as_uri()]
    assert opened.complaints == []
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    assert opened.tab.evaluate(broken) == []
    unnamed = """[...document.querySelectorAll("img, svg, [role=img]")]
        .filter(e => !(e.getAttribute("alt") || e.getAttribute("aria-label") || e.querySelector("title")))"""
    assert opened.tab.evaluate(f"{unnamed}.length") == 0
    focus = "[...document.querySelectorAll('button, [tabindex], a')]"
    assert opened.tab.evaluate(f"{focus}.every(e => e.textContent.trim() || e.getAttribute('aria-label'))")
    targets = "[...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.getAttribute('href')))"
    found = opened.tab.evaluate(targets)
    assert len(found) > 3 and all(found)
    opened.context.close()


def test_the_policy_stops_what_asks_the_network(browser, pages):
    opened = Opened(browser, pages / "report.html")
    blocked = """new Promise(done => { document.addEventListener("securitypolicyviolation", e => done(e.blockedURI));
        const image = document.createElement("img"); image.src = "http://127.0.0.1:9/x.png";
        document.body.append(image); })"""
    assert opened.tab.evaluate(blocked).startswith("http://127.0.0.1:9")
    opened.context.close()


def test_every_cell_says_what_the_results_say(page, results):
    splits = [results["splits"][s] for s in SPLITS]
    table = {row[0]: row[1:] for row in page.rows("compared")}

    def written(s):
        return f"{s['mean']:.3f} ± {s['sem']:.3f}"

    for kind, key in (("control", "controls"), ("generated", "generated")):
        for name in splits[0][key]:
            mark = "chosen sampler" if name == "posterior_mean" else kind
            assert table[f"{name.replace('_', ' ')} {mark}"] == [written(e[key][name]) for e in splits]
    assert table["fine-tuned on the task"] == [written(e["finetuned"]) for e in splits]
    heads = page.tab.locator("#per-task th button").all_text_contents()
    tasks = [(s, t) for s in SPLITS for t in results["splits"][s]["per_task"]]
    for row, (split, task) in zip(page.rows("per-task"), tasks, strict=True):
        cells = dict(zip(heads, row, strict=True))
        assert (cells["task"], cells["split"]) == (task["task"], split)
        values = {"fine-tuned": task["finetuned"], "base": task["base"]} | task["generated"] | task["controls"]
        for name, value in values.items():
            assert cells[name.replace("_", " ")] == f"{value:.3f}"
        assert len(values) + 3 == len(cells) and float(cells["factors"]) == pytest.approx(task["factors"][0], rel=1e-4)
    for row, name in zip(page.rows("novelty-numbers"), ("max_iou_to_zoo", "nearest_l2"), strict=False):
        assert row[1] == written(results["novelty"][name])
    shown = page.tab.locator("#timings").inner_text()
    assert "12 min 6 s" in shown and "1,234 MB" in shown


def test_headings_sort_by_click_and_by_key(page):
    page.tab.locator("#tasks summary").click()
    heading = page.tab.locator("#per-task th").nth(3)
    for press, order in ((heading.locator("button").click, "ascending"), (None, "descending")):
        if press is None:
            heading.locator("button").focus()
            page.tab.keyboard.press("Enter")
        else:
            press()
        assert heading.get_attribute("aria-sort") == order
        values = [float(row[3]) for row in page.rows("per-task")]
        assert values == sorted(values, reverse=order == "descending") and len(set(values)) > 3
    page.tab.locator("#per-task th button").first.click()
    angles = [float(row[0].removeprefix("rotation_")) for row in page.rows("per-task")]
    assert angles == sorted(angles) and heading.get_attribute("aria-sort") is None


@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_phone_need_not_scroll_sideways(browser, pages, name):
    opened = Opened(browser, pages / f"{name}.html", viewport={"width": 390, "height": 844})
    opened.tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert opened.tab.evaluate("document.documentElement.scrollWidth") == 390
    outside = """[...document.querySelectorAll("main *, header *")]
        .filter(e => e.getBoundingClientRect().right > 391 && !e.closest(".wide, .scroll")).map(e => e.className)"""
    assert opened.tab.evaluate(outside) == []
    opened.context.close()


def test_dark_readers_get_a_dark_page_and_light_ink_in_figures(browser, pages):
    grey = {}
    for scheme in ("light", "dark"):
        opened = Opened(browser, pages / "report.html", color_scheme=scheme)
        shot = opened.tab.locator("#accuracy figure img").first.screenshot()
        grey[scheme] = np.asarray(Image.open(io.BytesIO(shot)).convert("L"))
        opened.context.close()
    assert np.median(grey["light"]) > 240 and grey["light"].min() < 80  # dark ink on a light page
    assert np.median(grey["dark"]) < 40 and grey["dark"].max() > 200  # and the other way round

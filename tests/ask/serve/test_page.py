"""The page in a real browser: what a visitor types, drags, draws and reads."""

import shutil

import pytest

PROMPT = "digits rotated by 75 degrees"
VAGUE = "digits rotated by between 60 and 90 degrees"
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine; install with: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright; it is in the extra test")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, application):
    """The page, opened on a phone; at the end nothing may have been said to the console or asked of other hosts."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page, said, asked = context.new_page(), [], []
    page.set_default_timeout(20_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(application.address)
    page.locator("#controls:not([hidden])").wait_for()
    yield page
    said = [s for s in said if "400 (Bad Request)" not in s]  # which the browser says of every refusal
    assert said == []
    assert all(url.startswith((application.address, "data:")) for url in asked)
    context.close()


def ask(page, prompt):
    page.get_by_label("Description", exact=True).fill(prompt)
    page.get_by_role("button", name="Get networks").click()


def test_a_prompt_gives_accuracy_and_images(page):
    ask(page, PROMPT)
    page.locator("#images li").first.wait_for()
    accuracy = float(page.locator("#accuracy").inner_text())
    assert 0 <= accuracy <= 1 and "200 validation images" in page.locator("#accuracy-note").inner_text()
    assert f"accuracy {accuracy:.3f}" in page.locator("#status").inner_text()
    assert 0 < float(page.locator("#expected").inner_text()) < 1
    note = page.locator("#expected-note").inner_text()
    assert note.startswith("expect 0.") and "unseen" in note
    images = page.locator("#images img")
    assert images.count() == 30
    for mark, alt in zip(page.locator("#images span").all()[:9], images.all()[:9], strict=True):
        assert ("✓" in mark.inner_text()) == (": right" in alt.get_attribute("alt"))
        assert alt.evaluate("image => image.naturalWidth") == 8
    assert page.locator("#maps img").count() == 2
    assert page.locator("#factor-0").input_value() == "75"  # the slider follows
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename.endswith(".safetensors")


def test_a_vague_prompt_gives_a_table_of_networks(page):
    ask(page, VAGUE)
    page.locator("#networks tbody tr").first.wait_for()
    assert page.locator("#understood").inner_text() == "Read as any angle from 60 to 90 degrees (30 of 360)."
    assert page.locator(".slider label").inner_text().split("\n")[-1] == "–"  # no single angle
    rows = page.locator("#networks tbody tr").all()
    assert len(rows) == 4
    _, first, accuracy = rows[0].locator("td").all_inner_texts()
    assert first.startswith("digits rotated by ") and 0 <= float(accuracy) <= 1
    assert first in page.locator("#accuracy-note").inner_text() and page.locator("#images img").count() == 30
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    page.locator("#try button").first.click()  # a precise one
    page.locator("#networks").wait_for(state="hidden")
    read = "Read as 75 degrees counter-clockwise; unseen, degrees from 60 to 90."
    assert page.locator("#understood").inner_text() == read
    assert page.locator("#try button").count() == 8


def test_a_slider_asks_too_and_the_keyboard_moves_it(page):
    slider = page.get_by_role("slider", name="degrees")
    slider.focus()
    before = float(slider.input_value())
    page.keyboard.press("ArrowRight")
    page.locator("#images li").first.wait_for()
    asked = page.get_by_label("Description", exact=True).input_value()
    assert asked == f"digits rotated by {before + 1:g} degrees"
    assert "unseen: 60 to 90, 216 to 234" in page.locator(".legend").inner_text()
    assert "degrees, counter-clockwise ↺" in page.locator(".slider label").inner_text()


def test_a_refused_prompt_says_why_and_can_be_forced(page):
    slider, alert = page.get_by_role("slider", name="degrees"), page.get_by_role("alert")
    ask(page, PROMPT)
    page.locator("#images li").first.wait_for()
    assert slider.get_attribute("aria-valuetext") is None
    ask(page, "<b>order</b> a pizza")
    alert.wait_for()
    assert "pizza" in alert.inner_text() and "<b>order</b>" in alert.inner_text()  # as text
    assert not page.locator("#result").is_visible()
    assert page.locator(".slider label").inner_text().split("\n")[-1] == "–"
    assert "no single value" in slider.get_attribute("aria-valuetext")
    ask(page, "kindly, digits just 75 degrees clockwise")
    page.locator("#images li").first.wait_for()
    assert not alert.is_visible() and slider.input_value() == "285"
    read = "Read as 285 degrees counter-clockwise (75 clockwise); seen. Words that changed nothing: kindly, just."
    assert page.locator("#understood").inner_text() == read
    page.locator("#more summary").click()
    page.get_by_label("Take any prompt").check()
    ask(page, "digits")
    page.get_by_text("nothing labels its images").wait_for()
    assert "Taken by force" in page.locator("#status").inner_text()
    assert "Warning: prompt 'digits': does not say an angle" in page.locator("#warnings").inner_text()


def test_a_drawing_is_answered(page):
    ask(page, PROMPT)
    canvas = page.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 110, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 110, box["y"] + 190, steps=4)
    page.mouse.up()
    page.get_by_alt_text("The drawing as the task has it").wait_for()
    votes = page.locator("#votes").inner_text()
    page.get_by_role("button", name="Clear").click()
    canvas.focus()
    for key in (" ", *["ArrowDown"] * 5, " "):  # without a mouse
        page.keyboard.press(key)
    page.get_by_alt_text("The drawing as the task has it").wait_for()
    assert "network" in votes and "network" in page.locator("#votes").inner_text()


def test_labelled_drawings_give_a_network(page):
    page.locator("#adapt summary").click()
    page.get_by_role("button", name="Adapt").click()
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "images: got 0" in alert.inner_text()
    canvas = page.locator("#example")
    for label in ("one", "seven", "four"):
        canvas.focus()
        for key in (" ", *["ArrowDown"] * 5, " "):
            page.keyboard.press(key)
        page.locator("#label").select_option(label)
        page.get_by_role("button", name="Add").click()
    page.get_by_role("button", name="Remove image 3, four").click()
    assert page.locator("#examples li").count() == 2
    page.get_by_role("button", name="Adapt").click()
    page.get_by_text("as labelled").wait_for()
    assert not alert.is_visible() and page.locator("#images img").count() == 2
    assert page.locator("#accuracy").inner_text() in ("0 of 2", "1 of 2", "2 of 2")
    assert "no labelled image of zero" in page.locator("#warnings").inner_text()
    assert not page.locator("#networks").is_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390


def test_it_follows_a_dark_screen(browser, application):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(application.address)
    style = "() => { const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]; }"
    dark, light = (sum(map(int, c[4:-1].split(","))) for c in page.evaluate(style))
    assert dark < 150 < 600 < light
    context.close()

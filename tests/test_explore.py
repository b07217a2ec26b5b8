"""The map of a page, explored by real clicks and keys in headless Chromium, where there is one."""

import html
import json
import shutil

import numpy as np
import pytest

from flaxae.errors import DataError
from flaxae.runs import report

HOSTILE = '</script><img src=x onerror="window.hacked=1">'


@pytest.fixture
def explore(rng):
    """Two groups of examples, with names that try to become a part of the page."""
    points = np.concatenate([rng.normal(-3, 0.5, (30, 2)), rng.normal(3, 0.5, (30, 2))])
    images = rng.random((60, 6, 6, 1), dtype=np.float32)
    names = [HOSTILE, *(f"=row {i}" for i in range(1, 60))]
    colours = {"class": [HOSTILE] * 30 + ["b"] * 30, "error": np.linspace(0, 1, 60)}
    return report.Explore(
        points, names, colours, images, 1 - images, decoded=rng.random((16, 6, 6, 1), dtype=np.float32)
    )


def write(path, explore):
    report.write(
        path, title="A map", summary="Here.", command="x", tables=[], figures=[], config={}, usage="x", explore=explore
    )
    return path.read_text(encoding="utf-8")


def test_the_page_s_data_hold_no_markup_and_its_script_alone_may_run(tmp_path, explore):
    page = write(tmp_path / "report.html", explore)
    assert "<img" not in page
    assert page.count("</script>") == 2
    assert "script-src 'sha256-" in html.unescape(page)
    assert "unsafe" not in page
    assert "<noscript>" in page
    assert "<script" not in write(tmp_path / "plain.html", None)
    content = json.loads(page.partition('id="explore-data">')[2].partition("</script>")[0])
    assert content["rows"][0] == HOSTILE
    assert len(content["points"]) == 60


def test_parts_of_other_sizes_are_refused(explore):
    with pytest.raises(DataError, match="expected"):
        report.Explore(explore.points, explore.rows[:5], {}, explore.examples, explore.made)


def test_tables_are_shown_as_values(rng):
    values = rng.random((4, 2))
    text = report.Explore(
        rng.random((4, 2)), list("abcd"), {"y": np.array([1, np.nan, 2, 3])}, values, values, ("p", "q")
    )
    content = json.loads(text.to_json())
    assert content["colours"]["y"] == [1.0, None, 2.0, 3.0]
    assert content["values"][0][0] == [f"{value:.4g}" for value in values[0]]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.mark.parametrize("width", [1100, 390])
def test_a_map_is_explored_by_clicks_and_keys(browser, tmp_path, explore, width):
    write(tmp_path / "report.html", explore)
    context = browser.new_context(
        viewport={"width": width, "height": 900}, has_touch=width < 500, accept_downloads=True
    )
    page = context.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    canvas, detail = page.locator('[data-part="map"]'), page.locator('[data-part="detail"]')
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("window.hacked") is None
    assert not page.locator('[data-part="turned"]').is_visible()  # those are for three numbers
    assert not page.locator('[data-part="third"]').is_visible()
    assert page.locator('[data-part="legend"] li').all_inner_texts()[0] == HOSTILE

    canvas.focus()
    page.keyboard.press("ArrowRight")
    first = detail.locator("p").first.inner_text()
    assert "class: " in first
    page.keyboard.press("Enter")
    assert detail.locator("button").count() == 8
    page.keyboard.press("ArrowLeft")
    assert detail.locator("p").first.inner_text() != first
    page.keyboard.press(" ")
    assert page.locator('[data-part="selected"]').inner_text() == "1 selected"

    page.locator('[data-part="clear"]').click()
    page.locator('[data-part="mode"]').click()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 2, steps=4)
    page.mouse.up()
    assert page.locator('[data-part="selected"]').inner_text() == "30 selected"
    with page.expect_download() as download:
        page.locator('[data-part="save"]').click()
    lines = download.value.path().read_text(encoding="utf-8").splitlines()
    assert len(lines) == 31
    assert lines[0] == '"row","class","error","z0","z1"'
    assert lines[2].startswith('"\'=row 1"')  # no spreadsheet takes it for a formula

    page.locator('[data-part="mode"]').click()
    page.locator('[data-part="colour"]').select_option("error")
    page.locator('[data-part="in"]').click()
    page.locator('[data-part="reset"]').click()
    page.mouse.click(box["x"] + box["width"] * 0.05, box["y"] + 5)  # nothing is there
    page.locator('[data-part="z0"]').press("ArrowRight")
    assert "decoded from" in page.locator('[data-part="decoded"]').inner_text()
    assert said == []
    context.close()


def test_a_map_of_three_numbers_is_turned(browser, tmp_path, rng):
    images = np.linspace(0, 1, 27, dtype=np.float32)[:, None, None, None] * np.ones((1, 4, 4, 1), np.float32)
    points = np.stack(np.meshgrid(*3 * [[-1.0, 0.0, 1.0]], indexing="ij")[::-1], axis=-1).reshape(-1, 3)
    names = [f"row {i}" for i in range(27)]
    explore = report.Explore(points, names, {"i": np.arange(27)}, images, images, decoded=images)
    write(tmp_path / "report.html", explore)
    page = browser.new_page(viewport={"width": 900, "height": 900})
    said = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    canvas, detail = page.locator('[data-part="map"]'), page.locator('[data-part="detail"]')
    picture = "document.querySelector('[data-part=map]').toDataURL()"
    before = page.evaluate(picture)
    page.locator('[data-part="turn"]').fill("90")
    assert page.evaluate(picture) != before
    box = canvas.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # on those in a row behind each other
    assert detail.locator("p").first.inner_text().split(" · ")[0] in {"row 12", "row 13", "row 14"}
    assert detail.locator("button").count() == 8
    for name, value in (("z0", "2"), ("z1", "0"), ("z2", "1")):
        page.locator(f'[data-part="{name}"]').fill(value)
    assert "decoded from 1.00, -1.00, 0.00" in page.locator('[data-part="decoded"]').inner_text()
    page.wait_for_timeout(100)
    shown = "[...document.querySelector('[data-part=decoded] canvas').getContext('2d').getImageData(1, 1, 1, 1).data]"
    assert page.evaluate(shown)[0] == round(255 * 11 / 26)  # 2 + 3 * 0 + 9 * 1
    assert said == []
    page.close()


def test_without_scripts_the_page_says_so(browser, tmp_path, explore):
    write(tmp_path / "report.html", explore)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator("noscript p").is_visible()
    assert not page.locator("#explore").is_visible()
    context.close()

"""The comparison page in a real browser: headless Chromium, driven by Playwright."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_samples import (
    one_comparison,
    sample_compatibility,
    sample_curve,
    sample_gallery,
    sample_log,
    sample_run,
    sample_setting,
)

from anydepth.report.claims.questions import Finding
from anydepth.report.page.page import render_page
from chromium import opened_pages

EVIL = "</script><img src=x onerror=\"document.title='broken in'\">"
LONG = "depth_schedule=extremes_no_distillation,losses.weights.prediction=0.25,recipe.learning_rate=0.00025"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of two seeds with a plain, a hostile and a long name, with everything a run can have."""
    folder = tmp_path_factory.mktemp("page")
    settings = []
    for number, (label, best) in enumerate((("plain", 0.3), (EVIL, 0.4), (LONG, 0.2))):
        runs = [
            sample_run(
                folder / f"{number}-{seed}",
                best,
                seed,
                curve=sample_curve(best + 0.01 * seed),
                log=sample_log(best, seed),
                gallery=sample_gallery(folder, best, number, classes=("tree", EVIL), images=2),
                compatibility=sample_compatibility(best),
            )
            for seed in (0, 1)
        ]
        settings.append(sample_setting(label, runs, {"x": number if number else None, "name": label}))
    findings = [Finding("1", EVIL, "Text.", "supported", {"AP": 0.3})]
    report = one_comparison(settings, findings=findings, warnings=(EVIL,), title=EVIL)
    path = folder / "report.html"
    path.write_text(render_page(report), encoding="utf-8")
    return path


@pytest.fixture
def open_page(browser: Any, page_file: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page."""
    with opened_pages(browser, page_file.as_uri(), viewport=(1440, 900), own=("file:", "data:")) as opened:
        yield opened


def _show_all(page: Any) -> None:
    """Scroll over the page, so that every chart is drawn."""
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for()


def _column(page: Any, title: str) -> list[str]:
    titles = page.locator("#settings-0 thead .sorter").all_inner_texts()
    cells = page.locator(f"#settings-0 tbody tr > :nth-child({titles.index(title) + 1})")
    return [text.split()[0] for text in cells.all_inner_texts()]


def test_all_charts_are_drawn_when_they_come_into_view(open_page: Callable[..., Any]):
    page = open_page()
    # Two depth curves, training, gradients, and a map of compatibility for each of three settings.
    assert page.locator(".chart").count() == 7
    assert page.locator(".js-plotly-plot").count() < 7
    _show_all(page)
    assert page.locator(".js-plotly-plot").count() == 7
    buttons = page.locator(".modebar-btn").evaluate_all("all => all.map(one => one.dataset.title)")
    # plotly.js 4 offers "Share chart...", an upload of the data to its makers, unless it is switched off.
    assert set(buttons) == {"Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}
    # The front, and per setting a line and the band of its seeds.
    assert page.evaluate("document.querySelector('.js-plotly-plot').data.length") == 1 + 3 * 2
    page.locator('[data-part="0-curves"] .chip').first.click()
    assert page.evaluate("document.querySelector('.js-plotly-plot').data.length") == 1 + 2 * 2
    page.locator('[data-part="0-curves"]').get_by_role("button", name="AP50").click()
    # Full depth of "plain": the mean of 0.30 and 0.31 is 30.5 AP, and AP50 is 1.5 x that.
    shown = page.evaluate("document.querySelector('.js-plotly-plot').data.map(trace => trace.y)")
    assert shown[0][-1] == pytest.approx(1.5 * 40.5, abs=0.01)


def test_a_printed_page_has_every_chart(open_page: Callable[..., Any]):
    page = open_page()
    assert page.locator(".js-plotly-plot").count() < 7
    page.pdf()
    assert page.locator(".js-plotly-plot").count() == 7


@pytest.mark.slow
def test_a_click_on_a_heading_sorts_by_number_with_missing_values_last(open_page: Callable[..., Any]):
    page = open_page()
    head = page.locator("#settings-0 thead th", has_text="AP full")
    for order, expected in (
        ("descending", ["40.5", "30.5", "20.5"]),
        ("ascending", ["20.5", "30.5", "40.5"]),
    ):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == order
        assert _column(page, "AP full") == expected
    for expected in (["1", "2", "-"], ["2", "1", "-"]):
        page.locator("#settings-0 thead .sorter", has_text=re.compile("^x$")).click()
        assert _column(page, "x") == expected
    page.get_by_label("Filter").fill("plain")
    assert page.locator("#settings-0 tbody tr:visible").count() == 1
    page.get_by_role("button", name="Runs", exact=True).click()
    assert page.locator("#runs-0 tbody tr:visible").count() == 2


@pytest.mark.slow
def test_the_slider_shows_the_detections_of_each_depth(open_page: Callable[..., Any]):
    page = open_page()
    viewer = page.locator('[data-part="0-detections"]')
    slider = viewer.get_by_label("Depth, from full to minimal")
    boxes = viewer.locator(".pane").first.locator(".box")
    assert boxes.count() == 5
    labels = viewer.locator(".pane").first.locator(".tag").all_text_contents()
    assert all(re.fullmatch(r"(tree|.*img src.*) \d+ %", label) for label in labels), labels
    before = boxes.first.get_attribute("x")
    for _ in range(5):
        slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "minimal, 1.40 GFLOPs"
    assert boxes.first.get_attribute("x") != before
    viewer.locator("[data-role=threshold]").press("End")
    assert boxes.count() == 0
    assert "0 of 5 objects found" in viewer.locator(".result").first.inner_text()
    assert viewer.locator(".pane").first.locator(".truth.missed").count() == 5
    viewer.get_by_label("Ground truth").uncheck()
    assert viewer.locator(".truth").count() == 0
    viewer.locator("[data-role=threshold]").press("Home")
    assert boxes.count() > 5
    viewer.locator(".thumbs button").nth(1).click()
    assert viewer.locator(".pane img").first.get_attribute("alt").startswith("Picture 1")
    viewer.get_by_label("Compare with").select_option("none")
    assert viewer.locator(".pane").count() == 1


def test_untrusted_names_do_nothing_in_a_browser(open_page: Callable[..., Any]):
    page = open_page()
    _show_all(page)
    page.locator(".js-plotly-plot .nsewdrag").first.hover()
    page.wait_for_timeout(300)
    assert "broken in" not in page.title() or page.title().startswith("AnyDepth")
    assert page.locator("img:not([alt^=Picture])").count() == 0
    assert page.locator("[onerror]").count() == 0
    assert EVIL in page.locator("h2").first.inner_text()
    assert EVIL in page.locator(".chip").nth(1).inner_text()


@pytest.mark.slow
def test_the_theme_follows_the_system_and_the_button(open_page: Callable[..., Any]):
    page = open_page(color_scheme="dark")
    _show_all(page)
    line = "document.querySelector('.js-plotly-plot').data.at(-1).line.color"
    background = "getComputedStyle(document.body).backgroundColor"
    dark = (page.evaluate(line), page.evaluate(background))
    page.emulate_media(color_scheme="light")
    page.wait_for_selector("html[data-theme=light]", state="attached")
    light = (page.evaluate(line), page.evaluate(background))
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    for name in ("light", "dark"):
        page.locator("#theme").click()
        assert name in page.locator("#theme").get_attribute("aria-label")
    assert (page.evaluate(line), page.evaluate(background)) == dark


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 768])
def test_the_page_never_scrolls_sideways(open_page: Callable[..., Any], width: int):
    page = open_page(viewport={"width": width, "height": 844}, is_mobile=True, has_touch=True)
    _show_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Tables are wider than a phone, inside their own box.
    assert page.evaluate("(box => box.scrollWidth > box.clientWidth)(document.querySelector('#settings-0'))")

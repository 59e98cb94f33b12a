"""The page of the demonstration in headless Chromium, on a real server."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from served import get

from anydepth.deploy.serve.page import EXAMPLES, PAGE, page_policy
from chromium import opened_pages


@pytest.fixture
def open_page(browser: Any, server_address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page."""
    # Refused requests are part of the tests, and Chromium writes each to the console.
    with opened_pages(
        browser,
        server_address,
        viewport=(1280, 800),
        own=(server_address, "data:", "blob:"),
        expected_error="422",
    ) as opened:
        yield opened


def _figure(page: Any, pane: int, name: str) -> str:
    text: str = page.locator(".pane").nth(pane).locator(f"[data-figure={name}]").inner_text()
    return text


def _show_example(page: Any) -> None:
    page.get_by_role("button", name="Example picture 1").first.click()
    _wait(
        page,
        "[...document.querySelectorAll('[data-figure=latency]')].every(one => /ms$/.test(one.textContent))",
    )


def test_one_click_shows_a_picture_at_two_depths(open_page: Callable[..., Any]):
    page = open_page()
    _show_example(page)
    names = page.locator(".pane .name").all_inner_texts()
    assert names == ["full", "minimal"]
    assert [_figure(page, pane, "gflops") for pane in (0, 1)] == ["3.00", "2.00"]
    assert [_figure(page, pane, "ap") for pane in (0, 1)] == ["25.0", "10.0"]
    assert re.fullmatch(
        r"B takes 67 % of the operations of A and \d+ % of its time\.", _text(page, "#compare")
    )
    # The canvas holds the picture and says in words what was found in it.
    assert page.locator(".pane canvas").first.evaluate("one => [one.width, one.height]") == [1000, 1000]
    objects = int(_figure(page, 0, "objects"))
    assert objects > 0
    label = page.locator(".pane canvas").first.get_attribute("aria-label")
    assert label.startswith("Depth full: ")
    assert sum(map(int, re.findall(r"(\d+) (?:cat|<img)", label))) == objects
    # A class name of the bundle is text and nothing else.
    assert page.locator("img:not([alt^=Example])").count() == 0
    assert page.title().startswith("AnyDepth")

    slider = page.get_by_label("Depth of B, from shallow to deep")
    slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "a@1, 2.40 GFLOPs"
    _wait(page, "document.querySelectorAll('canvas')[1].ariaLabel.startsWith('Depth a@1')")
    assert page.locator("#depths tr").nth(1).inner_text().split() == ["a@1", "2.40", "20.0", "-", "B"]

    threshold = page.get_by_label("Lowest score")
    threshold.press("End")
    few = int(_figure(page, 0, "objects"))
    threshold.press("Home")
    assert few < int(_figure(page, 0, "objects"))


def _wait(page: Any, expression: str) -> None:
    """Wait until an expression holds; Playwright's own way is `eval`, which the page's policy forbids."""
    for _ in range(600):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"after 30 seconds this does not hold: {expression}")


def _text(page: Any, selector: str) -> str:
    text: str = page.locator(selector).inner_text()
    return text


@pytest.mark.slow
def test_a_budget_chooses_the_depth_of_a_or_says_why_not(open_page: Callable[..., Any]):
    page = open_page()
    _show_example(page)
    page.get_by_label("Amount").fill("2.9")
    page.get_by_label("Unit").select_option("<=gflops")
    page.get_by_role("button", name="Use in A").click()
    _wait(page, "document.querySelector('#choice').textContent === '<=2.9gflops chooses a@1'")
    assert page.locator(".pane .name").first.inner_text() == "a@1"
    assert page.locator(".pane .by").first.inner_text() == "by <=2.9gflops"
    page.get_by_label("Amount").fill("0.1")
    page.get_by_label("Amount").press("Enter")
    page.wait_for_selector("#message:visible")
    assert "no depth is within the budget <=0.1gflops" in _text(page, "#message")
    assert page.locator(".pane .name").first.inner_text() == "a@1"
    page.get_by_label("Depth of A, from shallow to deep").press("End")
    page.wait_for_selector("#message", state="hidden")
    assert page.locator(".pane .name").first.inner_text() == "full"


@pytest.mark.slow
def test_a_class_is_hidden_by_its_button(open_page: Callable[..., Any]):
    page = open_page()
    _show_example(page)
    page.get_by_label("Lowest score").press("Home")
    before = int(_figure(page, 0, "objects"))
    button = page.locator("#legend button").first
    cats = int(re.findall(r"cat (\d+) \|", button.inner_text())[0])
    assert 0 < cats < before
    button.press("Enter")
    assert int(_figure(page, 0, "objects")) == before - cats
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "false"


@pytest.mark.slow
def test_frames_of_the_webcam_are_detected_until_it_is_paused(open_page: Callable[..., Any]):
    page = open_page(permissions=["camera"])
    page.get_by_role("button", name="Webcam").click()
    _wait(page, "document.querySelectorAll('#chart polyline').length === 2")
    _wait(page, "/frames/.test(document.querySelector('#rate').textContent)")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Play").wait_for()
    # One pass of each depth per frame, one after the other.
    counts = page.evaluate("state.panes.map(pane => pane.times.length)")
    assert counts[0] >= counts[1] >= 2
    page.get_by_role("button", name="Play").click()
    _wait(page, f"state.panes[0].times.length > {counts[0] + 1}")
    page.get_by_role("button", name="Example picture 2").last.click()
    _wait(page, "!state.source.live")
    assert page.evaluate("document.querySelector('#video').srcObject") is None
    assert page.locator("#pause").is_hidden()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 768])
def test_the_page_fits_a_phone_and_every_control_has_a_name(open_page: Callable[..., Any], width: int):
    page = open_page(viewport={"width": width, "height": 844}, is_mobile=True, has_touch=True)
    _show_example(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    nameless = """[...document.querySelectorAll('input, select, button')].filter(one => !one.ariaLabel
        && !(one.labels && one.labels.length) && !one.textContent.trim()
        && ![...one.querySelectorAll('img')].some(image => image.alt)).length"""
    assert page.evaluate(nameless) == 0


@pytest.mark.slow
def test_a_file_that_is_no_picture_and_a_server_that_refuses_are_told(open_page: Callable[..., Any]):
    page = open_page()
    page.get_by_label("Picture or video").set_input_files(
        {"name": "a.txt", "mimeType": "text/plain", "buffer": b"text"}
    )
    page.wait_for_selector("#message:visible")
    assert _text(page, "#message").startswith("a.txt: this browser cannot show it")


def test_examples_are_those_of_the_list_and_no_other_file(server_address: str):
    for name in EXAMPLES:
        status, body = get(server_address, f"/examples/{name}")
        assert (status, body[:2]) == (200, b"\xff\xd8")  # how a JPEG file begins
    for name in ("..%2F..%2Fsample.py", "yell_528000_0900_0932.jpg", "%2Fetc%2Fpasswd"):
        assert get(server_address, f"/examples/{name}")[0] == 404


def test_the_page_loads_nothing_from_elsewhere_and_allows_its_own_script_alone():
    content = PAGE.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=\"(?!data:)", content)
    assert set(re.findall(r"https?://[^\"'\s]+", content)) == {"http://www.w3.org/2000/svg"}
    policy = page_policy(content)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert page_policy(content.replace('"use strict";', '"use strict"; ')) != policy

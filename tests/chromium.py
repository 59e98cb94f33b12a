"""Pages in headless Chromium, driven by Playwright."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A webcam that shows a moving pattern, and no question whether it may.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


@contextmanager
def running_chromium() -> Iterator[Any]:
    """Provide a Chromium; without one, or without Playwright, the test is skipped."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(
            f"no {' or '.join(_NAMES)} on the PATH: `apt install chromium` to test pages in a browser"
        )
    playwright = pytest.importorskip("playwright.sync_api", reason="`pip install playwright` drives Chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=list(_ARGUMENTS))
        yield started
        started.close()


@contextmanager
def opened_pages(
    browser: Any,
    address: str,
    *,
    viewport: tuple[int, int],
    own: tuple[str, ...],
    expected_error: str | None = None,
) -> Iterator[Callable[..., Any]]:
    """Provide a function that opens a page; at the end there must have been no error and no foreign request.

    Args:
        browser: What :func:`running_chromium` provides.
        address: Address of the page, which sets ``data-ready`` when it is ready.
        viewport: Width and height in pixels; options of the function may be others.
        own: Beginnings of the addresses that the page may ask for.
        expected_error: Text in lines of the console that are no fault.
    """
    contexts: list[Any] = []
    troubles: list[str] = []

    def note(line: Any) -> None:
        if line.type == "error" and (expected_error is None or expected_error not in line.text):
            troubles.append(f"console: {line.text}")

    def opened(**options: object) -> Any:
        size = {"width": viewport[0], "height": viewport[1]}
        contexts.append(browser.new_context(**{"viewport": size, **options}))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("console", note)
        page.on("request", lambda one: None if one.url.startswith(own) else troubles.append(one.url))
        page.goto(address)
        page.wait_for_selector("html[data-ready=true]", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []

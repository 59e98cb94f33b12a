"""Generated pages of the documentation: nothing is missing, and nothing comes from another host."""

import logging
from types import ModuleType, SimpleNamespace

import pytest

from anydepth.config.compose import config_dir

PAGE = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))


def _leaves(nav: list[str | dict[str, object]]) -> list[str]:
    """Paths of the pages in a navigation."""
    paths = []
    for entry in nav:
        inside = entry if isinstance(entry, str) else next(iter(entry.values()))
        paths += _leaves(inside) if isinstance(inside, list) else [str(inside)]
    return paths


def test_every_module_has_a_page_in_the_navigation(script: ModuleType) -> None:
    modules = list(script.PACKAGE.rglob("*.py"))
    pages = script.generated_pages()
    leaves = _leaves(script.api_nav(script.PACKAGE))
    assert len(modules) > 100
    assert sorted(leaves) == sorted(set(pages) - {script.OPTIONS_PAGE})
    assert len(leaves) == len(modules)
    assert pages["api/anydepth.detr.build.md"] == "---\ntitle: build\n---\n\n::: anydepth.detr.build\n"
    assert pages["api/anydepth.detr/index.md"].endswith("::: anydepth.detr\n")
    assert pages["api/anydepth.data.coco.index.md"].endswith("::: anydepth.data.coco.index\n")


def test_every_option_is_on_the_page_of_options(script: ModuleType) -> None:
    page = script.generated_pages()[script.OPTIONS_PAGE]
    options = [path for path in config_dir().rglob("*.yaml") if path.parent != config_dir()]
    assert len(options) > 100
    for path in options:
        assert f'title="conf/{path.relative_to(config_dir()).as_posix()}"' in page
    assert '??? abstract "`full_only`: The fixed-depth network: only full depth is trained"' in page


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://host.example/a.js"></script>',
        "<img alt=a src=//host.example/a.png>",
        '<link rel="stylesheet" href="http://host.example/a.css">',
    ],
)
def test_pages_that_load_from_another_host_are_warned_of(
    tag: str, script: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert script.on_post_page(f"<p>{tag}</p>", PAGE, None) == f"<p>{tag}</p>"
    assert "page.md loads from another host" in caplog.text


def test_links_that_a_reader_follows_are_no_concern(
    script: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    script.on_post_page('<a href="https://host.example/">a</a><script src="a.js"></script>', PAGE, None)
    assert caplog.text == ""

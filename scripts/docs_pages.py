"""MkDocs hook of ``mkdocs.yml``: pages that are generated from the code and the configuration.

One page per module, filled by mkdocstrings, and one page with every option of every configuration group, so
that neither can fall behind. The hook also warns of pages that load anything from another host; ``make docs``
turns warnings into errors.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "anydepth"
CONF = REPOSITORY / "conf"
OPTIONS_PAGE = "options.md"

_LOG = logging.getLogger("mkdocs.hooks.docs_pages")
# Scripts, style sheets, pictures and frames; links that a reader follows are no concern.
_LOADED_FROM_ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe|source|video)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]+"""
)

Nav = list[str | dict[str, Any]]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append the pages of the modules to the navigation."""
    config.nav = [*(config.nav or []), {"API reference": api_nav(PACKAGE)}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, content in generated_pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_post_page(output: str, page: Any, config: MkDocsConfig) -> str:
    """Warn if a page loads anything from another host."""
    for found in _LOADED_FROM_ELSEWHERE.findall(output):
        _LOG.warning("%s loads from another host: %s", page.file.src_uri, found)
    return output


def generated_pages() -> dict[str, str]:
    """Return the text of each generated page by its path below ``docs/``."""
    pages = {_page(path): _module_page(path) for path in sorted(PACKAGE.rglob("*.py"))}
    return {**pages, OPTIONS_PAGE: _options_page()}


def api_nav(folder: Path) -> Nav:
    """Return the navigation below a package: its own page, then its modules and packages by name."""
    nav: Nav = [_page(folder / "__init__.py")]
    for path in sorted(folder.iterdir(), key=lambda path: path.stem):
        if path.suffix == ".py" and path.stem != "__init__":
            nav.append({path.stem: _page(path)})
        elif (path / "__init__.py").is_file():
            nav.append({path.name: api_nav(path)})
    return nav


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _page(path: Path) -> str:
    # Of a package, the index of a folder, which the theme shows behind its name; modules may be called index.
    return f"api/{_module(path)}{'/index' if path.stem == '__init__' else ''}.md"


def _module_page(path: Path) -> str:
    name = _module(path)
    return f"---\ntitle: {name.rpartition('.')[2]}\n---\n\n::: {name}\n"


def _options_page() -> str:
    groups: dict[str, list[Path]] = {}
    for path in sorted(CONF.rglob("*.yaml")):
        if path.parent != CONF:
            groups.setdefault(path.parent.relative_to(CONF).as_posix(), []).append(path)
    head = (
        "# Options of each group\n\n"
        "Every file of `conf/`, as it is. `GROUP=OPTION` chooses one, and each value in it is changed with\n"
        "`KEY=VALUE`. Names that begin with `_` are shared parts of other options.\n"
    )
    sections = (f"\n## {name}\n\n{''.join(map(_option, groups[name]))}" for name in sorted(groups))
    return head + "".join(sections)


def _option(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    summary = " ".join(_summary(text)).split(". ")[0].rstrip(".:").replace('"', "'")
    file = path.relative_to(REPOSITORY).as_posix()
    code = "".join(f"    {line}".rstrip() + "\n" for line in text.splitlines())
    return f'??? abstract "`{path.stem}`: {summary}"\n    ```yaml title="{file}"\n{code}    ```\n\n'


def _summary(text: str) -> Iterator[str]:
    """Yield the lines of the comment that a file begins with."""
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        if not line.startswith("# @package"):
            yield line.removeprefix("#").strip()

"""Griffe extension of ``mkdocs.yml``: docstrings of this project as Markdown.

Docstrings name other objects with Sphinx roles, e.g. ``:func:`anydepth.load```, which editors understand.
Here they become links where the site documents what they name, and plain code elsewhere. Tables, which
docstrings draw with ``=``, become tables of Markdown.
"""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")
# The title that griffe knows as a section of examples, which are code; other titles are notes in Markdown.
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_TABLE = re.compile(r"^(=+(?: +=+)+)\n(.+?)\n\1\n(.+?)\n\1$", re.MULTILINE | re.DOTALL)


class References(griffe.Extension):
    """Rewrites every docstring of a package once all of it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite the docstrings of a package."""
        _rewrite(pkg)


def _rewrite(obj: griffe.Object) -> None:
    if obj.docstring is not None:
        text = _TABLE.sub(lambda table: markdown_table(table[0]), obj.docstring.value)
        text = _EXAMPLE.sub("Examples:", text)
        obj.docstring.value = _ROLE.sub(lambda role: link(role[2], obj, short=role[1] == "~"), text)
    for member in obj.members.values():
        if isinstance(member, griffe.Object):
            _rewrite(member)


def markdown_table(text: str) -> str:
    """Return a table of reStructuredText as one of Markdown.

    Args:
        text: Simple table with one line of titles; a row without a first cell continues the row before it.
    """
    border, *lines = text.splitlines()
    starts = [match.start() for match in re.finditer(r"=+", border)]
    rows: list[list[str]] = []
    for line in lines:
        if line == border:
            continue
        ends = [*starts[1:], len(line)]
        cells = [line[start:end].strip() for start, end in zip(starts, ends, strict=True)]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
    rows.insert(1, ["---"] * len(starts))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def link(name: str, scope: griffe.Object, *, short: bool = False) -> str:
    """Return a Markdown link to an object, or its name as code if the site does not document it.

    Args:
        name: Full name, or a name in the scope.
        scope: Object whose docstring holds the name.
        short: Show only the last part of the name.
    """
    text = f"`{name.rpartition('.')[2] if short else name}`"
    target = _documented(name, scope)
    return text if target is None else f"[{text}][{target}]"


def _documented(name: str, scope: griffe.Object) -> str | None:
    """Return the full name of what the site documents: the object itself, or what it is part of."""
    first, *rest = name.split(".")
    try:
        start = scope.package.path if first == scope.package.name else scope.resolve(first)
        found = scope.package.modules_collection[".".join([start, *rest])]
        target = found.final_target if isinstance(found, griffe.Alias) else found
    except (KeyError, griffe.GriffeError):
        # Attributes that only a constructor sets are described by their class.
        return _documented(".".join([first, *rest[:-1]]), scope) if rest else None
    while target.docstring is None or target.is_private:
        if target.parent is None:
            return None
        target = target.parent
    return str(target.path)

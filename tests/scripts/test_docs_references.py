"""Docstrings as Markdown: roles become links to what is documented, drawn tables become tables."""

from pathlib import Path
from types import ModuleType

import griffe
import pytest

MODULE = '''"""Module of :class:`Box`."""

class Box:
    """A box; see :meth:`area`, and :func:`~package.module.make`.

    Example:
        >>> Box()
    """

    def __init__(self):
        self.side = 1

    def area(self):
        """Square of :attr:`Box.side`; not :class:`torch.Tensor`, :func:`_hidden` or :func:`nowhere`."""

def make():
    """Make a box."""

def _hidden():
    """Unseen."""
'''


@pytest.fixture
def package(script: ModuleType, tmp_path: Path) -> griffe.Module:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""A package."""')
    (folder / "module.py").write_text(MODULE)
    loaded = griffe.load(
        "package", search_paths=[tmp_path], extensions=griffe.load_extensions(script.References())
    )
    assert isinstance(loaded, griffe.Module)
    return loaded


def _docstring(package: griffe.Module, name: str) -> str:
    docstring = package[name].docstring
    assert docstring is not None
    return docstring.value


def test_roles_link_to_what_is_documented(package: griffe.Module) -> None:
    assert _docstring(package, "module") == "Module of [`Box`][package.module.Box]."
    text = _docstring(package, "module.Box")
    assert "see [`area`][package.module.Box.area], and [`make`][package.module.make]." in text


def test_roles_become_code_where_nothing_is_documented(package: griffe.Module) -> None:
    """An attribute without a docstring is described by its class."""
    text = _docstring(package, "module.Box.area")
    assert text.startswith(
        "Square of [`Box.side`][package.module.Box]; not `torch.Tensor`, [`_hidden`][package.module]"
    )
    assert text.endswith("or `nowhere`.")


def test_examples_are_a_section_of_code(package: griffe.Module) -> None:
    assert "\nExamples:\n    >>> Box()" in _docstring(package, "module.Box")


def test_tables(script: ModuleType) -> None:
    text = """\
====  =========
term  loss
====  =========
box   KL(a || b)
      of sides
====  ========="""
    # The last column may be wider than its border; bars are escaped.
    assert script.markdown_table(text).splitlines() == [
        "| term | loss |",
        "| --- | --- |",
        r"| box | KL(a \|\| b) of sides |",
    ]

"""The README and the pages of the documentation: their code, their links and the commands in them."""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anydepth.utils.command_line import quote_comparisons

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
# The slow tests' page is generated; the changelog's own page only includes it, and it names old commands.
PAGES = (REPOSITORY / "README.md", *sorted(set(DOCS.glob("*.md")) - {DOCS / "slow-tests.md"}))

_BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
# Commands of this project by the configuration that they compose.
_ENTRY_POINTS = {
    "anydepth-train": "train",
    "anydepth.train": "train",
    "scripts/slurm_train.sh": "train",
    "anydepth-evaluate": "evaluate",
    "anydepth-predict": "predict",
    "anydepth-analyze": "analyze",
    "anydepth-export": "export",
    "anydepth-route": "route",
    "anydepth-quantize": "quantize",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        language: Language after the fence; may be empty.
        title: Name of the file that it shows; may be empty.
        text: Its lines.
    """

    language: str
    title: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command line that composes a configuration.

    Attributes:
        name: Name of the configuration, e.g. ``train``.
        overrides: As given.
        config_dir: Folder of presets; empty: none.
    """

    name: str
    overrides: tuple[str, ...]
    config_dir: str = ""


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(*match) for match in _BLOCK.findall(page.read_text())]


def code(page: Path) -> list[str]:
    """All code on a page: lines of shell blocks, joined if they are continued, and code within the text."""
    lines: list[str] = []
    for block in blocks(page):
        if block.language == "bash":
            lines += block.text.replace("\\\n", " ").splitlines()
    return [*lines, *_INLINE.findall(_BLOCK.sub("", page.read_text()))]


def links(page: Path) -> Iterator[tuple[str, bool]]:
    """Relative links of a page without their anchors, and whether each is a picture."""
    for mark, target in _LINK.findall(_INLINE.sub("", _BLOCK.sub("", page.read_text()))):
        path = target.partition("#")[0]
        if path and "://" not in path:
            yield path, mark == "!"


def commands(page: Path) -> list[Command]:
    """The command lines on a page that compose a configuration."""
    return [command for line in code(page) for command in _commands(line)]


def _commands(line: str) -> Iterator[Command]:
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    if words[:1] == ["make"] and words[1:2] in (["train-detr"], ["train-yolo"], ["ablation"]):
        arguments = next((word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")), "")
        first = {"train-yolo": ["detector=yolo_tiny"], "ablation": ["experiment=ablation"]}
        yield Command("train", (*first.get(words[1], []), *shlex.split(arguments)))
    elif words[:2] == ["anydepth-data", "look"]:
        yield Command("train", tuple(word for word in words[2:] if "=" in word))
    else:
        for position, word in enumerate(words):
            if word in _ENTRY_POINTS:
                yield _command(_ENTRY_POINTS[word], words[position + 1 :])
                return


def _command(name: str, words: list[str]) -> Command:
    config_dir = words[words.index("--config-dir") + 1] if "--config-dir" in words else ""
    overrides = (word for word in words if "=" in word and not word.startswith("-") and word[-1] != "=")
    return Command(name, tuple(map(quote_comparisons, overrides)), config_dir)


def write_files(page: Path, folder: Path) -> list[Path]:
    """Write the files that a page shows with their names below a folder."""
    written = []
    for block in blocks(page):
        if block.title and not block.title.startswith("conf/"):
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
            written.append(path)
    return written


def clean_environment(folder: Path) -> dict[str, str]:
    """The environment without what these tests allow, and with a folder to import from."""
    environment = {key: value for key, value in os.environ.items() if key != "ANYDEPTH_ALLOW_TARGETS"}
    path = os.pathsep.join(filter(None, (str(folder), environment.get("PYTHONPATH"))))
    return {**environment, "PYTHONPATH": path}

"""The README and the documentation: their length, links and commands are right, and their examples work."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import anydepth
import example_step
from anydepth.commands.data import COMMANDS
from anydepth.config.compose import compose, config_dir, resolve_config
from config_checks import check_targets, composed
from documents import (
    DOCS,
    PAGES,
    REPOSITORY,
    Command,
    blocks,
    clean_environment,
    code,
    commands,
    links,
    write_files,
)

EXTEND = DOCS / "extend.md"
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
# A command on two pages is composed once; those of the examples need what the examples show.
DOCUMENTED = tuple(dict.fromkeys(command for page in PAGES if page != EXTEND for command in commands(page)))

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture(scope="module")
def pages_hook() -> ModuleType:
    """The MkDocs hook that generates pages."""
    path = REPOSITORY / "scripts" / "docs_pages.py"
    spec = importlib.util.spec_from_file_location("docs_pages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_a_page_long() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 130


@by_page
def test_relative_links_lead_to_pages(page: Path, pages_hook: ModuleType) -> None:
    """MkDocs checks the links of its own pages, and their anchors, but not those of the README."""
    generated = {DOCS / path for path in pages_hook.generated_pages()}
    found = list(links(page))
    assert found or page.parent == DOCS, "no links were found in the README"
    for target, is_picture in found:
        path = Path(page.parent / target).resolve()
        assert is_picture or path.is_file() or path in generated, f"{page.name}: {target}"


@by_page
def test_pictures_are_there(page: Path) -> None:
    missing = [
        target for target, is_picture in links(page) if is_picture and not (page.parent / target).is_file()
    ]
    assert not missing, f"{page.name}: make train-detr draws them"


@by_page
def test_named_commands_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for line in code(page):
        for command in re.findall(r"\banydepth-[a-z]+", line):
            assert command in PYPROJECT["project"]["scripts"], line
        for target in re.findall(r"(?:^|\s)make ([a-z-]+)", line):
            assert target in targets, line
        for command in re.findall(r"\banydepth-data ([a-z]\w*)", line):
            assert command in COMMANDS, line
        for script in re.findall(r"\bscripts/\w+\.\w+", line):
            assert (REPOSITORY / script).is_file(), line


@by_page
def test_named_options_exist(page: Path) -> None:
    """Such as ``depth_schedule=full_only``, alone in the text; the examples have options of their own."""
    shown = {block.title.partition("presets/")[2] for block in blocks(page)}
    for line in code(page):
        match = re.fullmatch(r"([a-z_/]+)=([a-z0-9_]+)", line)
        if match and (config_dir() / match[1]).is_dir():
            option = f"{match[1]}/{match[2]}.yaml"
            assert (config_dir() / option).is_file() or option in shown, line


@by_page
def test_extras_are_those_of_the_package(page: Path) -> None:
    """Installed from the checkout: the package of this name on the index is another project."""
    assert "pip install anydepth" not in page.read_text()
    for extra in re.findall(r'pip install "\.\[(\w+)\]"', page.read_text()):
        assert extra in PYPROJECT["project"]["optional-dependencies"]
    assert not re.findall(r"anydepth\[", page.read_text())


def test_commands_are_found() -> None:
    """So that the test below does not pass for want of commands: the README's own, and those of its pages."""
    names = [command.name for command in DOCUMENTED]
    assert {name: names.count(name) for name in set(names)}.keys() == {
        "train",
        "evaluate",
        "predict",
        "analyze",
        "export",
        "route",
        "quantize",
    }
    assert len(names) >= 25


@pytest.mark.parametrize(
    "command", DOCUMENTED, ids=lambda command: " ".join((command.name, *command.overrides))
)
def test_documented_commands_compose(command: Command) -> None:
    overrides = [_first_job(override) for override in command.overrides]
    if command.name == "train":
        config = composed(*overrides)
    else:
        config = compose(command.name, ["paths.output_dir=out", *overrides], hydra_config=True)
    check_targets(resolve_config(config))


def _first_job(override: str) -> str:
    """An override of a sweep as its first job gets it."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    return f"{parsed.get_key_element()}={next(iter(parsed.sweep_string_iterator()))}"


def test_presets_of_the_examples_compose(tmp_path: Path) -> None:
    """As with ``--config-dir``, which adds the folder in the same way."""
    write_files(EXTEND, tmp_path)
    presets = f"hydra.searchpath=[file://{tmp_path / 'presets'}]"
    found = [command for command in commands(EXTEND) if command.config_dir == "presets"]
    assert len(found) == 3
    for command in found:
        check_targets(resolve_config(composed(presets, *map(_first_job, command.overrides))))
    bees = composed(presets, "data=bees")
    assert (bees.data.root, bees.data.batch_size, bees.recipe.epochs) == ("/data/bees", 16, 48)
    mosaic = composed(presets, "data=bees_mosaic")
    assert (mosaic.data.root, mosaic.recipe.lr, mosaic.recipe.epochs) == ("/data/bees", 0.01, 600)
    assert mosaic.data.augmentation.affine.scale == 0.5  # that of yolo_n
    # What trains with a preset is evaluated with it.
    for command_name in ("evaluate", "analyze"):
        for preset in ("bees", "bees_mosaic"):
            evaluated = compose(
                command_name, [presets, f"data={preset}", "paths.output_dir=out"], hydra_config=True
            )
            check_targets(resolve_config(evaluated))
            assert evaluated.data.root == "/data/bees"


@pytest.mark.slow
def test_the_package_of_the_examples_works_once_installed(tmp_path: Path, small_run: tuple[str, ...]) -> None:
    """In a process of its own, as entry points are read from where Python imports from."""
    write_files(EXTEND, tmp_path)
    (tmp_path / "mylab" / "__init__.py").touch()
    (tmp_path / "mylab" / "presets" / "__init__.py").touch()
    _install(tmp_path)
    overrides = ["detector=detr_plain", "losses=detr_cosine", *small_run, "paths.output_dir=out"]
    found = subprocess.run(
        [sys.executable, example_step.__file__, *overrides],
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("PlainNet ")
    assert "kd_cosine" in found.stdout


def _install(folder: Path) -> None:
    """What an installer makes of the entry points in the example's ``pyproject.toml``."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    info = folder / "mylab-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("\n".join(lines))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mylab\nVersion: 1.0\n")


@pytest.mark.parametrize(
    ("preset", "further_terms"), [("losses=detr_cosine", {"kd_cosine"}), ("detector=detr_gated", set())]
)
def test_examples_with_code_work_without_installing(
    tmp_path: Path,
    small_run: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
    further_terms: set[str],
) -> None:
    """By their own commands: package on the path, its names allowed, presets in ``--config-dir``."""
    write_files(EXTEND, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ANYDEPTH_ALLOW_TARGETS", "mylab.*")
    (command,) = [
        command
        for command in commands(EXTEND)
        if command.config_dir == "mylab/presets" and command.overrides == (preset,)
    ]
    presets = f"hydra.searchpath=[file://{tmp_path / command.config_dir}]"
    backbone, terms = example_step.run([presets, *small_run, *command.overrides, "paths.output_dir=out"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]
    assert backbone == "ResNet"
    assert {term for term in terms if term == "kd_cosine"} == further_terms


def test_every_room_is_described() -> None:
    page = (DOCS / "architecture.md").read_text()
    package = REPOSITORY / "src" / "anydepth"
    rooms = [
        path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    ]
    assert len(rooms) > 20
    assert [room for room in rooms if room != "__init__" and f"`{room}`" not in page] == []


def test_every_import_contract_is_described() -> None:
    page = (DOCS / "architecture.md").read_text()
    for contract in PYPROJECT["tool"]["importlinter"]["contracts"]:
        assert contract["name"] in page


def test_examples_in_docstrings_give_what_they_say() -> None:
    attempted = 0
    for module in pkgutil.walk_packages(anydepth.__path__, "anydepth."):
        found = doctest.testmod(importlib.import_module(module.name))
        assert found.failed == 0, module.name
        attempted += found.attempted
    assert attempted > 30

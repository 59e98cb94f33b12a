"""``anydepth-data``: its sub-commands, their help, and the console scripts of the package."""

import importlib
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest

import anydepth
from anydepth.commands import replay_step
from anydepth.commands.data import COMMANDS, main

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
SCRIPTS: dict[str, str] = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["scripts"]


def test_the_sub_commands_are_those_of_the_documentation() -> None:
    assert list(COMMANDS) == ["import", "download", "check", "shards", "look"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_sub_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: anydepth-data {name} ")
    _, _, examples = shown.partition("examples:\n")
    assert examples.lstrip().startswith(f"anydepth-data {name} ")


def test_help_of_replay_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        replay_step.main(["--help"])
    assert caught.value.code == 0
    assert "\n  anydepth-replay RUN/non_finite/step_7_rank_0.pt\n" in capsys.readouterr().out


def test_help_lists_the_sub_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert list(COMMANDS) == ["import", "download", "check", "shards", "look"]
    for name, command in COMMANDS.items():
        assert f"  {name:10}{command.summary}\n" in shown
    assert "\n  anydepth-data import bees/ datasets/bees\n" in shown

    assert main([]) == 2
    assert capsys.readouterr().out == shown


def test_an_unknown_sub_command_lists_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nonsense", "--help"])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "nonsense" in message
    assert [name for name in ("import", "download", "check", "shards", "look") if name not in message] == []


def test_help_waits_for_nothing_slow() -> None:
    """In a process of its own, as this one has imported everything."""
    code = (
        "import sys\n"
        "from anydepth.commands import data, data_options\n"
        "slow = {'torch', 'lightning', 'hydra', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_declared_console_script_exists(name: str) -> None:
    module, _, function = SCRIPTS[name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("command", [name.removeprefix("anydepth-") for name in SCRIPTS])
def test_every_command_tells_its_version(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, function = SCRIPTS[f"anydepth-{command}"].partition(":")
    monkeypatch.setattr(sys, "argv", [f"anydepth-{command}", "--version"])
    with suppress(SystemExit):
        getattr(importlib.import_module(module), function)()
    assert capsys.readouterr().out == f"anydepth-{command} {version('anydepth')}\n"
    assert anydepth.__version__ == version("anydepth")


@pytest.mark.parametrize(
    "command",
    ["predict", *(pytest.param(name, marks=pytest.mark.slow) for name in ("evaluate", "analyze"))],
)
def test_help_shows_the_comments_and_examples_of_a_commands_settings(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [f"anydepth-{command}", "--help"])
    with suppress(SystemExit):
        importlib.import_module(f"anydepth.{command}").main()
    shown = capsys.readouterr().out
    assert f"#   anydepth-{command} " in shown
    assert "outputs/train/RUN/weights.safetensors" in shown
    assert "device: auto # cpu, cuda, cuda:1; auto uses a GPU if there is one" in shown
    assert 'output: "${output_folder:${paths.output_root}/' in shown
    assert "defaults:" not in shown

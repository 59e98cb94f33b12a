"""Console scripts start a command whose imports Ctrl-C may interrupt."""

import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from anydepth.commands import start

SCRIPTS: dict[str, str] = tomllib.loads(
    (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
)["project"]["scripts"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_the_command_of_its_name(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, function = SCRIPTS[script].partition(":")
    started: list[str] = []
    monkeypatch.setattr(start, "_start", lambda module, **_: started.append(module))
    getattr(import_module(module), function)()
    (command,) = started
    assert command.rpartition(".")[2] in (script.removeprefix("anydepth-"), "cli", "replay_step")
    assert callable(import_module(command).main)


def test_an_interrupted_import_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "import_module", interrupted)
    with pytest.raises(SystemExit) as ended:
        start.train()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nstopped by Ctrl-C\n"

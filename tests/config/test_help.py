"""``--help`` without the imports of a run says what Hydra would say."""

import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from anydepth.config.compose import VERSION_BASE, config_dir
from anydepth.config.help import print_help

COMMANDS = ("train", "evaluate", "predict", "analyze", "export", "quantize", "route")


def _help_of_hydra(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    def task(_: DictConfig) -> None:
        raise AssertionError("help was asked for")

    task.__module__ = f"anydepth.{command}"  # After which Hydra names the job.
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    run = hydra.main(version_base=VERSION_BASE, config_path=str(config_dir()), config_name=command)(task)
    try:
        with pytest.raises(SystemExit) as ended:
            run()
        assert ended.value.code == 0
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_that_of_hydra(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = _help_of_hydra(command, monkeypatch, capsys)
    print_help(command)
    found = capsys.readouterr().out
    assert found == wanted
    assert found.startswith(f"anydepth-{command}: choose an option")


def test_help_loads_no_pytorch() -> None:
    code = (
        "import sys; from anydepth.commands import start; sys.argv[1:] = ['--help']; start.train();"
        "print('loaded', sorted({'torch', 'lightning'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("loaded []\n")
    assert "detector: detr_r101, " in ended.stdout


def test_every_composed_command_is_listed() -> None:
    assert sorted(COMMANDS) == sorted(path.stem for path in Path(config_dir()).glob("*.yaml"))

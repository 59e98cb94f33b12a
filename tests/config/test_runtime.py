"""Configuration directory, composition inside a job, provenance, and readable errors."""

import errno
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from anydepth.config.compose import compose, config_dir, instantiate
from anydepth.config.errors import readable_errors
from anydepth.config.hydra_node import checked_composition
from anydepth.depth import DepthSpace
from anydepth.runs.identity import config_hash
from anydepth.runs.provenance import write_provenance
from anydepth.utils.interrupt import readable_interrupt
from anydepth.zoo import ZooError


def refuse(*, value: int) -> None:
    """Raise, as a `_target_` with a check; the check is in a test, so it counts as foreign code."""
    raise ValueError(f"value={value}: allowed is nothing")


def test_configuration_of_a_clone_is_found_from_any_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (config_dir() / "detector" / "detr_tiny.yaml").is_file()
    assert config_dir().is_absolute()


def test_configuration_inside_an_installed_wheel_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "lib" / "site-packages" / "anydepth"
    (package / "conf").mkdir(parents=True)
    (package / "conf" / "train.yaml").touch()
    monkeypatch.setattr(sys.modules["anydepth.config.compose"], "PACKAGE_DIR", package)
    assert config_dir() == package / "conf"


def test_a_damaged_installation_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["anydepth.config.compose"], "PACKAGE_DIR", tmp_path / "src" / "anydepth")
    with pytest.raises(FileNotFoundError, match="install anydepth again"):
        config_dir()


# A program of somebody else. By the defaults of Hydra 1.1, the folder of a job becomes its working directory.
_OWN_APP = """
from pathlib import Path

import anydepth
import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import getbase


@hydra.main(version_base="1.1", config_path=None)
def main(config):
    before = HydraConfig.get().job.name, str(getbase())
    assert anydepth.build("detr_tiny", num_classes=1).num_classes == 1
    anydepth.build_losses("detr")
    assert (HydraConfig.get().job.name, str(getbase())) == before == ("own", "1.1")
    Path(f"seed_{config.seed}").touch()


main()
"""


@pytest.mark.slow
def test_building_inside_the_jobs_of_another_program_leaves_them_alone(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(_OWN_APP)
    command = [sys.executable, "own.py", "-m", "+seed=0,1", "hydra.sweep.dir=jobs/${hydra.job.name}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("seed_*")}
    assert written == {"jobs/own/0/seed_0", "jobs/own/1/seed_1"}


def test_composing_keeps_the_state_of_hydra_that_it_found() -> None:
    job = object()
    GlobalHydra.instance().hydra = job
    JobRuntime.instance().set("name", "mine")
    try:
        config = compose(None, ["+detector=detr_tiny"])
        assert GlobalHydra.instance().hydra is job
        with pytest.raises(HydraException):
            compose(None, ["+detector=detr_absent"])
        assert GlobalHydra.instance().hydra is job
        assert JobRuntime.instance().get("name") == "mine"
    finally:
        GlobalHydra.instance().clear()
    assert config.detector.blocks == [2, 2, 2, 2]


def test_threads_compose_at_the_same_time() -> None:
    def first_block(name: str) -> int:
        return int(compose(None, [f"+detector={name}"]).detector.blocks[0])

    with ThreadPoolExecutor(4) as threads:
        # conf/detector: ResNet-18 has 2 blocks in its first stage, ResNet-34 and 50 have 3.
        found = list(threads.map(first_block, ["detr_r18", "detr_r34", "detr_r50", "detr_tiny"] * 2))
    assert found == [2, 3, 3, 2] * 2


def test_instantiate_keeps_the_type_of_an_error_and_names_the_key() -> None:
    config = OmegaConf.create(
        {"part": {"_target_": f"{__name__}.refuse", "value": 3}, "_target_": "builtins.dict"}
    )
    with pytest.raises(ValueError, match="value=3: allowed is nothing") as caught:
        instantiate(config)
    assert caught.value.__notes__ == ["(in the configuration key `part`)"]


def test_fingerprints_differ_with_the_settings_but_not_with_the_folder() -> None:
    one = {"seed": 1, "paths": {"output_dir": "a"}}
    assert config_hash(one, ignore=("paths",)) == config_hash(
        {"seed": 1, "paths": {"output_dir": "b"}}, ignore=("paths",)
    )
    assert config_hash(one) != config_hash({**one, "seed": 2})


def test_provenance_holds_the_resolved_configuration_versions_and_commit(tmp_path: Path) -> None:
    write_provenance(tmp_path / "run", {"seed": 3, "nested": {"value": [1, 2]}})
    assert OmegaConf.load(tmp_path / "run" / "config.yaml") == {"seed": 3, "nested": {"value": [1, 2]}}
    written = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert written["versions"]["torch"].startswith(__import__("torch").__version__.partition("+")[0])
    repository = Path(__file__).resolve().parents[2]
    if (repository / ".git").exists():
        head = subprocess.run(
            ["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        if head.returncode == 0:
            assert written["git"]["commit"] == head.stdout.strip()


def _missing_value() -> None:
    _ = OmegaConf.create({"root": "???"}).root


def _missing_file() -> None:
    Path("no/such/file").read_text()


def _wrong_depth() -> None:
    DepthSpace(stages=("neck",)).parse("nek")


def _builtin_error_of_this_package() -> None:
    DepthSpace(stages=("neck", "neck"))


def _from_a_worker_process() -> None:
    raise ZooError(
        "Caught ZooError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in y\nanydepth.zoo.ZooError: the message\n'
    )


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (_missing_value, "root"),
        (_missing_file, "no/such/file: No such file or directory"),
        (_wrong_depth, "unknown stage 'nek'"),
        (_builtin_error_of_this_package, "names must be unique"),
        (_from_a_worker_process, "Error: the message\n"),
    ],
)
def test_user_errors_end_in_a_message(
    mistake: "object", message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(mistake)
    with pytest.raises(SystemExit) as stopped, readable_errors():
        mistake()
    printed = capsys.readouterr().err
    assert stopped.value.code == 1
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("error", "message"),
    [
        # As `write` raises it, without the name of a file.
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "Error: the disk is full: free space, or",
        ),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "out/a"), "give another output (.*'out/a')"),
        (
            MemoryError("Unable to allocate 732. GiB"),
            r"memory ran out \(Unable to allocate 732. GiB\)",
        ),
    ],
)
def test_what_the_machine_lacks_is_no_defect(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped, readable_errors():
        raise error
    assert stopped.value.code == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("error", "message"),
    [(ValueError("invalid literal"), "invalid"), (OSError(errno.ECHILD, "No child processes"), "No child")],
)
def test_defects_keep_their_traceback(error: Exception, message: str) -> None:
    with pytest.raises(type(error), match=message), readable_errors():
        raise error


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYDEPTH_TRACEBACK", "1")
    with pytest.raises(OmegaConfBaseException), readable_errors():
        _missing_value()


def test_ctrl_c_ends_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, readable_interrupt():
        raise KeyboardInterrupt
    # 128 and the number of SIGINT, as shells report it.
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\nstopped by Ctrl-C\n"


@pytest.mark.parametrize(
    ("module", "function", "arguments"),
    [
        ("anydepth.evaluate", "run", ["output=out"]),
        ("anydepth.analyze", "run", ["output=out"]),
        ("anydepth.predict", "run", ["output=out"]),
        ("anydepth.commands.data", "_parser", ["check", "x"]),
        ("anydepth.report.cli", "_skip_files", ["x"]),
        ("anydepth.commands.replay_step", "read_whole_step", ["x"]),
    ],
)
def test_ctrl_c_ends_every_command_with_the_code_of_shells(
    module: str, function: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"{module}.{function}", interrupt)
    monkeypatch.setattr(sys, "argv", ["anydepth", *arguments])
    try:
        with pytest.raises(SystemExit) as stopped:
            import_module(module).main()
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
    assert stopped.value.code == 130


def _error_of(
    command: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """Run a command that ends with exit code 1, and return what it prints on stderr."""
    monkeypatch.setattr(sys, "argv", [f"anydepth-{command}", *arguments])
    try:
        with pytest.raises(SystemExit) as stopped:
            import_module(f"anydepth.{command}").main()
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
    assert stopped.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "analyze", "export", "route"])
@pytest.mark.parametrize("sweep", [False, True], ids=["single", "sweep"])
def test_a_folder_that_cannot_be_made_is_named(
    command: str,
    sweep: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    key = "hydra.sweep.dir" if sweep else "hydra.run.dir" if command == "train" else "output"
    varied = {"train": "seed", "export": "batch"}.get(command, "batch_size")
    more = ["-m", f"{varied}=1,2"] if sweep else []
    printed = _error_of(command, [*more, f"{key}=file/x"], monkeypatch, capsys)
    assert f"Error: got {key}=file/x, expected a folder that can be made" in printed
    assert "Not a directory" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("predict", "output=", "got output= without a value, expected a folder; give output=FOLDER"),
        ("train", "paths.output_root=", "got paths.output_root= without a value, expected a folder"),
        ("predict", "threshold=abc", "got threshold='abc', expected a number"),
        ("predict", "depth==", "Error parsing override 'depth=='"),
    ],
)
def test_a_wrong_setting_ends_in_one_message_without_advice_on_tracebacks(
    command: str,
    override: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = _error_of(command, [override], monkeypatch, capsys)
    assert f"Error: {message}" in printed
    assert "HYDRA_FULL_ERROR" not in printed
    assert list(tmp_path.iterdir()) == []


def test_a_composition_within_a_command_raises_its_errors() -> None:
    """The detector of weights is composed while a job runs, where an error must not end the program."""
    with checked_composition(exits=True), pytest.raises(ConfigCompositionException, match="treshold"):
        compose("predict", ["treshold=0.1"])


def test_importing_the_package_imports_no_training_dependency() -> None:
    code = (
        "import sys, anydepth\n"
        "assert not {'torch', 'hydra', 'lightning', 'wandb'} & set(sys.modules), sys.modules.keys()\n"
        "assert {'build', 'load', 'load_weights', 'save'} <= set(dir(anydepth))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

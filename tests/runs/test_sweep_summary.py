"""Hooks around a sweep: checks before its first job, table and comparison page after the last."""

import io
import json
import sys
import types
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from anydepth.config import resolvers
from anydepth.config.compose import compose, instantiate
from anydepth.runs import sweep
from anydepth.runs.folder import FolderCheck
from anydepth.runs.sweep import SweepError, SweepSummary, check_keys, check_plugins, print_jobs, read_job

START = datetime(2030, 1, 1, tzinfo=UTC)


def _master(*task: str, params: dict[str, str] | None = None) -> DictConfig:
    """Return the configuration of a sweeper: composed without the swept keys, which are in the overrides."""
    fixed = [text for text in task if "," not in text]
    config = compose("train", ["paths.output_dir=out", *fixed], hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.overrides.task = list(task)
    if params:
        OmegaConf.update(config, "hydra.sweeper.params", params, merge=False)
    return config


def _job(folder: Path, **files: dict[str, object]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def _result(**metrics: float) -> dict[str, object]:
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return {"status": "finished", "finished": "2030-01-01T00:00:05+00:00", "metrics": named}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "recipe.lrr=1,2",
            "varies recipe.lrr, but detector=detr_tiny .* no such setting; similar keys: recipe.lr",
        ),
        ("nonsense.key=1,2", "varies nonsense.key"),
        ("detector.nothing=choice(1,2)", r"varies detector.nothing"),
    ],
)
def test_a_sweep_over_a_key_that_does_not_exist_is_refused(task: str, message: str) -> None:
    config = _master()
    config.hydra.overrides.task = [task]
    with pytest.raises(SweepError, match=message):
        check_keys(config)


def test_a_sweep_over_decoder_layers_is_refused_for_yolo() -> None:
    params = {"detector.decoder_layers": "2,3"}
    check_keys(_master("detector=detr_tiny", params=params))
    with pytest.raises(SweepError, match=r"varies detector\.decoder_layers, but detector=yolo_tiny"):
        check_keys(_master("detector=yolo_tiny", params=params))


def test_sweeps_over_existing_keys_pass() -> None:
    config = _master(
        "recipe.lr=1,2", "ablation=both,random", "weights=a,b", "+new.key=1,2", "curve.depths=[a],null"
    )
    check_keys(config)
    # Keys of another family: Hydra composes, and checks, every job.
    check_keys(_master("detector=detr_tiny,yolo_tiny", "losses.distillation.feature_weight=1,2"))


@pytest.mark.parametrize(
    "override", ["hydra/launcher=slurm", "hydra/launcher=local_jobs", "experiment=search"]
)
def test_a_plugin_that_is_not_installed_is_named(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _master(override)
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SweepError, match=r'is not installed: pip install "\.\[sweep\]" in the checkout'):
        check_plugins(config)


def test_plugins_that_are_installed_pass() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    check_plugins(_master("hydra/launcher=slurm", "experiment=search"))
    check_plugins(_master())


def test_a_refused_sweep_ends_in_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    config = _master()
    config.hydra.overrides.task = ["nonsense=1,2"]
    with pytest.raises(SystemExit) as stopped:
        SweepSummary().on_multirun_start(config)
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("\nError: the sweep varies nonsense")


def test_states_of_jobs(tmp_path: Path) -> None:
    result = _result(val__score=0.2, val__full__AP=0.1, curve__full__AP=0.3, curve__minimal__AP=0.25)
    finished = read_job(_job(tmp_path / "a", result=result), START)
    assert (finished.state, finished.score, finished.ap_full, finished.ap_minimal) == (
        "finished",
        0.2,
        0.3,
        0.25,
    )
    later = datetime(2030, 1, 2, tzinfo=UTC)
    assert read_job(tmp_path / "a", later).state == "skipped"
    without_curve = read_job(_job(tmp_path / "b", result=_result(val__full__AP=0.1)), START)
    assert (without_curve.ap_full, without_curve.ap_minimal) == (0.1, None)
    failed = read_job(_job(tmp_path / "c", failure={"error": "no room"}), START)
    assert (failed.state, failed.message) == ("failed", "no room")
    refused = read_job(_job(tmp_path / "d", result=result, refused={"error": "other"}), START)
    assert (refused.state, refused.message) == ("refused", "other")
    assert read_job(_job(tmp_path / "e"), START).state == "interrupted"
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "config.yaml").touch()
    (tmp_path / "f" / "result.json").write_text('{"cut')
    assert read_job(tmp_path / "f", START).state == "interrupted"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Path], Path]]:
    """Requested comparison pages."""
    requested: list[tuple[list[Path], Path]] = []

    def write_report(folders: Sequence[Path], output: Path) -> Path:
        requested.append((list(folders), output))
        return output

    module = types.ModuleType("anydepth.report.cli")
    module.write_report = write_report  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "anydepth.report.cli", module)
    return requested


def _end(folder: Path) -> None:
    SweepSummary().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}))


def test_the_end_of_a_sweep_shows_all_jobs_and_writes_the_page(
    tmp_path: Path, pages: list[tuple[list[Path], Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    _job(tmp_path / "one", result=_result(curve__full__AP=0.312, curve__minimal__AP=0.25), depth_curve={})
    (tmp_path / ".submitit").mkdir()
    _end(tmp_path)
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines() if line.startswith("one")] == [
        ["one", "skipped" if datetime.now(UTC) > START else "finished", "31.2", "25.0"]
    ]
    assert pages == [([tmp_path], tmp_path / "report.html")]


@pytest.mark.parametrize("name", ["failure", "refused"])
def test_a_failed_job_fails_the_sweep_after_its_page_is_written(
    tmp_path: Path, pages: list[tuple[list[Path], Path]], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    _job(tmp_path / "one", result=_result(), depth_curve={})
    _job(tmp_path / "two", **{name: {"error": "no [room]"}})
    with pytest.raises(SystemExit) as stopped:
        _end(tmp_path)
    assert stopped.value.code == 1
    assert "two: no [room]" in capsys.readouterr().out
    assert len(pages) == 1


def test_jobs_of_a_former_sweep_are_marked_and_fail_nothing(
    tmp_path: Path, pages: object, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _master("seed=0,1", params={"seed": "0,1"})
    config.hydra.sweep.dir = str(tmp_path)
    summary = SweepSummary()
    summary.on_multirun_start(config)
    visit = {"sweep": resolvers.sweep_id(config)}
    _job(tmp_path / "mine", result=_result(), visit=visit)
    _job(tmp_path / "old", failure={"error": "no room"}, visit={"sweep": "another"})
    _job(tmp_path / "older", failure={"error": "no room"})
    capsys.readouterr()
    summary.on_multirun_end(config)
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    states = {line[0]: line[1] for line in lines if len(line) == 2 and line[0] in ("mine", "old", "older")}
    assert "former sweep" not in states["mine"]
    assert all(states[name].startswith("failed (former sweep)") for name in ("old", "older"))
    _job(tmp_path / "bad", failure={"error": "no room"}, visit=visit)
    with pytest.raises(SystemExit):
        summary.on_multirun_end(config)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        (("trainer=ddp", "trainer.devices=2"), True),
        (("trainer.devices=1", "trainer.num_nodes=2"), True),
        (("trainer.devices=2",), True),
        (("trainer=ddp", "trainer.devices=2", "trainer.strategy=ddp_spawn"), False),
        (("trainer=ddp", "trainer.devices=2", "hydra/launcher=slurm"), False),
        (("trainer=ddp", "trainer.devices=1"), False),
        (("trainer=ddp",), False),
        ((), False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_sweep_whose_jobs_would_sweep_again_is_refused_once(
    settings: tuple[str, ...], refused: bool
) -> None:
    if "hydra/launcher=slurm" in settings:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    config = _master(*settings)
    if config.trainer.devices == 2:
        config.trainer.devices = [0, 1]
        assert _is_refused(config) == refused
        config.trainer.devices = 2
    if not refused:
        sweep.check_processes(config)
        return
    with pytest.raises(SweepError, match=r"trainer\.strategy=ddp_spawn.*hydra/launcher=slurm"):
        sweep.check_processes(config)
    # If the sweep varies the trainer, each job checks itself.
    config.hydra.overrides.task = ["trainer.devices=1,2"]
    sweep.check_processes(config)


def _is_refused(config: DictConfig) -> bool:
    try:
        sweep.check_processes(config)
    except SweepError:
        return True
    return False


def test_a_page_that_cannot_be_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: object, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(folders: Sequence[Path], output: Path) -> Path:
        raise FileNotFoundError(2, "No such file or directory", "x.json")

    monkeypatch.setattr(sys.modules["anydepth.report.cli"], "write_report", refuse)
    _job(tmp_path / "one", result=_result(), depth_curve={})
    with pytest.raises(SystemExit):
        _end(tmp_path)
    assert "no comparison page: x.json: No such file or directory" in capsys.readouterr().err


def test_without_any_curve_of_a_finished_job_there_is_no_page(tmp_path: Path, pages: list[object]) -> None:
    _job(tmp_path / "one", depth_curve={})
    _job(tmp_path / "two", result=_result())
    _end(tmp_path)
    assert pages == []


def test_the_command_line_has_the_callbacks(compose_run: Callable[..., DictConfig], tmp_path: Path) -> None:
    """Hydra builds them for every run, but calls that of sweeps only there."""
    nodes = compose_run(tmp_path).hydra.callbacks
    assert isinstance(instantiate(nodes.sweep), SweepSummary)
    assert isinstance(instantiate(nodes.folder), FolderCheck)


def test_jobs_on_images_without_objects_have_no_accuracy(tmp_path: Path) -> None:
    """A COCO evaluation returns -1 without ground truth."""
    folder = _job(tmp_path / "one", result=_result(curve__full__AP=-1.0, curve__minimal__AP=0.125))
    console = Console(width=100, file=io.StringIO())
    print_jobs([read_job(folder, START)], console)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines()[1].split() == ["one", "finished", "-", "12.5"]

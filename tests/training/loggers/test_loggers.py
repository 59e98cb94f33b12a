"""Weights & Biases: offline files that real runs of the entry point write."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich import get_console

from anydepth.config.compose import compose
from anydepth.config.resolvers import run_name, sweep_name
from anydepth.evaluation.coco_eval import FIGURES, NO_GROUND_TRUTH
from anydepth.evaluation.curve_summary import summarize
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.results.gallery import read_gallery
from anydepth.results.wandb_media import log_curve, log_weights
from anydepth.train import main, run
from anydepth.training.loggers.run_logger import RunLogger
from wandb_files import OfflineRun, offline_runs

Compose = Callable[..., DictConfig]

SETTINGS = (
    "logger=wandb",
    "recipe.epochs=2",
    "curve.depths=ladder",
    "curve.latency_repetitions=1",
    "curve.pictures=2",
)


@pytest.fixture(scope="module", autouse=True)
def _isolated_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep wandb from reading or writing the user's folders."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(home))
        patch.setenv("NETRC", str(home / "netrc"))
        patch.delenv("WANDB_API_KEY", raising=False)
        yield


def run_sweep(folder: Path, *settings: str) -> None:
    arguments = [*settings, *SETTINGS, f"hydra.sweep.dir={folder}", "--multirun"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setattr(sys, "argv", ["anydepth-train", *arguments])
        main()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, small_run: tuple[str, ...]) -> Path:
    """Folder of a sweep over one seed."""
    folder = tmp_path_factory.mktemp("here") / "one_seed"
    run_sweep(folder, *small_run, "seed=1")
    return folder


@pytest.fixture(scope="module")
def job(sweep: Path) -> Path:
    """Folder of the sweep's job."""
    (result,) = sweep.glob("*/result.json")
    return result.parent


@pytest.fixture(scope="module")
def logged(job: Path) -> OfflineRun:
    (only,) = offline_runs(job)
    return only


@pytest.fixture(scope="module")
def curve(job: Path) -> DepthCurve:
    return DepthCurve.from_json((job / "depth_curve.json").read_text())


@pytest.mark.slow
def test_each_job_of_a_sweep_is_a_run_of_its_group(tmp_path: Path, small_run: tuple[str, ...]) -> None:
    sweep = tmp_path / "two_seeds"
    run_sweep(sweep, *small_run, "seed=0,1")
    runs = [offline_runs(folder) for folder in sorted(sweep.glob("seed_*"))]
    assert [len(found) for found in runs] == [1, 1]
    assert [found[0].run.run_group for found in runs] == ["two_seeds", "two_seeds"]
    assert [found[0].run.display_name for found in runs] == ["0 seed=0", "1 seed=1"]
    assert [found[0].exit_code for found in runs] == [0, 0]
    assert len({found[0].run.run_id for found in runs}) == 2


def test_the_configuration_and_its_origin_can_be_filtered_by(job: Path, logged: OfflineRun) -> None:
    provenance = json.loads((job / "provenance.json").read_text())
    assert logged.config["seed"] == 1
    assert logged.config["detector"]["hidden_dim"] == 16
    assert logged.config["provenance"] == provenance
    assert logged.config["provenance"]["versions"]["torch"]


def test_metrics_have_their_axes(logged: OfflineRun) -> None:
    axes = {name: axis for name, (axis, _) in logged.metrics.items() if axis}
    assert axes == {
        "train/*": "trainer/global_step",
        "train/full/loss": "trainer/global_step",
        "train/minimal/loss": "trainer/global_step",
        "lr/*": "trainer/global_step",
        "gradients/*": "trainer/global_step",
        "val/*": "epoch",
        "val/score": "epoch",
        "curve/*": "curve/gflops",
        "curve_latency/*": "curve_latency/median_ms",
    }
    assert logged.metrics["val/score"][1] == {"max", "last"}
    assert logged.metrics["train/full/loss"][1] == {"min", "last"}


def test_losses_of_both_passes_and_all_distillation_terms_arrive(logged: OfflineRun) -> None:
    steps = logged.rows("train/gradient_norm")
    assert [row["trainer/global_step"] for row in steps] == [0, 1, 2, 3]
    terms = {f"train/minimal/kd_{name}" for name in ("backbone", "neck", "class", "l1", "giou")}
    assert terms | {"train/full/loss", "train/minimal/loss", "train/full/vfl", "lr/head"} <= set(steps[0])


def test_every_validation_arrives_with_its_epoch(logged: OfflineRun) -> None:
    rows = logged.rows("val/full/AP")
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(("val/minimal/AP" in row) and ("val/score" in row) for row in rows)
    assert logged.summary["val/score"]["max"] == max(row["val/score"] for row in rows)


def test_the_table_holds_the_curve_of_the_run(logged: OfflineRun, curve: DepthCurve) -> None:
    table = logged.table("depth_curve")
    assert [row["depth"] for row in table] == [row.depth for row in curve.rows]
    for found, row in zip(table, curve.rows, strict=True):
        assert row.latency is not None
        assert found["gflops"] == row.gflops
        assert found["parameters_run"] == row.parameters_run
        assert found["decoder_layers"] == row.decoder_layers
        assert found["refine_neck"] == row.refine["neck"]
        assert (found["latency_median_ms"], found["latency_p90_ms"]) == (
            row.latency.median_ms,
            row.latency.p90_ms,
        )
        figures = {
            name: None if row.figures[name] == NO_GROUND_TRUTH else row.figures[name] for name in FIGURES
        }
        assert {name: found[name] for name in FIGURES} == figures


def test_the_curve_is_history_by_ascending_cost(logged: OfflineRun, curve: DepthCurve) -> None:
    """Line panels of several runs connect the points in the order of their rows."""
    by_cost = sorted(curve.rows, key=lambda row: row.gflops)
    assert logged.column("curve/gflops") == [row.gflops for row in by_cost]
    assert logged.column("curve/AP") == [row.figures["AP"] for row in by_cost]
    latencies = logged.column("curve_latency/median_ms")
    assert latencies == sorted(row.latency.median_ms for row in curve.rows if row.latency)
    assert len(logged.column("curve_latency/AP")) == len(latencies)
    assert {"curve_chart", "curve_latency_chart"} <= set(logged.config["_wandb"]["visualize"])


class _Recorder:
    """Fake run of wandb that records what is logged."""

    id = "1"

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifact: Any = None

    def log(self, row: dict[str, Any]) -> None:
        self.logged.append(row)

    def log_artifact(self, artifact: Any, aliases: list[str]) -> None:
        self.artifact = artifact


def test_images_without_objects_have_no_accuracy(
    curve: DepthCurve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the depths has -1, COCO's value for no ground truth: no chart and no metadata shows it."""
    wandb = pytest.importorskip("wandb")
    tables: list[Any] = []
    monkeypatch.setattr(wandb.plot, "line", lambda table, **_: tables.append(table))
    first = replace(curve.rows[0], figures=dict.fromkeys(FIGURES, NO_GROUND_TRUTH))
    damaged = replace(curve, rows=(first, *curve.rows[1:]))
    recorder = _Recorder()
    log_curve(recorder, damaged)
    # One chart over GFLOPs and one over latency.
    assert [len(table.data) for table in tables] == [len(curve.rows) - 1] * 2
    assert not any(NO_GROUND_TRUTH in row for table in tables for row in table.data)
    (tmp_path / "weights").touch()
    log_weights(recorder, tmp_path / "weights", damaged, [], alias="best")
    shown = recorder.artifact.metadata["depth_curve"]
    assert shown[0]["AP"] is None
    assert shown[1]["AP"] == curve.rows[1].figures["AP"]


def test_runs_can_be_sorted_by_the_summary_of_their_curve(logged: OfflineRun, curve: DepthCurve) -> None:
    summary = summarize(curve)
    found = {key: value for key, value in logged.summary.items() if key.startswith("summary/")}
    drop = summary.largest_drop
    assert drop is not None
    assert found == {
        "summary/AP_full": summary.full,
        "summary/AP_minimal": summary.minimal,
        "summary/AP_ladder_mean": summary.ladder_mean,
        "summary/AP_area": summary.area,
        "summary/hypervolume": summary.hypervolume,
        "summary/saving": summary.saving,
        "summary/largest_drop": drop.loss,
        "summary/largest_drop_at": f"{drop.deeper} to {drop.shallower}",
    }
    assert not any(key.startswith("curve/") for key in logged.summary)


def test_pictures_have_a_layer_for_each_depth(job: Path, logged: OfflineRun, curve: DepthCurve) -> None:
    gallery = read_gallery(job / "pictures")
    assert len(gallery.images) == 2
    for number, image in enumerate(gallery.images, start=1):
        (row,) = logged.rows(f"detections/{number}")
        picture = row[f"detections/{number}"]
        assert (picture["height"], picture["width"]) == image.size
        assert (logged.folder / "files" / picture["path"]).is_file()
        assert list(picture["boxes"]).count("ground truth") == 1
        assert set(picture["boxes"]) == {"ground truth", *(row.depth for row in curve.rows)}
        truth = json.loads((logged.folder / "files" / picture["boxes"]["ground truth"]["path"]).read_text())
        corners = [
            [box["position"][side] for side in ("minX", "minY", "maxX", "maxY")] for box in truth["box_data"]
        ]
        assert corners == image.truth.boxes_xyxy.tolist()


def test_the_weights_are_an_artifact_with_the_curve(job: Path, logged: OfflineRun, curve: DepthCurve) -> None:
    (artifact,) = (one for one in logged.artifacts if one.type == "model")
    metadata = json.loads(artifact.metadata)
    assert [row["AP"] for row in metadata["depth_curve"]] == [row.figures["AP"] for row in curve.rows]
    assert metadata["summary"]["hypervolume"] == summarize(curve).hypervolume
    assert sorted(artifact.aliases) == ["best", "latest"]
    files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
    assert files == {name: str(job / name) for name in ("weights.safetensors", "depth_curve.json")}


@pytest.mark.slow
def test_a_failed_job_finishes_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compose_run: Compose, small_run: tuple[str, ...]
) -> None:
    """The run of a job that failed ends as failed; the next one in the same process has its own."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    failing = [*small_run, *SETTINGS, f"hydra.run.dir={tmp_path / 'failed'}", "ckpt_path=none.ckpt"]
    monkeypatch.setattr(sys, "argv", ["anydepth-train", *failing])
    with pytest.raises(SystemExit):
        main()
    (failed,) = offline_runs(tmp_path / "failed")
    assert failed.exit_code == 1
    short = ("logger=wandb", "logger.wandb.upload_weights=false", "recipe.epochs=1")
    run(compose_run(tmp_path / "next", *short, f"logger.csv.save_dir={tmp_path / 'next'}"))
    (following,) = offline_runs(tmp_path / "next")
    assert following.run.run_id != failed.run.run_id
    assert following.run.run_group == ""
    assert following.run.display_name == "detr_tiny sample next"
    assert [artifact.type for artifact in following.artifacts] == []
    assert following.exit_code == 0


def test_one_line_says_that_a_run_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    logger = RunLogger(project="p", save_dir=tmp_path)
    with get_console().capture() as captured:
        logger.experiment.finish()
    (line,) = captured.get().splitlines()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert line == (
        "wandb     offline because there is no API key (`wandb login` stores one); "
        f"upload later with: wandb sync {folder}"
    )
    assert capfd.readouterr() == ("", "")


def test_a_disabled_mode_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = RunLogger(project="p", save_dir=tmp_path)
    logger.log_metrics({"train/full/loss": 1.0}, step=0)
    logger.experiment.finish()
    assert not list(tmp_path.iterdir())


def test_unknown_and_wrong_settings_are_refused(compose_run: Compose, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="entitty"):
        compose_run(tmp_path, "logger=wandb", "logger.wandb.entitty=me")
    with pytest.raises(ValueError, match="connect_seconds=0: allowed are values above 0"):
        run(compose_run(tmp_path, "logger=wandb", "logger.wandb.connect_seconds=0"))


def test_names_without_a_job_of_hydra() -> None:
    HydraConfig.instance().cfg = None
    assert sweep_name() is None
    assert run_name("outputs/mine") == "mine"
    assert run_name(None) == "run"


def test_a_run_composed_from_python_has_a_name_before_it_has_a_folder() -> None:
    config = compose("train", ["logger=wandb"], hydra_config=True)
    assert config.logger.wandb.name == "detr_tiny sample"


def test_names_of_jobs_do_not_depend_on_the_command_line(
    compose_run: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of a batch system the command line is that of the launcher."""
    monkeypatch.setattr(sys, "argv", ["_submit.py", "folder"])
    config = compose_run(tmp_path / "seed_1-abc", "logger=wandb", "seed=1")
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.mode = RunMode.MULTIRUN
    config.hydra.job.num = 3
    HydraConfig.instance().set_config(config)
    assert config.logger.wandb.name == "3 seed_1-abc"
    assert run_name(str(tmp_path), swept=["seed"]) == "3 seed=1"


def _logged(folder: Path, ckpt_path: Path | None = None, run_id: str | None = None) -> str:
    """Start and finish a run in a folder; return its id."""
    logger = RunLogger(project="p", save_dir=folder, ckpt_path=ckpt_path, id=run_id)
    logger.log_metrics({"train/full/loss": 1.0}, step=0)
    found = str(logger.experiment.id)
    logger.experiment.finish()
    return found


def test_training_that_resumes_in_its_folder_stays_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    checkpoint = folder / "checkpoints" / "last.ckpt"
    first = _logged(folder)
    assert (folder / "wandb_id.txt").read_text() == f"{first}\n"
    assert _logged(folder, checkpoint) == first
    assert {found.run.run_id for found in offline_runs(folder)} == {first}
    assert _logged(folder, checkpoint, "chosen") == "chosen"
    # A new training, or one from the checkpoint of another run, is a new run.
    assert _logged(folder) not in (first, "chosen")
    assert _logged(tmp_path / "other", checkpoint) not in (first, "chosen")


def test_the_checkpoint_reaches_the_logger(compose_run: Compose, tmp_path: Path) -> None:
    assert compose_run(tmp_path, "logger=wandb", "ckpt_path=x").logger.wandb.ckpt_path == "x"

"""Run folders are found and read; unreadable files are named, and nothing in them is executed."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import DictConfig
from PIL import Image
from run_files import config_of, ladder, make_curve, write_run

from anydepth import train
from anydepth.config.compose import compose, resolve_config
from anydepth.evaluation.compatibility import MEASURES, Compatibility, CompatibilityRow
from anydepth.report.claims.arms import arm_of
from anydepth.report.comparison import compare
from anydepth.report.runs import ReportError, Run, UnusableRun, find_runs
from anydepth.results.gallery import Gallery, GalleryDepth, GalleryImage, _to_json
from anydepth.structures import Detections

APS = ladder(30, 28, 27, 26)


def test_a_whole_run_reads_as_it_was_written(tmp_path: Path):
    folder = write_run(tmp_path / "run", APS, seed=3, log="epoch,step,train/full/loss\n0,9,2.5\n")
    (run,), unusable = find_runs([tmp_path])
    assert unusable == []
    assert (run.folder, run.name, run.seed) == (folder.resolve(), "run", 3)
    assert run.curve == make_curve(APS)
    assert run.summary.minimal == pytest.approx(0.26)
    assert run.log["train/full/loss"].values == (2.5,)
    assert run.config == config_of(["seed=3"], folder)
    assert run.provenance["data"]["fingerprint"] == "f1"
    assert run.result["status"] == "finished"
    assert (run.compatibility, run.gallery, run.notes) == (None, None, ())


def test_runs_are_found_below_in_natural_order_and_named_from_their_common_root(tmp_path: Path):
    for name in ("sweep_b/0", "sweep_a/10", "sweep_a/2"):
        write_run(tmp_path / "outputs" / name, APS)
    runs, _ = find_runs([tmp_path])
    assert [run.name for run in runs] == ["sweep_a/2", "sweep_a/10", "sweep_b/0"]


def test_a_folder_given_twice_or_through_a_link_counts_once_and_circles_end(tmp_path: Path):
    write_run(tmp_path / "runs" / "one", APS)
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs")
    (tmp_path / "link").symlink_to(tmp_path / "runs" / "one")
    (tmp_path / "runs" / "one" / "self").symlink_to(tmp_path / "runs" / "one")
    runs, unusable = find_runs([tmp_path / "runs", tmp_path / "link", tmp_path / "runs" / "one"])
    assert [run.name for run in runs] == ["one"]
    assert unusable == []


def test_order_of_the_folders_does_not_matter(tmp_path: Path):
    folders = [write_run(tmp_path / name, APS) for name in ("a", "b")]
    assert [run.name for run in find_runs(folders)[0]] == [run.name for run in find_runs(folders[::-1])[0]]


@pytest.mark.parametrize(
    "place", [".hydra", "wandb/offline-run-1/files", "checkpoints", "logs/version_0", "pictures/x"]
)
def test_configurations_of_other_programs_are_not_runs(tmp_path: Path, place: str):
    write_run(tmp_path / "run", APS)
    other = tmp_path / "run" / place
    other.mkdir(parents=True)
    (other / "config.yaml").write_text("a: 1\n")
    (tmp_path / "multirun.yaml").write_text("a: 1\n")
    runs, unusable = find_runs([tmp_path])
    assert ([run.name for run in runs], unusable) == (["run"], [])


def test_a_run_that_holds_other_runs_has_a_name_of_its_own(tmp_path: Path):
    write_run(tmp_path / "top", APS)
    write_run(tmp_path / "top" / "top", APS)
    assert [run.name for run in find_runs([tmp_path / "top"])[0]] == ["top", "top/top"]


# -- runs that cannot be shown ---------------------------------------------------------------------------


def _reason(tmp_path: Path) -> str:
    runs, (unusable,) = find_runs([tmp_path])
    assert runs == []
    assert isinstance(unusable, UnusableRun)
    return unusable.reason


def test_a_failed_run_is_named_with_its_message(tmp_path: Path):
    folder = write_run(tmp_path / "run", None, finished=False)
    (folder / "failure.json").write_text(json.dumps({"status": "failed", "error": "out of memory"}))
    assert _reason(tmp_path) == "failed: out of memory"


def test_an_incomplete_run_is_reported_as_interrupted(tmp_path: Path):
    write_run(tmp_path / "run", None, finished=False)
    assert "was interrupted" in _reason(tmp_path)


def test_a_run_without_a_curve_by_configuration_says_so(tmp_path: Path):
    write_run(tmp_path / "run", None, ["curve.depths=null"])
    assert "curve.depths=null" in _reason(tmp_path)


def test_a_finished_run_whose_curve_is_gone_says_so(tmp_path: Path):
    write_run(tmp_path / "run", None)
    assert "depth_curve.json is missing" in _reason(tmp_path)


def _broken_curves() -> dict[str, str]:
    whole = json.loads(make_curve(APS).to_json())
    no_ap = json.loads(json.dumps(whole))
    del no_ap["rows"][1]["figures"]["AP"]
    not_finite = json.loads(json.dumps(whole))
    not_finite["rows"][1]["figures"]["AP"] = float("nan")
    twice = {**whole, "rows": [whole["rows"][0], whole["rows"][0]]}
    odd = json.loads(json.dumps(whole))
    odd["rows"][0]["refine"] = [True]
    words = json.loads(json.dumps(whole))
    words["rows"][0]["gflops"] = "many"
    return {
        "cut": json.dumps(whole)[:200],
        "empty": "",
        "list": "[]",
        "no rows": json.dumps({**whole, "rows": []}),
        "no AP": json.dumps(no_ap),
        "not finite": json.dumps(not_finite),
        "a depth twice": json.dumps(twice),
        "stages without names": json.dumps(odd),
        "cost in words": json.dumps(words),
        "nested without end": "[" * 100_000,
    }


@pytest.mark.parametrize("kind", list(_broken_curves()))
def test_a_damaged_curve_makes_a_run_unusable(tmp_path: Path, kind: str):
    folder = write_run(tmp_path / "run", APS)
    (folder / "depth_curve.json").write_text(_broken_curves()[kind])
    assert _reason(tmp_path).startswith("depth_curve.json is damaged")


@pytest.mark.parametrize(
    "text",
    ["a: [1, 2", "", "just words", "- a\n- b\n", "a: !!python/object/apply:os.getcwd []\n", "a: \x00"],
    ids=["cut", "empty", "words", "list", "code", "zero byte"],
)
def test_a_damaged_configuration_makes_a_run_unusable(tmp_path: Path, text: str):
    folder = write_run(tmp_path / "run", APS)
    (folder / "config.yaml").write_text(text)
    assert _reason(tmp_path).startswith("config.yaml is damaged")


def test_nothing_in_a_configuration_is_executed(tmp_path: Path):
    folder = write_run(tmp_path / "run", APS)
    trace = tmp_path / "trace"
    (folder / "config.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{trace}']\n")
    find_runs([tmp_path])
    assert not trace.exists()


# -- damage that adds a note ------------------------------------------------------------------------------


def _only(tmp_path: Path) -> Run:
    (run,), unusable = find_runs([tmp_path])
    assert unusable == []
    return run


@pytest.mark.parametrize(
    "name", ["provenance.json", "result.json", "compatibility.json", "pictures/gallery.json"]
)
@pytest.mark.parametrize("text", ["{", "[]", "\udcff"], ids=["cut", "no object", "no text"])
def test_another_damaged_file_adds_a_note(tmp_path: Path, name: str, text: str):
    folder = write_run(tmp_path / "run", APS)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert any(note.startswith(f"{name} is damaged") for note in _only(tmp_path).notes)


def test_damaged_logs_add_a_note(tmp_path: Path):
    write_run(tmp_path / "run", APS, log="no,columns\n1,2\n")
    run = _only(tmp_path)
    assert run.log == {}
    assert "version_0/metrics.csv is damaged" in run.notes[0]


def test_notes_state_the_history_of_a_run(tmp_path: Path):
    folder = write_run(tmp_path / "run", APS, ["ckpt_path=last.ckpt"], finished=False)
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance["git"]["changed"] = True
    (folder / "provenance.json").write_text(json.dumps(provenance))
    notes = "\n".join(_only(tmp_path).notes)
    assert "no result.json" in notes
    assert "resumed from the checkpoint last.ckpt" in notes
    assert "uncommitted changes" in notes
    (folder / "failure.json").write_text(json.dumps({"error": "disk full"}))
    assert "failed after its depth curve was written: disk full" in "\n".join(_only(tmp_path).notes)
    (folder / "result.json").write_text(json.dumps({"status": "finished"}))
    assert "disk full" not in "\n".join(_only(tmp_path).notes)


def test_compatibility_is_read(tmp_path: Path):
    folder = write_run(tmp_path / "run", APS)
    row = CompatibilityRow("stage1", "minimal", dict.fromkeys(MEASURES, 0.5))
    whole = Compatibility(
        detector="detr_tiny",
        input_size=(64, 64),
        precision="fp32",
        images=4,
        positions={"stage1": 4},
        channels={"stage1": 8},
        depths=("minimal",),
        stages=("stage1",),
        rows=(row,),
    )
    (folder / "compatibility.json").write_text(whole.to_json())
    read = _only(tmp_path).compatibility
    assert read is not None
    assert asdict(read) == asdict(whole)


def test_images_of_the_gallery_that_are_gone_are_left_out(tmp_path: Path):
    folder = write_run(tmp_path / "run", APS) / "pictures"
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    depths = (GalleryDepth("full", 10.0), GalleryDepth("minimal", 5.0))
    found = {depth.depth: none for depth in depths}
    images = [
        GalleryImage(number, folder / "originals" / f"{number}.jpg", (4, 4), none, found) for number in (1, 2)
    ]
    images.append(GalleryImage(3, folder / "originals" / "3.jpg", (4, 4), none, {"full": none}))
    (folder / "originals").mkdir(parents=True)
    for number in (1, 3):
        Image.new("RGB", (4, 4)).save(folder / "originals" / f"{number}.jpg")
    (folder / "gallery.json").write_text(_to_json(Gallery(("crown",), 0.4, depths, tuple(images))))
    run = _only(tmp_path)
    assert run.gallery is not None
    assert [image.image_id for image in run.gallery.images] == [1]
    assert run.notes == ("pictures: 2 of 3 images are missing or lack a depth",)


# -- folders that hold no run ----------------------------------------------------------------------------


def test_a_folder_without_a_run_says_what_was_looked_for(tmp_path: Path):
    write_run(tmp_path / "runs" / "one", APS)
    (tmp_path / "empty" / "below").mkdir(parents=True)
    with pytest.raises(ReportError, match=r"empty: holds no run.*config\.yaml and depth_curve\.json"):
        find_runs([tmp_path / "runs", tmp_path / "empty"])


def test_folders_of_other_commands_are_not_interrupted_training_runs(tmp_path: Path):
    for name in ("analyze", "evaluate", "predict"):
        (tmp_path / name).mkdir()
        config = resolve_config(compose(name, ["output=out", "paths.output_dir=out"]))
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "config.yaml").write_text(yaml.safe_dump(config_of([])))
    reasons = {run.folder.name: run.reason for run in find_runs([tmp_path])[1]}
    assert reasons.pop("train").startswith("was interrupted")
    assert reasons == {
        "analyze": "is not a training run, but was written by anydepth-analyze",
        "evaluate": "is not a training run, but was written by anydepth-evaluate, without a depth curve",
        "predict": "is not a training run, but was written by anydepth-predict",
    }


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path):
    with pytest.raises(ReportError, match="nowhere: does not exist"):
        find_runs([tmp_path / "nowhere"])
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="file: is a file"):
        find_runs([tmp_path / "file"])
    with pytest.raises(ReportError, match="got no folder"):
        find_runs([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder; run the tests as another user")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path):
    folder = write_run(tmp_path / "run", APS)
    (folder / "depth_curve.json").chmod(0)
    assert _reason(tmp_path).startswith("depth_curve.json is damaged")


# -- a run that training left ----------------------------------------------------------------------------


def test_a_run_that_training_left_is_read(tmp_path: Path, compose_run: Callable[..., DictConfig]):
    cfg = compose_run(
        tmp_path / "run",
        "recipe.epochs=2",
        "curve.depths=ladder",
        "curve.latency_repetitions=0",
        "curve.pictures=1",
    )
    _, objects = train.run(cfg)
    (run,), unusable = find_runs([tmp_path])
    assert unusable == []
    assert run.curve == objects["curve"]
    assert run.config == resolve_config(cfg)
    assert arm_of(run) == "any-depth"
    assert {"train/full/loss", "train/minimal/loss", "val/full/AP", "val/score"} <= run.log.keys()
    assert len(run.log["val/score"].values) == 2
    assert run.gallery is not None
    assert len(run.gallery.images) == 1
    (comparison,) = compare([run]).comparisons
    assert comparison.settings[0].mean["ladder_mean"] == pytest.approx(run.summary.ladder_mean)
    assert not any("damaged" in note for note in run.notes)

"""The plan of the study, its runner and its page, with jobs that write files in place of training."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anydepth.config.compose import compose
from anydepth.data.errors import DataError
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow
from anydepth.evidence.arms import ARMS, Arm, choose_arms
from anydepth.evidence.datasets import StudyData, prepare_data
from anydepth.evidence.detections import CURVE, DETECTIONS
from anydepth.evidence.page import write_report
from anydepth.evidence.plan import Job, StudyError, StudySettings, make_plan, open_study, train_command
from anydepth.evidence.run import Machine, Runner

MACHINE = Machine(jobs=2, threads=1, gpu=False, workers=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 10 training and 4 validation images, which become the test."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "annotations").mkdir()
    for split, count in (("train", 10), ("val", 4)):
        (folder / "images" / split).mkdir(parents=True)
        images = [
            {"id": number, "file_name": f"{number}.png", "width": 50, "height": 50}
            for number in range(1, count + 1)
        ]
        for image in images:
            Image.new("RGB", (50, 50)).save(folder / "images" / split / str(image["file_name"]))
        boxes = [
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [10, 10, 20, 20],
                "area": 400,
                "iscrowd": 0,
            }
            for number in range(1, count + 1)
        ]
        truth = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(truth))
    return folder


def _plan(root: Path, study: Path, *arms: str, seeds: tuple[int, ...] = (0,), test: bool = False) -> Any:
    data = prepare_data("cats", root, study)
    chosen = choose_arms(arms or None)
    settings = StudySettings(steps=8, batch_size=2)
    return data, make_plan([data], ["yolo_tiny"], seeds, chosen, settings, test=test)


def test_a_test_split_is_made_once_and_alike(root: Path, tmp_path: Path) -> None:
    data = prepare_data("cats", root, tmp_path)
    assert data.train_images == 8
    assert data.splits["test"].json_path == root / "annotations" / "instances_val.json"
    ids = {
        split: {image["id"] for image in json.loads(data.splits[split].json_path.read_text())["images"]}
        for split in ("train", "val")
    }
    assert ids["train"].isdisjoint(ids["val"])
    assert ids["train"] | ids["val"] == set(range(1, 11))
    assert prepare_data("cats", root, tmp_path / "other").digest == data.digest
    with pytest.raises(DataError, match="fewer than one batch of 9"):
        data.steps_per_epoch(9)


def test_jobs_come_in_an_order_in_which_they_can_run(root: Path, tmp_path: Path) -> None:
    _, jobs = _plan(root, tmp_path, seeds=(0, 1), test=True)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for place, job in enumerate(jobs):
        assert all(need in names[:place] for need in job.needs)
    # Every other job of all seeds is over before the test begins.
    splits = [job.split for job in jobs]
    first = splits.index("test")
    assert set(splits[first:]) == {"test"}
    # From scratch as many steps as source and conversion together.
    steps = {job.arm.name: job.steps for job in jobs if job.kind == "train" and job.cell.seed == 0}
    assert steps["base"] == 8
    assert steps["converted-any_depth"] == 4
    assert steps["scratch-any_depth"] == steps["scratch-minimal"] == 12


def test_arms_of_a_seed_differ_in_what_they_are_about_alone(root: Path, tmp_path: Path) -> None:
    _, jobs = _plan(root, tmp_path, "all")
    settings = {job.arm.name: set(job.settings) for job in jobs if job.kind == "train"}
    assert settings["converted-any_depth"] ^ settings["converted-no_distillation"] == {
        "ablation=both",
        "ablation=no_distillation",
    }
    shared = set.intersection(*settings.values())
    assert {"seed=0", "data.batch_size=2", "recipe.minutes=null"} <= shared


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.is_trained], ids=lambda arm: arm.name)
def test_settings_of_an_arm_compose(root: Path, tmp_path: Path, arm: Arm) -> None:
    _, jobs = _plan(root, tmp_path, arm.name)
    (job,) = [job for job in jobs if job.kind == "train" and job.arm is arm]
    command = train_command(job, tmp_path, MACHINE.train_settings)
    config = compose("train", [text for text in command if not text.startswith("hydra.")])
    assert config.convert is False
    assert (config.weights is not None) == (arm.start == "converted")
    assert config.recipe.skip_lr == (0.01 if arm.start == "converted" else None)


def test_names_that_are_none_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got the arm other, expected all or some of base"):
        choose_arms(("other",))
    data = prepare_data("cats", root, tmp_path)
    for detectors, message in (
        (["yolov12_s"], "the detector yolov12_s, which has a fixed depth"),
        ([], "got no detector"),
        (["yolo_tiny", "yolo_tiny"], "yolo_tiny twice"),
    ):
        with pytest.raises(StudyError, match=message):
            make_plan([data], detectors, [0], choose_arms(None), StudySettings(), test=False)
    with pytest.raises(DataError, match=r"got the data set unknown, expected sample, .* --root unknown="):
        prepare_data("unknown", None, tmp_path)
    for wrong in ({"steps": 0}, {"lr": 0.0}, {"all_set": ("recipe.lr",)}):
        with pytest.raises(StudyError, match="expected"):
            StudySettings(**wrong)  # type: ignore[arg-type]


def test_a_folder_holds_one_study(root: Path, tmp_path: Path) -> None:
    data = prepare_data("cats", root, tmp_path)
    open_study(tmp_path, StudySettings(steps=8), [data])
    open_study(tmp_path, StudySettings(steps=8), [data])
    with pytest.raises(StudyError, match="steps=8 there, 9 here"):
        open_study(tmp_path, StudySettings(steps=9), [data])
    other = StudyData(data.name, data.settings, data.splits, data.train_images, "0" * 64)
    with pytest.raises(StudyError, match="other annotations of cats"):
        open_study(tmp_path, StudySettings(steps=8), [other])
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(StudyError, match="not the record of a study"):
        open_study(tmp_path, StudySettings(steps=8), [data])


# -- running -------------------------------------------------------------------------------------------------


class FakeRunner(Runner):
    """Jobs that note their start and write the files that are asked of them."""

    fail: str = ""
    ran: list[str]

    def _command(self, job: Job) -> list[str]:
        self.ran.append(job.name)
        folder = self.study / job.folder
        if job.name == self.fail:
            return [sys.executable, "-c", "raise SystemExit(3)"]
        if job.kind == "score":
            _write_scored(folder / "scoring", ap=0.5)
            return [sys.executable, "-c", "pass"]
        return [sys.executable, "-c", f"open({str(self.study / job.result)!r}, 'w').write('{{}}')"]


def _write_scored(folder: Path, ap: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CURVE).write_text(_curve(ap).to_json())
    for depth in ("full", "minimal"):
        rows = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9}]
        (folder / f"detections_x_yolo-tiny-{depth}_results.json").write_text(json.dumps(rows))


def _curve(ap: float) -> DepthCurve:
    rows = [DepthRow(depth, {}, None, 10, gflops, None, {"AP": ap}, {}) for depth, gflops in DEPTHS.items()]
    return DepthCurve("yolo_tiny", 10, (64, 64), "fp32", 2, None, tuple(rows), boxes_clipped=True)


DEPTHS = {"full": 2.0, "minimal": 1.0}


def _runner(study: Path, data: StudyData, jobs: list[Job], fail: str = "") -> tuple[FakeRunner, list[str]]:
    lines: list[str] = []
    runner = FakeRunner(
        study=study, jobs=jobs, datasets={data.name: data}, machine=MACHINE, report=lines.append
    )
    runner.fail, runner.ran = fail, []
    runner.run()
    return runner, lines


needs_main_thread = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="sets a handler of SIGTERM"
)


@needs_main_thread
def test_what_has_finished_is_not_run_again(root: Path, tmp_path: Path) -> None:
    data, jobs = _plan(root, tmp_path, "naive", "converted-any_depth")
    first, lines = _runner(tmp_path, data, jobs)
    assert sorted(first.ran) == sorted(job.name for job in jobs)
    assert not first.failed
    again, lines = _runner(tmp_path, data, jobs)
    assert again.ran == []
    assert lines == [f"finished  {len(jobs)} of {len(jobs)} jobs, from before"]
    (tmp_path / jobs[-1].result).unlink()
    assert _runner(tmp_path, data, jobs)[0].ran == [jobs[-1].name]


@needs_main_thread
def test_a_job_that_fails_costs_those_that_need_it_alone(root: Path, tmp_path: Path) -> None:
    data, jobs = _plan(root, tmp_path, "converted-any_depth", "scratch-minimal")
    fail = "cats/yolo_tiny/seed0/convert"
    runner, lines = _runner(tmp_path, data, jobs, fail)
    assert runner.failed == {fail: "it ended with code 3 and without a result"}
    assert "cats/yolo_tiny/seed0/converted-any_depth" not in runner.ran
    assert "cats/yolo_tiny/seed0/scratch-minimal/val" in runner.ran
    assert any("converted-any_depth: needs cats/yolo_tiny/seed0/convert" in line for line in lines)
    assert json.loads((tmp_path / fail / "failure.json").read_text())["status"] == "failed"
    repaired, _ = _runner(tmp_path, data, jobs)
    assert repaired.ran[0] == fail
    assert not (tmp_path / fail / "failure.json").exists()


# -- the page ------------------------------------------------------------------------------------------------


def _store(study: Path, job: Job, shift: dict[str, float]) -> None:
    """Detections of all four images at each depth, moved to the right by some pixels."""
    folder = study / job.folder
    folder.mkdir(parents=True)
    (folder / CURVE).write_text(_curve(0.0).to_json())
    arrays = {}
    for depth, pixels in shift.items():
        boxes = np.array([[10 + pixels, 10, 20, 20]] * 4, np.float64)
        arrays[f"{depth}/image_ids"] = np.arange(1, 5)
        arrays[f"{depth}/category_ids"] = np.ones(4, np.int64)
        arrays[f"{depth}/boxes_xywh"] = boxes
        arrays[f"{depth}/scores"] = np.array([0.9, 0.8, 0.7, 0.6])
    np.savez(folder / DETECTIONS, **arrays)


def test_the_page_says_what_the_finished_arms_say(root: Path, tmp_path: Path) -> None:
    data, jobs = _plan(root, tmp_path, "converted-any_depth", "scratch-minimal", seeds=(0, 1), test=True)
    tests = [job for job in jobs if job.split == "test"]
    with pytest.raises(ValueError, match="no arm was scored on the split test"):
        write_report(tmp_path, jobs, {"cats": data}, split="test", samples=20)
    # An overlap of 1, 0.9 and 0.74: AP of 100, 90 and 50 in all samples.
    shifts = {"base": (0.0, 0.0), "converted-any_depth": (0.0, 1.0), "scratch-minimal": (3.0, 3.0)}
    for job in tests:
        _store(tmp_path, job, dict(zip(DEPTHS, shifts[job.arm.name], strict=True)))
    files = write_report(tmp_path, jobs, {"cats": data}, split="test", samples=20)
    page = files["page"].read_text()
    assert "AP in percent on the test images (2 of cats)" in page
    assert (
        "| converted, both distillations (the method) | 100.0 (100.0 to 100.0) | 90.0 (90.0 to 90.0) | 2 |"
        in page
    )
    lines = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    kept = "Converted, full depth keeps the AP of the source"
    assert lines[kept].endswith("| -0.5 | +0.0 | +0.0 to +0.0 | 2 | holds |")
    close = "Converted, minimal depth is close to full depth"
    assert lines[close].endswith("| -2.0 | -10.0 | -10.0 to -10.0 | 2 | fails |")
    assert "trained alone for as many steps in all | -0.5 | +40.0 |" in page
    assert "learning curves" not in files
    table = files["table"].read_text().splitlines()
    assert "cats,yolo_tiny,converted-any_depth,minimal,1.0,1,90.0" in table
    # Kept samples are used again, and made anew when the detections are.
    kept_file = tmp_path / tests[0].folder / "samples_20.npz"
    before = kept_file.stat().st_mtime_ns
    assert write_report(tmp_path, jobs, {"cats": data}, split="test", samples=20)["page"].read_text() == page
    assert kept_file.stat().st_mtime_ns == before

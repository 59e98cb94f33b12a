"""``anydepth-evaluate``: saved weights in, depth curve out, with the metrics of pycocotools."""

import contextlib
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers import RTDetrImageProcessor

from anydepth import evaluate, zoo
from anydepth.config.compose import compose
from anydepth.data.coco.categories import Categories
from anydepth.data.errors import DataError
from anydepth.depth import DepthError
from anydepth.detector import Detector, compilation
from anydepth.evaluation.coco_eval import FIGURES, EvaluationError
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.images import fit_image, read_image

CATEGORIES = {"cat": 17, "dog": 18}
BATCH_SIZE = 2


@pytest.fixture
def detector(build_small: Callable[..., Detector]) -> Detector:
    return _build(build_small)


def _build(build_small: Callable[..., Detector]) -> Detector:
    """Equal ones at each call; classes in another order than in the data set, as they are matched by name."""
    detector = build_small()
    detector.reset_classes(["dog", "cat"])
    return detector.eval()


@pytest.fixture
def root(tmp_path: Path, written: Path) -> Path:
    """A copy of the data set, which a test may change."""
    return Path(shutil.copytree(written, tmp_path / "data"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, build_small: Callable[..., Detector]) -> Path:
    """Write a data set of 5 noise images whose ground truth is the shifted detections of the detector."""
    detector = _build(build_small)
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("written") / "data"
    images, annotations = [], []
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
    for position in range(5):
        height, width = 60 + 10 * position, 100
        path = folder / "images" / "val" / f"{position}.png"
        Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
        images.append({"id": 10 * position, "file_name": path.name, "height": height, "width": width})
        found = detector.predict(path, threshold=0)[0]
        for box, label in zip(found.boxes_xyxy[::2].tolist(), found.labels[::2].tolist(), strict=True):
            left, top, right, bottom = np.clip(np.array(box) + random.normal(0, 2, 4), 0, [width, height] * 2)
            if right - left > 2 and bottom - top > 2:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 10 * position,
                        "category_id": CATEGORIES[detector.class_names[label]],
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": 0,
                    }
                )
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in CATEGORIES.items()],
    }
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def config(tmp_path: Path, root: Path, detector: Detector) -> Iterator[Callable[..., DictConfig]]:
    weights = zoo.save(detector, tmp_path / "weights.safetensors")

    def compose_job(*overrides: str) -> DictConfig:
        settings = {
            "data": "custom",
            "data.root": root,
            "data.num_workers": 0,
            "weights": weights,
            "output": tmp_path / "out",
            "paths.output_dir": tmp_path / "out",
            "device": "cpu",
            "batch_size": BATCH_SIZE,
            "latency.repetitions": 0,
            "depths": "[full]",
        }
        return compose("evaluate", [*(f"{key}={value}" for key, value in settings.items()), *overrides])

    yield compose_job
    GlobalHydra.instance().clear()


def _detect(
    images: list[dict[str, Any]], root: Path, detector: Detector, depth: str
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the boxes, scores and labels of each image."""
    # The same batches, because scores of untrained weights differ by less than the rounding error.
    for start in range(0, len(images), BATCH_SIZE):
        part = images[start : start + BATCH_SIZE]
        pictures = [read_image(root / "images" / "val" / image["file_name"]) for image in part]
        fitted = torch.stack([fit_image(picture, detector.input_size, "stretch") for picture in pictures])
        with torch.inference_mode():
            output: Any = detector(fitted / 255, depth)
        named = SimpleNamespace(logits=output.logits, pred_boxes=output.boxes_cxcywh)
        sizes = [(image["height"], image["width"]) for image in part]
        yield from RTDetrImageProcessor().post_process_object_detection(named, -1, sizes)


def _reference(root: Path, detector: Detector, depth: str) -> list[float]:
    """Return the metrics of pycocotools for the network's output, post-processed by transformers."""
    truth = COCO()
    truth.dataset = {"info": {}, **json.loads((root / "annotations" / "instances_val.json").read_text())}
    results: list[dict[str, Any]] = []
    images = truth.dataset["images"]
    for image, found in zip(images, _detect(images, root, detector, depth), strict=True):
        rows = zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
        results += [
            {
                "image_id": image["id"],
                "category_id": CATEGORIES[detector.class_names[label]],
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            for (left, top, right, bottom), score, label in rows
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize("backend", ["hotcoco", pytest.param("pycocotools", marks=pytest.mark.slow)])
def test_figures_equal_those_of_pycocotools_on_predictions_of_each_file(
    config: Callable[..., DictConfig], root: Path, detector: Detector, backend: str
) -> None:
    metrics, objects = evaluate.run(config("depths=[full,minimal]", f"backend={backend}"))
    for depth in ("full", "minimal"):
        expected = _reference(root, detector, depth)
        assert [metrics[f"{depth}/{name}"] for name in FIGURES] == pytest.approx(expected, abs=1e-6)
    assert metrics["full/AP50"] > 0.02, "the ground truth was made from the full detections"
    assert objects["curve"].images == 5
    # RT-DETR's reference does not clip boxes before it is scored.
    written = json.loads((Path(objects["files"]["json"])).read_text())
    assert written["boxes_clipped"] is False


def test_the_curve_is_written_printed_and_returned(
    config: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, objects = evaluate.run(config("depths=[full,neck@1,minimal]", "latency.repetitions=2"))
    written = {path.name for path in (tmp_path / "out").iterdir()} - {"uncommitted.patch"}
    assert written == {f"depth_curve.{kind}" for kind in ("csv", "json", "png")} | {
        "config.yaml",
        "provenance.json",
    }
    curve = DepthCurve.from_json((tmp_path / "out" / "depth_curve.json").read_text())
    assert curve == objects["curve"]
    assert curve.protocol is not None
    assert curve.protocol.repetitions == 2
    printed = capsys.readouterr().out
    assert [row.depth for row in curve.rows] == ["full", "neck@1", "minimal"]
    lines = [line.split() for line in printed.splitlines()]
    assert [line[0] for line in lines if line[:1] and line[0] in ("full", "neck@1", "minimal")] == [
        "full",
        "neck@1",
        "minimal",
    ]
    gflops = [row.gflops for row in curve.rows]
    assert gflops == sorted(gflops, reverse=True)
    assert gflops[0] > gflops[-1]


def test_specialised_networks_give_the_same_figures(config: Callable[..., DictConfig]) -> None:
    wanted, _ = evaluate.run(config())
    found, objects = evaluate.run(config("specialised=true", "latency.repetitions=1"))
    # A rounding error may exchange two detections of equal score.
    assert found == pytest.approx(wanted, abs=0.02)
    assert objects["curve"].protocol.specialised
    assert objects["detector"].specialised_for is None


def test_compiled_networks_give_the_same_figures(
    config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")  # Traced, without a compiler.
    wanted, _ = evaluate.run(config("specialised=true", "depths=[full,minimal]"))
    found, objects = evaluate.run(config("engine=compile", "depths=[full,minimal]", "latency.repetitions=1"))
    assert found == pytest.approx(wanted, abs=1e-4)
    assert (objects["curve"].protocol.compiled, objects["curve"].protocol.specialised) == (True, True)
    assert str(objects["curve"].protocol).endswith("each specialised and compiled")


def test_figures_of_the_results_file_are_those_of_the_curve(
    config: Callable[..., DictConfig], root: Path, tmp_path: Path
) -> None:
    metrics, objects = evaluate.run(config("depths=[full,minimal]", "results=true"))
    for depth in ("full", "minimal"):
        path = objects["files"][depth]
        assert path == tmp_path / "out" / f"detections_val_detr-tiny-{depth}_results.json"
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(root / "annotations" / "instances_val.json"))
            evaluation = COCOeval(truth, truth.loadRes(str(path)), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert [metrics[f"{depth}/{name}"] for name in FIGURES] == pytest.approx(evaluation.stats, abs=1e-4)
    results = json.loads(objects["files"]["full"].read_text())
    assert {row["category_id"] for row in results} <= set(CATEGORIES.values())
    assert {row["image_id"] for row in results} == {0, 10, 20, 30, 40}
    assert all(set(row) == {"image_id", "category_id", "bbox", "score"} for row in results)


@pytest.mark.parametrize("backend", ["hotcoco", pytest.param("pycocotools", marks=pytest.mark.slow)])
def test_ids_of_any_size_give_the_same_figures_and_come_back_in_results_files(
    config: Callable[..., DictConfig], root: Path, backend: str
) -> None:
    expected, _ = evaluate.run(config(f"backend={backend}"))
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    first = 2**53 + 1  # no float holds this and its odd successors
    changed = [image["id"] + first for image in document["images"]]
    for image in document["images"]:
        image["id"] += first
    for annotation in document["annotations"]:
        annotation["id"] -= 1
        annotation["image_id"] += first
        annotation["category_id"] -= 20
    for category in document["categories"]:
        category["id"] -= 20
    path.write_text(json.dumps(document))
    metrics, objects = evaluate.run(config(f"backend={backend}", "results=true"))
    assert metrics == expected
    results = json.loads(objects["files"]["full"].read_text())
    assert {row["image_id"] for row in results} == set(changed)
    assert {row["category_id"] for row in results} <= {-3, -2}


def _test_split(root: Path, name: str, **changed: object) -> None:
    """Turn the images of val into a test split."""
    document = json.loads((root / "annotations" / "instances_val.json").read_text())
    (root / "images" / "val").rename(root / "test2017")
    (root / "annotations" / "instances_val.json").unlink()
    del document["annotations"]
    (root / "annotations" / name).write_text(json.dumps(document | changed))


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, id="no annotations"),
        pytest.param({"annotations": []}, id="empty annotations", marks=pytest.mark.slow),
    ],
)
def test_images_without_ground_truth_give_results_and_no_figures(
    config: Callable[..., DictConfig], root: Path, tmp_path: Path, changed: dict[str, object]
) -> None:
    _test_split(root, "image_info_test-dev2017.json", **changed)

    metrics, _ = evaluate.run(config("split=test", "results=true", "depths=[full,neck@1]"))

    assert metrics == {}
    assert {path.name for path in (tmp_path / "out").iterdir()} - {"uncommitted.patch"} == {
        "detections_test-dev2017_detr-tiny-full_results.json",
        "detections_test-dev2017_detr-tiny-neck-1_results.json",
        "config.yaml",
        "provenance.json",
    }


def test_images_without_ground_truth_cannot_be_measured(
    config: Callable[..., DictConfig], root: Path, tmp_path: Path
) -> None:
    _test_split(root, "image_info_test-dev2017.json")

    with pytest.raises(EvaluationError, match=r"test-dev2017\.json: holds no annotations.*results=true"):
        evaluate.run(config("split=test"))
    assert not (tmp_path / "out").exists()


def test_crowd_regions_alone_cannot_be_measured(config: Callable[..., DictConfig], root: Path) -> None:
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    for annotation in document["annotations"]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(document))
    with pytest.raises(EvaluationError, match=r"holds no annotations.*crowd regions do not count.*results="):
        evaluate.run(config())


def test_a_validation_split_needs_its_annotations(config: Callable[..., DictConfig], root: Path) -> None:
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    del document["annotations"]
    path.write_text(json.dumps(document))

    with pytest.raises(DataError, match="'annotations' is missing"):
        evaluate.run(config("results=true"))


def test_the_input_size_applies_to_cost_and_data(config: Callable[..., DictConfig]) -> None:
    small = evaluate.run(config())[1]["curve"]
    large = evaluate.run(config("input_size=[64,128]"))[1]["curve"]
    assert (small.input_size, large.input_size) == ((64, 64), (64, 128))
    assert large.rows[0].gflops > 1.5 * small.rows[0].gflops


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["weights=null"], ValueError, "no weights"),
        (["weights=absent.safetensors"], FileNotFoundError, "absent"),
        (["depths=[full,none@9]"], DepthError, "decoder depth 9"),
        pytest.param(["depths=[]"], DepthError, "got an empty list of depths", marks=pytest.mark.slow),
        pytest.param(["split=valid"], ValueError, "allowed are train, val, test", marks=pytest.mark.slow),
        (["backend=coco"], EvaluationError, "hotcoco, pycocotools"),
        pytest.param(["precision=fp8"], ValueError, "fp32, bf16, fp16", marks=pytest.mark.slow),
        pytest.param(["input_size=[64]"], ValueError, "height, width", marks=pytest.mark.slow),
    ],
)
def test_wrong_settings_are_refused_and_nothing_is_written(
    config: Callable[..., DictConfig],
    tmp_path: Path,
    overrides: list[str],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        evaluate.run(config(*overrides))
    assert not (tmp_path / "out").exists()


def test_classes_are_matched_by_name_and_unknown_ones_refused() -> None:
    categories = Categories((3, 5, 9), ("cat", "dog", "cow"), Path("val.json"))
    assert evaluate.category_ids_of(("cow", "bird", "cat", "dog"), categories) == [9, None, 3, 5]
    with pytest.raises(
        EvaluationError, match=r"val\.json: got categories cow, expected classes of the detector"
    ):
        evaluate.category_ids_of(("cat", "dog"), categories)
    household = Categories((63, 72, 64), ("couch", "tv", "potted plant"), Path("val.json"))
    assert evaluate.category_ids_of(("pottedplant", "sofa", "tvmonitor"), household) == [64, 63, 72]
    # Here the spelling tells two classes apart.
    assert evaluate.category_ids_of(("Cat", "cow", "cat", "dog"), categories) == [None, 9, 3, 5]


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["anydepth-evaluate", *arguments])
    try:
        evaluate.main()
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None


@pytest.mark.parametrize(
    ("where", "folder"),
    [
        pytest.param(("hydra.sweep.dir=all",), "all", marks=pytest.mark.slow),
        ((), "outputs/evaluate/sweep_*"),
    ],
    ids=["given", "default"],
)
def test_jobs_of_a_sweep_write_to_folders_of_their_own(
    root: Path,
    detector: Detector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: tuple[str, ...],
    folder: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    zoo._settings.cache_clear()  # as in a new process, so that the first job composes the detector
    monkeypatch.chdir(tmp_path)
    zoo.save(detector, tmp_path / "weights.safetensors")
    settings = ("weights=weights.safetensors", "data=custom", f"data.root={root}", "data.num_workers=0")
    rest = ("device=cpu", "latency.repetitions=0", "depths=[9/7],[full],[minimal]", *where)
    with pytest.raises(SystemExit) as ended:
        _main(monkeypatch, "-m", *settings, *rest)
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert [
        depth
        for depth in ("full", "minimal")
        if re.search(rf"^depths_\.{depth}-\w+ +finished +AP {depth} \d+\.\d *$", shown, re.MULTILINE)
    ] == ["full", "minimal"]
    assert re.search(r"^depths_\.9\.7-\w+ +failed ", shown, re.MULTILINE)
    (sweep,) = (tmp_path / folder).parent.glob(Path(folder).name)
    curves = sorted(sweep.glob("*/depth_curve.json"))
    depths = {json.loads(path.read_text())["rows"][0]["depth"] for path in curves}
    assert (len(curves), depths) == (2, {"full", "minimal"})
    for path in curves:
        command = json.loads((path.parent / "provenance.json").read_text())["command"]
        assert command.startswith("anydepth-evaluate ")


def test_the_folder_of_a_training_run_is_kept_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    for name in ("weights.safetensors", "config.yaml", "provenance.json"):
        (tmp_path / "run" / name).write_text("of training")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        _main(monkeypatch, "weights=run/weights.safetensors", "output=run")
    assert "output=run: this folder holds a training run" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text() == "of training"


def test_an_unknown_key_fails_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["anydepth-evaluate", "depth=[full]"])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    assert ended.value.code == 1
    assert "depth" in capsys.readouterr().err

"""The recipes of the documentation for other tools, run as they are written there."""

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hand_made
import numpy as np
import pytest
from PIL import Image

import anydepth
from anydepth.deploy import load
from anydepth.deploy.runtime.detector import DeployedDetector
from documents import DOCS, write_files
from small_networks import SMALL_DETECTOR

SAMPLE = Path(anydepth.__file__).parent / "data" / "sample" / "images" / "train"


@pytest.fixture(autouse=True)
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The files of the page in the working directory, with a bundle and pictures of the sample."""
    write_files(DOCS / "integrations.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(hand_made, "weights_of", _weights_of_boxes)
    hand_made.write_bundle(tmp_path / "bundle")
    for folder in ("pictures", "frames"):
        Path(folder).mkdir()
        for number, path in enumerate(sorted(SAMPLE.glob("*.jpg"))[:3]):
            Image.open(path).save(Path(folder, f"{number}.jpg"))
    yield
    sys.modules.pop("sahi_model", None)


def _weights_of_boxes(depth: str, weights_of: Callable[..., Any] = hand_made.weights_of) -> Any:
    """Weights as they are, but first corners are below one half, and second ones above."""
    boxes, scores = weights_of(depth)
    return np.abs(boxes) * np.tile([-1, -1, 1, 1], hand_made.BOXES).astype(np.float32), scores


def _make_field() -> np.ndarray:
    """A picture of 2 x 3 pictures of the sample."""
    parts = [
        np.asarray(Image.open(path).convert("RGB").resize((200, 200)))
        for path in sorted(SAMPLE.glob("*.jpg"))[:6]
    ]
    field = np.concatenate([np.concatenate(parts[:3], axis=1), np.concatenate(parts[3:], axis=1)])
    Image.fromarray(field).save("field.jpg", quality=95)
    return np.asarray(Image.open("field.jpg"))


def _sorted(rows: list[list[float]]) -> np.ndarray:
    return np.array(sorted(rows))


@pytest.mark.parametrize("kind", ["bundle", "torch"])
def test_sahi_finds_what_the_detector_finds_in_each_slice(kind: str):
    pytest.importorskip("sahi")
    from sahi.predict import get_sliced_prediction

    model_class = runpy.run_path("sahi_model.py")["AnyDepthModel"]
    field = _make_field()
    if kind == "bundle":
        detector, threshold = load("bundle", threads=1), 0.3
    else:
        detector, threshold = anydepth.build("detr_tiny", 2, **SMALL_DETECTOR).eval(), 0.0
        detector.reset_classes(("cat", "dog"))
    model = model_class(detector, depth="minimal", confidence_threshold=threshold)
    result = get_sliced_prediction(
        field,
        model,
        slice_height=200,
        slice_width=200,
        overlap_height_ratio=0,
        overlap_width_ratio=0,
        perform_standard_pred=False,
        # No two boxes are merged, whose rules are SAHI's.
        postprocess_type="NMS",
        postprocess_match_threshold=2.0,
        verbose=0,
    )
    found = [[*one.bbox.to_xyxy(), one.category.id, one.score.value] for one in result.object_prediction_list]
    expected = []
    for top in (0, 200):
        for left in (0, 200, 400):
            crop = np.ascontiguousarray(field[top : top + 200, left : left + 200])
            (own,) = detector.predict(crop, depth="minimal", threshold=threshold)
            rows = zip(own.boxes_xyxy.tolist(), own.labels.tolist(), own.scores.tolist(), strict=True)
            expected += [
                [box[0] + left, box[1] + top, box[2] + left, box[3] + top, label, score]
                for box, label, score in rows
            ]
    assert len(expected) > 6
    np.testing.assert_allclose(_sorted(found), _sorted(expected), atol=1e-3)
    names = {one.category.id: one.category.name for one in result.object_prediction_list}
    assert names.items() <= {0: "cat", 1: "dog"}.items()


def test_the_sahi_recipe_prints_what_it_finds(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("sahi")
    _make_field()
    runpy.run_path("detect_in_slices.py")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("cat ", "dog "))]
    assert lines
    assert all(float(line.split()[1]) >= 0.4 for line in lines)


def test_files_for_fiftyone_hold_what_its_importer_reads():
    """By its documented format of ``COCODetectionDataset``, and the arguments of ``add_coco_labels``."""
    runpy.run_path("write_fiftyone.py")
    detector = load("bundle")
    assert isinstance(detector, DeployedDetector)
    for depth in ("full", "minimal"):
        labels = json.loads(Path(f"{depth}.json").read_text())
        assert {"info", "licenses", "categories", "images", "annotations"} == set(labels)
        assert [(one["id"], one["name"]) for one in labels["categories"]] == [(7, "cat"), (3, "dog")]
        # Positions counted from 1, by which labels of a further depth find their pictures.
        assert [image["id"] for image in labels["images"]] == [1, 2, 3]
        for image in labels["images"]:
            with Image.open(Path("pictures", image["file_name"])) as picture:
                assert picture.size == (image["width"], image["height"])
        ids = [one["id"] for one in labels["annotations"]]
        assert ids
        assert len(set(ids)) == len(ids)
        for one in labels["annotations"]:
            assert one["category_id"] in (3, 7)
            left, top, width, height = one["bbox"]
            picture = labels["images"][one["image_id"] - 1]
            # It divides them by the size of the picture, and takes the score as the confidence.
            assert 0 <= left <= left + width <= picture["width"] + 1e-2
            assert 0 <= top <= top + height <= picture["height"] + 1e-2
            assert 0.3 <= one["score"] <= 1
            assert one["iscrowd"] == 0
        found = detector.predict(sorted(Path("pictures").glob("*.jpg")), depth=depth, threshold=0.3)
        assert len(ids) == sum(map(len, found))


def test_the_recipe_of_supervision_draws_boxes():
    pytest.importorskip("supervision")
    field = _make_field()
    runpy.run_path("draw.py")
    drawn = np.asarray(Image.open("drawn.jpg")).astype(int)
    assert drawn.shape == field.shape
    # Lines of a box: far beyond what saving as JPEG changes.
    assert (np.abs(drawn - field).max(axis=2) > 100).sum() > 100


def test_the_recipe_of_trackers_numbers_and_draws():
    pytest.importorskip("supervision")
    pytest.importorskip("trackers")
    runpy.run_path("track.py")
    assert sorted(path.name for path in Path("tracked").iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]

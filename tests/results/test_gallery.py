"""The gallery holds the detections at each depth and reads back equal."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anydepth.data.source import AnnotatedImage
from anydepth.detector import Detector
from anydepth.evaluation.coco_eval import FIGURES
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow
from anydepth.results.gallery import (
    MAX_DEPTHS,
    MIN_SCORE,
    GalleryError,
    detect_gallery,
    draw_gallery,
    read_gallery,
)
from small_networks import SMALL_DETECTOR


class _Source:
    """Five noisy images with one box each."""

    def __len__(self) -> int:
        return 5

    def read(self, row: int) -> AnnotatedImage:
        image = torch.randint(
            0, 255, (3, 48, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(row)
        )
        boxes = np.array([[1.0, 2.0, 30.25, 40.0]], np.float32)
        return AnnotatedImage(image, boxes, np.array([row % 2]), 100 + row, None)


def _curve(detector: Detector, depths: str) -> DepthCurve:
    space = detector.depth_space
    rows = tuple(
        DepthRow(
            str(config),
            dict(zip(space.stages, config.refine, strict=True)),
            config.decoder_layers,
            1,
            100.0 - position,
            None,
            dict.fromkeys(FIGURES, 0.1),
            {},
        )
        for position, config in enumerate(space.parse_list(depths))
    )
    return DepthCurve("small", 1, (64, 64), "fp32", 5, None, rows)


@pytest.fixture
def confident_detector(small_detector: Detector) -> Detector:
    """Return a fresh network without its prior of 0.01: scores are 0.77 at full depth, 0.56 at minimal."""
    with torch.no_grad():
        for name, parameter in small_detector.named_parameters():
            if re.search(r"score_head(\.\d)?\.bias$", name):
                parameter.zero_()
    return small_detector


def test_detections_of_every_depth_read_back(confident_detector: Detector, tmp_path: Path):
    curve = _curve(confident_detector, "ladder")
    written = detect_gallery(confident_detector, _Source(), curve, tmp_path, count=3, threshold=0.3)
    read = read_gallery(tmp_path)
    assert [image.image_id for image in read.images] == [100, 102, 104]
    assert [depth.depth for depth in read.depths] == [row.depth for row in curve.rows]
    assert (read.class_names, read.threshold) == (("0", "1"), 0.3)
    for kept, image in zip(written.images, read.images, strict=True):
        assert image.size == (48, 80)
        assert image.truth.boxes_xyxy.tolist() == [pytest.approx([1.0, 2.0, 30.25, 40.0], abs=0.06)]
        source = _Source().read(image.image_id - 100).image
        for depth in ("full", "minimal"):
            expected = confident_detector.predict(source, depth=depth, threshold=MIN_SCORE)[0]
            assert len(expected) == SMALL_DETECTOR["num_queries"]
            torch.testing.assert_close(image.found[depth].boxes_xyxy, expected.boxes_xyxy, atol=0.06, rtol=0)
            torch.testing.assert_close(image.found[depth].scores, expected.scores, atol=1e-4, rtol=0)
            assert image.found[depth].labels.tolist() == kept.found[depth].labels.tolist()
        with Image.open(image.path) as picture:
            assert picture.size == (80, 48)


def test_many_depths_are_shown_by_the_ladder(small_detector: Detector, tmp_path: Path):
    curve = _curve(small_detector, "all")
    assert len(curve.rows) > MAX_DEPTHS
    gallery = detect_gallery(small_detector, _Source(), curve, tmp_path, count=1, threshold=0.3)
    assert [depth.depth for depth in gallery.depths] == [str(d) for d in small_detector.depth_space.ladder()]


def test_pictures_show_the_deepest_and_the_cheapest_depth(
    confident_detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    titles: list[list[str]] = []
    counts: list[list[int]] = []
    from anydepth.results import gallery as module

    real: Callable[..., Image.Image] = module.side_by_side

    def record(image: torch.Tensor, panels: list[module.Panel], names: list[str]) -> Image.Image:
        titles.append([panel.title for panel in panels])
        counts.append([len(panel.boxes) for panel in panels])
        return real(image, panels, names)

    monkeypatch.setattr(module, "side_by_side", record)
    curve = _curve(confident_detector, "ladder")
    gallery = detect_gallery(confident_detector, _Source(), curve, tmp_path, count=2, threshold=0.6)
    path = draw_gallery(gallery, tmp_path)
    cheapest = min(row.gflops for row in curve.rows)
    assert titles[0] == ["ground truth", "full, 100.00 GFLOPs", f"minimal, {cheapest:.2f} GFLOPs"]
    # One true box each; the threshold is between the scores of the two depths.
    assert counts == [[1, SMALL_DETECTOR["num_queries"], 0]] * 2
    assert path == tmp_path / "grid.jpg"
    assert sorted(file.name for file in tmp_path.glob("*.jpg")) == ["100.jpg", "104.jpg", "grid.jpg"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("depths", [{"depth": "full"}]), ("images", [{"image_id": 1, "size": [2], "truth": {}, "found": {}}])],
    ids=["depth", "image"],
)
def test_a_damaged_gallery_is_refused(small_detector: Detector, tmp_path: Path, key: str, value: object):
    detect_gallery(
        small_detector, _Source(), _curve(small_detector, "full"), tmp_path, count=1, threshold=0.3
    )
    document = json.loads((tmp_path / "gallery.json").read_text())
    (tmp_path / "gallery.json").write_text(json.dumps(document | {key: value}))
    with pytest.raises(GalleryError, match=r"gallery\.json: not a gallery as written by anydepth"):
        read_gallery(tmp_path)
    with pytest.raises(GalleryError, match="not a gallery"):
        read_gallery(tmp_path / "absent")

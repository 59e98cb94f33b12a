"""The YOLO detector around its network: from raw head maps to detections, saving, classes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

import anydepth
from anydepth.detector import NonFiniteOutputError
from anydepth.yolo.detector import YoloDetector
from anydepth.yolo.output import BINS, YoloOutput

SIZE = 64


@pytest.fixture
def detector() -> YoloDetector:
    torch.manual_seed(0)
    detector = anydepth.build("yolo_tiny", 3, input_size=[SIZE, SIZE])
    assert isinstance(detector, YoloDetector)
    return detector.eval()


def empty_maps() -> list[Tensor]:
    """Make maps in which every score is almost 0."""
    maps = [torch.zeros(1, 4 * BINS + 3, SIZE // stride, SIZE // stride) for stride in (8, 16, 32)]
    for level in maps:
        level[:, 4 * BINS :] = -20.0
    return maps


def put(
    maps: list[Tensor], level: int, row: int, column: int, sides: tuple[int, ...], **scores: float
) -> None:
    """Set the box of one cell: distances in strides to left, top, right, bottom, and scores by class."""
    for side, distance in enumerate(sides):
        maps[level][0, side * BINS + distance, row, column] = 50.0
    for label, score in scores.items():
        maps[level][0, 4 * BINS + int(label[1:]), row, column] = math.log(score / (1 - score))


def output(maps: list[Tensor]) -> YoloOutput:
    return YoloOutput((), (), tuple(maps))


def test_a_cell_is_decoded_to_a_box_in_pixels_of_the_original_image(detector: YoloDetector) -> None:
    maps = empty_maps()
    # Cell (row 1, column 2) of stride 16: centre (40, 24); sides 1, 1, 2, 1 strides: (24, 8, 72, 40).
    put(maps, 1, 1, 2, (1, 1, 2, 1), c2=0.9)
    found = detector.postprocess(output(maps), [(128, 32)])[0].above(0.5)
    # The image is 32 wide and 128 high: half of 64 across, twice down.
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([[12.0, 16.0, 32.0, 80.0]]))
    torch.testing.assert_close(found.scores, torch.tensor([0.9]))
    assert found.labels.tolist() == [2]


def test_a_cell_may_predict_several_classes_and_classes_do_not_suppress_each_other(
    detector: YoloDetector,
) -> None:
    maps = empty_maps()
    put(maps, 0, 3, 3, (1, 1, 1, 1), c0=0.6, c1=0.8)
    found = detector.postprocess(output(maps), [(SIZE, SIZE)])[0].above(0.5)
    assert found.labels.tolist() == [1, 0]
    assert torch.equal(found.boxes_xyxy[0], found.boxes_xyxy[1])


def test_boxes_of_a_class_that_overlap_by_more_than_the_limit_are_suppressed(detector: YoloDetector) -> None:
    maps = empty_maps()
    # Neighbouring cells of stride 8, 6x6 strides each: IoU 30 / 42 = 0.714; two cells apart: 24 / 48 = 0.5.
    for column, score in ((3, 0.9), (4, 0.8), (5, 0.7)):
        put(maps, 0, 4, column, (3, 3, 3, 3), c0=score)
    found = detector.postprocess(output(maps), [(SIZE, SIZE)])[0].above(0.5)
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7]))


def test_the_numbers_of_candidates_and_of_detections_are_limited() -> None:
    torch.manual_seed(0)
    limits = {"nms_candidates": 50, "nms_detections": 20, "nms_iou": 1.0, "nms_score": 0.0}
    detector = anydepth.build("yolo_tiny", 3, input_size=[SIZE, SIZE], **limits).eval()
    maps = [torch.randn_like(level) for level in empty_maps()]
    found = detector.postprocess(output(maps), [(SIZE, SIZE)])[0]
    scores = torch.cat([level[:, 4 * BINS :].flatten() for level in maps]).sigmoid()
    assert len(scores) > 50
    torch.testing.assert_close(found.scores, scores.sort(descending=True).values[:20])


def test_more_candidates_than_the_published_limit_are_cut_and_still_suppressed(
    detector: YoloDetector,
) -> None:
    # 1600 x 1280 pixels and 3 classes make 126,000 pairs, all of them above the score limit.
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(1, 4 * BINS + 3, 1600 // stride, 1280 // stride, generator=generator)
        for stride in (8, 16, 32)
    ]
    found = detector.postprocess(output(maps), [(1600, 1280)])[0]
    assert len(found) == 300
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    left, top, right, bottom = found.boxes_xyxy.unbind(1)
    inside = (left > 0) & (top > 0) & (right < 1280) & (bottom < 1600)  # the others were clipped afterwards
    for label in range(3):
        overlaps = box_iou(*[found.boxes_xyxy[inside & (found.labels == label)]] * 2).fill_diagonal_(0)
        assert overlaps.max() <= 0.7


def test_low_scores_are_dropped(detector: YoloDetector) -> None:
    maps = empty_maps()
    put(maps, 2, 0, 0, (1, 1, 1, 1), c0=0.0005, c1=0.002)
    assert detector.postprocess(output(maps), [(SIZE, SIZE)])[0].labels.tolist() == [1]
    assert len(detector.postprocess(output(empty_maps()), [(SIZE, SIZE)])[0]) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_maps_that_are_not_finite_are_an_error_and_not_an_empty_result(
    detector: YoloDetector, value: float
) -> None:
    maps = empty_maps()
    maps[1][0, 70 - 4, 0, 0] = value
    with pytest.raises(NonFiniteOutputError, match=r"NaN or infinite.*precision=fp32"):
        detector.postprocess(output(maps), [(SIZE, SIZE)])


def test_saved_weights_load_and_predict_alike(detector: YoloDetector, tmp_path: Path) -> None:
    detector.reset_classes(["ant", "bee", "fly"])
    path = anydepth.save(detector, tmp_path / "weights.safetensors")
    loaded = anydepth.load(path)
    assert loaded.class_names == ("ant", "bee", "fly")
    image = torch.rand(3, 50, 70)
    for depth in ("full", "minimal", "1/2"):
        ours, theirs = (one.predict(image, depth, threshold=0.0)[0] for one in (detector, loaded))
        assert torch.equal(ours.boxes_xyxy, theirs.boxes_xyxy)
        assert len(ours) > 0


@pytest.mark.parametrize("count", [1, 90])
def test_another_number_of_classes_resets_the_class_branches_only(detector: YoloDetector, count: int) -> None:
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    detector.reset_classes([f"class {index}" for index in range(count)])
    wanted = anydepth.build("yolo_tiny", count, input_size=[SIZE, SIZE]).state_dict()
    found = detector.state_dict()
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in wanted.items()}
    for name, value in found.items():
        assert name.startswith("head.class_branches.") or torch.equal(value, before[name])
    with torch.inference_mode():
        maps = detector(torch.rand(1, 3, SIZE, SIZE)).maps
    assert maps[0].shape[1] == 4 * BINS + count


def test_initial_scores_expect_few_objects(detector: YoloDetector) -> None:
    # Specification 1.9: log(5 / K / cells at 640 pixels), and box biases of 1.
    for branch, boxes, stride in zip(
        detector.head.class_branches, detector.head.box_branches, (8, 16, 32), strict=True
    ):
        expected = math.log(5 / 3 / (640 / stride) ** 2)
        torch.testing.assert_close(branch[-1].bias, torch.full((3,), expected))
        assert torch.equal(boxes[-1].bias, torch.ones(4 * BINS))


def test_the_stem_computed_once_gives_the_same_outputs(detector: YoloDetector) -> None:
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        stem = detector.stem_features(images)
        for depth in ("full", "minimal"):
            alone: Any = detector(images, depth)
            shared: Any = detector(images, depth, stem=stem)
            for one, other in zip(alone.maps, shared.maps, strict=True):
                assert torch.equal(one, other)

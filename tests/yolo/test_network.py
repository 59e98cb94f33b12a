"""Sizes and costs of AnyDepth-YOLO and YOLOv12 against the specification's tables; invalid settings."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch

import anydepth
from anydepth.layers.macs import count_forward
from anydepth.yolo.detector import YoloDetector

IMAGE_640 = torch.empty(1, 3, 640, 640, device="meta")

# Specification 1.10: parameters in training form, 80 classes; GFLOPs at 640x640 with attention.
PLAIN = {
    "yolov12_n": (2_553_904, 6.97),
    "yolov12_s": (9_127_424, 21.40),
    "yolov12_m": (19_670_784, 63.08),
    "yolov12_l": (26_506_496, 88.95),
    "yolov12_x": (59_414_176, 194.42),
}
ANY_DEPTH = {
    ("yolo_n", "bottleneck"): (3_310_944, 8.97, 7.36),
    ("yolo_s", "bottleneck"): (7_443_808, 25.51, 19.30),
    ("yolo_l", "bottleneck"): (27_349_504, 88.95, 64.75),
    ("yolo_x", "bottleneck"): (61_268_512, 194.42, 142.52),
    ("yolo_n", "unit"): (3_310_288, 8.97, 6.97),
    ("yolo_s", "unit"): (7_443_008, 25.51, 17.88),
    ("yolo_l", "unit"): (27_347_712, 88.95, 62.03),
    ("yolo_x", "unit"): (61_265_824, 194.42, 136.38),
}
# GFLOPs that each flag saves, in the order of the stages.
SAVINGS = {
    ("yolo_l", "bottleneck"): [1.89, 1.89, 9.41, 2.35, 2.73, 2.73, 2.73, 0.47],
    ("yolo_l", "unit"): [3.15, 3.15, 9.41, 2.35, 2.73, 2.73, 2.73, 0.68],
    ("yolo_x", "bottleneck"): [4.25, 4.25, 19.15, 4.79, 6.13, 6.13, 6.13, 1.06],
    ("yolo_s", "unit"): [0.68, 0.68, 3.24, 0.81, 0.68, 0.68, 0.68, 0.17],
    ("yolo_s", "bottleneck"): [0, 0, 3.24, 0.81, 0.68, 0.68, 0.68, 0.12],
    ("yolo_n", "bottleneck"): [0, 0, 0.57, 0.40, 0.17, 0.17, 0.17, 0.12],
    ("yolo_n", "unit"): [0.17, 0.17, 0.57, 0.40, 0.17, 0.17, 0.17, 0.17],
}
# The table without the two products of attention: convolutions alone.
CONVOLUTIONS = {
    "yolov12_n": (5.99, None),
    "yolov12_l": (82.39, None),
    "yolo_s": (22.23, 16.25),
    "yolo_l": (82.39, 61.48),
}
# Widths at the nominal 512 and 1024, and what each size multiplies the others by.
OWN_STAGES = {"n": (128, 256, 0.25), "s": (256, 512, 0.5), "m": (512, 512, 1.0)}
SPLIT_AS_RELEASED = {"yolo_n": "unit", "yolo_s": "unit", "yolo_l": "bottleneck", "yolo_x": "bottleneck"}


def _long_in_slow(keys: Iterable[tuple[str, str]]) -> list[Any]:
    """Leave half of the counts, which take seconds each, to the slow tests: one split per size."""
    quick = {("yolo_n", "unit"), ("yolo_s", "bottleneck"), ("yolo_l", "bottleneck"), ("yolo_x", "bottleneck")}
    return [pytest.param(*key, marks=() if key in quick else pytest.mark.slow) for key in keys]


def build(name: str, **overrides: Any) -> YoloDetector:
    """A detector of 80 classes, not to be changed; the split of a released network is that of its name."""
    if overrides == {"c3k2_split": SPLIT_AS_RELEASED.get(name)}:
        overrides = {}
    return _build(name, *overrides.items())


@cache
def _build(name: str, *overrides: tuple[str, Any]) -> YoloDetector:
    with torch.device("meta"):
        detector = anydepth.build(name, 80, **dict(overrides))
    assert isinstance(detector, YoloDetector)
    return detector


@cache
def macs(detector: YoloDetector, depth: str) -> int:
    return count_forward(detector, IMAGE_640, depth=depth).macs


def gflops(detector: YoloDetector, depth: str) -> float:
    return 2 * macs(detector, depth) / 1e9


def parameters(detector: YoloDetector) -> int:
    return sum(parameter.numel() for parameter in detector.parameters())


@pytest.mark.parametrize("name", PLAIN)
def test_fixed_depth_networks_have_the_published_size_and_cost(name: str) -> None:
    count, cost = PLAIN[name]
    detector = build(name)
    assert parameters(detector) == count
    assert gflops(detector, "full") == pytest.approx(cost, rel=0.005)
    assert [str(depth) for depth in detector.depth_space.all()] == ["full"]


@pytest.mark.parametrize(("name", "split"), _long_in_slow(ANY_DEPTH))
def test_any_depth_networks_have_the_published_size_and_cost(name: str, split: str) -> None:
    count, full, minimal = ANY_DEPTH[name, split]
    detector = build(name, c3k2_split=split)
    assert parameters(detector) == count
    assert gflops(detector, "full") == pytest.approx(full, rel=0.005)
    assert gflops(detector, "minimal") == pytest.approx(minimal, rel=0.005)


@pytest.mark.parametrize(("name", "split"), _long_in_slow(SAVINGS))
def test_each_flag_saves_its_published_share_and_savings_add_up(name: str, split: str) -> None:
    detector = build(name, c3k2_split=split)
    costs = detector.depth_space.costs
    # The table rounds to 0.01 GFLOPs.
    assert [2 * macs / 1e9 for macs in costs.refinements] == pytest.approx(SAVINGS[name, split], abs=0.006)
    assert macs(detector, "full") - macs(detector, "minimal") == sum(costs.refinements)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_convolutions_alone_have_the_published_cost(name: str) -> None:
    full, minimal = CONVOLUTIONS[name]
    for depth, expected in (("full", full), ("minimal", minimal)):
        if expected is not None:
            found = 2 * (macs(build(name), depth) - _attention_macs(name, depth)) / 1e9
            assert found == pytest.approx(expected, rel=0.005)


def _attention_macs(name: str, depth: str) -> int:
    """Count two products of T x T / area x C per attention block that runs, T = 40x40 or 20x20 cells."""
    detector = build(name)
    refine = detector.depth_space.parse(depth).refine or (True,) * 8
    total = 0
    for stage, tokens, area in ((2, 1600, 4), (3, 400, 1)):
        chain = detector.backbone.stages[stage].chain
        units = chain.active_blocks(refine[stage])
        channels = units[0].blocks[0].attention.heads * 32
        total += 2 * len(units) * 2 * tokens * (tokens // area) * channels
    return total


@pytest.mark.parametrize("name", SPLIT_AS_RELEASED)
def test_c3k2_stages_split_as_released(name: str) -> None:
    assert build(name).config["c3k2_split"] == SPLIT_AS_RELEASED[name]


def test_the_head_maps_have_the_published_shapes() -> None:
    detector = anydepth.build("yolo_tiny", 3).eval()
    for depth in ("full", "minimal", "stage2+neck1"):
        with torch.inference_mode():
            output = detector(torch.rand(2, 3, 96, 64), depth)
        assert [tuple(level.shape) for level in output.maps] == [
            (2, 67, 12, 8),
            (2, 67, 6, 4),
            (2, 67, 3, 2),
        ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"c3k2_split": "half"}, "c3k2_split='half', expected bottleneck or unit"),
        ({"backbone_c3k2_unit": "c2f"}, "backbone_c3k2_unit='c2f', expected bottleneck or c3k"),
        ({"widths": [16, 32, 64, 96, 128]}, r"widths=.*the last two of 64"),
        ({"widths": [16, 32, 64]}, r"widths=.*give five"),
        ({"backbone_units": [2, 2, 2]}, r"backbone_units=\[2, 2, 2\]: give four"),
        ({"neck_units": [2, 2, 2, 0]}, r"neck_units=.*1 and above"),
        ({"input_size": [256]}, r"expected \[height, width\]"),
        ({"input_size": [250, 256]}, "multiples of 32; give e.g. 224x256"),
        ({"nms_iou": 1.5}, r"nms_iou=1\.5: allowed are 0 to 1"),
        ({"nms_detections": 0}, "nms_detections=0: allowed are 1 or more"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"c3k2_splitt": "unit"}, "has no setting c3k2_splitt"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        anydepth.build("yolo_tiny", **{"num_classes": 3, **wrong})


def test_an_unknown_scale_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown detector 'yolo_m'.*yolo_l, yolo_n, yolo_s"):
        anydepth.build("yolo_m")


@pytest.mark.parametrize("size", [(250, 256), (16, 32)])
def test_image_sizes_that_are_not_multiples_of_the_stride_are_refused(size: tuple[int, int]) -> None:
    detector = anydepth.build("yolo_tiny", 1).eval()
    with pytest.raises(ValueError, match=r"expected multiples of 32; give e\.g\."):
        detector(torch.rand(1, 3, *size))


def _attention_saving(width: int, pixels: int, area: int) -> float:
    """MACs of one unit of two attention blocks, MLP ratio 2, and of its part of the fusion kernel."""
    hidden = width // 2
    per_pixel = 4 * hidden**2 + 25 * hidden + 4 * hidden**2
    products = 2 * pixels * (pixels // area) * hidden
    return 2 * (pixels * per_pixel + products) + pixels * hidden * width


def _bottleneck_saving(channels: int, pixels: int) -> float:
    """MACs of two 3x3 convolutions of as many channels."""
    return 2 * 9 * channels**2 * pixels


@pytest.mark.parametrize("size", OWN_STAGES)
def test_any_depth_forms_of_yolov12_skip_half_of_each_of_its_own_stages(size: str) -> None:
    """What each flag saves follows from the published layer graph, and full depth is the fixed network."""
    detector, fixed = build(f"yolov12_any_{size}"), build(f"yolov12_{size}")
    w512, w1024, factor = OWN_STAGES[size]
    w256 = int(256 * factor)
    # Bottlenecks have an eighth of the channels of a C3k2 stage, which has none inside a unit at n and s, and
    # a quarter of those of a stage of the neck.
    early = [_bottleneck_saving(width // 8, pixels) for width, pixels in ((w256, 25600), (w512, 6400))]
    wanted = [
        *(early if size == "m" else (0, 0)),
        _attention_saving(w512, 1600, 4),
        _attention_saving(w1024, 400, 1),
        _bottleneck_saving(w512 // 4, 1600),
        _bottleneck_saving(w256 // 4, 6400),
        _bottleneck_saving(w512 // 4, 1600),
        _bottleneck_saving(w1024 // 4, 400),
    ]
    assert detector.depth_space.costs.refinements == pytest.approx(wanted, rel=1e-3)
    assert macs(detector, "full") == macs(fixed, "full")
    assert macs(detector, "full") - macs(detector, "minimal") == pytest.approx(sum(wanted), rel=1e-3)
    assert 0.8 < macs(detector, "minimal") / macs(detector, "full") < 0.83
    skip = sum(value.numel() for name, value in detector.named_parameters() if ".norm.skip." in name)
    assert parameters(detector) == parameters(fixed) + skip

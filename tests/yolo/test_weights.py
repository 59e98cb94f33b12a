"""Round trips of weights of published YOLOv12 and AnyDepth-YOLO networks, and of our own."""

import copy
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import anydepth
from anydepth.layers.boxes import xyxy_to_cxcywh
from anydepth.weights.files import WeightsError
from anydepth.weights.plan import Layout, plain_names
from anydepth.yolo.decode import Predictions
from anydepth.yolo.detector import YoloDetector
from anydepth.yolo.weights.checks import ANY_DEPTH, FIXED_DEPTH
from anydepth.yolo.weights.layouts import ANYDEPTH, YOLOV12
from anydepth.yolo.weights.load import load_weights
from foreign_networks import PACKAGE, checkpoint_of, foreign_classes, network_of

# A narrow network with the units of size l.
NARROW: dict[str, Any] = {"widths": [8, 16, 16, 64, 64], "input_size": [64, 64]}


_KEPT: dict[str, tuple[YoloDetector, dict[str, Tensor]]] = {}


def kept(name: str, num_classes: int = 3, seed: int = 0, **overrides: Any) -> YoloDetector:
    """A narrow detector in eval mode whose two norm sets differ, not to be changed: all tests share it."""
    key = repr((name, num_classes, seed, sorted(overrides.items())))
    if key not in _KEPT:
        detector = _build(name, num_classes, seed, overrides)
        _KEPT[key] = detector, snapshot(detector)
    return _KEPT[key][0]


@pytest.fixture(autouse=True, scope="module")
def _kept_detectors() -> Iterator[None]:
    yield
    for detector, before in _KEPT.values():
        assert_same(detector, before)
    _KEPT.clear()


def build(name: str, num_classes: int = 3, seed: int = 0, **overrides: Any) -> YoloDetector:
    """Such a detector of one's own; equal seeds give equal weights. Copies are made sooner than detectors."""
    return copy.deepcopy(kept(name, num_classes, seed, **overrides))


def _build(name: str, num_classes: int, seed: int, overrides: dict[str, Any]) -> YoloDetector:
    torch.manual_seed(seed)
    detector = anydepth.build(name, num_classes, **{**NARROW, **overrides})
    assert isinstance(detector, YoloDetector)
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                assert module.num_batches_tracked is not None
                module.num_batches_tracked.fill_(seed + 7)
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.normal_()
        for key, value in detector.state_dict().items():
            if "gamma" in key or "skip_conv" in key:
                value.normal_(std=0.1)
    return detector.eval()


def published(detector: nn.Module, layout: Layout = YOLOV12, prefix: str = "model.") -> dict[str, Tensor]:
    """Return the state dict under published names, with the bins in their published shape."""
    state = detector.state_dict()
    written = {}
    for key, plain in plain_names(state).items():
        (name,) = layout.foreign_keys(plain)
        written[prefix + name] = state[key]
    bins = written[f"{prefix}21.dfl.conv.weight"]
    written[f"{prefix}21.dfl.conv.weight"] = torch.arange(16.0) if bins.is_meta else bins
    written[f"{prefix}21.dfl.conv.weight"] = written[f"{prefix}21.dfl.conv.weight"].view(1, 16, 1, 1)
    return written


@cache  # loading refuses all of them
def build_meta(name: str, num_classes: int = 80, **overrides: Any) -> YoloDetector:
    with torch.device("meta"):
        detector = anydepth.build(name, num_classes, **overrides)
    assert isinstance(detector, YoloDetector)
    return detector


def snapshot(detector: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in detector.state_dict().items()}


def assert_same(found: nn.Module, wanted: dict[str, Tensor]) -> None:
    state = found.state_dict()
    assert state.keys() == wanted.keys()
    for key, value in state.items():
        assert torch.equal(value, wanted[key]), key


# -- names: specification 4 ------------------------------------------------------------------------------


def conv(*prefixes: str, skip: bool = False) -> set[str]:
    """Return the keys of convolutions with one or two norms."""
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {f"{prefix}.conv.weight" for prefix in prefixes}
    for norm in ("bn", "bn_skip") if skip else ("bn",):
        keys |= {f"{prefix}.{norm}.{part}" for prefix in prefixes for part in parts}
    return keys


def c3k(prefix: str, skip: bool = False, second: bool = False) -> set[str]:
    keys = conv(*(f"{prefix}.cv{number}" for number in (1, 2, 3)), skip=skip)
    keys |= conv(f"{prefix}.m.0.cv1", f"{prefix}.m.0.cv2", skip=skip)
    return keys | conv(f"{prefix}.m.1.cv1", f"{prefix}.m.1.cv2", skip=second)


def expected_names(*, any_depth: bool) -> set[str]:
    """Return the keys of YOLOv12-l, or of AnyDepth-YOLO-l as released (split by bottleneck)."""
    keys = conv("0", "1") | conv("3", "5", "7", "15", "18", skip=any_depth)
    keys |= conv(*(f"{layer}.{end}" for layer in (2, 4, 6, 8, 11, 14, 17, 20) for end in ("cv1", "cv2")))
    if any_depth:
        ends = [f"{layer}.{end}" for layer in (2, 4, 6, 8, 11, 14, 17, 20) for end in ("cv1", "cv2")]
        keys |= conv(*ends, skip=True)
        keys |= {"6.cv2.conv_skip.weight", "8.cv2.conv_skip.weight"}
    for layer in (2, 4, 20):
        for unit in (0, 1):
            keys |= c3k(f"{layer}.m.{unit}", skip=any_depth)
    for layer in (11, 14, 17):
        keys |= c3k(f"{layer}.m.0", skip=any_depth, second=any_depth) | c3k(f"{layer}.m.1")
    attention = ("attn.qk", "attn.v", "attn.pe", "attn.proj", "mlp.0", "mlp.1")
    for layer in (6, 8):
        keys |= {f"{layer}.gamma"}
        for unit in range(4):
            blocks = [f"{layer}.m.{unit}.{block}.{part}" for block in (0, 1) for part in attention]
            keys |= conv(*blocks, skip=any_depth and unit < 2)
    for level in range(3):
        keys |= conv(f"21.cv2.{level}.0", f"21.cv2.{level}.1")
        keys |= conv(*(f"21.cv3.{level}.{i}.{j}" for i in (0, 1) for j in (0, 1)))
        keys |= {f"21.{branch}.{level}.2.{part}" for branch in ("cv2", "cv3") for part in ("weight", "bias")}
    return {f"model.{key}" for key in keys | {"21.dfl.conv.weight"}}


def test_names_are_those_of_published_checkpoints() -> None:
    assert set(published(build_meta("yolov12_l"))) == expected_names(any_depth=False)
    released = published(build_meta("yolo_l"), ANYDEPTH)
    assert set(released) == expected_names(any_depth=True)
    # Shapes of specification 1.3 and 4: h = 256 in layer 6, groups of 2 and 4 in layers 1 and 3.
    shapes = {
        "1.conv.weight": [128, 32, 3, 3],
        "3.conv.weight": [256, 64, 3, 3],
        "6.gamma": [512],
        "6.m.0.0.attn.qk.conv.weight": [512, 256, 1, 1],
        "6.m.0.0.attn.pe.conv.weight": [256, 1, 5, 5],
        "6.m.0.0.mlp.0.conv.weight": [384, 256, 1, 1],
        "6.m.0.0.mlp.1.conv.weight": [256, 384, 1, 1],
        "6.cv2.conv.weight": [512, 1280, 1, 1],
        "6.cv2.conv_skip.weight": [512, 768, 1, 1],
        "21.cv2.0.2.weight": [64, 64, 1, 1],
        "21.cv3.0.0.0.conv.weight": [256, 1, 3, 3],
        "21.cv3.1.0.1.conv.weight": [256, 512, 1, 1],
        "21.cv3.1.2.weight": [80, 256, 1, 1],
        "21.dfl.conv.weight": [1, 16, 1, 1],
    }
    assert {key: list(released[f"model.{key}"].shape) for key in shapes} == shapes


def test_the_small_any_depth_network_has_as_many_entries_as_its_released_checkpoint() -> None:
    # Specification 4: 1728 entries in S, whose C3k2 stages are split by units.
    assert len(published(build_meta("yolo_s"), ANYDEPTH)) == 1728


# -- published checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout", "prefix"),
    [
        ("yolov12_l", YOLOV12, "model."),
        pytest.param("yolov12_s", YOLOV12, "", marks=pytest.mark.slow),
        pytest.param("yolo_l", ANYDEPTH, "model.", marks=pytest.mark.slow),
        ("yolo_s", ANYDEPTH, "model.model."),
    ],
)
def test_published_checkpoints_load_completely(name: str, layout: Layout, prefix: str) -> None:
    source, target = kept(name), build(name, seed=1)
    report = load_weights(target, published(source, layout, prefix))
    assert report.layout == layout.name
    assert (report.copied_to_skip, report.missing, report.unused, report.reinitialised) == ((), (), (), ())
    assert_same(target, source.state_dict())


@pytest.mark.parametrize("split", ["bottleneck", "unit"])
def test_a_fixed_depth_checkpoint_initialises_an_any_depth_detector(split: str) -> None:
    source, target = kept("yolov12_l"), build("yolo_l", seed=1, c3k2_split=split)
    report = load_weights(target, published(source))
    assert (report.missing, report.unused, report.reinitialised) == ((), (), ())
    state = target.state_dict()
    skips = {key for key in state if ".norm.skip." in key or ".skip_conv." in key}
    assert set(report.copied_to_skip) == skips
    assert set(report.loaded) == state.keys() - skips
    for stage in ("backbone.stages.2", "backbone.stages.3"):
        kernel = state[f"{stage}.fusion.skip_conv.weight"]
        # The outputs of the entry and of two of four units: 3/5 of the channels.
        assert kernel.shape[1] == 3 * 32
        assert torch.equal(kernel, state[f"{stage}.fusion.fuse.conv.weight"][:, :96])
    norms = {key for key in skips if ".norm.skip." in key}
    assert norms
    for key in norms:
        assert torch.equal(state[key], state[key.replace(".skip.", ".full.")]), key
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for ours, theirs in zip(target(images).maps, source(images).maps, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert [bool(level.isfinite().all()) for level in target(images, "minimal").maps] == [True] * 3
    assert "train before using other depths than full" in str(report)


def test_the_full_state_of_an_any_depth_checkpoint_is_a_fixed_depth_network() -> None:
    source, target = kept("yolo_l"), build("yolov12_l", seed=1)
    file = published(source, ANYDEPTH)
    report = load_weights(target, file)
    assert report.missing == report.copied_to_skip == ()
    skips = {key for key in file if "bn_skip" in key or "conv_skip" in key}
    # Counts of batches are derived, so the report leaves them out.
    skips = {key for key in skips if "num_batches" not in key}
    assert {"model.3.bn_skip.weight", "model.6.cv2.conv_skip.weight"} <= skips
    assert set(report.unused) == skips
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for ours, theirs in zip(target(images).maps, source(images).maps, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_class_branches_of_another_data_set_stay_as_initialised_and_are_reported() -> None:
    # 24 classes widen the class branches of this narrow network from 16 channels to 24.
    source, target = kept("yolov12_l", num_classes=24), build("yolov12_l", num_classes=3, seed=1)
    before = snapshot(target)
    report = load_weights(target, published(source))
    after, theirs = target.state_dict(), source.state_dict()
    expected = {key for key, value in after.items() if value.shape != theirs[key].shape}
    assert all(key.startswith("head.class_branches.") for key in expected)
    assert set(report.reinitialised) == expected
    assert {"head.class_branches.0.4.weight", "head.class_branches.2.1.conv.weight"} <= expected
    assert "head.class_branches.0.0.conv.weight" in report.loaded
    assert all(torch.equal(after[key], before[key]) for key in report.reinitialised)
    assert all(torch.equal(after[key], theirs[key]) for key in report.loaded)


def test_half_precision_and_missing_entries_are_accepted() -> None:
    source, target = kept("yolov12_l"), build("yolov12_l", seed=1)
    file = {
        key: value.half() if value.is_floating_point() else value for key, value in published(source).items()
    }
    del file["model.21.cv2.0.2.bias"]
    report = load_weights(target, file)
    assert report.missing == ("head.box_branches.0.2.bias",)
    weight = target.head.box_branches[0][2].weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, source.head.box_branches[0][2].weight.half().float())


@pytest.mark.parametrize("number", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_weights_of_a_diverged_run_are_refused_and_nothing_is_loaded(number: float) -> None:
    source, target = kept("yolov12_l"), build("yolov12_l", seed=1)
    file = {key: value.clone() for key, value in published(source).items()}
    file["model.0.conv.weight"][0, 0, 0, 0] = number
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(WeightsError, match=r"1 of \d+ tensors hold NaN or infinity"):
        load_weights(target, file)
    assert_same(target, before)


# -- our own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["safetensors", pytest.param("lightning", marks=pytest.mark.slow)])
def test_our_own_weights_load_completely(wrap: str, tmp_path: Path) -> None:
    source, target = kept("yolo_l"), build("yolo_l", seed=1)
    path = tmp_path / "weights.safetensors"
    if wrap == "safetensors":
        anydepth.save(source, path)
    else:
        path = tmp_path / "last.ckpt"
        state = {f"detector.{key}": value for key, value in source.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3}, path)
    report = anydepth.load_weights(target, path)
    assert str(report).startswith(f"{path}")
    assert_same(target, source.state_dict())


def test_our_own_fixed_depth_weights_initialise_an_any_depth_detector() -> None:
    source, target = kept("yolo_l", any_depth=False), build("yolo_l", seed=1)
    report = load_weights(target, source.state_dict())
    assert (report.layout, report.missing, report.unused) == ("anydepth", (), ())
    assert len(report.copied_to_skip) > 100
    back = build("yolo_l", any_depth=False, seed=2)
    load_weights(back, target.state_dict())
    assert_same(back, source.state_dict())


# -- weights that do not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "name"), [*FIXED_DEPTH.items(), *ANY_DEPTH.items()])
def test_the_network_to_build_is_named(size: object, name: str) -> None:
    layout = ANYDEPTH if name in ANY_DEPTH.values() else YOLOV12
    with pytest.raises(WeightsError, match=rf"its network has widths=\[.*: build {name}\b"):
        load_weights(build_meta("yolo_tiny"), published(build_meta(name), layout))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("yolov12_n", "yolo_n", r"build yolov12_n or yolov12_any_n$"),
        ("yolov12_s", "yolo_s", r"build yolov12_s or yolov12_any_s$"),
        ("yolov12_m", "yolo_l", r"build yolov12_m or yolov12_any_m$"),
        ("yolov12_x", "yolo_l", r"build yolov12_x or yolo_x$"),
        ("yolo_x", "yolo_l", r"has widths=\[96, .*\], the detector's has widths=\[64, .*\]: build yolo_x$"),
    ],
)
def test_sizes_that_cannot_be_converted_are_refused_with_the_reason(
    source: str, target: str, message: str
) -> None:
    layout = YOLOV12 if source in FIXED_DEPTH.values() else ANYDEPTH
    with pytest.raises(WeightsError, match=message):
        load_weights(build_meta(target), published(build_meta(source), layout))


def _v1(file: dict[str, Tensor]) -> None:
    keys = [key for key in file if ".attn.qk." in key]
    for key in keys:
        file[key.replace(".qk.", ".qkv.")] = file.pop(key)


def _fused(file: dict[str, Tensor]) -> None:
    for key in [key for key in file if ".bn." in key]:
        del file[key]
    file["model.0.conv.bias"] = torch.zeros(8)


def _other_bins(file: dict[str, Tensor]) -> None:
    file["model.21.dfl.conv.weight"] = torch.arange(1, 17.0).view(1, 16, 1, 1)


def _wide(file: dict[str, Tensor]) -> None:
    file["model.5.conv.weight"] = torch.zeros(64, 64, 5, 5)


def _another_network(file: dict[str, Tensor]) -> None:
    for key in [key for key in file if key.startswith("model.6.")]:
        del file[key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_v1, r"v1\.0 layout of YOLOv12 .*use a turbo checkpoint"),
        (_fused, r"norms are folded into the convolutions"),
        (_other_bins, r"got 16 distance bins .*, expected 16 at 0 to 15 strides; .*reg_max=16"),
        (
            _wide,
            r"backbone\.downs\.1\.conv\.weight has shape \[64, 64, 5, 5\] in the file .*Nothing was loaded",
        ),
        (_another_network, r"unknown layout, .*known are anydepth, AnyDepth-YOLO of its authors, YOLOv12"),
    ],
)
def test_checkpoints_of_other_networks_are_refused_and_nothing_is_loaded(
    change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    file, target = published(kept("yolov12_l")), build("yolov12_l", seed=1)
    before = snapshot(target)
    change(file)
    with pytest.raises(WeightsError, match=message):
        load_weights(target, file)
    assert_same(target, before)


@pytest.mark.parametrize(("theirs", "ours"), [("unit", "bottleneck"), ("bottleneck", "unit")])
@pytest.mark.parametrize("name", [pytest.param("yolo_l", marks=pytest.mark.slow), "yolo_s"])
def test_another_split_of_c3k2_stages_is_refused(name: str, theirs: str, ours: str) -> None:
    file = published(kept(name, c3k2_split=theirs), ANYDEPTH)
    target = build(name, seed=1, c3k2_split=ours)
    before = snapshot(target)
    with pytest.raises(WeightsError, match=f"build it with c3k2_split={theirs}"):
        load_weights(target, file)
    assert_same(target, before)


def test_a_checkpoint_that_lacks_single_skip_norms_is_refused() -> None:
    file = published(kept("yolo_l"), ANYDEPTH)
    del file["model.5.bn_skip.bias"]
    with pytest.raises(WeightsError, match=r"lacks 1 \(backbone\.downs\.1\.norm\.skip\.bias.*incomplete"):
        load_weights(kept("yolo_l", seed=1), file)


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        ({"residual_scale": False}, "a detector with residual_scale=true"),
        ({"mlp_ratio": 2.0}, "a detector with mlp_ratio=1.5"),
        ({"backbone_c3k2_unit": "bottleneck"}, "a detector with backbone_c3k2_unit=c3k"),
        ({"backbone_units": [2, 2, 4, 3]}, r"a detector with backbone_units=\[2, 2, 4, 4\]"),
    ],
)
def test_settings_that_differ_are_named(overrides: dict[str, Any], remedy: str) -> None:
    with pytest.raises(WeightsError, match=f"build {remedy}$"):
        load_weights(kept("yolov12_l", **overrides), published(kept("yolov12_l")))


# -- files that hold whole networks ----------------------------------------------------------------------


@pytest.mark.parametrize("averaged", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_pickled_network_is_read_without_its_classes(averaged: bool, tmp_path: Path) -> None:
    source, target = kept("yolov12_l"), build("yolov12_l", seed=1)
    path = tmp_path / "best.pt"
    with foreign_classes() as foreign:
        wanted = network_of(foreign, published(source)).half()
        wanted.register_buffer("passing", torch.ones(1), persistent=False)
        other = network_of(foreign, {"model.0.conv.weight": torch.ones(1)})
        parts = {"model": other, "ema": wanted} if averaged else {"model": wanted, "ema": None}
        torch.save(checkpoint_of(foreign, **parts), path)
    report = load_weights(target, path)
    assert PACKAGE not in sys.modules
    assert report.origin == f"{path} ({'ema' if averaged else 'model'})"
    assert (report.layout, report.missing, report.unused) == (YOLOV12.name, (), ())
    expected = {
        key: value.half().float() if value.is_floating_point() else value
        for key, value in source.state_dict().items()
    }
    assert_same(target, expected)


# -- the published network itself ------------------------------------------------------------------------


def test_a_published_network_gives_the_reference_outputs(shared_data: Path) -> None:
    # YOLOv12-m of the package helmet-detector 2.1.0, against its original implementation in float32.
    checkpoint = os.environ.get("ANYDEPTH_HELMET_WEIGHTS")
    reference = shared_data.parent / "reference" / "yolov12m_helmet.npz"
    if not checkpoint or not reference.is_file():
        pytest.skip(
            f"needs {reference}, and best.pt of helmet-detector 2.1.0 named by ANYDEPTH_HELMET_WEIGHTS"
        )
    detector = anydepth.build("yolov12_m", 2)
    assert isinstance(detector, YoloDetector)
    report = load_weights(detector.eval(), checkpoint)
    assert (report.missing, report.unused, report.reinitialised) == ((), (), ())
    assert len(report.loaded) == len(detector.state_dict())
    wanted = {key: torch.from_numpy(value) for key, value in np.load(reference).items()}
    image = wanted["image_u8"].flip(-1).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        found = {f"raw{level}": level_map for level, level_map in enumerate(detector(image).maps)}
        predictions = Predictions.decode(detector(wanted["rand_in"].float()).maps)
    boxes = xyxy_to_cxcywh(predictions.boxes_xyxy)
    found["rand_out"] = torch.cat([boxes, predictions.class_logits.sigmoid()], dim=-1).transpose(1, 2)
    for key, value in found.items():
        assert value.shape == wanted[key].shape
        assert (value - wanted[key]).abs().max() <= 2e-3 * wanted[key].abs().max(), key
    # Boxes are hundreds of pixels, scores below 1: each against its own maximum.
    scores = found["rand_out"][:, 4:] - wanted["rand_out"][:, 4:]
    assert scores.abs().max() <= 2e-3 * wanted["rand_out"][:, 4:].max()


def test_the_report_says_whether_norms_or_fusion_kernels_were_copied() -> None:
    source = kept("yolo_l")
    without_kernels = {key: value for key, value in source.state_dict().items() if ".skip_conv." not in key}
    report = str(load_weights(build("yolo_l", seed=1), without_kernels))
    assert "note: skip fusion kernels are parts of the full ones: train before" in report
    assert "norms have the statistics" not in report
    both = str(load_weights(build("yolo_l", seed=1), published(kept("yolov12_l"))))
    assert "skip norms have the statistics of the full state and skip fusion kernels are parts" in both

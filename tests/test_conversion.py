"""Any-depth detectors out of fixed ones: full depth is the source's bit for bit; refusals say why."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anydepth
from anydepth.commands.convert import main
from anydepth.conversion import ConversionError, convert
from anydepth.detector import Detector
from anydepth.detr.weights import layouts as detr_layouts
from anydepth.weights.plan import Layout
from anydepth.yolo.weights.layouts import YOLOV12
from written_weights import written_as

SMALL_DETR: dict[str, Any] = {"num_queries": 20, "input_size": [64, 64]}


def _fixed(name: str, **settings: object) -> Detector:
    """Return a fixed detector whose norms have statistics of their own."""
    torch.manual_seed(0)
    detector = anydepth.build(name, num_classes=3, any_depth=False, **settings).eval()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return detector


@pytest.fixture(scope="module")
def detr() -> Detector:
    return _fixed("detr_tiny", minimal_decoder_layers=3, **SMALL_DETR)


@pytest.fixture(scope="module")
def yolo() -> Detector:
    return _fixed("yolo_tiny", input_size=[64, 64])


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for one in value.values() for tensor in _tensors(one)]
    if isinstance(value, list | tuple):
        return [tensor for one in value for tensor in _tensors(one)]
    return _tensors(vars(value)) if hasattr(value, "__dict__") else []


def _assert_full_depth_is(source: Detector, made: Detector) -> None:
    height, width = source.input_size
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    made.input_size = source.input_size
    with torch.inference_mode():
        wanted, found = (_tensors(one(images, depth="full")) for one in (source, made))
    assert len(wanted) == len(found) > 0
    for first, second in zip(wanted, found, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    "layout",
    [
        detr_layouts.OURS,
        detr_layouts.RTDETR_V1,
        detr_layouts.RTDETR_V2,
        detr_layouts.TRANSFORMERS,
        detr_layouts.TRANSFORMERS_5,
    ],
    ids=lambda layout: layout.name,
)
def test_full_depth_of_a_converted_detr_is_the_source_bit_for_bit(detr: Detector, layout: Layout) -> None:
    made = convert(written_as(detr, layout), "detr_tiny", **SMALL_DETR)
    assert made.report.layout == layout.name
    assert made.report.missing == made.report.unused == made.report.reinitialised == ()
    _assert_full_depth_is(detr, made.detector)


@pytest.mark.parametrize("prefix", ["", "model.model."])
def test_full_depth_of_a_converted_yolo_is_the_source_bit_for_bit(yolo: Detector, prefix: str) -> None:
    for layout in (YOLOV12, replace(YOLOV12, name="anydepth", rules=(), norm_name=lambda plain: plain)):
        written = written_as(yolo, layout, prefix if layout is YOLOV12 else "")
        made = convert(written, "yolo_tiny", input_size=[64, 64])
        assert made.report.layout == layout.name
        _assert_full_depth_is(yolo, made.detector)


def test_every_filled_tensor_is_listed_and_is_a_copy_or_a_part() -> None:
    # Its last two fusions have kernels of their own where a stage skips.
    made = convert(_fixed("yolo_s").state_dict(), "yolo_s", input_size=[64, 64])
    assert any(".skip_conv." in key for key in made.report.copied_to_skip)
    state = made.detector.state_dict()
    loaded, copied = set(made.report.loaded), set(made.report.copied_to_skip)
    assert loaded.isdisjoint(copied)
    assert {key for key in state if not key.endswith("num_batches_tracked")} <= loaded | copied
    for key in made.report.copied_to_skip:
        full = state[key.replace(".skip.", ".full.").replace(".skip_conv.", ".fuse.conv.")]
        part = full[:, : state[key].shape[1]] if ".skip_conv." in key else full
        assert torch.equal(state[key], part)
    with torch.inference_mode():
        for depth in ("1/2", "minimal"):
            made.detector(torch.rand(1, 3, 64, 64), depth=depth)


def test_sizes_stem_and_classes_are_found(tmp_path: Path) -> None:
    source = anydepth.build("rtdetr_r18", num_classes=5)
    source.reset_classes(["a", "b", "c", "d", "e"])
    made = convert(anydepth.save(source, tmp_path / "fixed.safetensors"))
    assert (made.detector.config["name"], made.detector.class_names) == ("detr_r18", tuple("abcde"))
    # Of the sizes of detr_r18, but narrower: the source decides.
    tiny = convert(_fixed("detr_tiny", minimal_decoder_layers=3).state_dict())
    assert (tiny.detector.config["name"], tiny.detector.class_names) == ("detr_tiny", ("0", "1", "2"))


def test_the_stem_of_published_weights_is_built() -> None:
    source = anydepth.build("rtdetr_r50", num_classes=2).state_dict()
    made = convert(source)
    assert made.detector.config["name"] == "detr_r50"
    assert made.detector.config["stem"] == "deep"
    assert made.report.missing == made.report.unused == ()


@pytest.mark.parametrize(
    "size", ["n", pytest.param("s", marks=pytest.mark.slow), pytest.param("m", marks=pytest.mark.slow)]
)
def test_small_public_networks_become_the_any_depth_form_of_their_own_stages(size: str) -> None:
    source = _fixed(f"yolov12_{size}", input_size=[64, 64])
    made = convert(written_as(source, YOLOV12, "model.model."))
    assert made.detector.config["name"] == f"yolov12_any_{size}"
    assert made.report.missing == made.report.unused == made.report.reinitialised == ()
    _assert_full_depth_is(source, made.detector)
    # Norms alone are added, and every depth runs.
    assert all(".norm.skip." in key for key in made.report.copied_to_skip)
    with torch.inference_mode():
        for depth in ("3/4", "1/2", "minimal", "stage3+neck2"):
            output = made.detector(torch.rand(1, 3, 64, 64), depth=depth)
            assert all(bool(value.isfinite().all()) for value in _tensors(output))


def test_other_sources_are_refused(detr: Detector, yolo: Detector) -> None:
    any_depth = convert(detr.state_dict(), "detr_tiny", **SMALL_DETR).detector.state_dict()
    backbone = {key: value for key, value in detr.state_dict().items() if key.startswith("backbone.")}
    further = detr.state_dict() | {
        key.replace("layers.2.", "layers.3."): value
        for key, value in detr.state_dict().items()
        if key.startswith("decoder.layers.2.")
    }
    for source, detector, message in (
        (any_depth, "detr_tiny", "an any-depth detector already .* anydepth-train weights=FILE"),
        (backbone, "auto", "not the weights of a whole detector"),
        (further, "detr_tiny", "tensors in it have no place in detr_tiny"),
        ({"a": torch.zeros(2)}, "auto", "unknown layout"),
        (yolo.state_dict(), "yolov12_l", "has a fixed depth"),
        (yolo.state_dict(), "yolo_l", "its network has .* the detector's has"),
        (detr.state_dict(), "yolo_tiny", "unknown layout"),
    ):
        with pytest.raises(ConversionError, match=message):
            convert(source, detector)


def test_class_names_must_be_those_of_the_source(detr: Detector) -> None:
    state = detr.state_dict()
    for names, message in (
        (["a", "b"], "2 class names, expected 3"),
        # As of an empty file, which must not become numbers without a word.
        ([], "0 class names, expected 3"),
        (["a", "b", "a"], "a twice"),
    ):
        with pytest.raises(ConversionError, match=message):
            convert(state, "detr_tiny", class_names=names, **SMALL_DETR)
    made = convert(state, "detr_tiny", class_names=["x", "y", "z"], **SMALL_DETR)
    assert made.detector.class_names == ("x", "y", "z")


def test_the_command_writes_a_file_that_loads(
    yolo: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, names, output = tmp_path / "fixed.pt", tmp_path / "names.txt", tmp_path / "any.safetensors"
    torch.save({"model": written_as(yolo, YOLOV12, "model.")}, source)
    names.write_text("red cell\nwhite cell\n\nplatelet\n")
    words = [str(source), f"output={output}", f"class_names={names}", "detector=yolo_tiny"]
    monkeypatch.setattr("sys.argv", ["anydepth-convert", *words, "list=true"])
    main()
    printed = capsys.readouterr().out
    assert "weights of YOLOv12 (turbo)" in printed
    assert "norm.skip.weight\n" in printed
    assert "yolo_tiny: 3 classes, 256 depths, full as the source" in printed
    made = anydepth.load(output)
    assert made.class_names == ("red cell", "white cell", "platelet")
    _assert_full_depth_is(yolo, made)
    before = output.read_bytes()
    for wrong, message in (
        (words, "exists; give another output="),
        ([*words[:1], "output=weights.pt"], "expected the name of a .safetensors file"),
        ([str(tmp_path / "none.pt"), f"output={tmp_path / 'x.safetensors'}"], "no such weights file"),
        ([str(source), "speed=3"], "got 'speed=3', expected one of"),
    ):
        monkeypatch.setattr("sys.argv", ["anydepth-convert", *wrong])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        assert message in capsys.readouterr().err
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["any.safetensors", "fixed.pt", "names.txt"]

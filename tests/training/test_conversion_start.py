"""Conversion at the start of a training: full depth is the source before the first step, or it is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

import anydepth
from anydepth import zoo
from anydepth.config.compose import compose
from anydepth.conversion import ConversionError, convert_into
from anydepth.data.errors import DataError
from anydepth.detector import Detector
from anydepth.detr.weights.layouts import RTDETR_V2, TRANSFORMERS
from anydepth.train import run
from anydepth.weights.plan import Layout
from anydepth.yolo.weights.layouts import YOLOV12
from small_networks import SMALL_DETECTOR, SMALL_YOLO
from written_weights import written_as

Train = Callable[..., None]
SMALL: dict[str, dict[str, object]] = {"detr_tiny": SMALL_DETECTOR, "yolo_tiny": SMALL_YOLO}
CLASS = "tree"  # of the embedded sample


def _source(name: str, classes: int = 1, **settings: object) -> Detector:
    """Return a fixed detector whose norms have statistics of their own."""
    torch.manual_seed(3)
    own = {**SMALL[name], **settings}
    if "decoder_layers" in own:
        own["minimal_decoder_layers"] = own["decoder_layers"]
    detector = zoo.build(name, classes, any_depth=False, **own).eval()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return detector


def _perturbed(detector: Detector) -> Detector:
    """Return the detector with other values in every parameter: rows of class heads start alike."""
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, detector.parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return detector


def _images(detector: Detector) -> Tensor:
    height, width = detector.input_size
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def _raw(detector: Detector) -> list[Tensor]:
    """Return all tensors of the output at full depth, and the features of the backbone before it."""
    found: list[Tensor] = []
    hook = detector.backbone.register_forward_hook(lambda _, __, output: found.extend(_tensors(output)))
    with torch.inference_mode():
        found += _tensors(detector(_images(detector), depth="full"))
    hook.remove()
    return found


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.clone()]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for one in value for tensor in _tensors(one)]
    return _tensors(vars(value)) if hasattr(value, "__dict__") else []


class Probe(pl.Callback):
    """Records the weights and what full depth computes before the first step."""

    outputs: ClassVar[list[Tensor]] = []
    state: ClassVar[dict[str, Tensor]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        detector = pl_module.detector
        assert isinstance(detector, Detector)
        training = detector.training
        Probe.state = {key: value.clone() for key, value in detector.state_dict().items()}
        Probe.outputs = _raw(detector.eval())
        detector.train(training)


@pytest.fixture
def train(compose_run: object, small_run: tuple[str, ...]) -> Train:
    """Runs the entry point for one step from a detector or a file of weights; compose_run cleans up."""

    def run_it(folder: Path, source: Detector | Path, name: str, *overrides: str) -> None:
        if isinstance(source, Detector):
            source = zoo.save(source, folder.with_suffix(".safetensors"))
        settings = [text for text in small_run if not text.startswith("detector.")]
        small = [f"detector.{key}={value}".replace(" ", "") for key, value in SMALL[name].items()]
        short = ("recipe.epochs=1", "trainer.limit_train_batches=1", "logger=none", "augmentation=none")
        probe = f"+callbacks.probe._target_={__name__}.Probe"
        own = (f"paths.output_dir={folder}", f"weights={source}", f"detector={name}", "recipe=convert_small")
        run(compose("train", [*settings, *small, *own, *short, probe, *overrides], hydra_config=True))

    return run_it


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("detr_tiny", RTDETR_V2),
        ("detr_tiny", TRANSFORMERS),
        ("detr_tiny", None),
        ("yolo_tiny", YOLOV12),
        ("yolo_tiny", None),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "name", "anydepth"),
)
def test_full_depth_before_the_first_step_is_the_source_bit_for_bit(
    name: str,
    layout: Layout | None,
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = _source(name)
    weights = tmp_path / "source.pt"
    if layout is None:
        source.reset_classes([CLASS])
        weights = zoo.save(source, tmp_path / "source.safetensors")
    else:
        torch.save({"model": written_as(source, layout)}, weights)
    train(tmp_path / "run", weights, name)
    wanted = _raw(source)
    assert len(wanted) == len(Probe.outputs) > 5
    assert all(torch.equal(one, two) for one, two in zip(wanted, Probe.outputs, strict=True))
    printed = capsys.readouterr().out
    assert "copied from the full state to the skip state" in printed
    assert "train before using other depths than full" in printed
    for key, value in Probe.state.items():
        if ".skip." in key and not key.endswith("num_batches_tracked"):
            assert torch.equal(value, Probe.state[key.replace(".skip.", ".full.")]), key
    trained = anydepth.load(tmp_path / "run" / "weights.safetensors")
    assert (trained.class_names, bool(trained.depth_space.stages)) == ((CLASS,), True)


@pytest.mark.parametrize(
    ("name", "heads"), [("detr_tiny", "decoder.enc_score_head."), ("yolo_tiny", "head.class_branches.")]
)
def test_heads_of_classes_with_shared_names_come_from_the_source(
    name: str, heads: str, train: Train, tmp_path: Path
) -> None:
    source = _source(name, classes=3)
    source.reset_classes(["bush", CLASS, "hedge"])
    source = _perturbed(source)
    train(tmp_path / "run", source, name)
    given, rows = source.state_dict(), 0
    for key, value in Probe.state.items():
        if ".skip." in key or key not in given:
            continue
        if value.shape == given[key].shape:
            assert torch.equal(value, given[key]), key
        elif key.startswith(heads):
            rows += 1
            assert torch.equal(value, given[key][1:2]), key
    assert rows > 0


def test_other_classes_start_anew_only_if_that_is_said(train: Train, tmp_path: Path) -> None:
    source = _source("detr_tiny", classes=3)
    source.reset_classes(["a", "b", "c"])
    with pytest.raises(ConversionError, match=r"its 3 classes \('a', 'b', 'c'\) fit the 1 of the data"):
        train(tmp_path / "refused", source, "detr_tiny")
    assert not (tmp_path / "refused" / "weights.safetensors").exists()
    train(tmp_path / "run", source, "detr_tiny", "new_classes=true")
    key = "backbone.stages.0.essential.0.conv1.conv.weight"
    assert torch.equal(Probe.state[key], source.state_dict()[key])
    torch.save({"model": written_as(source, RTDETR_V2)}, tmp_path / "unnamed.pt")
    with pytest.raises(ConversionError, match="its 3 classes, which it does not name, fit the 1"):
        train(tmp_path / "refused", tmp_path / "unnamed.pt", "detr_tiny")


def test_sources_of_something_else_are_refused_and_change_nothing() -> None:
    any_depth = {**SMALL_DETECTOR, "switchable_norms": False}
    for name, source, message in (
        ("detr_tiny", zoo.build("detr_tiny", 1, **SMALL_DETECTOR), "an any-depth detector already"),
        ("detr_tiny", zoo.build("detr_tiny", 1, **any_depth), "an any-depth detector already"),
        ("detr_tiny", _source("yolo_tiny"), "unknown layout"),
        ("yolo_tiny", _source("detr_tiny"), "unknown layout"),
        ("detr_tiny", _source("detr_tiny", blocks=[1, 2, 2, 2]), r"\[1, 2, 2, 2\] basic blocks"),
        ("detr_tiny", _source("detr_tiny", decoder_layers=1), "tensors of detr_tiny are not in it"),
        ("detr_tiny", _source("detr_tiny", decoder_layers=3), "have no place in detr_tiny"),
    ):
        detector = zoo.build(name, 1, **SMALL[name])
        before = {key: value.clone() for key, value in detector.state_dict().items()}
        with pytest.raises(ConversionError, match=message):
            convert_into(detector, source.state_dict())
        assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    fixed = _source("detr_tiny")
    with pytest.raises(ConversionError, match="detector=detr_tiny, which has a fixed depth"):
        convert_into(fixed, fixed.state_dict())


def test_a_run_from_an_any_depth_file_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"an any-depth detector already .* and convert=false"):
        train(tmp_path / "run", zoo.build("detr_tiny", 1, **SMALL_DETECTOR), "detr_tiny")
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_the_detector_that_weights_become_is_named(train: Train, tmp_path: Path) -> None:
    torch.save(zoo.build("rtdetr_r18", 1).state_dict(), tmp_path / "r18.pt")
    with pytest.raises(ConversionError, match="give detector=detr_r18, whose sizes the weights have"):
        train(tmp_path / "run", tmp_path / "r18.pt", "detr_tiny")


def test_settings_that_do_not_go_together_are_refused(train: Train, tmp_path: Path) -> None:
    source = zoo.save(_source("detr_tiny"), tmp_path / "source.safetensors")
    for settings, error, message in (
        (("weights=null",), ValueError, "give its weights with weights=FILE"),
        (("convert=false", "new_classes=true"), ValueError, "has an effect only with convert=true"),
        (("data.batch_size=57",), DataError, "got 56 training images on 1 processes, fewer than one batch"),
    ):
        with pytest.raises(error, match=message):
            train(tmp_path / "run", source, "detr_tiny", *settings)


def test_an_any_depth_file_trains_with_the_settings_of_the_recipe(train: Train, tmp_path: Path) -> None:
    """As the refusal of such a file says."""
    first = zoo.build("detr_tiny", 1, **SMALL_DETECTOR)
    train(tmp_path / "run", first, "detr_tiny", "convert=false")
    key = "backbone.stages.0.essential.0.conv1.norm.skip.weight"
    assert torch.equal(Probe.state[key], first.state_dict()[key])

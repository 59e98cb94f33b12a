"""Weights of a detector with other classes, or in another order: class heads are matched by name."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anydepth import zoo
from anydepth.detector import Detector
from small_networks import SMALL_DETECTOR, SMALL_YOLO

SMALL = {"detr_tiny": SMALL_DETECTOR, "yolo_tiny": SMALL_YOLO}
# Tensors with one row per class; the denoising embedding has one more row, for padding.
ROWS = {
    "detr_tiny": ("decoder.enc_score_head.bias", "decoder.denoising_class_embed.weight"),
    "yolo_tiny": ("head.class_branches.0.4.weight", "head.class_branches.2.4.bias"),
}
IMAGE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def build(family: str, classes: Sequence[str], seed: int) -> Detector:
    torch.manual_seed(seed)
    detector = zoo.build(family, len(classes), **SMALL[family])
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, detector.parameters()):
            parameter += 0.05 * torch.randn_like(parameter)
    detector.reset_classes(classes)
    return detector


@pytest.fixture(params=list(SMALL))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def source(family: str) -> Detector:
    return build(family, ("cat", "dog", "car"), seed=0)


def found(detector: Detector) -> list[tuple[str, float]]:
    detections = detector.predict(IMAGE, threshold=0)[0]
    scores = zip(detections.labels.tolist(), detections.scores.tolist(), strict=True)
    return [(detector.class_names[label], score) for label, score in scores]


@pytest.mark.parametrize("kind", ["safetensors", "checkpoint"])
def test_classes_in_another_order_are_found_under_their_names(
    family: str, source: Detector, kind: str, tmp_path: Path
) -> None:
    if kind == "safetensors":
        file = zoo.save(source, tmp_path / "weights.safetensors")
    else:
        file = tmp_path / "epoch.ckpt"
        torch.save({"state_dict": source.state_dict(), "class_names": list(source.class_names)}, file)
    target = build(family, ("car", "cat", "dog"), seed=1)
    report = zoo.load_weights(target, file)
    assert found(target) == found(source)
    assert "note: classes are matched by name: 3 of 3 are in the file" in str(report)
    assert not report.reinitialised


def test_classes_that_the_file_lacks_stay_as_initialised(
    family: str, source: Detector, tmp_path: Path
) -> None:
    target = build(family, ("bus", "dog", "bike", "cat"), seed=1)
    before = {key: target.state_dict()[key].clone() for key in ROWS[family]}
    report = zoo.load_weights(target, zoo.save(source, tmp_path / "weights.safetensors"))
    assert "2 of 4 are in the file" in str(report)
    for key in ROWS[family]:
        rows, theirs = target.state_dict()[key], source.state_dict()[key]
        assert torch.equal(rows[[1, 3]], theirs[[1, 0]])
        assert torch.equal(rows[[0, 2]], before[key][[0, 2]])
        assert torch.equal(rows[4:], theirs[3:])


def test_a_head_of_another_width_is_not_matched_by_name(tmp_path: Path) -> None:
    # The last convolution of a class branch would get other features as its input.
    many = [f"class {number}" for number in range(90)]
    target = build("yolo_tiny", ["cat", *many], seed=1)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    source = build("yolo_tiny", ("cat", "dog", "car"), seed=0)
    report = zoo.load_weights(target, zoo.save(source, tmp_path / "weights.safetensors"))
    heads = [key for key in report.reinitialised if ".4." in key]
    assert heads
    assert all(torch.equal(target.state_dict()[key], before[key]) for key in report.reinitialised)


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (("cat", "dog", "car"), ""),
        (("Katze", "Hund", "Auto"), "other classes ('cat', 'dog', 'car'), matched by their order"),
        (("0", "1", "2"), ""),
    ],
    ids=str,
)
def test_classes_without_a_common_name_are_matched_by_their_order(
    family: str, source: Detector, names: tuple[str, ...], note: str, tmp_path: Path
) -> None:
    target = build(family, names, seed=1)
    report = zoo.load_weights(target, zoo.save(source, tmp_path / "weights.safetensors"))
    renamed = dict(zip(source.class_names, names, strict=True))
    assert found(target) == [(renamed[name], score) for name, score in found(source)]
    assert bool(report.notes) == bool(note)
    assert note in str(report)


def test_names_that_differ_in_spelling_only_are_the_same_classes(family: str, tmp_path: Path) -> None:
    source = build(family, ("Potted plant", "sofa", "motorbike"), seed=0)
    file = zoo.save(source, tmp_path / "weights.safetensors")
    target = build(family, ("couch", "potted-plant", "motorcycle"), seed=1)
    report = str(zoo.load_weights(target, file))
    expected = {"sofa": "couch", "Potted plant": "potted-plant", "motorbike": "motorcycle"}
    assert found(target) == [(expected[name], score) for name, score in found(source)]
    assert "3 of 3 are in the file (couch = sofa, potted-plant = Potted plant, motorcycle" in report
    # All rows in their order, also of a head that is matched by position.
    in_order = build(family, ("potted plant", "couch", "motorcycle"), seed=1)
    zoo.load_weights(in_order, file)
    assert [score for _, score in found(in_order)] == [score for _, score in found(source)]


def test_spellings_that_tell_two_classes_apart_are_kept(family: str, tmp_path: Path) -> None:
    source = build(family, ("Dog", "dog", "cat"), seed=0)
    target = build(family, ("cat", "dog", "Dog"), seed=1)
    zoo.load_weights(target, zoo.save(source, tmp_path / "weights.safetensors"))
    assert found(target) == found(source)


@pytest.mark.parametrize("text", ["", "[", "5", '["a", 5]', "[" * 100_000])
def test_invalid_class_names_are_ignored(family: str, source: Detector, text: str, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file(dict(source.state_dict()), file, {"class_names": text})
    target = build(family, ("car", "cat", "dog"), seed=1)
    assert zoo.load_weights(target, file).notes == ()
    assert [score for _, score in found(target)] == [score for _, score in found(source)]

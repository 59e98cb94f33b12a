"""Fitting images to the input of detectors, and mapping detections back to pixels of the image."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import anydepth
from anydepth import zoo
from anydepth.detector import Detector
from anydepth.images import letter_box_image, read_image
from anydepth.pictures.fitting import letter_box_frame

Build = Callable[..., Detector]
Small = Callable[[str, str], Detector]


@pytest.fixture
def small(build_small: Build) -> Small:
    """Return a function that builds a small detector of a family with a fit, always with equal weights."""

    def build(family: str, fit: str) -> Detector:
        if family == "detr":
            return build_small(fit=fit)
        torch.manual_seed(0)
        return zoo.build(
            "yolo_tiny", 2, widths=[8, 8, 16, 64, 64], input_size=[64, 64], nms_score=0.0, fit=fit
        )

    return build


@pytest.mark.parametrize("family", ["detr", "yolo"])
@pytest.mark.parametrize("original", [(40, 90), (90, 40), (64, 64), (33, 35)])
def test_detections_in_a_letter_boxed_image_are_those_in_the_boxed_picture_mapped_back(
    family: str, original: tuple[int, int], small: Small
) -> None:
    image = torch.randint(0, 256, (3, *original), dtype=torch.uint8)
    stretching, boxing = small(family, "stretch"), small(family, "letter_box")
    boxed = letter_box_image(image, stretching.input_size)
    expected = stretching.predict(boxed, threshold=0)[0]
    found = boxing.predict(image, threshold=0)[0]
    frame = letter_box_frame(original, stretching.input_size)
    scale = torch.tensor([frame.resized[1] / original[1], frame.resized[0] / original[0]] * 2)
    moved = (expected.boxes_xyxy - torch.tensor([frame.left, frame.top] * 2)) / scale
    limit = torch.tensor([original[1], original[0]] * 2)
    torch.testing.assert_close(found.boxes_xyxy, moved.clamp(min=0).minimum(limit), atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.labels, expected.labels)


def test_the_way_to_fit_is_saved_with_the_weights(tmp_path: Path, small: Small) -> None:
    for fit in ("stretch", "letter_box"):
        assert zoo.load(zoo.save(small("detr", fit), tmp_path / f"{fit}.safetensors")).fit == fit
    with pytest.raises(ValueError, match="fit='pad', expected stretch or letter_box"):
        small("yolo", "pad")


def test_prediction_from_a_file_sees_the_boxed_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build_small: Build
) -> None:
    Image.effect_noise((90, 40), 60).convert("RGB").save(tmp_path / "a.png")
    detector = build_small(fit="letter_box")
    seen = []
    forward = type(detector).forward

    def noting(self: Detector, images: torch.Tensor, *args: object, **kwargs: object) -> object:
        seen.append(images)
        return forward(self, images, *args, **kwargs)

    monkeypatch.setattr(type(detector), "forward", noting)
    detector.predict(tmp_path / "a.png")
    assert torch.equal(
        seen[0][0], letter_box_image(read_image(tmp_path / "a.png"), detector.input_size) / 255
    )


def test_a_training_image_of_a_single_cell_is_refused(build_small: Callable[..., Detector]) -> None:
    for detector in (build_small(), anydepth.build("yolo_tiny", num_classes=1)):
        detector.train()
        with pytest.raises(ValueError, match=r"coarsest map is a single cell.*data.batch_size"):
            detector(torch.rand(1, 3, 32, 32))
        detector(torch.rand(2, 3, 32, 32))
        detector.eval()(torch.rand(1, 3, 32, 32))

"""Prediction of every detector: it changes nothing, and takes images in the forms that people have."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from anydepth import zoo
from anydepth.detector import Detector
from anydepth.structures import Detections
from small_networks import SMALL_DETECTOR, SMALL_YOLO

DEPTHS = ("full", "minimal", "1/2", "3/4")


@pytest.fixture(params=["detr_tiny", "yolo_tiny"])
def detector(request: pytest.FixtureRequest) -> Detector:
    """A detector as ``build`` returns it: in training mode."""
    torch.manual_seed(0)
    settings = SMALL_DETECTOR if request.param == "detr_tiny" else SMALL_YOLO
    return zoo.build(request.param, 2, **settings)


def _pictures(count: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (40 + 8 * index, 60, 3), dtype=np.uint8) for index in range(count)]


def _equal(first: Detections, second: Detections) -> bool:
    return torch.equal(first.boxes_xyxy, second.boxes_xyxy) and torch.equal(first.scores, second.scores)


# -- prediction changes nothing --------------------------------------------------------------------------


def test_threads_get_what_one_call_gets_and_the_detector_stays_as_it_was(detector: Detector) -> None:
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    pictures = _pictures(4)

    def predict(turn: int) -> Detections:
        return detector.predict(pictures[turn % 4], DEPTHS[turn % 4], threshold=0)[0]

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(predict, range(40)))
    assert all(part.training for part in detector.modules())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    detector.eval()
    expected = [predict(turn) for turn in range(4)]
    assert all(len(one) for one in expected)
    assert all(_equal(one, expected[turn % 4]) for turn, one in enumerate(found))


def test_prediction_sees_training_mode_at_no_moment(detector: Detector) -> None:
    modes: list[tuple[bool, bool]] = []
    detector.register_forward_hook(lambda module, *_: modes.append((module.training, detector.training)))
    detector.predict(_pictures(1), threshold=0)
    assert modes == [(False, True)], "the pass runs in eval mode while the detector stays in training mode"


def test_training_after_prediction_is_bit_equal(build_small: Callable[..., Detector]) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    losses = []
    for predicts in (False, True):
        detector = build_small()
        if predicts:
            detector.predict(_pictures(2), "1/2", threshold=0)
        torch.manual_seed(1)
        output = detector(images)
        sum(features.sum() for features in output.neck_features).backward()
        gradients = [parameter.grad for parameter in detector.parameters() if parameter.grad is not None]
        losses.append([*gradients, *detector.state_dict().values()])
    assert len(losses[0]) == len(losses[1]) > 20
    assert all(torch.equal(one, two) for one, two in zip(*losses, strict=True))

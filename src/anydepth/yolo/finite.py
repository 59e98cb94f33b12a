"""Which predictions or ground truth are NaN or infinite, and in which images."""

import torch
from torch import Tensor

from anydepth.detector import NonFiniteError
from anydepth.yolo.assigner import GroundTruth
from anydepth.yolo.decode import Predictions

_NAMES = ("class logits", "box logits", "ground-truth boxes")


class NonFinitePredictionError(NonFiniteError):
    """Predictions or ground truth that hold NaN or infinity."""


def find_non_finite(predictions: Predictions, truth: GroundTruth) -> NonFinitePredictionError | None:
    """Find NaN and infinity; the only place of the losses where the host waits for the device.

    Call it once the losses are queued, so that the wait covers work and not an idle device.

    Args:
        predictions: Of the B images of one path.
        truth: Ground truth of the B images.

    Returns:
        An error whose message names what is NaN or infinite and in which images; None: all is finite.
    """
    finite = [_finite_images(x) for x in (predictions.class_logits, predictions.box_logits, truth.boxes_xyxy)]
    by_culprit = (~torch.stack(finite)).tolist()
    if not any(map(any, by_culprit)):
        return None
    culprits = [f"the {name}" for name, bad in zip(_NAMES, by_culprit, strict=True) if any(bad)]
    images = tuple(i for i, bad in enumerate(zip(*by_culprit, strict=True)) if any(bad))
    remedy = (
        "check the annotations of these images"
        if culprits == [f"the {_NAMES[-1]}"]
        else "training has diverged: lower the learning rate, lengthen the warm-up, or train in bf16 or fp32"
    )
    return NonFinitePredictionError(
        f"NaN or infinite are {' and '.join(culprits)} of images {list(images)} of the batch (positions from "
        f"0); {remedy}",
        images,
    )


def _finite_images(values: Tensor) -> Tensor:
    """[B] bool: whether all values [B, ...] of an image are finite."""
    return values.isfinite().flatten(1).all(1)

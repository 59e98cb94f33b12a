"""Search for NaN and infinity in predictions and ground truth."""

import torch
from torch import Tensor

from anydepth.detector import NonFiniteError
from anydepth.yolo.assigner import GroundTruth
from anydepth.yolo.decode import Predictions

_NAMES = ("class logits", "box logits", "ground-truth boxes")


class NonFinitePredictionError(NonFiniteError):
    """Predictions or ground truth that hold NaN or infinity."""


def find_non_finite(predictions: Predictions, truth: GroundTruth) -> NonFinitePredictionError | None:
    """Find NaN and infinity; the only point of the losses where the host waits for the device.

    Call it once the losses are queued, so that the device works while the host waits.

    Args:
        predictions: Predictions of one forward pass for the B images.
        truth: Ground truth of the B images.

    Returns:
        An error whose message names the non-finite values and their images, or None if all are finite.
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
        f"got NaN or infinite values in {' and '.join(culprits)} of images {list(images)} of the batch "
        f"(positions from 0); {remedy}",
        images,
    )


def _finite_images(values: Tensor) -> Tensor:
    """Return [B] bool, true for images whose values [B, ...] are all finite."""
    return values.isfinite().flatten(1).all(1)

"""The guard against NaN and infinity in front of the optimizer."""

import torch
from torch import Tensor

from anydepth.yolo.assigner import GroundTruth
from anydepth.yolo.decode import Predictions

_NAMES = ("class logits", "box logits", "ground-truth boxes")


class NonFinitePredictionError(FloatingPointError):
    """Predictions or ground truth that hold NaN or infinity.

    Attributes:
        images: Positions in the batch of the images concerned.
    """

    def __init__(self, message: str, images: tuple[int, ...]) -> None:
        super().__init__(message)
        self.images = images


def check_finite(predictions: Predictions, truth: GroundTruth) -> None:
    """Refuse NaN and infinity; the only place of the losses where the host waits for the device.

    Call it once the losses are queued, so that the wait covers work and not an idle device.

    Args:
        predictions: Of the B images of one path.
        truth: Ground truth of the B images.

    Raises:
        NonFinitePredictionError: A prediction or a ground-truth box is NaN or infinite; the message names
            which, and the images.
    """
    finite = [_finite_images(x) for x in (predictions.class_logits, predictions.box_logits, truth.boxes_xyxy)]
    by_culprit = (~torch.stack(finite)).tolist()
    if not any(map(any, by_culprit)):
        return
    culprits = [f"the {name}" for name, bad in zip(_NAMES, by_culprit, strict=True) if any(bad)]
    images = tuple(i for i, bad in enumerate(zip(*by_culprit, strict=True)) if any(bad))
    remedy = (
        "check the annotations of these images"
        if culprits == [f"the {_NAMES[-1]}"]
        else "training has diverged: lower the learning rate, lengthen the warm-up, or train in bf16 or fp32"
    )
    raise NonFinitePredictionError(
        f"NaN or infinite are {' and '.join(culprits)} of images {list(images)} of the batch (positions from "
        f"0); {remedy}",
        images,
    )


def _finite_images(values: Tensor) -> Tensor:
    """[B] bool: whether all values [B, ...] of an image are finite."""
    return values.isfinite().flatten(1).all(1)

"""Checks of the outputs of a graph: a bundle is untrusted, and so is what its graphs compute."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from anydepth.deploy.runtime.bundle import Bundle, BundleError, FeatureMaps
from anydepth.deploy.runtime.engines.base import SELECTED_OUTPUTS, output_names
from anydepth.deploy.runtime.selection import Floats, Selected
from anydepth.pictures.fitting import Fit, place_image


class NonFiniteOutputError(ArithmeticError):
    """NaN or infinite network output, which holds no boxes."""


def check_outputs(
    outputs: Sequence[NDArray[Any]],
    images: int,
    classes: int,
    *,
    selects: bool,
    features: FeatureMaps | None = None,
) -> None:
    """Check shapes, types and ranges.

    Args:
        outputs: Outputs of a graph in the order of
            :func:`anydepth.deploy.runtime.engines.base.output_names`.
        images: Number of images that it got.
        classes: Number of classes.
        selects: Whether it selects detections.
        features: Feature maps that it returns, too.

    Raises:
        BundleError: The outputs are not those of a graph of a bundle.
    """
    names = output_names(selects=selects, features=features is not None)
    count = outputs[0].shape[1] if outputs[0].ndim == 3 else 0
    shapes: tuple[tuple[int, ...], ...] = ((images, count, 4), (images, count, classes))
    kinds: tuple[str, ...] = ("float32", "float32")
    expected = f"boxes [{images}, N, 4] and scores [{images}, N, {classes}] float32"
    if selects:
        shapes = ((images, count, 4), (images, count), (images, count), (images,))
        kinds = ("float32", "float32", "int64", "int64")
        expected = (
            f"boxes [{images}, D, 4] and scores [{images}, D] float32, labels [{images}, D] and counts "
            f"[{images}] int64"
        )
    if features is not None:
        maps = [(images, count, features.grid, features.grid) for count in features.channels.values()]
        shapes, kinds = (*shapes, *maps), (*kinds, *("float32" for _ in maps))
        expected += f", and features of {features} float32"
    if tuple(one.shape for one in outputs) != shapes or tuple(str(one.dtype) for one in outputs) != kinds:
        labels = (*names, *("another output" for _ in outputs[len(names) :]))
        found = (f"{name} {one.shape} {one.dtype}" for name, one in zip(labels, outputs, strict=False))
        raise BundleError(f"returned {', '.join(found)}, expected {expected}; export the bundle again")
    if selects:
        _check_selected(outputs[: len(SELECTED_OUTPUTS)], classes)


def _check_selected(outputs: Sequence[NDArray[Any]], classes: int) -> None:
    _, _, labels, counts = outputs
    most = labels.shape[1]
    if ((counts < -1) | (counts > most)).any():
        raise BundleError(f"returned the counts {counts.tolist()}, expected -1 to {most}; export it again")
    used = labels[np.arange(most) < counts[:, None]]
    if ((used < 0) | (used >= classes)).any():
        raise BundleError(f"returned labels outside 0 to {classes - 1}; export the bundle again")


def split_selected(outputs: Sequence[NDArray[Any]]) -> list[Selected]:
    """Return the detections of each image, without what is behind the last one."""
    return [
        Selected(boxes[:count], scores[:count], labels[:count])
        for boxes, scores, labels, count in zip(*outputs, strict=True)
    ]


def are_finite(outputs: Sequence[NDArray[Any]], *, selects: bool) -> bool:
    """Return whether the network computed no NaN or infinite values."""
    if selects:
        return bool((outputs[-1] >= 0).all())
    return all(bool(np.isfinite(one).all()) for one in outputs)


def to_pixels(boxes: Floats, bundle: Bundle, original_size: tuple[int, int]) -> Floats:
    """Return boxes [N, 4] that a graph returned, in pixels of an image of this (height, width)."""
    canvas, offset = place_image(original_size, bundle.input.size, cast(Fit, bundle.input.fit))
    units = (1.0, 1.0) if bundle.normalised_boxes else bundle.input.size
    scale = np.array([canvas[1] / units[1], canvas[0] / units[0]] * 2, np.float32)
    corner = np.array([offset[1], offset[0]] * 2, np.float32)
    pixels: Floats = boxes * scale - corner
    return pixels

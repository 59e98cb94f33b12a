"""Weights of our detectors as other projects would write them."""

from torch import Tensor

from anydepth.detector import Detector
from anydepth.weights.plan import Layout, plain_names


def written_as(detector: Detector, layout: Layout, prefix: str = "") -> dict[str, Tensor]:
    """Return the weights under the names of another project."""
    written: dict[str, Tensor] = {}
    for key, plain in plain_names(detector.state_dict()).items():
        value, keys = detector.state_dict()[key], layout.foreign_keys(plain)
        parts = value.chunk(len(keys)) if len(keys) > 1 else [value] * len(keys)
        written |= {prefix + name: part.clone() for name, part in zip(keys, parts, strict=True)}
    return written

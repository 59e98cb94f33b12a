"""Samples that a router is trained on: features of both ends of the depth space, advantage of full."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anydepth.deploy.routing.features import GROUPS, pooled_maps
from anydepth.deploy.runtime.control.statistics import LOWEST_SCORE, detection_statistics
from anydepth.detector import Detector, Objective, evaluating
from anydepth.evaluation.device import autocast
from anydepth.images import to_unit_range
from anydepth.structures import Batch, Detections, DetectorOutput, Targets

ENDS: Final = ("minimal", "full")
"""The two paths, by the index that their learned embedding has."""

Found = Callable[[str, Batch, list[Detections]], None]
"""Function that takes the detections of a batch at an end."""


class RouteError(ValueError):
    """Samples that no router can be trained on; the message says why and what to change."""


@dataclass(frozen=True)
class Samples:
    """Features of both ends and advantages of N images.

    Attributes:
        inputs: By name: ``statistics`` [N, 2, 12] float32, and maps of a group [N, 2, C, G, G] float16; the
            second axis is the end, see :data:`ENDS`.
        losses: [N, 2] float32, loss of each end.
    """

    inputs: dict[str, NDArray[Any]]
    losses: NDArray[np.float32]

    @property
    def advantages(self) -> NDArray[np.float32]:
        """[N] float32, loss at minimal less that at full depth."""
        found: NDArray[np.float32] = self.losses[:, 0] - self.losses[:, 1]
        return found

    def __len__(self) -> int:
        return len(self.losses)


def collect_samples(
    detector: Detector,
    objective: Objective,
    loader: Iterable[Batch],
    *,
    grid: int,
    maps: bool,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    on_found: Found | None = None,
) -> Samples:
    """Run both ends of a detector over images, in eval mode, and compute their losses per image.

    Args:
        detector: Detector, which is moved to ``device`` and stays there.
        objective: Losses of its family.
        loader: Batches of resized images.
        grid: Side of the grid that maps are pooled to.
        maps: Whether maps are kept, beside the statistics of detections.
        device: Device to run on.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        on_found: Gets the detections of each batch and end, for figures.

    Raises:
        RouteError: No images, or losses that are not finite.
    """
    device = torch.device(device)
    kept: dict[str, list[Any]] = {name: [] for name in ("statistics", *(GROUPS if maps else ()))}
    losses: list[list[list[float]]] = []
    with evaluating(detector.to(device)) as network:
        for batch in loader:
            images = to_unit_range(batch.images.to(device))
            targets = [target.to(device) for target in batch.targets]
            with autocast(device, precision):
                outputs = [network(images, depth=end) for end in ENDS]
            found = [network.postprocess(output, batch.original_sizes) for output in outputs]
            for end, detections in zip(ENDS, found, strict=True) if on_found else ():
                assert on_found is not None
                on_found(end, batch, detections)
            losses.append([image_losses(objective, output, targets) for output in outputs])
            kept["statistics"].append([_statistics(detections) for detections in found])
            for name in GROUPS if maps else ():
                pooled = [pooled_maps(output, grid)[name].cpu().half().numpy() for output in outputs]
                kept[name].append(pooled)
    if not losses:
        raise RouteError("got a split without images, expected some to train the router on")
    # [2, B, ...] of each batch to [N, 2, ...].
    stacked = {name: np.concatenate([np.stack(part, 1) for part in parts]) for name, parts in kept.items()}
    samples = Samples(stacked, np.concatenate([np.asarray(part, np.float32).T for part in losses]))
    if not np.isfinite(samples.losses).all():
        bad = int((~np.isfinite(samples.losses)).any(1).sum())
        raise RouteError(f"got losses that are NaN or infinite of {bad} images; check weights and data")
    return samples


def image_losses(objective: Objective, output: DetectorOutput, targets: list[Targets]) -> list[float]:
    """Return the loss of each image of an eval-mode output against its ground truth.

    Args:
        objective: Losses of the detector's family.
        output: Output for B images in eval mode.
        targets: Ground truth of the B images.
    """
    return [
        float(objective.supervised(_single(output, index), [target]).total)
        for index, target in enumerate(targets)
    ]


def _single(output: DetectorOutput, index: int) -> DetectorOutput:
    """Return the output of one image; predictions that only training makes are there, but empty."""
    values = {field.name: getattr(output, field.name) for field in fields(output)}
    chosen: dict[str, Any] = {name: _pick(value, index) for name, value in values.items()}
    for name, source in (("auxiliary_logits", "logits"), ("auxiliary_boxes", "boxes_cxcywh")):
        # The criterion of a DETR also scores earlier decoder layers, which eval mode does not return.
        if name in values and values[name] is None:
            chosen[name] = chosen[source].new_empty((0, *chosen[source].shape))
    return replace(output, **chosen)


def _pick(value: Any, index: int) -> Any:
    if isinstance(value, Tensor):
        return value[index : index + 1]
    return tuple(_pick(part, index) for part in value) if isinstance(value, tuple) else value


def _statistics(detections: list[Detections]) -> NDArray[np.float32]:
    """Return the statistics [B, 12] of a batch."""
    return np.stack([detection_statistics(found.above(LOWEST_SCORE)) for found in detections])

"""Capture of the feature maps of each stage with forward hooks that are always removed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from anydepth.detector import Detector
from anydepth.structures import Batch

_FINEST_LEVEL = 3
"""Level (log2 of the stride) of the first map of a neck with several: P3 has one cell per 8 pixels."""


@contextmanager
def capture_stage_features(detector: Detector) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that every forward pass inside the block fills with the maps [B, C, H, W] by stage.

    Keys are the stages of the depth space in their order; a stage that returns several maps, finest first,
    has an entry for each, e.g. ``neck P3``. All hooks are removed on exit.
    """
    maps: dict[str, Tensor] = {}

    def store(stage: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            channels_last = getattr(module, "channels_last", False)
            maps[stage] = output.permute(0, 3, 1, 2) if channels_last else output
            return
        for level, features in enumerate(output, start=_FINEST_LEVEL):
            maps[f"{stage} P{level}"] = features

    def hook_for(stage: str) -> Any:
        return lambda module, _, output: store(stage, module, output)

    # Not `strict`: a fixed-depth detector has stage modules, but no stages in its depth space.
    handles = [
        detector.get_submodule(name).register_forward_hook(hook_for(stage))
        for name, stage in zip(detector.stage_modules, detector.depth_space.stages, strict=False)
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


class FirstImages:
    """Iterates over the first images of a loader; the last batch is truncated.

    Args:
        loader: Batches.
        images: Number of images; None for all of them.

    Raises:
        ValueError: ``images`` below 1.
    """

    def __init__(self, loader: Iterable[Batch], images: int | None) -> None:
        if images is not None and images < 1:
            raise ValueError(f"got images={images}, expected at least 1, or null for all images")
        self.loader = loader
        self.images = images

    def __iter__(self) -> Iterator[Batch]:
        remaining = self.images
        for batch in self.loader:
            if remaining is None or len(batch) < remaining:
                yield batch
                remaining = None if remaining is None else remaining - len(batch)
                continue
            yield _truncate(batch, remaining)
            return


def _truncate(batch: Batch, images: int) -> Batch:
    return replace(
        batch,
        images=batch.images[:images],
        targets=batch.targets[:images],
        image_ids=batch.image_ids[:images],
        original_sizes=batch.original_sizes[:images],
    )

"""Looking at the maps that leave each stage of a detector, without a trace in the detector."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from anydepth.detector import Detector
from anydepth.structures import Batch

_FINEST_LEVEL = 3
"""The level, log2 of the stride, of the first of several maps: P3 has one cell per 8 pixels."""


@contextmanager
def stage_features(detector: Detector) -> Iterator[dict[str, Tensor]]:
    """Inside the block, every forward leaves the map [B, C, H, W] of each stage in the dictionary.

    Keys are the stages of the depth space in their order; a stage that gives several maps, finest first, has
    an entry for each, e.g. ``neck P3``. Afterwards no hook is left.
    """
    found: dict[str, Tensor] = {}

    def keep(stage: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            last = getattr(module, "channels_last", False)
            found[stage] = output.permute(0, 3, 1, 2) if last else output
            return
        for level, features in enumerate(output, start=_FINEST_LEVEL):
            found[f"{stage} P{level}"] = features

    def hook_for(stage: str) -> Any:
        return lambda module, _, output: keep(stage, module, output)

    # Zip without `strict`: a detector of fixed depth has modules, and no stages.
    handles = [
        detector.get_submodule(name).register_forward_hook(hook_for(stage))
        for name, stage in zip(detector.stage_modules, detector.depth_space.stages, strict=False)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class FirstImages:
    """The first images of a loader, in its batches; the last batch is cut.

    Args:
        loader: Batches.
        images: How many; None for all of them.

    Raises:
        ValueError: No image.
    """

    def __init__(self, loader: Iterable[Batch], images: int | None) -> None:
        if images is not None and images < 1:
            raise ValueError(f"images={images}: give 1 or more, or null for all of them")
        self.loader = loader
        self.images = images

    def __iter__(self) -> Iterator[Batch]:
        left = self.images
        for batch in self.loader:
            if left is None or len(batch) < left:
                yield batch
                left = None if left is None else left - len(batch)
                continue
            yield _first_of(batch, left)
            return


def _first_of(batch: Batch, images: int) -> Batch:
    return replace(
        batch,
        images=batch.images[:images],
        targets=batch.targets[:images],
        image_ids=batch.image_ids[:images],
        original_sizes=batch.original_sizes[:images],
    )

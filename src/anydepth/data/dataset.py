"""Images of a source as training samples and batches."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anydepth.data.augment.view import Augmentation, View, drop_small_boxes, image_size
from anydepth.data.errors import BadImageError, DataError
from anydepth.data.sampling import SampleKey
from anydepth.data.source import AnnotatedImage, SampleSource
from anydepth.images import fit_image
from anydepth.layers.boxes import xyxy_to_cxcywh
from anydepth.pictures.fitting import Fit, check_fit, place_image
from anydepth.structures import Batch, Targets

OnBadImage = Literal["raise", "skip"]
_MAX_BAD_IN_A_ROW = 20
"""Single damaged files rarely follow each other; this many in a row mean that the folder or the disk is gone,
and going through a whole data set of unreadable files would only delay the error."""


@dataclass(frozen=True)
class Sample:
    """One image and its targets in the input size of the network.

    Attributes:
        image: [3, h, w] uint8 RGB.
        targets: Boxes and labels in the frame of ``image``, without crowd regions.
        image_id: The data set's id of the image.
        original_size: (height, width) in pixels of the original image, the frame of the json's boxes.
        skipped: Error messages of the unreadable images that this one, or one mixed into it, replaces.
    """

    image: Tensor
    targets: Targets
    image_id: int
    original_size: tuple[int, int]
    skipped: tuple[str, ...] = ()


class DetectionDataset(Dataset[Sample]):
    """Map-style dataset that reads, augments and resizes the images of a source.

    Args:
        source: Source of the images.
        size: (height, width) in pixels that images are resized to.
        fit: Whether resizing keeps their aspect ratio; see :data:`anydepth.pictures.fitting.Fit`.
        augmentation: Augmentation of an image before it is resized; None leaves it unchanged.
        seed: Seed of the augmentation.
        on_bad_image: ``raise``, or ``skip``: the next readable image replaces an unreadable one, and the
            sample records why. In evaluation the replacement comes twice and counts once.
        cached_images: Number of decoded images that each process caches to mix them into others.
    """

    def __init__(
        self,
        *,
        source: SampleSource,
        size: tuple[int, int],
        fit: Fit = "stretch",
        augmentation: Augmentation | None = None,
        seed: int = 0,
        on_bad_image: OnBadImage = "raise",
        cached_images: int = 0,
    ) -> None:
        self.source = source
        check_fit(fit)
        self.size = size
        self.fit = fit
        self.augmentation = augmentation
        self.seed = seed
        self.on_bad_image = on_bad_image
        self.cached_images = cached_images
        self._cache: OrderedDict[int, tuple[View, int, tuple[int, int]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        """Return one sample; a plain row means epoch 0 and no partners.

        Raises:
            DataError: An image cannot be read and must not be skipped, or the source is missing.
        """
        epoch, row, partners = key if isinstance(key, SampleKey) else SampleKey(0, key)
        skipped: list[str] = []
        view, image_id, original_size = self._decode(row, skipped, shrink=bool(partners))
        if self.augmentation is not None:
            loaders: list[Callable[[], View]] = [
                partial(self._partner, partner, skipped) for partner in partners
            ]
            view = self.augmentation(view, loaders, sample_generator(self.seed, epoch, row), self.size)
            view = drop_small_boxes(view, self.size, fit=self.fit)
        height, width = view.image.shape[-2:]
        canvas, offset = place_image((height, width), self.size, self.fit)
        # Corners, not sides, are clamped: the index keeps boxes that leave their image by rounding errors.
        corners = view.boxes_xyxy.as_subclass(Tensor).clamp(min=0).minimum(torch.tensor([width, height] * 2))
        # [N, 4], normalised by the canvas.
        boxes_xyxy = (corners + torch.tensor(offset[::-1] * 2)) / torch.tensor(canvas[::-1] * 2)
        return Sample(
            image=fit_image(view.image.as_subclass(Tensor), self.size, self.fit),
            targets=Targets(xyxy_to_cxcywh(boxes_xyxy), view.labels),
            image_id=image_id,
            original_size=original_size,
            skipped=tuple(skipped),
        )

    def _partner(self, row: int, skipped: list[str]) -> View:
        view, _, _ = self._decode(row, skipped, shrink=True)
        return view

    def _decode(self, row: int, skipped: list[str], *, shrink: bool) -> tuple[View, int, tuple[int, int]]:
        """Decode the image of this row or, if that is skipped, of the next readable row.

        Args:
            row: Row of the image.
            skipped: List to which the message of each skipped image is appended.
            shrink: Whether to shrink the image to the size that mixing needs, and cache it.

        Returns:
            The view, the data set's id of its image, and the (height, width) of that before shrinking.
        """
        if shrink and row in self._cache:
            self._cache.move_to_end(row)
            return self._cache[row]
        raw = self._read(row, skipped)
        boxes, labels = torch.from_numpy(raw.boxes_xyxy), torch.from_numpy(raw.labels)
        view = View.of(raw.image, boxes, labels, raw.outlines)
        size = image_size(raw.image)
        if not shrink:
            return view, raw.image_id, size
        decoded = view.shrink(max(self.size)), raw.image_id, size
        self._cache[row] = decoded
        if len(self._cache) > self.cached_images:
            self._cache.popitem(last=False)
        return decoded

    def _read(self, row: int, skipped: list[str]) -> AnnotatedImage:
        for attempt in range(_MAX_BAD_IN_A_ROW):
            try:
                return self.source.read((row + attempt) % len(self.source))
            except BadImageError as error:
                if self.on_bad_image == "raise":
                    raise BadImageError(
                        f"{error}. Or set data.on_bad_image=skip to replace such images and to list them"
                    ) from error
                skipped.append(str(error))
        raise DataError(
            f"{_MAX_BAD_IN_A_ROW} images in a row cannot be read, the last one: {skipped[-1]}. These are not "
            "single bad images: check the disk and the folder"
        )


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Return the random generator of one sample; it does not depend on process or order of samples."""
    mixed = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size into a batch.

    The boxes of a batch share one storage: passing a storage between processes costs an open file descriptor,
    and systems limit their number.
    """
    counts = [len(sample.targets) for sample in samples]
    boxes = torch.cat([sample.targets.boxes_cxcywh for sample in samples])
    labels = torch.cat([sample.targets.labels for sample in samples])
    parts = [slice(start, end) for start, end in pairwise(accumulate(counts, initial=0))]
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        targets=tuple(Targets(boxes[part], labels[part]) for part in parts),
        image_ids=tuple(sample.image_id for sample in samples),
        original_sizes=tuple(sample.original_size for sample in samples),
        skipped=tuple(message for sample in samples for message in sample.skipped),
    )

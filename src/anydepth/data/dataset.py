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

from anydepth.data.augment.view import Augmentation, View, drop_small_boxes
from anydepth.data.errors import BadImageError, DataError
from anydepth.data.sampling import SampleKey
from anydepth.data.source import AnnotatedImage, SampleSource
from anydepth.images import Fit, check_fit, fit_image, place_image, resize_keeping_type
from anydepth.layers.boxes import xyxy_to_cxcywh
from anydepth.structures import Batch, Targets

OnBadImage = Literal["raise", "skip"]
# Images in a row that cannot be read: then the folder is gone, or the disk.
_MOST_BAD_IN_A_ROW = 20


@dataclass(frozen=True)
class Sample:
    """One image as the network will see it.

    Attributes:
        image: [3, h, w] uint8 RGB.
        targets: Boxes and labels in its frame, without crowd regions.
        image_id: The data set's id.
        original_size: (height, width) in pixels of the image that the boxes of the json lie in.
        skipped: What was wrong with images that this one, or one mixed into it, stands in for.
    """

    image: Tensor
    targets: Targets
    image_id: int
    original_size: tuple[int, int]
    skipped: tuple[str, ...] = ()


class DetectionDataset(Dataset[Sample]):
    """Reads, augments and resizes the images of a source.

    Args:
        source: Where the images come from.
        size: (height, width) in pixels that images are resized to.
        fit: Whether that keeps their aspect ratio.
        augmentation: What training does to an image before it is resized; None leaves it as it is.
        seed: Seed of the augmentation.
        on_bad_image: ``raise``, or ``skip``: the next image that can be read stands in for one that cannot,
            and the sample says so. In evaluation that image comes twice and counts once.
        cached_images: Decoded images that each process keeps for being mixed into others.
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
        self._cache: OrderedDict[int, _Decoded] = OrderedDict()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        """One sample; a plain row means epoch 0 and no partners.

        Raises:
            DataError: An image cannot be read and must not be skipped, or the source is gone.
        """
        epoch, row, partners = key if isinstance(key, SampleKey) else SampleKey(0, key)
        skipped: list[str] = []
        decoded = self._decode(row, skipped, reduced=bool(partners))
        view = decoded.view
        if self.augmentation is not None:
            loaders: list[Callable[[], View]] = [
                partial(self._partner, partner, skipped) for partner in partners
            ]
            view = self.augmentation(view, loaders, sample_generator(self.seed, epoch, row), self.size)
            view = drop_small_boxes(view, self.size)
        height, width = view.image.shape[-2:]
        canvas, offset = place_image((height, width), self.size, self.fit)
        # Corners, not sides, are clamped: a box may leave its image by what the index takes for rounding.
        corners = view.boxes_xyxy.as_subclass(Tensor).clamp(min=0).minimum(torch.tensor([width, height] * 2))
        placed = (corners + torch.tensor(offset[::-1] * 2)) / torch.tensor(canvas[::-1] * 2)
        return Sample(
            image=fit_image(view.image.as_subclass(Tensor), self.size, self.fit),
            targets=Targets(xyxy_to_cxcywh(placed), view.labels),
            image_id=decoded.image_id,
            original_size=decoded.size,
            skipped=tuple(skipped),
        )

    def _partner(self, row: int, skipped: list[str]) -> View:
        return self._decode(row, skipped, reduced=True).view

    def _decode(self, row: int, skipped: list[str], *, reduced: bool) -> "_Decoded":
        """An image of this row or, if it must be skipped, of the next row that can be read.

        Args:
            row: Of the image.
            skipped: Takes the message of each image that is skipped.
            reduced: Shrink it to what mixing needs, and remember it.
        """
        if not reduced:
            return _Decoded.of(self._read(row, skipped))
        if row in self._cache:
            self._cache.move_to_end(row)
            return self._cache[row]
        decoded = _Decoded.of(self._read(row, skipped)).shrunk(max(self.size))
        self._cache[row] = decoded
        if len(self._cache) > self.cached_images:
            self._cache.popitem(last=False)
        return decoded

    def _read(self, row: int, skipped: list[str]) -> AnnotatedImage:
        for attempt in range(_MOST_BAD_IN_A_ROW):
            try:
                return self.source.read((row + attempt) % len(self.source))
            except BadImageError as error:
                if self.on_bad_image == "raise":
                    raise BadImageError(
                        f"{error}. Or set data.on_bad_image=skip: other images stand in, and a list is kept"
                    ) from error
                skipped.append(str(error))
        raise DataError(
            f"{_MOST_BAD_IN_A_ROW} images in a row cannot be read, the last one: {skipped[-1]}. This is no "
            "single bad image: check the disk and the folder"
        )


@dataclass(frozen=True)
class _Decoded:
    """A decoded image with its boxes, and what is known of its file."""

    view: View
    image_id: int
    size: tuple[int, int]

    @classmethod
    def of(cls, raw: AnnotatedImage) -> "_Decoded":
        boxes, labels = torch.from_numpy(raw.boxes_xyxy), torch.from_numpy(raw.labels)
        height, width = raw.image.shape[-2:]
        return cls(View.of(raw.image, boxes, labels, raw.outlines), raw.image_id, (height, width))

    def shrunk(self, longest: int) -> "_Decoded":
        """With the longer side of the picture at most ``longest`` pixels."""
        height, width = self.size
        factor = longest / max(height, width)
        if factor >= 1:
            return self
        size = max(1, round(height * factor)), max(1, round(width * factor))
        image = resize_keeping_type(self.view.image.as_subclass(Tensor), size)
        scale = size[1] / width, size[0] / height
        boxes = self.view.boxes_xyxy.as_subclass(Tensor) * torch.tensor(scale * 2)
        outlines = None if self.view.outlines is None else self.view.outlines.moved(scale, (0.0, 0.0))
        return _Decoded(View.of(image, boxes, self.view.labels, outlines), self.image_id, self.size)


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The random numbers of one sample: equal wherever and in whatever order samples are made."""
    mixed = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size into a batch.

    The boxes of a batch share one piece of memory: between processes every piece costs an open file, of which
    a system allows only so many.
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

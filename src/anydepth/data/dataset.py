"""Images of a packed COCO index as training samples and batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from anydepth.boxes import xyxy_to_cxcywh
from anydepth.data.coco import CocoIndex
from anydepth.data.transforms import Augmentation, View, drop_small_boxes
from anydepth.images import resize_keeping_type
from anydepth.structures import Batch, Targets


class SampleKey(NamedTuple):
    """Which image in which epoch; the augmentation of a sample is a function of it and the seed alone.

    The epoch travels with the index because worker processes that outlive an epoch are told nothing else.
    """

    epoch: int
    row: int


@dataclass(frozen=True)
class Sample:
    """One image as the network will see it.

    Attributes:
        image: [3, h, w] uint8 RGB.
        targets: Boxes and labels in its frame, without crowd regions.
        image_id: The data set's id.
        original_size: (height, width) in pixels of the image that the boxes of the json lie in.
    """

    image: Tensor
    targets: Targets
    image_id: int
    original_size: tuple[int, int]


class CocoDataset(Dataset[Sample]):
    """Reads, augments and resizes the images of an index.

    Args:
        index: The packed json.
        size: (height, width) in pixels that images are resized to, without keeping their aspect ratio.
        augmentation: What training does to an image before it is resized; None leaves it as it is.
        seed: Seed of the augmentation.
    """

    def __init__(
        self,
        *,
        index: CocoIndex,
        size: tuple[int, int],
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.index = index
        self.size = size
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        """One sample; a plain index means epoch 0.

        Raises:
            DataError: The image cannot be read, or contradicts the size in the json.
        """
        epoch, row = key if isinstance(key, SampleKey) else (0, key)
        boxes, labels = self.index.training_boxes(row)
        view = View.of(self.index.read_image(row), torch.from_numpy(boxes), torch.from_numpy(labels))
        if self.augmentation is not None:
            view = self.augmentation(view, sample_generator(self.seed, epoch, row))
            view = drop_small_boxes(view, self.size)
        height, width = view.image.shape[-2:]
        # Corners, not sides, are clamped: a box may leave its image by what the index takes for rounding.
        corners = view.boxes_xyxy.as_subclass(Tensor) / torch.tensor([width, height, width, height])
        image_height, image_width = self.index.sizes[row].tolist()
        return Sample(
            image=resize_keeping_type(view.image.as_subclass(Tensor), self.size),
            targets=Targets(xyxy_to_cxcywh(corners.clamp(0, 1)), view.labels),
            image_id=int(self.index.image_ids[row]),
            original_size=(image_height, image_width),
        )


class EpochSampler(DistributedSampler[SampleKey]):
    """Shuffles by (seed, epoch) and shares the images out among processes; yields the epoch with each index.

    Lightning sets the epoch and leaves samplers of this kind in place. What does not divide by the number of
    processes is left out, so that all take the same number of steps; who is left out changes with the epoch.

    Args:
        dataset: What to draw from.
        seed: Seed of the order.
        num_replicas: Number of processes.
        rank: Which of them this is.
    """

    def __init__(self, *, dataset: CocoDataset, seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(
            dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed, drop_last=True
        )

    def __iter__(self) -> Iterator[SampleKey]:
        for index in cast(Iterator[int], super().__iter__()):
            yield SampleKey(self.epoch, index)


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
    )

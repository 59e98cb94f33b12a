"""Any COCO-format data set as Lightning loads it."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Sampler

from anydepth.data.categories import Categories, read_categories
from anydepth.data.coco import CocoIndex
from anydepth.data.coco_json import DataError, DataWarning
from anydepth.data.dataset import CocoDataset, EpochSampler, Sample, SampleKey, collate
from anydepth.data.layout import SPLIT_NAMES, Split, SplitName, find_split
from anydepth.data.transforms import Augmentation


class CocoDataModule(LightningDataModule):
    """Loaders, classes and ground truth of one data set; batches are :class:`anydepth.structures.Batch`.

    The order of an epoch is a function of (seed, epoch), and the augmentation of an image of (seed, epoch,
    image), in whatever process it is made: a resumed run sees what the first one would have seen. In
    distributed training each process draws its own share; for evaluation Lightning shares the images out and
    may give some of them twice, which whoever collects detections has to undo by image id.

    Args:
        input_size: (height, width) in pixels that images are resized to.
        batch_size: Training images per step and process.
        root: Folder of the data set in one of the layouts of :func:`anydepth.data.layout.find_split`.
        train_json: With ``train_images``, used instead of what ``root`` holds; so for the other splits.
        train_images: Folder that the file names in ``train_json`` are relative to.
        val_json: See ``train_json``.
        val_images: See ``train_images``.
        test_json: See ``train_json``.
        test_images: See ``train_images``.
        eval_batch_size: Images per step and process in evaluation; None means ``batch_size``.
        num_workers: Processes that load images, per process that trains; 0 loads in the latter.
        seed: Seed of order and augmentation, from 0.
        augmentation: What training does to images; None only resizes them.
    """

    def __init__(
        self,
        *,
        input_size: Sequence[int],
        batch_size: int,
        root: str | Path | None = None,
        train_json: str | Path | None = None,
        train_images: str | Path | None = None,
        val_json: str | Path | None = None,
        val_images: str | Path | None = None,
        test_json: str | Path | None = None,
        test_images: str | Path | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__()
        if len(input_size) != 2 or min(input_size) < 1:
            raise ValueError(f"input_size={list(input_size)}: give [height, width] in pixels")
        self.input_size = (int(input_size[0]), int(input_size[1]))
        self.batch_size = _at_least("batch_size", batch_size, 1)
        self.eval_batch_size = _at_least(
            "eval_batch_size", batch_size if eval_batch_size is None else eval_batch_size, 1
        )
        self.num_workers = _at_least("num_workers", num_workers, 0)
        self.seed = _at_least("seed", seed, 0)
        self.augmentation = augmentation
        self._root = None if root is None else Path(root)
        self._given: dict[SplitName, Split | None] = {
            "train": _given_split("train", train_json, train_images),
            "val": _given_split("val", val_json, val_images),
            "test": _given_split("test", test_json, test_images),
        }
        self._indices: dict[SplitName, CocoIndex] = {}

    # -- classes and ground truth --------------------------------------------------------------------------

    @cached_property
    def categories(self) -> Categories:
        """The categories of the training json; of another split where no training split is there.

        Only they are read, so that a detector can be built before the data set is loaded.

        Raises:
            DataError: No json, or one without usable categories.
        """
        for name in SPLIT_NAMES:
            try:
                split = self.split(name)
            except DataError:
                continue
            return read_categories(split.json_path)
        return read_categories(self.split("train").json_path)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.categories.ids)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each contiguous label."""
        return self.categories.names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's category id of each contiguous label."""
        return self.categories.ids

    def split(self, name: SplitName) -> Split:
        """Json and image folder of a split.

        Raises:
            DataError: It was not given and is not found under the root.
        """
        given = self._given[name]
        if given is not None:
            return given
        if self._root is None:
            raise DataError(f"no {name} data: give data.root, or data.{name}_json and data.{name}_images")
        return find_split(self._root, name)

    def index(self, name: SplitName) -> CocoIndex:
        """The packed json of a split, read at the first call.

        Raises:
            DataError: Anything that is wrong with it.
        """
        if name not in self._indices:
            split = self.split(name)
            self._indices[name] = CocoIndex.load(
                split.json_path,
                split.image_root,
                categories=None if name == "train" else self.categories,
                for_training=name == "train",
                annotated=name != "test",
                report=_report_once,
            )
        return self._indices[name]

    @property
    def train_index(self) -> CocoIndex:
        """The packed json of the training split."""
        return self.index("train")

    @property
    def val_index(self) -> CocoIndex:
        """The packed json of the validation split."""
        return self.index("val")

    # -- what Lightning calls ------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Read and check what the stage needs, before it starts.

        Raises:
            DataError: Anything that is wrong with the data, or too few images for one batch.
        """
        if stage == "fit":
            self._check_batch_size()
        if stage in ("fit", "validate"):
            self.index("val")
        if stage == "test":
            self.index("test")

    def train_dataloader(self) -> DataLoader[Sample]:
        """Augmented training batches; an incomplete last one is left out."""
        dataset = CocoDataset(
            index=self.train_index, size=self.input_size, augmentation=self.augmentation, seed=self.seed
        )
        sampler = EpochSampler(
            dataset=dataset, seed=self.seed, num_replicas=self._world_size, rank=self._rank
        )
        return self._loader(dataset, self.batch_size, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Validation batches in the order of the json."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Test batches in the order of the json."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, name: SplitName) -> DataLoader[Sample]:
        """Batches of any split, in the order of the json and without augmentation."""
        dataset = CocoDataset(index=self.index(name), size=self.input_size)
        return self._loader(dataset, self.eval_batch_size)

    def _loader(
        self,
        dataset: CocoDataset,
        batch_size: int,
        sampler: Sampler[SampleKey] | None = None,
        drop_last: bool = False,
    ) -> DataLoader[Sample]:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            # Without its own generator, a loader takes a number from the global one each time it starts.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _check_batch_size(self) -> None:
        path, images = self.train_index.json_path, len(self.train_index)
        share = images // self._world_size
        if share == 0:
            raise DataError(
                f"{path}: {images} images for {self._world_size} processes; set trainer.devices to {images} "
                "or less"
            )
        if self.batch_size > share:
            raise DataError(
                f"{path}: {images} images on {self._world_size} processes are fewer than one batch of "
                f"{self.batch_size} each; set data.batch_size to {share} or less"
            )

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0


def _report_once(message: str) -> None:
    rank_zero_warn(message, category=DataWarning)


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise ValueError(f"{name}={value}: allowed are whole numbers from {least}")
    return value


def _given_split(name: str, json_path: str | Path | None, images: str | Path | None) -> Split | None:
    if json_path is None and images is None:
        return None
    if json_path is None or images is None:
        raise ValueError(
            f"data.{name}_json={json_path} and data.{name}_images={images}: give both, or neither"
        )
    return Split(Path(json_path), Path(images))

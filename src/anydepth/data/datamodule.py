"""Data sets as Lightning loads them."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from anydepth.data.augment.view import Augmentation
from anydepth.data.coco.categories import Categories, read_categories
from anydepth.data.coco.index import CocoIndex
from anydepth.data.coco.layout import SPLIT_NAMES, Split, SplitName, find_split
from anydepth.data.dataset import DetectionDataset, OnBadImage, Sample, collate
from anydepth.data.errors import DataError, DataWarning
from anydepth.data.sampling import LANES, EpochSampler
from anydepth.data.source import FileSource, SampleSource
from anydepth.data.workers import outlive_sigterm
from anydepth.images import Fit, check_fit


class LoadingSettings(TypedDict, total=False):
    """The arguments of :class:`DetectionDataModule`, which its kinds pass on."""

    input_size: Sequence[int]
    fit: Fit
    batch_size: int
    eval_batch_size: int | None
    num_workers: int
    seed: int
    augmentation: Augmentation | None
    partner_pool: int
    epochs: int | None
    unmixed_epochs: int
    on_bad_image: OnBadImage


class DetectionDataModule(LightningDataModule):
    """Loaders, classes and ground truth of one data set; batches are :class:`anydepth.structures.Batch`.

    The order of an epoch is a function of (seed, epoch), and the augmentation of an image of (seed, epoch,
    image), in whatever process it is made: a resumed run sees what the first one would have seen, and begins
    in the middle of an epoch with the first image that was not trained on. In distributed training each
    process draws its own share; for evaluation Lightning shares the images out and may give some of them
    twice, which whoever collects detections has to undo by image id.

    Args:
        input_size: (height, width) in pixels that images are resized to.
        fit: Whether that keeps their aspect ratio.
        batch_size: Training images per step and process.
        eval_batch_size: Images per step and process in evaluation; None means ``batch_size``.
        num_workers: Processes that load images, per process that trains; 0 loads in the latter.
        seed: Seed of order and augmentation, from 0.
        augmentation: What training does to images; None only resizes them.
        partner_pool: Images that those which an augmentation mixes into another are drawn from. About eight
            times as many decoded images are kept in memory by all workers together.
        epochs: Length of the training, None where it is limited otherwise.
        unmixed_epochs: The last epochs, in which no image is mixed into another; without ``epochs`` there
            are none.
        on_bad_image: What an image that cannot be read leads to: ``raise`` or ``skip``.
    """

    def __init__(
        self,
        *,
        input_size: Sequence[int],
        batch_size: int,
        fit: Fit = "stretch",
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        partner_pool: int = 64,
        epochs: int | None = None,
        unmixed_epochs: int = 0,
        on_bad_image: OnBadImage = "raise",
    ) -> None:
        super().__init__()
        if len(input_size) != 2 or min(input_size) < 1:
            raise ValueError(f"input_size={list(input_size)}: give [height, width] in pixels")
        self.input_size = (int(input_size[0]), int(input_size[1]))
        check_fit(fit)
        self.fit: Fit = fit
        self.batch_size = _at_least("batch_size", batch_size, 1)
        self.eval_batch_size = _at_least(
            "eval_batch_size", batch_size if eval_batch_size is None else eval_batch_size, 1
        )
        self.num_workers = _at_least("num_workers", num_workers, 0)
        self.seed = _at_least("seed", seed, 0)
        self.augmentation = augmentation
        self.partner_pool = _at_least("partner_pool", partner_pool, 1)
        self.epochs = epochs
        self.unmixed_epochs = _at_least("unmixed_epochs", unmixed_epochs, 0)
        if on_bad_image not in get_args(OnBadImage):
            raise ValueError(f"on_bad_image={on_bad_image!r}: allowed are {', '.join(get_args(OnBadImage))}")
        self.on_bad_image = on_bad_image

    # -- what a kind of data set has to say ----------------------------------------------------------------

    @property
    @abstractmethod
    def categories(self) -> Categories:
        """The categories of the training split; of another split where no training split is there.

        Only they are read, so that a detector can be built before the data set is loaded.

        Raises:
            DataError: No split, or one without usable categories.
        """

    @abstractmethod
    def index(self, name: SplitName) -> CocoIndex:
        """Boxes and sizes of a split, read at the first call.

        Raises:
            DataError: Anything that is wrong with it.
        """

    @abstractmethod
    def source(self, name: SplitName) -> SampleSource:
        """The images of a split.

        Raises:
            DataError: Anything that is wrong with it.
        """

    # -- classes and ground truth --------------------------------------------------------------------------

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

    @property
    def val_index(self) -> CocoIndex:
        """Boxes and sizes of the validation split."""
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
        partners = 0 if self.augmentation is None else self.augmentation.partners
        source = self.source("train")
        lanes_per_worker = -(-LANES // max(self.num_workers, 1))
        dataset = DetectionDataset(
            source=source,
            size=self.input_size,
            fit=self.fit,
            augmentation=self.augmentation,
            seed=self.seed,
            on_bad_image=self.on_bad_image,
            cached_images=lanes_per_worker * self.partner_pool if partners else 0,
        )
        sampler = EpochSampler(
            source=source,
            seed=self.seed,
            batch_size=self.batch_size,
            num_replicas=self._world_size,
            rank=self._rank,
            partners=partners,
            partner_pool=self.partner_pool,
            mixed_epochs=None if self.epochs is None else self.epochs - self.unmixed_epochs,
        )
        if self.trainer is not None:
            # Workers draw batches before Lightning says which epoch it is.
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.state_dict()["current"]["processed"])
        return self._loader(dataset, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Validation batches in the order of the json."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Test batches in the order of the json."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, name: SplitName) -> DataLoader[Sample]:
        """Batches of any split, in the order of the json and without augmentation."""
        dataset = DetectionDataset(
            source=self.source(name), size=self.input_size, fit=self.fit, on_bad_image=self.on_bad_image
        )
        return self._loader(dataset, self.eval_batch_size)

    def _loader(
        self, dataset: DetectionDataset, batch_size: int, sampler: EpochSampler | None = None
    ) -> DataLoader[Sample]:
        settings: dict[str, Any] = {
            "batch_size": batch_size,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": collate,
            "worker_init_fn": outlive_sigterm,
            # Without its own generator, a loader takes a number from the global one each time it starts.
            "generator": torch.Generator().manual_seed(self.seed),
        }
        if sampler is None:
            return DataLoader(dataset, **settings)
        return TrainLoader(dataset, sampler=sampler, drop_last=True, module=self, **settings)

    def _check_batch_size(self) -> None:
        images = len(self.source("train"))
        share = images // self._world_size
        if share == 0:
            raise DataError(
                f"{images} training images for {self._world_size} processes; set trainer.devices to {images} "
                "or less"
            )
        if self.batch_size > share:
            raise DataError(
                f"{images} training images on {self._world_size} processes are fewer than one batch of "
                f"{self.batch_size} each; set data.batch_size to {share} or less"
            )

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0


class CocoDataModule(DetectionDataModule):
    """A data set in COCO format, in files.

    Args:
        root: Folder of the data set in one of the layouts of :func:`anydepth.data.coco.layout.find_split`.
        train_json: With ``train_images``, used instead of what ``root`` holds; so for the other splits.
        train_images: Folder that the file names in ``train_json`` are relative to.
        val_json: See ``train_json``.
        val_images: See ``train_images``.
        test_json: See ``train_json``.
        test_images: See ``train_images``.
        settings: See :class:`DetectionDataModule`.
    """

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        train_json: str | Path | None = None,
        train_images: str | Path | None = None,
        val_json: str | Path | None = None,
        val_images: str | Path | None = None,
        test_json: str | Path | None = None,
        test_images: str | Path | None = None,
        **settings: Unpack[LoadingSettings],
    ) -> None:
        super().__init__(**settings)
        self._root = None if root is None else Path(root)
        self._given: dict[SplitName, Split | None] = {
            "train": _given_split("train", train_json, train_images),
            "val": _given_split("val", val_json, val_images),
            "test": _given_split("test", test_json, test_images),
        }
        self._indices: dict[SplitName, CocoIndex] = {}

    @cached_property
    def categories(self) -> Categories:
        """See :attr:`DetectionDataModule.categories`."""
        for name in SPLIT_NAMES:
            try:
                split = self.split(name)
            except DataError:
                continue
            return read_categories(split.json_path)
        return read_categories(self.split("train").json_path)

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
        """See :meth:`DetectionDataModule.index`."""
        if name not in self._indices:
            split = self.split(name)
            self._indices[name] = CocoIndex.load(
                split.json_path,
                split.image_root,
                categories=None if name == "train" else self.categories,
                for_training=name == "train",
                outlines=name == "train" and self.augmentation is not None and self.augmentation.outlines,
                annotated=name != "test",
                report=_report_once,
            )
        return self._indices[name]

    def source(self, name: SplitName) -> FileSource:
        """See :meth:`DetectionDataModule.source`."""
        return FileSource(self.index(name))


class TrainLoader(DataLoader[Sample]):
    """A loader that Lightning resumes in the middle of an epoch.

    Args:
        dataset: See ``DataLoader``.
        module: Whose trainer knows how many batches of the epoch are done.
        settings: See ``DataLoader``.
    """

    def __init__(self, dataset: DetectionDataset, *, module: DetectionDataModule, **settings: Any) -> None:
        super().__init__(dataset, **settings)
        self._module = module

    def state_dict(self) -> dict[str, int]:
        """What the meaning of a number of batches depends on."""
        if not isinstance(self.sampler, EpochSampler):  # Lightning takes another one for `overfit_batches`.
            return {}
        return {"processes": self.sampler.num_replicas, "batch_size": self.sampler.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next pass with the first batch that was not trained on."""
        if not state or not isinstance(self.sampler, EpochSampler):
            return
        if state != self.state_dict():
            rank_zero_warn(
                f"the checkpoint was written in the middle of an epoch by {state['processes']} processes "
                f"with data.batch_size={state['batch_size']}; with other numbers, some images of this epoch "
                "come twice or not at all. The next epoch is whole again"
            )
        trainer = self._module.trainer
        assert trainer is not None
        epoch = trainer.fit_loop.epoch_progress.state_dict()["current"]["processed"]
        batches = trainer.fit_loop.epoch_loop.batch_progress.state_dict()
        # After its last batch an epoch counts as processed only later than checkpoints are written.
        if batches["is_last_batch"]:
            self.sampler.set_epoch(epoch + 1)
        else:
            self.sampler.resume(epoch, batches["current"]["processed"])


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

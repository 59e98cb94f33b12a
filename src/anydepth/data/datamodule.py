"""Lightning data modules: loaders, classes and ground truth of a data set."""

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
from anydepth.data.workers import ignore_foreign_sigterm
from anydepth.pictures.fitting import Fit, check_fit


class LoadingSettings(TypedDict, total=False):
    """Arguments of :class:`DetectionDataModule`, which its subclasses pass on."""

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
    image), whichever process computes them: a resumed run sees the images that the uninterrupted one would
    have seen, and starts in the middle of an epoch with the first image that was not trained on. In
    distributed training each process draws its own share; for evaluation Lightning splits the images among
    the processes and may repeat some, so that the collector of detections must drop duplicates by image id.

    Args:
        input_size: (height, width) in pixels that images are resized to.
        fit: Whether resizing keeps their aspect ratio; see :data:`anydepth.pictures.fitting.Fit`.
        batch_size: Training images per step and process.
        eval_batch_size: Images per step and process in evaluation; None means ``batch_size``.
        num_workers: Worker processes that load images, per training process; 0 loads in the training process.
        seed: Seed of order and augmentation, from 0.
        augmentation: Augmentation of training images; None only resizes them.
        partner_pool: Number of recent images from which the partners of an image are drawn: those that an
            augmentation mixes into it. All workers together cache about eight times as many decoded images.
        epochs: Length of the training in epochs; None if it is limited otherwise.
        unmixed_epochs: Number of final epochs in which no image is mixed into another; ignored if ``epochs``
            is None.
        on_bad_image: Action on an image that cannot be read: ``raise`` or ``skip``.
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
            raise ValueError(f"got input_size={list(input_size)}, expected [height, width] in pixels")
        self.input_size = (int(input_size[0]), int(input_size[1]))
        check_fit(fit)
        self.fit: Fit = fit
        self.batch_size = _check_at_least("batch_size", batch_size, 1)
        self.eval_batch_size = _check_at_least(
            "eval_batch_size", batch_size if eval_batch_size is None else eval_batch_size, 1
        )
        self.num_workers = _check_at_least("num_workers", num_workers, 0)
        self.seed = _check_at_least("seed", seed, 0)
        self.augmentation = augmentation
        self.partner_pool = _check_at_least("partner_pool", partner_pool, 1)
        self.epochs = epochs
        self.unmixed_epochs = _check_at_least("unmixed_epochs", unmixed_epochs, 0)
        if on_bad_image not in get_args(OnBadImage):
            raise ValueError(
                f"got on_bad_image={on_bad_image!r}, expected one of {', '.join(get_args(OnBadImage))}"
            )
        self.on_bad_image = on_bad_image

    # -- what a subclass provides --------------------------------------------------------------------------

    @property
    @abstractmethod
    def categories(self) -> Categories:
        """Categories of the training split, or of another split if there is no training split.

        Nothing else is read, so that a detector can be built before the data set is loaded.

        Raises:
            DataError: There is no split, or its categories are unusable.
        """

    @abstractmethod
    def index(self, name: SplitName) -> CocoIndex:
        """Return the boxes and sizes of a split, read at the first call.

        Raises:
            DataError: The split is missing or malformed.
        """

    @abstractmethod
    def source(self, name: SplitName) -> SampleSource:
        """Return the images of a split.

        Raises:
            DataError: The split is missing or malformed.
        """

    # -- classes and ground truth --------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
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

    # -- Lightning hooks -----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Read and check the data of a stage before it starts.

        Raises:
            DataError: The data is missing or malformed, or has too few images for one batch.
        """
        if stage == "fit":
            self._check_batch_size()
        if stage in ("fit", "validate"):
            self.index("val")
        if stage == "test":
            self.index("test")

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return augmented training batches; an incomplete last one is dropped."""
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
            # Workers prefetch batches before Lightning sets the epoch of the sampler.
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.state_dict()["current"]["processed"])
        return self._loader(dataset, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return validation batches in the order of the json."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Return test batches in the order of the json."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, name: SplitName) -> DataLoader[Sample]:
        """Return batches of any split, in the order of the json and without augmentation."""
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
            "worker_init_fn": ignore_foreign_sigterm,
            # Without its own generator, a loader draws from the global one each time it starts.
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
                f"got {images} training images for {self._world_size} processes, expected one per process at "
                f"least; set trainer.devices to {images} or less"
            )
        if self.batch_size > share:
            raise DataError(
                f"got {images} training images on {self._world_size} processes, fewer than one batch of "
                f"{self.batch_size} each; set data.batch_size to {share} or less"
            )

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0


class CocoDataModule(DetectionDataModule):
    """A data set of COCO json files and image files.

    Args:
        root: Folder of the data set in one of the layouts of :func:`anydepth.data.coco.layout.find_split`.
        train_json: Annotations of the training split; with ``train_images``, they override ``root``. The
            other splits are overridden in the same way.
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
        self._explicit: dict[SplitName, Split | None] = {
            "train": _explicit_split("train", train_json, train_images),
            "val": _explicit_split("val", val_json, val_images),
            "test": _explicit_split("test", test_json, test_images),
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
        """Return the json and the image folder of a split.

        Raises:
            DataError: It was not given and is not found under the root.
        """
        given = self._explicit[name]
        if given is not None:
            return given
        if self._root is None:
            raise DataError(f"no {name} data; give data.root, or data.{name}_json and data.{name}_images")
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
                report=_warn_on_rank_zero,
            )
        return self._indices[name]

    def source(self, name: SplitName) -> FileSource:
        """See :meth:`DetectionDataModule.source`."""
        return FileSource(self.index(name))


class TrainLoader(DataLoader[Sample]):
    """A loader that Lightning resumes in the middle of an epoch.

    Args:
        dataset: See ``DataLoader``.
        module: Data module whose trainer counts the batches of the epoch that are done.
        settings: See ``DataLoader``.
    """

    def __init__(self, dataset: DetectionDataset, *, module: DetectionDataModule, **settings: Any) -> None:
        super().__init__(dataset, **settings)
        self._module = module

    def state_dict(self) -> dict[str, int]:
        """Return the settings that the batch count of a checkpoint depends on."""
        if not isinstance(self.sampler, EpochSampler):  # Lightning replaces it for `overfit_batches`.
            return {}
        return {"processes": self.sampler.num_replicas, "batch_size": self.sampler.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next pass over the data with the first batch that was not trained on."""
        if not state or not isinstance(self.sampler, EpochSampler):
            return
        if state != self.state_dict():
            rank_zero_warn(
                f"the checkpoint was written in the middle of an epoch by {state['processes']} processes "
                f"with data.batch_size={state['batch_size']}, and this run differs: some images of this "
                "epoch come twice or not at all. The next epoch is complete again"
            )
        trainer = self._module.trainer
        assert trainer is not None
        epoch = trainer.fit_loop.epoch_progress.state_dict()["current"]["processed"]
        batches = trainer.fit_loop.epoch_loop.batch_progress.state_dict()
        # Checkpoints of the last batch are written before Lightning counts its epoch as processed.
        if batches["is_last_batch"]:
            self.sampler.set_epoch(epoch + 1)
        else:
            self.sampler.resume(epoch, batches["current"]["processed"])


def _warn_on_rank_zero(message: str) -> None:
    rank_zero_warn(message, category=DataWarning)


def _check_at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise ValueError(f"got {name}={value}, expected a whole number from {least}")
    return value


def _explicit_split(name: str, json_path: str | Path | None, images: str | Path | None) -> Split | None:
    if json_path is None and images is None:
        return None
    if json_path is None or images is None:
        raise ValueError(
            f"got data.{name}_json={json_path} and data.{name}_images={images}; give both, or neither"
        )
    return Split(Path(json_path), Path(images))

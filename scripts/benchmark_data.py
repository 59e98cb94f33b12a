"""Throughput of training images: our loader against a baseline, in turns on the same files and workers.

Usage: ``python scripts/benchmark_data.py --data ROOT --augmentation rtdetr yolo --workers 2``

The baseline is torchvision's ``CocoDetection`` with the same list of operations from
``torchvision.transforms.v2``, on Pillow images, converted to float in the worker; for YOLO it builds each
mosaic from four new images and maps the canvas of twice the size. Copy-paste, which torchvision does not
have, is left out of both. The images are repeated under other names until there are ``--images`` of them, so
that no cache holds them all. Each turn first consumes what was loaded ahead during the other loader's turn;
medians over turns and their ratio are printed. Then each stage of our loader is timed alone, in one process.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich import get_console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

from anydepth.config.compose import compose, instantiate
from anydepth.config.errors import readable_errors
from anydepth.data.datamodule import CocoDataModule
from anydepth.data.dataset import DetectionDataset, collate
from anydepth.data.sample import sample_root
from anydepth.data.sampling import EpochSampler
from anydepth.data.source import AnnotatedImage, FileSource
from anydepth.images import to_unit_range

AUGMENTATIONS = ("rtdetr", "yolo")
PREFETCH = 2  # batches per worker, DataLoader's own default
Sampled = tuple[Any, dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as name, readable_errors():
        root = repeated(options.data, Path(name), options.images)
        for augmentation in options.augmentation:
            module = our_module(root, augmentation, options)
            compare(module, baseline_loader(root, augmentation, options), augmentation, options)
            stages(module, augmentation, options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare our training loader with torchvision's.")
    parser.add_argument("--data", type=Path, default=sample_root(), help="COCO layout (default: the sample)")
    parser.add_argument("--augmentation", nargs="+", choices=AUGMENTATIONS, default=list(AUGMENTATIONS))
    parser.add_argument("--workers", type=int, default=2, help="worker processes per loader (default: 2)")
    parser.add_argument("--batch", type=int, default=16, help="images per batch (default: 16)")
    parser.add_argument("--size", type=int, default=640, help="side of the input in pixels (default: 640)")
    parser.add_argument("--images", type=int, default=4096, help="size of the data set (default: 4096)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each loader (default: 5)")
    parser.add_argument("--batches", type=int, default=10, help="timed batches per turn (default: 10)")
    return parser.parse_args(arguments)


def repeated(data: Path, root: Path, count: int) -> Path:
    """Create a data set of ``count`` images in ``root`` by repeating those of the training split."""
    found = CocoDataModule(root=data, input_size=(64, 64), batch_size=1).split("train")
    document = json.loads(found.json_path.read_text(encoding="utf-8"))
    boxes: dict[int, list[dict[str, Any]]] = {}
    for entry in document["annotations"]:
        boxes.setdefault(entry["image_id"], []).append(entry)
    folder = root / "train"
    folder.mkdir()
    images, annotations = [], []
    for number in range(count):
        source = document["images"][number % len(document["images"])]
        name = f"{number:06d}{Path(source['file_name']).suffix}"
        (folder / name).symlink_to((found.image_root / source["file_name"]).resolve())
        images.append({**source, "id": number, "file_name": name})
        for entry in boxes.get(source["id"], []):
            annotations.append({**entry, "id": len(annotations), "image_id": number})
    path = root / "annotations" / "instances_train.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**document, "images": images, "annotations": annotations}), encoding="utf-8")
    return root


def our_module(root: Path, augmentation: str, options: argparse.Namespace) -> CocoDataModule:
    """Build our data module as a training run does."""
    settings = [
        "data=custom",
        f"data.root={root}",
        f"augmentation={augmentation}",
        f"detector.input_size=[{options.size},{options.size}]",
        f"data.batch_size={options.batch}",
        f"data.num_workers={options.workers}",
        "paths.output_dir=unused",
        *(["data.augmentation.copy_paste=null"] if augmentation == "yolo" else []),
    ]
    module: CocoDataModule = instantiate(compose("train", settings)["data"])
    return module


class Mosaics(Dataset[Sampled]):
    """Mosaics of four images on a canvas, then an affine map of the canvas, and mixup."""

    def __init__(self, images: Dataset[Sampled], size: int) -> None:
        self.images = images
        self.size = size
        self.resize = v2.Resize(None, max_size=size)
        self.affine = v2.Compose(
            [
                v2.RandomAffine(
                    degrees=0,
                    translate=(0.05, 0.05),  # of a canvas of twice the side
                    scale=(0.1, 1.9),
                    interpolation=v2.InterpolationMode.BILINEAR,
                    fill=114,
                ),
                v2.CenterCrop(size),
                v2.SanitizeBoundingBoxes(min_size=2, min_area=4),
            ]
        )
        self.colours = v2.Compose(
            [
                v2.ColorJitter(brightness=0.4, saturation=0.7, hue=0.015),
                v2.RandomHorizontalFlip(0.5),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sampled:
        image, target = self.mosaic(index)
        if float(torch.rand(())) < 0.15:
            other, more = self.mosaic(int(torch.randint(len(self), ())))
            image = Image.blend(image, other, float(torch.distributions.Beta(32, 32).sample()))
            boxes = torch.cat([target["boxes"], more["boxes"]])
            target = {
                "boxes": tv_tensors.wrap(boxes, like=target["boxes"]),
                "labels": torch.cat([target["labels"], more["labels"]]),
            }
        mixed: Sampled = self.colours(image, target)
        return mixed

    def mosaic(self, index: int) -> Sampled:
        """Return four images around a point of the canvas, after an affine map."""
        size = self.size
        canvas = Image.new("RGB", (2 * size, 2 * size), (114, 114, 114))
        x, y = (int(size * (0.5 + float(torch.rand(())))) for _ in range(2))
        boxes, labels = [], []
        partners = torch.randint(len(self), (3,)).tolist()
        for place, number in enumerate([index, *partners]):
            image, target = self.resize(*self.images[number])
            left = x - image.width if place in (0, 2) else x
            top = y - image.height if place in (0, 1) else y
            canvas.paste(image, (left, top))
            boxes.append(target["boxes"] + torch.tensor([left, top, left, top]))
            labels.append(target["labels"])
        clipped = torch.cat(boxes).clamp(0, 2 * size)
        target = {
            "boxes": tv_tensors.BoundingBoxes(clipped, format="XYXY", canvas_size=(2 * size, 2 * size)),
            "labels": torch.cat(labels),
        }
        mapped: Sampled = self.affine(canvas, target)
        return mapped


class WithBoxes(Dataset[Sampled]):
    """Adds empty annotations to images without any, for which torchvision omits the keys."""

    def __init__(self, images: Dataset[Sampled]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sampled:
        image, target = self.images[index]
        if "boxes" not in target:
            size = (image.height, image.width)
            empty = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=size)
            target = {"boxes": empty, "labels": torch.zeros(0, dtype=torch.int64)}
        return image, target


class Transformed(WithBoxes):
    """Applies a list of operations to images."""

    def __init__(self, images: Dataset[Sampled], operations: v2.Transform) -> None:
        super().__init__(images)
        self.operations = operations

    def __getitem__(self, index: int) -> Sampled:
        changed: Sampled = self.operations(*super().__getitem__(index))
        return changed


def baseline_loader(root: Path, augmentation: str, options: argparse.Namespace) -> DataLoader[Sampled]:
    """Build a loader of torchvision's data set and operations, as its documentation does."""
    files = datasets.CocoDetection(root / "train", root / "annotations" / "instances_train.json")
    images = datasets.wrap_dataset_for_transforms_v2(files, target_keys=("boxes", "labels"))
    size = (options.size, options.size)
    operations = v2.Compose(
        [
            v2.RandomPhotometricDistort(p=0.5),
            v2.RandomZoomOut(fill=0),
            v2.RandomApply([v2.RandomIoUCrop()], p=0.8),
            v2.SanitizeBoundingBoxes(min_size=1),
            v2.RandomHorizontalFlip(),
            v2.Resize(size),
            v2.SanitizeBoundingBoxes(min_size=1),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    changed = (
        Mosaics(WithBoxes(images), options.size)
        if augmentation == "yolo"
        else Transformed(images, operations)
    )
    return DataLoader(
        changed,
        batch_size=options.batch,
        shuffle=True,
        num_workers=options.workers,
        drop_last=True,
        collate_fn=stack,
        persistent_workers=options.workers > 0,
    )


def stack(samples: Sequence[Sampled]) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Stack samples into a batch of images and a list of targets."""
    return torch.stack([sample[0] for sample in samples]), [sample[1] for sample in samples]


@dataclass
class Runner:
    """Times one loader in turns."""

    batches: Iterator[Any]
    ahead: int  # batches that workers load ahead

    def turn(self, count: int) -> float:
        """Return the seconds per batch after consuming the batches that were loaded ahead."""
        for _ in range(self.ahead):
            next(self.batches)
        start = time.perf_counter()
        for _ in range(count):
            next(self.batches)
        seconds = (time.perf_counter() - start) / count
        time.sleep(1.3 * self.ahead * seconds)  # until its workers have loaded ahead again and are idle
        return seconds


def compare(
    module: CocoDataModule, baseline: DataLoader[Sampled], augmentation: str, options: argparse.Namespace
) -> None:
    """Print the images per second of both loaders, measured in turns."""
    ahead = PREFETCH * options.workers
    runners = {"ours": Runner(_ours(module), ahead), "baseline": Runner(_endless(baseline), ahead)}
    for runner in runners.values():
        runner.turn(options.batches)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(options.turns):
        for name, runner in runners.items():
            seconds[name].append(runner.turn(options.batches))
    rates = {name: options.batch / statistics.median(values) for name, values in seconds.items()}
    pairs = [slow / fast for fast, slow in zip(seconds["ours"], seconds["baseline"], strict=True)]
    get_console().print(
        f"{augmentation}: ours {rates['ours']:.1f} images/s, baseline {rates['baseline']:.1f} images/s, "
        f"ratio of medians {rates['ours'] / rates['baseline']:.2f}, "
        f"median of pairs {statistics.median(pairs):.2f} "
        f"({min(pairs):.2f} to {max(pairs):.2f}); {options.workers} workers, {options.size} px",
        highlight=False,
        soft_wrap=True,
    )


def _ours(module: CocoDataModule) -> Iterator[Any]:
    """Yield our batches as a training step receives them: in [0, 1]."""
    loader = module.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            yield to_unit_range(batch.images)  # type: ignore[attr-defined]
        epoch += 1


def _endless(loader: DataLoader[Sampled]) -> Iterator[Any]:
    while True:
        yield from loader


class TimedSource(FileSource):
    """Sums the time of reading and decoding."""

    seconds = 0.0
    images = 0

    def read(self, row: int) -> AnnotatedImage:
        """See :meth:`FileSource.read`."""
        start = time.perf_counter()
        image = super().read(row)
        self.seconds += time.perf_counter() - start
        self.images += 1
        return image


def stages(module: CocoDataModule, augmentation: str, options: argparse.Namespace) -> None:
    """Print milliseconds and images per second of each stage of our loader, in one process and thread."""
    torch.set_num_threads(1)
    loader = module.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    assert isinstance(loader.dataset, DetectionDataset)
    dataset, source = loader.dataset, TimedSource(module.index("train"))
    dataset.source = source
    # The keys of one lane: every eighth batch, whose partners are among its own images.
    keys = list(loader.sampler)
    batches = [keys[start : start + options.batch] for start in range(0, len(keys), options.batch)][::8]
    warm, timed = batches[:4], batches[4:16]
    for batch in warm:
        collate([dataset[key] for key in batch])
    source.seconds, source.images = 0.0, 0
    total = collating = reading = 0.0
    for batch in timed:
        start = time.perf_counter()
        samples = [dataset[key] for key in batch]
        middle = time.perf_counter()
        collate(samples)
        total, collating = total + middle - start, collating + time.perf_counter() - middle
        start = time.perf_counter()
        for key in batch:
            source.index.path(key.row).read_bytes()
        reading += time.perf_counter() - start
    count = len(timed) * options.batch
    reading *= source.images / count
    times = {
        "read": reading,
        "decode": source.seconds - reading,
        "augment and resize": total - source.seconds,
        "collate": collating,
        "all": total + collating,
    }
    table = Table("stage", "ms per image", "images/s per core", title=f"{augmentation}, one process")
    for name, seconds in times.items():
        table.add_row(name, f"{1000 * seconds / count:.2f}", f"{count / seconds:.0f}")
    get_console().print(table)
    get_console().print(f"{source.images / count:.2f} images were decoded per sample", highlight=False)


if __name__ == "__main__":
    main()

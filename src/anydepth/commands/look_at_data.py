"""Pictures of training batches with their boxes, as the network gets them: look before you train.

Usage: ``python scripts/look_at_data.py [--batches 2] [--epochs 0 590] [OVERRIDE ...]``

Overrides are those of ``anydepth-train``, e.g. ``data=coco detector=yolo_n augmentation=yolo_n``. One picture
is one batch. The console tells how many boxes there are and how small they get, in pixels of the input.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from rich import get_console
from rich.table import Table
from torch import Tensor

from anydepth.config.compose import compose, instantiate
from anydepth.config.errors import readable_errors
from anydepth.data.datamodule import DetectionDataModule
from anydepth.data.sampling import EpochSampler
from anydepth.layers.boxes import cxcywh_to_xyxy
from anydepth.results.pictures import Panel, grid, save_picture, side_by_side
from anydepth.structures import Batch, Detections


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the batches, and print what is in them."""
    options = _options(arguments)
    with readable_errors():
        config = compose("train", [*options.overrides, f"paths.output_dir={options.out}"])
        module: DetectionDataModule = instantiate(config["data"])
        module.prepare_data()
        module.setup("fit")
        table = Table("epoch", "batch", "images", "boxes", "without", "median side", "smallest")
        for epoch in options.epochs:
            for number, batch in enumerate(_batches(module, epoch, options.batches)):
                path = options.out / f"epoch{epoch}_batch{number}.jpg"
                save_picture(_sheet(batch, module.class_names, options.columns), path)
                table.add_row(str(epoch), str(number), *_figures(batch))
        get_console().print(table)
        get_console().print(f"pictures: {options.out}", highlight=False, soft_wrap=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw training batches with their boxes, as the network gets them.",
        epilog="Overrides are those of anydepth-train: data=custom data.root=/my/data detector=yolo_s ...",
    )
    parser.add_argument("--batches", type=int, default=2, help="batches of each epoch (default: 2)")
    parser.add_argument(
        "--epochs", type=int, nargs="+", default=[0], help="e.g. 0 595: the last epochs of YOLO are not mixed"
    )
    parser.add_argument("--columns", type=int, default=4, help="images side by side (default: 4)")
    parser.add_argument("--out", type=Path, default=Path("outputs/look_at_data"), help="folder to write to")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    return parser.parse_intermixed_args(arguments)


def _batches(module: DetectionDataModule, epoch: int, count: int) -> Iterator[Batch]:
    loader = module.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    loader.sampler.set_epoch(epoch)
    batches: Iterator[Batch] = iter(loader)
    return islice(batches, count)


def _sheet(batch: Batch, class_names: Sequence[str], columns: int) -> Image.Image:
    height, width = batch.images.shape[-2:]
    pictures = []
    for image, targets, image_id in zip(batch.images, batch.targets, batch.image_ids, strict=True):
        corners = cxcywh_to_xyxy(targets.boxes_cxcywh) * torch.tensor([width, height] * 2)
        boxes = Detections(corners, torch.ones(len(targets)), targets.labels)
        pictures.append(
            side_by_side(image, [Panel(f"image {image_id}", boxes, show_scores=False)], class_names)
        )
    return grid([_beside(pictures[start : start + columns]) for start in range(0, len(pictures), columns)])


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    row = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width
    return row


def _figures(batch: Batch) -> list[str]:
    """Images, boxes, images without boxes, median and smallest side of boxes in pixels."""
    size = torch.tensor(batch.images.shape[:-3:-1])
    sides: Tensor = torch.cat([targets.boxes_cxcywh[:, 2:] for targets in batch.targets]) * size
    empty = sum(len(targets) == 0 for targets in batch.targets)
    counts = [str(len(batch)), str(len(sides)), str(empty)]
    return [*counts, *([f"{sides.median():.0f}", f"{sides.min():.1f}"] if len(sides) else ["-", "-"])]


if __name__ == "__main__":
    main()

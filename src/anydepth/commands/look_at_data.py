"""``anydepth-data look``: draw training batches with their boxes, as the network gets them."""

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from rich import get_console
from rich.table import Table

from anydepth.config.compose import compose, instantiate
from anydepth.config.errors import readable_errors
from anydepth.data.datamodule import DetectionDataModule
from anydepth.data.sampling import EpochSampler
from anydepth.layers.boxes import cxcywh_to_xyxy
from anydepth.results.pictures import Panel, grid, save_picture, side_by_side
from anydepth.structures import Batch, Detections
from anydepth.utils.console import print_lines


def run(options: argparse.Namespace) -> int:
    """Draw the batches, and print their numbers and sizes of boxes.

    Args:
        options: See :func:`anydepth.commands.data_options.parse_look`.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: A setting or a data set that cannot be used; the message is printed.
    """
    with readable_errors():
        config = compose(
            "train",
            [*_search_path(options.config_dir), *options.overrides, f"paths.output_dir={options.out}"],
        )
        module: DetectionDataModule = instantiate(config["data"])
        module.prepare_data()
        module.setup("fit")
        table = Table("epoch", "batch", "images", "boxes", "without", "median side", "smallest")
        for epoch in options.epochs:
            for number, batch in enumerate(_read_batches(module, epoch, options.batches)):
                path = options.out / f"epoch{epoch}_batch{number}.jpg"
                save_picture(_draw_sheet(batch, module.class_names, options.columns), path)
                table.add_row(str(epoch), str(number), *_statistics(batch))
        get_console().print(table)
        print_lines(f"pictures: {options.out}")
    return 0


def _search_path(folder: Path | None) -> list[str]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--config-dir={folder}: no such folder; give a folder that holds, for example, data/NAME.yaml"
        )
    return [f"hydra.searchpath=['file://{folder.resolve()}']"]


def _read_batches(module: DetectionDataModule, epoch: int, count: int) -> Iterator[Batch]:
    loader = module.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    loader.sampler.set_epoch(epoch)
    batches: Iterator[Batch] = iter(loader)
    return islice(batches, count)


def _draw_sheet(batch: Batch, class_names: Sequence[str], columns: int) -> Image.Image:
    height, width = batch.images.shape[-2:]
    pictures = []
    for image, targets, image_id in zip(batch.images, batch.targets, batch.image_ids, strict=True):
        boxes_xyxy = cxcywh_to_xyxy(targets.boxes_cxcywh) * torch.tensor([width, height] * 2)  # [N, 4] pixels
        boxes = Detections(boxes_xyxy, torch.ones(len(targets)), targets.labels)
        pictures.append(
            side_by_side(image, [Panel(f"image {image_id}", boxes, show_scores=False)], class_names)
        )
    return grid([_join_row(pictures[start : start + columns]) for start in range(0, len(pictures), columns)])


def _join_row(pictures: Sequence[Image.Image]) -> Image.Image:
    row = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width
    return row


def _statistics(batch: Batch) -> list[str]:
    """Return the row of a batch: images, boxes, images without boxes, median and smallest side in pixels."""
    size = torch.tensor(batch.images.shape[:-3:-1])  # [2] width, height
    sides = torch.cat([targets.boxes_cxcywh[:, 2:] for targets in batch.targets]) * size  # [N, 2] pixels
    empty = sum(len(targets) == 0 for targets in batch.targets)
    counts = [str(len(batch)), str(len(sides)), str(empty)]
    return [*counts, *([f"{sides.median():.0f}", f"{sides.min():.1f}"] if len(sides) else ["-", "-"])]

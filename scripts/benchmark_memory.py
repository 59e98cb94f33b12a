"""Memory growth of data loader workers, over several epochs of a synthetic data set.

Usage: ``python scripts/benchmark_memory.py --images 20000 --epochs 5 --augmentation rtdetr yolo`` (Linux)

Resident memory and the private part of it (USS) of every worker are read at the end of each epoch. The last
column compares with the first epoch, which fills the cache of decoded images.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich import get_console
from rich.table import Table

from anydepth.config.compose import compose, instantiate
from anydepth.config.errors import readable_errors
from anydepth.data.datamodule import CocoDataModule
from anydepth.data.sampling import EpochSampler

PICTURES = 200  # image files; all other images are links to them, which saves disk space


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Memory of loader processes over several epochs.")
    parser.add_argument("--images", type=int, default=20_000, help="size of the data set (default: 20000)")
    parser.add_argument("--epochs", type=int, default=5, help="default: 5")
    parser.add_argument("--workers", type=int, default=2, help="default: 2")
    parser.add_argument("--augmentation", nargs="+", choices=("rtdetr", "yolo"), default=["rtdetr", "yolo"])
    parser.add_argument("--size", type=int, default=160, help="side of pictures and input (default: 160)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name, readable_errors():
        write_dataset(Path(name), options.images, options.size)
        for augmentation in options.augmentation:
            measure(Path(name), augmentation, options)


def write_dataset(root: Path, count: int, side: int) -> None:
    """Write a data set of noise images with up to 15 boxes and their polygons."""
    random = np.random.default_rng(0)
    (root / "pictures").mkdir()
    for number in range(PICTURES):
        pixels = random.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((side, side)).save(root / "pictures" / f"{number}.jpg")
    (root / "train").mkdir()
    (root / "annotations").mkdir()
    images, annotations = [], []
    for number in range(count):
        name = f"{number:06d}.jpg"
        (root / "train" / name).symlink_to(root / "pictures" / f"{number % PICTURES}.jpg")
        images.append({"id": number, "file_name": name, "width": side, "height": side})
        for x, y, width, height in random.integers(4, side // 2, (random.integers(0, 15), 4)).tolist():
            ring = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1 + number % 80,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [ring],
                }
            )
    categories = [{"id": number, "name": str(number)} for number in range(1, 81)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document), encoding="utf-8")


def measure(root: Path, augmentation: str, options: argparse.Namespace) -> None:
    """Run the epochs, and print the memory of all workers after each."""
    settings = [
        "data=custom",
        f"data.root={root}",
        f"augmentation={augmentation}",
        f"detector.input_size=[{options.size},{options.size}]",
        "data.batch_size=16",
        f"data.num_workers={options.workers}",
        "recipe.epochs=1000",
        "paths.output_dir=unused",
    ]
    module: CocoDataModule = instantiate(compose("train", settings)["data"])
    loader = module.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    table = Table(
        "epoch",
        "RSS in MiB",
        "USS in MiB",
        "RSS to epoch 1",
        title=f"{augmentation}, {options.workers} workers",
    )
    first = 0.0
    for epoch in range(options.epochs):
        loader.sampler.set_epoch(epoch)
        for _ in loader:
            pass
        workers = [memory_of(child.pid) for child in multiprocessing.active_children() if child.pid]
        resident, private = (sum(figures) for figures in zip(*workers, strict=True))
        first = first or resident
        table.add_row(str(epoch + 1), f"{resident:.1f}", f"{private:.1f}", f"{resident / first - 1:+.2%}")
    get_console().print(table)


def memory_of(process: int) -> tuple[float, float]:
    """Return resident and private memory of a process in MiB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kibibytes["Rss"] / 1024, (kibibytes["Private_Clean"] + kibibytes["Private_Dirty"]) / 1024


if __name__ == "__main__":
    main()

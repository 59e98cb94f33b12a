"""Turn a data set in COCO format into shards that can be streamed from a folder, a web server or S3.

Usage:
    python scripts/prepare_stream.py datasets/coco shards/coco --workers 8
    python scripts/prepare_stream.py --json bees/train.json --images bees/photos shards/bees/train

The first form takes the splits of a data set in any layout that training knows, and writes a folder for each;
the second takes one split by its json. Train on the result with
``anydepth-train data=coco_streaming data.root=shards/coco``, or copy it to a bucket as it is and give its
address: ``data.root=s3://bucket/coco`` or ``data.root=https://host/coco``.

An interrupted run is gone on with by the same command: finished shards are verified and kept. A split is
complete when its ``manifest.json`` is there; it holds the sizes and checksums of everything beside it.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anydepth.data.coco.categories import Categories, read_categories
from anydepth.data.coco.index import CocoIndex
from anydepth.data.coco.layout import SPLIT_NAMES, Split, find_split
from anydepth.data.errors import DataError
from anydepth.data.shards.manifest import Manifest
from anydepth.data.shards.writer import Progress as Done
from anydepth.data.shards.writer import write_shards


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, nargs="?", help="folder of the data set; not with --json")
    parser.add_argument("output", type=Path, help="folder for the splits; with --json: for this split")
    parser.add_argument(
        "--splits", nargs="+", choices=SPLIT_NAMES, default=["train", "val"], help="default: train val"
    )
    parser.add_argument("--json", type=Path, help="COCO json of one split, instead of a root")
    parser.add_argument("--images", type=Path, help="folder that the file names in --json are relative to")
    parser.add_argument(
        "--categories",
        type=Path,
        help="json whose categories rule the labels: give the training json with --json of another split",
    )
    parser.add_argument("--shard-mb", type=float, default=64.0, help="megabytes of a shard; default: 64")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes; default: one for each core"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace complete splits of other images or annotations"
    )
    arguments = parser.parse_args()
    if (arguments.json is None) != (arguments.images is None):
        parser.error("--json and --images belong together")
    if (arguments.json is None) == (arguments.root is None):
        parser.error("give either the data set's folder and the output, or --json, --images and the output")
    if arguments.json is None and arguments.categories is not None:
        parser.error("--categories goes with --json; with a root the training split's are taken")
    return arguments


def main() -> None:
    """Prepare what the command line asks for."""
    arguments = parse_arguments()
    console = Console(stderr=True, highlight=False)
    try:
        if arguments.json is not None:
            rules = None if arguments.categories is None else read_categories(arguments.categories)
            prepare(Split(arguments.json, arguments.images), arguments.output, rules, arguments, console)
            return
        splits = {name: find_split(arguments.root, name) for name in arguments.splits}
        rules = read_categories(find_split(arguments.root, "train").json_path)
        for name, split in splits.items():
            prepare(split, arguments.output / name, rules, arguments, console)
    except DataError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; run the same command again to go on")


def prepare(
    split: Split, folder: Path, rules: Categories | None, arguments: argparse.Namespace, console: Console
) -> None:
    """Prepare one split, and say what it holds."""
    console.print(f"{folder}: reading {split.json_path}", soft_wrap=True)
    index = CocoIndex.load(
        split.json_path,
        split.image_root,
        categories=rules,
        for_training=folder.name == "train",
        outlines=True,
        report=lambda text: console.print(text, soft_wrap=True),
    )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        manifest = write_shards(
            index,
            folder,
            shard_mb=arguments.shard_mb,
            workers=arguments.workers,
            overwrite=arguments.overwrite,
            report=shown_in(progress, str(folder), len(index)),
        )
    console.print(f"{folder}: complete: {describe(manifest)}", soft_wrap=True)


def shown_in(progress: Progress, name: str, total: int) -> Callable[[Done], None]:
    """What moves a bar forward."""
    task = progress.add_task(name, total=total)

    def show(done: Done) -> None:
        kept = f" ({done.kept} shards kept)" if done.kept else ""
        progress.update(task, completed=done.images, description=name + kept)

    return show


def describe(manifest: Manifest) -> str:
    """Counts, for the last line."""
    size = sum(shard.file.size for shard in manifest.shards)
    return (
        f"{manifest.images} images, {manifest.boxes} boxes, {len(manifest.categories.ids)} classes in "
        f"{len(manifest.shards)} shards, {size / 1e9:.3g} GB"
    )


if __name__ == "__main__":
    main()

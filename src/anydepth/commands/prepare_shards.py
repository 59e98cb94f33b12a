"""``anydepth-data shards``: pack a data set in COCO format into shards for streaming."""

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anydepth.data.coco.categories import Categories, read_categories
from anydepth.data.coco.index import CocoIndex
from anydepth.data.coco.layout import Split, find_split
from anydepth.data.shards.manifest import Manifest
from anydepth.data.shards.writer import Progress as ShardProgress
from anydepth.data.shards.writer import write_shards
from anydepth.utils.console import print_lines


def run(options: argparse.Namespace) -> int:
    """Write the shards of each split.

    Args:
        options: See :func:`anydepth.commands.data_options.parse_shards`.

    Returns:
        The exit status: 0, or 1 if interrupted.

    Raises:
        DataError: A split cannot be found, read or written; finished shards are kept.
    """
    console = Console(stderr=True, highlight=False)
    try:
        if options.json is not None:
            categories = None if options.categories is None else read_categories(options.categories)
            _prepare(Split(options.json, options.images), options.output, categories, options, console)
            return 0
        splits = {name: find_split(options.root, name) for name in options.splits}
        categories = read_categories(find_split(options.root, "train").json_path)
        for name, split in splits.items():
            _prepare(split, options.output / name, categories, options, console)
    except KeyboardInterrupt:
        print_lines("", "interrupted; run the same command again to resume", console=console)
        return 1
    return 0


def _prepare(
    split: Split,
    folder: Path,
    categories: Categories | None,
    options: argparse.Namespace,
    console: Console,
) -> None:
    print_lines(f"{folder}: reading {split.json_path}", console=console)
    index = CocoIndex.load(
        split.json_path,
        split.image_root,
        categories=categories,
        for_training=folder.name == "train",
        outlines=True,
        report=lambda text: print_lines(text, console=console),
    )
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        manifest = write_shards(
            index,
            folder,
            shard_mb=options.shard_mb,
            workers=options.workers,
            overwrite=options.overwrite,
            report=_add_bar(progress, str(folder), len(index)),
        )
    print_lines(f"{folder}: complete: {_describe(manifest)}", console=console)


def _add_bar(progress: Progress, name: str, total: int) -> Callable[[ShardProgress], None]:
    """Add a bar, and return the function that advances it."""
    task = progress.add_task(name, total=total)

    def update(done: ShardProgress) -> None:
        kept = f" ({done.kept} shards kept)" if done.kept else ""
        progress.update(task, completed=done.images, description=name + kept)

    return update


def _describe(manifest: Manifest) -> str:
    size = sum(shard.file.size for shard in manifest.shards)
    return (
        f"{manifest.images} images, {manifest.boxes} boxes, {len(manifest.categories.ids)} classes in "
        f"{len(manifest.shards)} shards, {size / 1e9:.3g} GB"
    )

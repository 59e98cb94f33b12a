"""Console output of downloads and imports."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from anydepth.data.fetch.download import Progress
from anydepth.utils.console import print_lines, printable

if TYPE_CHECKING:
    # It imports torch, which downloads do not need.
    from anydepth.data.convert.dataset import ForeignDataset

_MAX_CLASSES = 30  # Rows of the table, so that the counts of images stay on the screen.


@contextmanager
def download_bar(name: str, console: Console) -> Iterator[Progress]:
    """Show the progress of a download.

    Args:
        name: Name of the file.
        console: Console to draw on.

    Yields:
        Function that updates the bar.
    """
    description = TextColumn("{task.description}", markup=False)
    with Bars(description, BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task(name, total=None)

        def show(done: int, total: int | None) -> None:
            ready = " (checking and unpacking)" if done == total else ""
            bars.update(task, completed=done, total=total, description=name + ready)

        yield show
        bars.update(task, description=name)


def print_summary(dataset: "ForeignDataset", console: Console) -> None:
    """Print images and boxes of each split and class, what was skipped and why, and the remarks."""
    console.print(_table(dataset, console))
    for line in dataset.describe_skipped():
        print_lines(line, console=console)
    for remark in dataset.remarks:
        print_lines(f"note: {remark}", console=console)


def _table(dataset: "ForeignDataset", console: Console) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    counts = {
        split: Counter((item.class_name, item.ignored) for image in images for item in image.objects)
        for split, images in dataset.splits.items()
    }
    for split in dataset.splits:
        table.add_column(split, justify="right")
    rows: list[tuple[str, list[int]]] = [
        ("images", [len(images) for images in dataset.splits.values()]),
        (
            "images without objects",
            [sum(not image.objects for image in part) for part in dataset.splits.values()],
        ),
        ("training boxes", [_total(count, ignored=False) for count in counts.values()]),
        ("ignored boxes", [_total(count, ignored=True) for count in counts.values()]),
    ]
    rows += [
        (f"  {name}", [count[name, False] for count in counts.values()])
        for name in dataset.class_names[:_MAX_CLASSES]
    ]
    for title, numbers in rows:
        # Text and not a string: brackets in the name of a class would be markup.
        table.add_row(Text(printable(title, console)), *(f"{number:,}" for number in numbers))
    if len(dataset.class_names) > _MAX_CLASSES:
        table.add_row(f"  and {len(dataset.class_names) - _MAX_CLASSES} more classes")
    return table


def _total(count: Counter[tuple[str, bool]], *, ignored: bool) -> int:
    return sum(number for (_, kind), number in count.items() if kind == ignored)

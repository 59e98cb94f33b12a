"""Depth curves as console tables, and the files of a depth curve."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anydepth.evaluation.coco_eval import NO_GROUND_TRUTH
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow
from anydepth.results.charts import save_depth_chart
from anydepth.utils.files import write_text


@dataclass(frozen=True)
class _Column:
    """Column of the table.

    Attributes:
        title: Heading.
        cell: Function that formats the cell of a row.
        dispensable: Rank in which columns are dropped if the table is too wide, highest first; 0 for never.
    """

    title: str
    cell: Callable[[DepthRow], str]
    dispensable: int = 0


def depth_table(curve: DepthCurve, width: int | None = None) -> Table:
    """Return a depth curve as a table; metrics in percent, "-" if the images hold no object of that kind.

    The column ``refines`` has one character per stage: ``x`` if its refinement path runs. Columns without
    values (latency that was not measured, decoder layers that do not exist) are left out.

    Args:
        curve: Curve to show.
        width: Available width in characters; less important columns are dropped until the table fits, and
            named below it.
    """
    known = [column for column in _COLUMNS if any(column.cell(row) for row in curve.rows)]
    columns = known
    table = _build_table(curve, columns)
    while width is not None and Console(width=1000).measure(table).maximum > width:
        least_important = max(column.dispensable for column in columns)
        if not least_important:
            break
        columns = [column for column in columns if column.dispensable < least_important]
        table = _build_table(curve, columns, [column.title for column in known if column not in columns])
    return table


def print_depth_curve(curve: DepthCurve, console: Console | None = None) -> None:
    """Print the table of a depth curve with the latency protocol as its caption, and the table of classes."""
    console = console or Console()
    console.print(depth_table(curve, console.width))
    if any(len(row.per_class) > 1 for row in curve.rows):
        console.print(class_table(curve))


def class_table(curve: DepthCurve, most: int = 20) -> Table:
    """Return AP of each class at the deepest and the shallowest depth, and what lies between them.

    Args:
        curve: Curve to show.
        most: Number of classes up to which all are shown, in their order; of more, those that lose the most.
    """
    deepest = max(curve.rows, key=lambda row: row.gflops)
    shallowest = min(curve.rows, key=lambda row: row.gflops)
    rows = [(name, deepest.per_class[name], shallowest.per_class[name]) for name in deepest.per_class]
    caption = None
    if len(rows) > most:
        caption = f"the {most} of {len(rows)} classes that lose the most; all are in the csv file"
        known = [row for row in rows if NO_GROUND_TRUTH not in row[1:]]
        rows = sorted(known, key=lambda row: row[2] - row[1])[:most]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("class", overflow="fold")
    several = deepest.depth != shallowest.depth
    for title in [f"AP {deepest.depth}", *([f"AP {shallowest.depth}", "change"] if several else [])]:
        table.add_column(title, justify="right", no_wrap=True)
    for name, deep, shallow in rows:
        change = "-" if NO_GROUND_TRUTH in (deep, shallow) else f"{100 * (shallow - deep):+.1f}"
        change = "0.0" if change in ("+0.0", "-0.0") else change
        # Text and not a string, in which brackets would be markup.
        table.add_row(Text(name), _percent(deep), *([_percent(shallow), change] if several else []))
    return table


def write_depth_curve(curve: DepthCurve, folder: str | Path, name: str = "depth_curve") -> dict[str, Path]:
    """Write a depth curve as ``NAME.csv``, ``NAME.json`` and ``NAME.png``, each complete or not at all.

    Returns:
        Paths by suffix without the dot.
    """
    paths = {suffix: Path(folder) / f"{name}.{suffix}" for suffix in ("csv", "json", "png")}
    write_text(paths["csv"], curve.to_csv())
    write_text(paths["json"], curve.to_json())
    save_depth_chart(curve, paths["png"])
    return paths


def _build_table(curve: DepthCurve, columns: list[_Column], left_out: Sequence[str] = ()) -> Table:
    height, width = curve.input_size
    setting = f"{curve.images} images, {height}x{width} pixels, {curve.precision}, {curve.boxes_text}"
    notes = [] if curve.protocol is None else [f"latency: {curve.protocol}"]
    if left_out:
        notes.append(f"without room here, but in the csv file: {', '.join(left_out)}")
    table = Table(
        # Text and not a string, in which brackets would be markup: the names come from outside.
        title=Text(f"{curve.detector}: {setting}"),
        caption=Text("\n".join(notes)) if notes else None,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        # Both wrap at the width of the columns, where centred lines would be hard to read.
        caption_justify="left",
        title_justify="left",
    )
    for column in columns:
        if column.title == "depth":
            table.add_column(column.title, overflow="fold")
        else:
            table.add_column(column.title, justify="right", no_wrap=True)
    for row in curve.rows:
        table.add_row(*(column.cell(row) for column in columns))
    return table


def _refines(row: DepthRow) -> str:
    return "".join("x" if runs else "." for runs in row.refine.values())


def _decoder_layers(row: DepthRow) -> str:
    return "" if row.decoder_layers is None else str(row.decoder_layers)


def _median(row: DepthRow) -> str:
    return "" if row.latency is None else f"{row.latency.median_ms:.1f}"


def _p90(row: DepthRow) -> str:
    return "" if row.latency is None else f"{row.latency.p90_ms:.1f}"


def _memory(row: DepthRow) -> str:
    if row.latency is None or row.latency.peak_memory_mib is None:
        return ""
    return f"{row.latency.peak_memory_mib:.0f}"


def _percent(value: float) -> str:
    return "-" if value == NO_GROUND_TRUTH else f"{100 * value:.1f}"


def _metric_cell(name: str) -> Callable[[DepthRow], str]:
    return lambda row: _percent(row.figures[name])


_COLUMNS = (
    _Column("depth", lambda row: row.depth),
    _Column("refines", _refines, dispensable=8),
    _Column("decoder", _decoder_layers, dispensable=3),
    _Column("params run", lambda row: f"{row.parameters_run / 1e6:.2f} M", dispensable=2),
    _Column("GFLOPs", lambda row: f"{row.gflops:.2f}"),
    _Column("ms", _median),
    _Column("p90", _p90, dispensable=4),
    _Column("MiB", _memory, dispensable=5),
    _Column("AP", _metric_cell("AP")),
    _Column("AP50", _metric_cell("AP50")),
    _Column("AP75", _metric_cell("AP75"), dispensable=1),
    _Column("APs", _metric_cell("APs"), dispensable=7),
    _Column("APm", _metric_cell("APm"), dispensable=7),
    _Column("APl", _metric_cell("APl"), dispensable=7),
    _Column("AR100", _metric_cell("AR100"), dispensable=6),
)

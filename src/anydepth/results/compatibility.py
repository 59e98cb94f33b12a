"""Compatibility of features as a chart, as console tables, and as files."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from anydepth.evaluation.compatibility import Compatibility
from anydepth.utils.console import print_lines
from anydepth.utils.files import atomic_path, write_text

TITLES = {"cka": "linear CKA", "cosine": "cosine", "l2": "relative L2"}
_KINDS = ("pooled", "spatial")
# Measures printed on the console; the files hold all of them.
_PRINTED_MEASURES = ("spatial_cka", "pooled_cka", "spatial_cosine", "spatial_l2")


def write_compatibility(
    found: Compatibility, folder: str | Path, name: str = "compatibility"
) -> dict[str, Path]:
    """Write ``NAME.json``, ``NAME.csv`` and ``NAME.png``, each complete or not at all.

    Returns:
        Paths by suffix without the dot.
    """
    paths = {suffix: Path(folder) / f"{name}.{suffix}" for suffix in ("csv", "json", "png")}
    write_text(paths["csv"], found.to_csv())
    write_text(paths["json"], found.to_json())
    save_compatibility_chart(found, paths["png"])
    return paths


def save_compatibility_chart(found: Compatibility, path: str | Path) -> None:
    """Draw one heat map per measure, depths by stages, with the numbers in the cells, as a PNG.

    Dark means far from full depth. Colours cover the range 0 to 1: CKA and cosine of 0 and below are equally
    dark, as is relative L2 of 1 and above.
    """
    rows, columns = len(found.depths), len(found.stages)
    size = (2.6 + 3 * max(2.2, 0.52 * columns), 1.9 + 2 * max(1.2, 0.3 * rows))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    height, width = found.input_size
    figure.suptitle(
        f"{found.detector}: features of each stage against those of full depth\n"
        f"{found.images} images at {height}x{width}",
        fontsize=11,
    )
    panels = figure.subplots(len(_KINDS), len(TITLES), sharex=True, sharey=True, squeeze=False)
    for kind, line in zip(_KINDS, panels, strict=True):
        for (measure, title), axes in zip(TITLES.items(), line, strict=True):
            _draw(axes, found, f"{kind}_{measure}")
            axes.set_title(f"{kind} {title}", fontsize=10)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png")


def compatibility_table(found: Compatibility, measure: str, width: int | None = None) -> Table:
    """Return one measure as a table of depths by stages.

    Args:
        found: Compatibility to show.
        measure: Name from :data:`anydepth.evaluation.compatibility.MEASURES`.
        width: Available width in characters; depths that do not fit are continued in the next line.
    """
    kind, _, name = measure.partition("_")
    table = Table(
        title=f"{kind} {TITLES[name]} with full depth",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
    )
    narrow = width is not None and width < 30 + 8 * len(found.stages)
    table.add_column("depth", max_width=12 if narrow else None, overflow="fold")
    for stage in found.stages:
        table.add_column(stage, justify="right", no_wrap=True, min_width=6)
    for depth, values in zip(found.depths, _matrix(found, measure).tolist(), strict=True):
        table.add_row(depth, *(f"{value:.3f}" for value in values))
    return table


def print_compatibility(found: Compatibility, console: Console | None = None) -> None:
    """Print the conditions of the measurement and tables of depths by stages."""
    console = console or Console()
    height, width = found.input_size
    print_lines(
        f"{found.detector}: features of {found.images} images at {height}x{width} pixels, {found.precision}; "
        f"spatial: up to {max(found.positions.values())} positions per image and map",
        console=console,
    )
    for measure in _PRINTED_MEASURES:
        console.print(compatibility_table(found, measure, console.width))
    biased = [stage for stage, channels in found.channels.items() if found.images <= channels]
    if biased:
        print_lines(
            f"pooled CKA of {', '.join(biased)} comes from no more images ({found.images}) than channels "
            "and is biased towards 1: compare it between depths only, or use more images",
            console=console,
        )


def _matrix(found: Compatibility, measure: str) -> NDArray[np.float64]:
    """Return [depths, stages] values, the order of the rows of a compatibility."""
    values = [row.values[measure] for row in found.rows]
    return np.array(values, dtype=np.float64).reshape(len(found.depths), len(found.stages))


def _draw(axes: Axes, found: Compatibility, measure: str) -> None:
    values = _matrix(found, measure)
    similarity = 1 - values if measure.endswith("l2") else values
    axes.imshow(similarity, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        dark = similarity[row, column] < 0.5
        text = f"{value:.2f}" if abs(value) < 9.995 else f"{value:.0f}"
        colour = "white" if dark else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(found.stages)), found.stages, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(found.depths)), found.depths, fontsize=8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)

"""Console output of the analysis of all depth configurations."""

from rich import box
from rich.console import Console
from rich.table import Table

from anydepth.evaluation.curve_analysis import Cliff, CurveAnalysis, Rung
from anydepth.utils.console import print_lines


def print_curve_analysis(found: CurveAnalysis, console: Console | None = None) -> None:
    """Print the ladders, the cliffs and the size of the Pareto front."""
    console = console or Console()
    lines = [
        f"{found.detector}: {found.configurations} configurations on {found.images} images, "
        f"{len(found.pareto)} of them Pareto-optimal",
        f"largest cliff: {_format_cliff(found.largest_cliff)}",
    ]
    if found.largest_cliff_in_range != found.largest_cliff:
        lines.append(f"largest cliff of the trained range: {_format_cliff(found.largest_cliff_in_range)}")
    print_lines(*lines, console=console)
    console.print(ladders_table(found))
    console.print(cliffs_table(found))


def ladders_table(found: CurveAnalysis) -> Table:
    """Return a table with the measured ladder beside the one in stage order, step by step."""
    table = Table(
        title="measured ladder, and ladder in stage order",
        caption=f"mean AP {_mean_ap(found.measured_ladder):.2f} of the measured ladder, "
        f"{_mean_ap(found.stage_ladder):.2f} of the ladder in stage order",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    for title in ("measured removes", "GFLOPs", "AP", "stage order removes", "GFLOPs", "AP"):
        table.add_column(title, justify="left" if "removes" in title else "right", no_wrap=True)
    for measured, staged in zip(found.measured_ladder, found.stage_ladder, strict=True):
        table.add_row(*_cells(measured), *_cells(staged))
    return table


def cliffs_table(found: CurveAnalysis) -> Table:
    """Return a table of the largest AP loss by removed part, between full and minimal depth."""
    table = Table(title="most AP lost by removing", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("part", no_wrap=True)
    table.add_column("AP lost", justify="right", no_wrap=True)
    table.add_column("from")
    table.add_column("to")
    for cliff in found.cliffs:
        table.add_row(cliff.removed, f"{100 * cliff.loss:.2f}", cliff.deeper, cliff.shallower)
    return table


def _cells(rung: Rung) -> tuple[str, str, str]:
    return rung.removed or rung.depth, f"{rung.gflops:.2f}", f"{100 * rung.ap:.2f}"


def _mean_ap(ladder: tuple[Rung, ...]) -> float:
    return 100 * sum(rung.ap for rung in ladder) / len(ladder)


def _format_cliff(cliff: Cliff) -> str:
    return f"{100 * cliff.loss:.2f} AP without {cliff.removed}, from {cliff.deeper} to {cliff.shallower}"

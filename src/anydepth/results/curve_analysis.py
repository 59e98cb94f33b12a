"""The analysis of all configurations on the console."""

from rich import box
from rich.console import Console
from rich.table import Table

from anydepth.evaluation.curve_analysis import Cliff, CurveAnalysis, Rung


def print_curve_analysis(found: CurveAnalysis, console: Console | None = None) -> None:
    """Print the ladders, the cliffs and the size of the Pareto front."""
    console = console or Console()
    lines = [
        f"{found.detector}: {found.configurations} configurations on {found.images} images, "
        f"{len(found.pareto)} of them Pareto-optimal",
        f"largest cliff: {_cliff(found.largest_cliff)}",
    ]
    if found.largest_cliff_in_range != found.largest_cliff:
        lines.append(f"largest cliff of the trained range: {_cliff(found.largest_cliff_in_range)}")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    console.print(ladders_table(found))
    console.print(cliffs_table(found))


def ladders_table(found: CurveAnalysis) -> Table:
    """The measured ladder beside the one in the order of the stages, step by step."""
    table = Table(
        title="measured ladder, and the one in the order of the stages",
        caption=f"mean AP {_mean(found.measured_ladder):.2f} of the measured ladder, "
        f"{_mean(found.stage_ladder):.2f} of the other",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    for title in ("measured removes", "GFLOPs", "AP", "stage order removes", "GFLOPs", "AP"):
        table.add_column(title, justify="left" if "removes" in title else "right", no_wrap=True)
    for ours, theirs in zip(found.measured_ladder, found.stage_ladder, strict=True):
        table.add_row(*_cells(ours), *_cells(theirs))
    return table


def cliffs_table(found: CurveAnalysis) -> Table:
    """The largest loss by removed part, of configurations between full and minimal."""
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


def _mean(ladder: tuple[Rung, ...]) -> float:
    return 100 * sum(rung.ap for rung in ladder) / len(ladder)


def _cliff(cliff: Cliff) -> str:
    return f"{100 * cliff.loss:.2f} AP without {cliff.removed}, from {cliff.deeper} to {cliff.shallower}"

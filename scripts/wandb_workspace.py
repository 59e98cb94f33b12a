"""Create the saved view of depth curves in a project of Weights & Biases.

Usage: ``python scripts/wandb_workspace.py --entity TEAM --project anydepth`` (needs the extra ``workspace``)

The view holds AP against GFLOPs and against latency with one line per selected run, summary figures as bars
and as columns of the run table, AP of each depth over the epochs, losses of both passes, distillation terms,
norms and cosines of gradients, and detections with one layer per depth. Each run of the script creates
another view; views are deleted in the browser. ``--spec FILE`` writes the view to a file and contacts no
server.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anydepth.results.wandb_media import COST_AXIS, LATENCY_AXIS, SUMMARY, TRAINING_AXIS

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

SUMMARY_FIGURES = {
    "AP_full": "AP at full depth",
    "AP_minimal": "AP at minimal depth",
    "AP_ladder_mean": "mean AP over the ladder",
    "AP_area": "mean AP over cost",
    "hypervolume": "hypervolume",
    "largest_drop": "largest drop between neighbouring rungs",
}
PICTURES = 8
"""Panels of pictures: the default of ``curve.pictures``."""


def build_workspace(entity: str, project: str, name: str, max_runs: int) -> "Workspace":
    """Build the view as an object of W&B's library.

    Args:
        entity: User or team.
        project: Project of the entity.
        name: Name in the list of views.
        max_runs: Most runs in each panel.
    """
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    figures = [f"{SUMMARY}/{figure}" for figure in SUMMARY_FIGURES]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[_curves(), _summaries(), _validation(), _training(), _gradients(), _pictures()],
        settings=ws.WorkspaceSettings(max_runs=max_runs),
        runset_settings=ws.RunsetSettings(
            order=[expr.Ordering(expr.Summary(figures[2]), ascending=False)],
            pinned_columns=["run:displayName", *(f"summary:{figure}" for figure in figures)],
        ),
    )


def _curves() -> "Section":
    panels = []
    for figure in ("AP", "AP50", "AP75"):
        panels += [
            _line(f"{figure} against GFLOPs", COST_AXIS, [f"{COST_AXIS.split('/')[0]}/{figure}"], "GFLOPs"),
            _line(
                f"{figure} against latency", LATENCY_AXIS, [f"{LATENCY_AXIS.split('/')[0]}/{figure}"], "ms"
            ),
        ]
    return _section("Depth curves", panels, columns=2)


def _summaries() -> "Section":
    import wandb_workspaces.reports.v2 as wr

    panels = [
        wr.BarPlot(title=title, metrics=[f"{SUMMARY}/{figure}"]) for figure, title in SUMMARY_FIGURES.items()
    ]
    return _section("Summary of the curves", [*panels, wr.RunComparer(diff_only="split")])


def _validation() -> "Section":
    return _section(
        "Validation",
        [
            _line("Score that selects checkpoints", "epoch", ["val/score"]),
            _line("AP at full depth", "epoch", ["val/full/AP"]),
            _line("AP at minimal depth", "epoch", ["val/minimal/AP"]),
            _matching("AP at every validated depth", "epoch", r"^val/.+/AP$"),
        ],
    )


def _training() -> "Section":
    return _section(
        "Losses",
        [
            _matching("Losses of all passes", TRAINING_AXIS, r"^train/.+/loss$"),
            _line("Loss of the full pass", TRAINING_AXIS, ["train/full/loss"]),
            _line("Loss of the minimal pass", TRAINING_AXIS, ["train/minimal/loss"]),
            _matching("Distillation terms", TRAINING_AXIS, r"^train/.+/kd_.+$"),
        ],
    )


def _gradients() -> "Section":
    return _section(
        "Gradients",
        [
            _line("Norm of the gradients before clipping", TRAINING_AXIS, ["train/gradient_norm"]),
            _matching("Norm of each pass's gradients", TRAINING_AXIS, r"^gradients/norm/.+$"),
            _matching("Cosine of the passes' gradients", TRAINING_AXIS, r"^gradients/cosine/.+/all$"),
            _matching("Cosine by module", TRAINING_AXIS, r"^gradients/cosine/.+/.+$"),
        ],
    )


def _pictures() -> "Section":
    import wandb_workspaces.reports.v2 as wr

    keys = [f"detections/{number}" for number in range(1, PICTURES + 1)]
    return _section("Detections", [wr.MediaBrowser(title=key, media_keys=[key]) for key in keys])


def _line(title: str, x: str, y: list[str], title_x: str | None = None) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(title=title, x=x, y=y, title_x=title_x)


def _matching(title: str, x: str, pattern: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(title=title, x=x, metric_regex=pattern)


def _section(name: str, panels: list[Any], columns: int = 3) -> "Section":
    import wandb_workspaces.workspaces as ws

    rows = min(3, -(-len(panels) // columns))
    layout = ws.SectionLayoutSettings(columns=columns, rows=rows)
    return ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout)


def spec_of(workspace: "Workspace") -> dict[str, Any]:
    """Return the saved specification of a view as plain containers."""
    spec: dict[str, Any] = workspace._to_model().spec.model_dump(by_alias=True, exclude_none=True)
    return spec


def wandb_error() -> type[Exception]:
    """Return the base class of wandb's errors."""
    import wandb

    return wandb.errors.Error


def main() -> None:
    """Create the view, or write its specification."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entity", required=True, help="user or team")
    parser.add_argument("--project", default="anydepth", help="project of the runs (default: %(default)s)")
    parser.add_argument("--name", default="Depth curves", help="name of the view (default: %(default)s)")
    parser.add_argument("--max-runs", type=int, default=30, help="most runs per panel (default: %(default)s)")
    parser.add_argument(
        "--spec", type=Path, metavar="FILE", help="write the view as JSON instead of saving it"
    )
    arguments = parser.parse_args()
    try:
        workspace = build_workspace(arguments.entity, arguments.project, arguments.name, arguments.max_runs)
    except ModuleNotFoundError as error:
        sys.exit(f'Error: {error}; install it with: pip install ".[workspace]" in the checkout')
    if arguments.spec:
        arguments.spec.write_text(json.dumps(spec_of(workspace), indent=2) + "\n", encoding="utf-8")
        print(arguments.spec)
        return
    try:
        print(workspace.save().url)
    except (OSError, ValueError, TypeError, wandb_error()) as error:
        sys.exit(f"Error: the view was not saved: {error} (`wandb login` stores an API key)")


if __name__ == "__main__":
    main()

"""Training logs, downsampled, as plain data for the charts of the page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anydepth.evaluation.coco_eval import NO_GROUND_TRUTH
from anydepth.report.comparison import Comparison
from anydepth.report.logs import Series

Json = dict[str, Any]

MAX_POINTS = 160
"""Points per line, about one per few pixels of a chart: longer series become means of neighbouring values."""

VALIDATION_FIGURES = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Metric:
    """Entry of the selector: a column of the log, or several that belong together.

    Attributes:
        group: Heading in the selector.
        label: Label in the selector.
        unit: Title of the axis.
        columns: Labels of the lines by name of the column; lines differ in their dashes.
    """

    group: str
    label: str
    unit: str
    columns: Mapping[str, str]


def training(comparison: Comparison) -> Json | None:
    """Return losses per pass and term, validation, gradient norm and learning rates; None without logs."""
    return _section(comparison, training_metrics)


def gradients(comparison: Comparison) -> Json | None:
    """Return the agreement of the gradients of the passes, per module; None if no run measured it."""
    return _section(comparison, gradient_metrics)


def training_metrics(columns: Sequence[str]) -> list[Metric]:
    """Return the metrics of the columns of logs, most important first."""
    return [
        *_validation(columns),
        *_losses(columns),
        *_single(columns, "train/gradient_norm", "Optimization", "gradient norm"),
        *_together(columns, "lr/", "Optimization", "learning rates", "learning rate"),
    ]


def gradient_metrics(columns: Sequence[str]) -> list[Metric]:
    """Return cosines and norms of the gradients of the passes: all parameters, then module by module."""
    modules = _cosines(columns)
    passes = list(dict.fromkeys(name for columns in modules.values() for name in columns.values()))
    # Several passes differ in their dashes.
    cosine = (
        f"cosine between the gradients of the first pass and {passes[0] if len(passes) == 1 else 'another'}"
    )
    all_modules = modules.pop("all", None)
    return [
        *(
            [Metric("Cosine", f"{cosine}, all shared parameters", "cosine", all_modules)]
            if all_modules
            else []
        ),
        *[
            Metric("Cosine of a module", f"{cosine}: {name}", "cosine", lines)
            for name, lines in modules.items()
        ],
        *_together(columns, "gradients/norm/", "Norm", "gradient norm of each pass", "norm"),
    ]


def downsample(series: Series, max_points: int = MAX_POINTS) -> Series:
    """Return at most ``max_points`` points: means of equally many neighbouring ones.

    Example:
        >>> downsample(Series((1, 2, 3, 4), (0.0, 0.0, 1.0, 1.0), (1.0, 3.0, 5.0, 7.0)), max_points=2)
        Series(steps=(2, 4), epochs=(0.0, 1.0), values=(2.0, 6.0))
    """
    size = -(-len(series.values) // max_points)
    if size <= 1:
        return series
    groups = [slice(start, start + size) for start in range(0, len(series.values), size)]
    return Series(
        steps=tuple(series.steps[group][-1] for group in groups),
        epochs=tuple(series.epochs[group][-1] for group in groups),
        values=tuple(sum(series.values[group]) / len(series.values[group]) for group in groups),
    )


def _section(comparison: Comparison, choose: Callable[[Sequence[str]], list[Metric]]) -> Json | None:
    runs = [(at, run) for at, setting in enumerate(comparison.settings) for run in setting.runs]
    columns = list(dict.fromkeys(column for _, run in runs for column, log in run.log.items() if log.values))
    metrics = choose(columns)
    if not metrics:
        return None
    needed = {column for metric in metrics for column in metric.columns}
    return {
        "metrics": [_metric(metric) for metric in metrics],
        "runs": [
            {"setting": at, "name": run.name, **_lines({c: s for c, s in run.log.items() if c in needed})}
            for at, run in runs
        ],
    }


def _metric(metric: Metric) -> Json:
    columns = [{"name": name, "label": label} for name, label in metric.columns.items()]
    return {"group": metric.group, "label": metric.label, "unit": metric.unit, "columns": columns}


def _lines(log: Mapping[str, Series]) -> Json:
    """Return values by column, and each distinct axis of steps and epochs once."""
    axes: dict[tuple[tuple[int, ...], tuple[float, ...]], int] = {}
    series = {}
    for column, logged in log.items():
        line = downsample(_drop_missing(logged) if column.startswith("val/") else logged)
        if not line.values:
            continue
        axis = axes.setdefault((line.steps, line.epochs), len(axes))
        scale = 100 if column.startswith("val/") else 1
        series[column] = {"axis": axis, "values": [float(f"{scale * value:.5g}") for value in line.values]}
    plain_axes = [{"steps": list(steps), "epochs": [round(e, 3) for e in epochs]} for steps, epochs in axes]
    return {"axes": plain_axes, "series": series}


def _drop_missing(series: Series) -> Series:
    """Remove the -1 of images without ground truth, which is not an accuracy of -100 percent."""
    kept = [at for at, value in enumerate(series.values) if value != NO_GROUND_TRUTH]
    return Series(
        steps=tuple(series.steps[at] for at in kept),
        epochs=tuple(series.epochs[at] for at in kept),
        values=tuple(series.values[at] for at in kept),
    )


def _validation(columns: Sequence[str]) -> list[Metric]:
    metrics = []
    for figure in VALIDATION_FIGURES:
        found = {
            column: column.removeprefix("val/").removesuffix(f"/{figure}")
            for column in columns
            if column.startswith("val/") and column.endswith(f"/{figure}")
        }
        if found:
            metrics.append(Metric("Validation", f"{figure} per depth", f"{figure}, percent", found))
    return metrics + _single(columns, "val/score", "Validation", "score that selects the best epoch")


def _cosines(columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the columns ``gradients/cosine/PASS/MODULE`` with their pass, by module."""
    modules: dict[str, dict[str, str]] = {}
    for column in columns:
        # The name of a pass may be 1/2; no module has a slash.
        pass_name, _, module = column.removeprefix("gradients/cosine/").rpartition("/")
        if column.startswith("gradients/cosine/") and pass_name:
            modules.setdefault(module, {})[column] = pass_name
    return modules


def _losses(columns: Sequence[str]) -> list[Metric]:
    """Return the total loss of all passes in one metric, then each term with a line per pass."""
    terms: dict[str, dict[str, str]] = {}
    for column in columns:
        if column.startswith("train/") and column.count("/") >= 2:
            pass_name, _, term = column.removeprefix("train/").rpartition("/")
            terms.setdefault(term, {})[column] = pass_name
    metrics = []
    if total := terms.pop("loss", None):
        metrics.append(Metric("Loss", "total loss per pass", "loss", total))
    for term, found in sorted(terms.items(), key=lambda item: (not item[0].startswith("kd_"), item[0])):
        group = "Distillation" if term.startswith("kd_") else "Loss terms"
        metrics.append(Metric(group, term, term, found))
    return metrics


def _single(columns: Sequence[str], column: str, group: str, label: str) -> list[Metric]:
    return [Metric(group, label, label.partition(",")[0], {column: label})] if column in columns else []


def _together(columns: Sequence[str], prefix: str, group: str, label: str, unit: str) -> list[Metric]:
    found = {column: column.removeprefix(prefix) for column in columns if column.startswith(prefix)}
    return [Metric(group, label, unit, found)] if found else []

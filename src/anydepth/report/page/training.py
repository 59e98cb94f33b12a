"""What runs logged during training, thinned out, as plain data for the charts of the page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anydepth.evaluation.coco_eval import NO_GROUND_TRUTH
from anydepth.report.comparison import Comparison
from anydepth.report.logs import Series

Json = dict[str, Any]

MOST_POINTS = 160
"""Of one line: longer series are shown as means of neighbouring values."""

VALIDATION_FIGURES = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Metric:
    """One entry of the selector: a column of the log, or several that belong together.

    Attributes:
        group: Heading in the selector.
        label: What it is called there.
        unit: Title of the axis.
        columns: By name of the column, how its line is called; told apart by dashes.
    """

    group: str
    label: str
    unit: str
    columns: Mapping[str, str]


def training(comparison: Comparison) -> Json | None:
    """Losses per path and term, validation per depth, gradient norm and learning rates; None without logs."""
    return _section(comparison, training_metrics)


def gradients(comparison: Comparison) -> Json | None:
    """How far the gradients of the paths agree, per module; None where no run measured it."""
    return _section(comparison, gradient_metrics)


def training_metrics(columns: Sequence[str]) -> list[Metric]:
    """What the columns of logs offer to look at, most telling first."""
    return [
        *_validation(columns),
        *_losses(columns),
        *_single(columns, "train/gradient_norm", "Optimization", "gradient norm"),
        *_together(columns, "lr/", "Optimization", "learning rates", "learning rate"),
    ]


def gradient_metrics(columns: Sequence[str]) -> list[Metric]:
    """Cosines and norms of the paths' gradients: everything together, then module by module."""
    modules = _cosines(columns)
    paths = list(dict.fromkeys(path for of in modules.values() for path in of.values()))
    # Several paths are told apart by dashes.
    cosine = (
        f"cosine between the gradients of the first path and {paths[0] if len(paths) == 1 else 'another'}"
    )
    every = modules.pop("all", None)
    return [
        *([Metric("Cosine", f"{cosine}, all shared parameters", "cosine", every)] if every else []),
        *[Metric("Cosine of a module", f"{cosine}: {name}", "cosine", of) for name, of in modules.items()],
        *_together(columns, "gradients/norm/", "Norm", "norm of each path's gradient", "norm"),
    ]


def thinned(series: Series, most: int = MOST_POINTS) -> Series:
    """At most so many points: means of equally many neighbouring ones.

    Example:
        >>> thinned(Series((1, 2, 3, 4), (0.0, 0.0, 1.0, 1.0), (1.0, 3.0, 5.0, 7.0)), most=2)
        Series(steps=(2, 4), epochs=(0.0, 1.0), values=(2.0, 6.0))
    """
    size = -(-len(series.values) // most)
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
    wanted = {column for metric in metrics for column in metric.columns}
    return {
        "metrics": [_metric(metric) for metric in metrics],
        "runs": [
            {"setting": at, "name": run.name, **_lines({c: s for c, s in run.log.items() if c in wanted})}
            for at, run in runs
        ],
    }


def _metric(metric: Metric) -> Json:
    columns = [{"name": name, "label": label} for name, label in metric.columns.items()]
    return {"group": metric.group, "label": metric.label, "unit": metric.unit, "columns": columns}


def _lines(log: Mapping[str, Series]) -> Json:
    """Values by column, and the steps and epochs that several columns share only once."""
    axes: dict[tuple[tuple[int, ...], tuple[float, ...]], int] = {}
    series = {}
    for column, logged in log.items():
        thin = thinned(_with_truth(logged) if column.startswith("val/") else logged)
        if not thin.values:
            continue
        axis = axes.setdefault((thin.steps, thin.epochs), len(axes))
        scale = 100 if column.startswith("val/") else 1
        series[column] = {"axis": axis, "values": [float(f"{scale * value:.5g}") for value in thin.values]}
    shown = [{"steps": list(steps), "epochs": [round(e, 3) for e in epochs]} for steps, epochs in axes]
    return {"axes": shown, "series": series}


def _with_truth(series: Series) -> Series:
    """Without figures of images that hold no ground truth, which are no accuracy of -100 percent."""
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
    return metrics + _single(columns, "val/score", "Validation", "score that chooses the best epoch")


def _cosines(columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """By module, the columns of ``gradients/cosine/PATH/MODULE`` with their path."""
    modules: dict[str, dict[str, str]] = {}
    for column in columns:
        # A path may be called 1/2; no module has a slash.
        path, _, module = column.removeprefix("gradients/cosine/").rpartition("/")
        if column.startswith("gradients/cosine/") and path:
            modules.setdefault(module, {})[column] = path
    return modules


def _losses(columns: Sequence[str]) -> list[Metric]:
    """Total loss of all paths together, then each term alone with a line per path."""
    terms: dict[str, dict[str, str]] = {}
    for column in columns:
        if column.startswith("train/") and column.count("/") >= 2:
            path, _, term = column.removeprefix("train/").rpartition("/")
            terms.setdefault(term, {})[column] = path
    metrics = []
    if total := terms.pop("loss", None):
        metrics.append(Metric("Loss", "total loss per path", "loss", total))
    for term, found in sorted(terms.items(), key=lambda item: (not item[0].startswith("kd_"), item[0])):
        group = "Distillation" if term.startswith("kd_") else "Terms of the loss"
        metrics.append(Metric(group, term, term, found))
    return metrics


def _single(columns: Sequence[str], column: str, group: str, label: str) -> list[Metric]:
    return [Metric(group, label, label.partition(",")[0], {column: label})] if column in columns else []


def _together(columns: Sequence[str], prefix: str, group: str, label: str, unit: str) -> list[Metric]:
    found = {column: column.removeprefix(prefix) for column in columns if column.startswith(prefix)}
    return [Metric(group, label, unit, found)] if found else []

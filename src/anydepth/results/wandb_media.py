"""Media that a run with a depth curve logs to Weights & Biases: table, charts, pictures and weights.

Every function takes the run and logs to it; wandb is imported only when one is called. Curves of several runs
are overlaid in two ways: the points of a curve are history rows with an axis of their own, which line panels
of a workspace overlay for all selected runs, and a custom chart is logged, which does the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anydepth.evaluation.coco_eval import NO_GROUND_TRUTH
from anydepth.evaluation.curve_summary import ladder_rows, summarize
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow
from anydepth.results.gallery import Gallery
from anydepth.structures import Detections

COST_AXIS = "curve/gflops"
LATENCY_AXIS = "curve_latency/median_ms"
CURVE_FIGURES = ("AP", "AP50", "AP75")
"""Metrics of a curve that get a chart; the table holds all 12."""

SUMMARY = "summary"
"""Prefix of the figures by which runs are sorted."""

# Figures whose plain name does not say that they are AP.
_SUMMARY_NAMES = {
    "full": "AP_full",
    "minimal": "AP_minimal",
    "ladder_mean": "AP_ladder_mean",
    "area": "AP_area",
}

TRAINING_AXIS = "trainer/global_step"
LOSSES_WITH_MINIMUM = ("train/full/loss", "train/minimal/loss")


def define_axes(run: Any) -> None:
    """Define the axis of each group of metrics, and which extremes the run's summary keeps."""
    for axis in (TRAINING_AXIS, "epoch", COST_AXIS, LATENCY_AXIS):
        run.define_metric(axis, summary="none" if axis.startswith("curve") else None)
    for group in ("train/*", "lr/*", "gradients/*"):
        run.define_metric(group, step_metric=TRAINING_AXIS)
    for loss in LOSSES_WITH_MINIMUM:
        run.define_metric(loss, step_metric=TRAINING_AXIS, summary="min,last")
    run.define_metric("val/*", step_metric="epoch")
    run.define_metric("val/score", step_metric="epoch", summary="max,last")
    run.define_metric("curve/*", step_metric=COST_AXIS, summary="none")
    run.define_metric("curve_latency/*", step_metric=LATENCY_AXIS, summary="none")


def log_curve(run: Any, curve: DepthCurve) -> None:
    """Log a depth curve: the table of all its rows, its charts, and summary figures to sort runs by.

    Args:
        run: Run of wandb.
        curve: Depth curve; charts show the rungs of its ladder, or all rows if a rung is missing.
    """
    import wandb

    records = curve.records()
    columns: list[str | int] = list(records[0])
    table = wandb.Table(
        columns=columns,
        data=[[_none_if_missing(record[str(name)]) for name in columns] for record in records],
    )
    run.log({"depth_curve": table})
    rows = ladder_rows(curve) or curve.rows
    _log_points(run, COST_AXIS, [(row.gflops, row) for row in rows])
    _log_points(run, LATENCY_AXIS, [(row.latency.median_ms, row) for row in rows if row.latency is not None])
    run.summary.update(summary_figures(curve))


def summary_figures(curve: DepthCurve) -> dict[str, float | str]:
    """Return ``summary/...``: AP at full, minimal and over the ladder, areas, largest drop with its rungs."""
    summary = summarize(curve)
    figures: dict[str, float | str] = {
        f"{SUMMARY}/{_SUMMARY_NAMES.get(name, name)}": value for name, value in summary.figures().items()
    }
    if summary.largest_drop:
        place = f"{summary.largest_drop.deeper} to {summary.largest_drop.shallower}"
        figures[f"{SUMMARY}/largest_drop_at"] = place
    return figures


def log_gallery(run: Any, gallery: Gallery) -> None:
    """Log pictures with ground truth and detections as boxes; each depth is a layer that the viewer toggles.

    Each picture has its own key, ``detections/1`` and so on, because wandb distorts pictures of different
    sizes under one key.
    """
    import wandb

    names = dict(enumerate(gallery.class_names))
    pictures = {}
    for number, image in enumerate(gallery.images, start=1):
        layers = {"ground truth": image.truth}
        for depth in gallery.depths:
            layers[depth.depth] = image.found[depth.depth].above(gallery.threshold)
        boxes = {
            name: {"box_data": _to_wandb_boxes(found, names), "class_labels": names}
            for name, found in layers.items()
        }
        pictures[f"detections/{number}"] = wandb.Image(
            str(image.path), boxes=boxes, caption=f"image {image.image_id}"
        )
    run.log(pictures)


def log_weights(
    run: Any, weights: Path, curve: DepthCurve | None, files: Sequence[Path], *, alias: str
) -> None:
    """Log a weight file as an artifact of type ``model`` with the curve and its summary as metadata.

    Args:
        run: Run of wandb.
        weights: Weight file; it is not copied, so it must not move before the upload.
        curve: Depth curve; None if there is none.
        files: Further files of the artifact, e.g. ``depth_curve.json``.
        alias: ``best`` for the weights of the best validation, ``last`` for the final ones.
    """
    import wandb

    metadata: dict[str, Any] = {}
    if curve is not None:
        metadata = {
            "detector": curve.detector,
            "parameters": curve.parameters,
            "input_size": list(curve.input_size),
            "boxes_clipped": curve.boxes_clipped,
            "summary": asdict(summarize(curve)),
            "depth_curve": [
                {name: _none_if_missing(value) for name, value in record.items()}
                for record in curve.records()
            ],
        }
    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=metadata)
    for path in (weights, *files):
        artifact.add_file(str(path), policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=[alias])


def _log_points(run: Any, axis: str, points: Sequence[tuple[float, DepthRow]]) -> None:
    """Log history rows of a curve by ascending cost (line panels join them in that order), and a chart."""
    import wandb

    if not points:
        return
    group, unit = axis.split("/")
    ordered = sorted(points, key=lambda point: point[0])
    for cost, row in ordered:
        figures = {name: row.figures[name] for name in CURVE_FIGURES if row.figures[name] != NO_GROUND_TRUTH}
        run.log({axis: cost, **{f"{group}/{name}": value for name, value in figures.items()}})
    data = [[cost, _none_if_missing(row.figures["AP"]), row.depth] for cost, row in ordered]
    table = wandb.Table(columns=[unit, "AP", "depth"], data=[point for point in data if point[1] is not None])
    if not table.data:
        return
    chart = wandb.plot.line(table, x=unit, y="AP", title=f"AP over {unit}")
    run.log({f"{group}_chart": chart})


def _none_if_missing(value: object) -> object:
    """Return None for the -1 of images without objects, else the value."""
    return None if value == NO_GROUND_TRUTH else value


def _to_wandb_boxes(found: Detections, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return boxes in pixels in the format of wandb."""
    data = []
    corners, scores, labels = found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist()
    for (left, top, right, bottom), score, label in zip(corners, scores, labels, strict=True):
        data.append(
            {
                "position": {"minX": left, "minY": top, "maxX": right, "maxY": bottom},
                "domain": "pixel",
                "class_id": int(label),
                "box_caption": f"{names[label]} {100 * score:.0f} %",
                "scores": {"score": score},
            }
        )
    return data

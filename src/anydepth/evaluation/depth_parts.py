"""Evaluation of more depths than fit into memory at once, a part of them per pass over the data."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from anydepth.depth import DepthConfig
from anydepth.detector import Detector
from anydepth.evaluation.coco_eval import CocoEvaluator, EvaluationError
from anydepth.evaluation.depth_curve import DepthCurve, evaluate_depths
from anydepth.structures import Batch


def evaluate_in_parts(
    detector: Detector,
    loader: Iterable[Batch],
    evaluator: CocoEvaluator,
    depths: Sequence[DepthConfig],
    *,
    chunk: int,
    done: Sequence[DepthCurve] = (),
    on_part: Callable[[DepthCurve], None] = lambda part: None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: bool = True,
) -> DepthCurve:
    """Evaluate a detector at many depths in several passes over the data.

    The result equals that of :func:`anydepth.evaluation.depth_curve.evaluate_depths`.

    The detections of one pass are in memory at once: 36 MB per depth for COCO val2017 (5,000 images with 300
    detections of 24 bytes). Latency is not measured.

    Args:
        detector: See ``evaluate_depths``.
        loader: Batches of resized images; iterated once per part.
        evaluator: Evaluator with the ground truth; earlier detections in it are removed.
        depths: Depths in the order of the curve.
        chunk: Number of depths per pass.
        done: Parts of an earlier evaluation of the same detector on the same data; their depths are not
            evaluated again.
        on_part: Called with each new part as soon as it is evaluated.
        device: Device to run on.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        progress: Whether to show a progress bar per pass.

    Raises:
        ValueError: ``chunk`` below 1.
        EvaluationError: See ``evaluate_depths``; or the parts are of different evaluations.
    """
    if chunk < 1:
        raise ValueError(f"got chunk={chunk}, expected at least 1")
    parts = list(done)
    evaluated = {row.depth for part in parts for row in part.rows}
    missing = [depth for depth in depths if str(depth) not in evaluated]
    for start in range(0, len(missing), chunk):
        part = evaluate_depths(
            detector,
            loader,
            evaluator,
            missing[start : start + chunk],
            device=device,
            precision=precision,
            progress=progress,
        )
        on_part(part)
        parts.append(part)
    return join_parts(parts, [str(depth) for depth in depths])


def join_parts(parts: Sequence[DepthCurve], depths: Sequence[str]) -> DepthCurve:
    """Join curves of different depths into one.

    Args:
        parts: Curves that differ in their rows alone.
        depths: Texts of the depths of the result, in order.

    Raises:
        EvaluationError: The parts are of different evaluations, or lack a depth.
    """
    if not parts or any(replace(part, rows=()) != replace(parts[0], rows=()) for part in parts):
        raise EvaluationError(
            "got no parts or parts of different evaluations, expected parts of one depth curve"
        )
    rows = {row.depth: row for part in parts for row in part.rows}
    missing = [depth for depth in depths if depth not in rows]
    if missing:
        raise EvaluationError(f"the parts of the depth curve lack {missing}; evaluate these depths first")
    return replace(parts[0], rows=tuple(rows[depth] for depth in depths))

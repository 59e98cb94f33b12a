"""COCO figures of the depths of a bundle in an engine, by the evaluator that scores PyTorch detectors."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from anydepth import detections
from anydepth.deploy.runtime.bundle import BundledDepth
from anydepth.deploy.runtime.detector import DeployedDetector
from anydepth.depth import DepthConfig
from anydepth.evaluation.coco_eval import CocoEvaluator, CocoResult, EvaluationError
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow, warn_of_skipped
from anydepth.images import to_unit_range
from anydepth.structures import Batch, Detections


def evaluate_bundle(
    detector: DeployedDetector,
    loader: Iterable[Batch],
    evaluator: CocoEvaluator,
    depths: Sequence[str | DepthConfig],
) -> DepthCurve:
    """Evaluate depths of a bundle in one pass over the data.

    Args:
        detector: Detector of the bundle, in the engine that is evaluated.
        loader: Batches of images that were resized for this bundle: to its input size, by its ``fit``.
        evaluator: Evaluator with the ground truth; earlier detections in it are removed.
        depths: Depths of the bundle, or budgets; equal ones are evaluated once.

    Returns:
        The depth curve, without latency: that is measured by ``anydepth-benchmark``.

    Warns:
        SkippedImagesWarning: Images could not be read and were skipped; the message names them.

    Raises:
        DepthError: A depth that was not exported, or a budget that nothing meets.
        BundleError: A file of the bundle is missing or altered.
        EngineError: The engine is not installed, or cannot open a graph.
        EvaluationError: No depth, or the loader yields nothing, or detections that do not fit the ground
            truth.
        NonFiniteOutputError: The network's output is NaN or infinite.
    """
    bundle = detector.bundle
    entries = {entry.config: entry for entry in map(detector.resolve, depths)}
    if not entries:
        raise EvaluationError("got no depth to evaluate, expected at least one of the bundle")
    evaluator.reset()
    skipped: dict[str, None] = {}
    for batch in loader:
        skipped |= dict.fromkeys(batch.skipped)
        images = to_unit_range(batch.images).numpy()
        for config in entries:
            found = _detect(detector, images, batch.original_sizes, config)
            evaluator.add(str(config), batch.image_ids, found)
    warn_of_skipped(skipped)
    results = evaluator.evaluate()
    if not results:
        raise EvaluationError("got no image from the data loader, expected at least one; check the data set")
    rows = tuple(_row(bundle.depth_space.stages, entry, results) for entry in entries.values())
    return DepthCurve(
        detector=bundle.detector,
        parameters=bundle.parameters,
        input_size=bundle.input.size,
        precision=bundle.precision,
        images=results[rows[0].depth].images,
        boxes_clipped=bundle.clips_boxes,
        protocol=None,
        rows=rows,
    )


def _detect(
    detector: DeployedDetector,
    images: NDArray[np.float32],
    original_sizes: Sequence[tuple[int, int]],
    depth: DepthConfig,
) -> list[Detections]:
    """Detect in a batch of any size, also with a bundle for a fixed number of images."""
    step = detector.bundle.input.batch or len(images)
    return [
        _as_scored(own, size, clips=detector.bundle.clips_boxes)
        for start in range(0, len(images), step)
        for own, size in zip(
            detector.detect(images[start : start + step], original_sizes[start : start + step], depth),
            original_sizes[start : start + step],
            strict=True,
        )
    ]


def _as_scored(found: detections.Detections, size: tuple[int, int], *, clips: bool) -> Detections:
    own = found.clipped(*size) if clips else found
    boxes, scores, labels = map(torch.from_numpy, (own.boxes_xyxy, own.scores, own.labels))
    return Detections(boxes, scores, labels)


def _row(stages: Sequence[str], entry: BundledDepth, results: Mapping[str, CocoResult]) -> DepthRow:
    result = results[str(entry.config)]
    return DepthRow(
        depth=str(entry.config),
        refine=dict(zip(stages, entry.config.refine, strict=True)),
        decoder_layers=entry.config.decoder_layers,
        parameters_run=entry.parameters,
        gflops=2 * entry.gmacs,
        latency=None,
        figures=result.figures,
        per_class=result.per_class,
    )

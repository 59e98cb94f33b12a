"""Measurement of how closely the graphs of a bundle compute what PyTorch computes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anydepth.data.sample import sample_root
from anydepth.deploy.runtime.bundle import Bundle
from anydepth.deploy.runtime.engines import open_session
from anydepth.deploy.runtime.engines.base import EngineOptions, Session, output_names
from anydepth.deploy.runtime.outputs import split_selected
from anydepth.deploy.runtime.selection import Selected, select
from anydepth.depth import DepthConfig
from anydepth.detector import Detector, evaluating
from anydepth.images import fit_image, read_image, to_unit_range

BATCHES: Final = (1, 2, 5)
"""Numbers of images of the passes that are compared."""
BEST: Final = 30
"""Detections per image that are compared."""
Candidates = tuple[NDArray[np.float32], NDArray[np.float32]]
# Beyond these, two detections are different ones: far above what rounding does, far below what moves a box.
_SAME_BOX_PIXELS, _SAME_SCORE = 0.5, 0.01


@dataclass(frozen=True)
class Equality:
    """Largest differences between the best detections of PyTorch and of an engine, on real images.

    Attributes:
        images: Number of images.
        found: Share of PyTorch's 30 best detections of each image that the engine finds, too: with the same
            class, within half a pixel and 0.01 of score.
        boxes: Largest difference of a coordinate among these, in pixels of the input.
        scores: Largest difference of a score among these.
    """

    images: int
    found: float
    boxes: float
    scores: float

    def to_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return {name: float(value) for name, value in asdict(self).items()}


def measure_equality(
    detector: Detector, bundle: Bundle, engine: str, images: Sequence[str | Path] | None = None
) -> dict[DepthConfig, Equality]:
    """Compare every depth of a bundle with the detector that it was exported from.

    Args:
        detector: Detector in eval mode on the CPU.
        bundle: Bundle of it.
        engine: Engine that runs the graphs.
        images: Files of images; None: photographs of the embedded sample.

    Returns:
        The differences by depth.

    Raises:
        EngineError: The engine is not installed, or cannot open a graph.
    """
    paths = images or sorted((sample_root() / "images/val").iterdir())
    batches = [*_batches(detector, paths, bundle.input.batch)]
    found, sessions = {}, dict[str, Session]()
    for entry in bundle.depths:
        if entry.graph not in sessions:
            # Only the last one stays open, which further depths may share.
            path, several_depths = bundle.folder / entry.graph, entry.number is not None
            session = open_session(
                engine,
                path,
                EngineOptions(trust_code=True),
                several_depths=several_depths,
                selects=bundle.selects,
                features=bundle.features is not None,
            )
            sessions = {entry.graph: session}
        threshold = 0.0 if bundle.selects else None
        run = partial(sessions[entry.graph].run, number=entry.number, threshold=threshold)
        found[entry.config] = _compare(detector, entry.config, run, batches, selects=bundle.selects)
    return found


def _batches(detector: Detector, paths: Sequence[str | Path], batch: int | None) -> Iterator[Tensor]:
    """Yield [B, 3, H, W] of B images each; images are repeated if there are too few."""
    taken = 0
    for size in (batch,) if batch else BATCHES:
        files = [paths[(taken + index) % len(paths)] for index in range(size)]
        taken += size
        fitted = [fit_image(read_image(path), detector.input_size, detector.fit) for path in files]
        yield torch.stack([to_unit_range(image) for image in fitted])


def _compare(
    detector: Detector,
    depth: DepthConfig,
    run: Callable[[NDArray[np.float32]], tuple[NDArray[Any], ...]],
    batches: Sequence[Tensor],
    *,
    selects: bool,
) -> Equality:
    height, width = detector.input_size
    results: list[tuple[float, float, float]] = []
    for images in batches:
        with evaluating(detector) as network:
            candidates = network.candidates(network(images, depth=depth))
        scale = np.array([width, height] * 2 if candidates.normalised else [1] * 4, dtype=np.float32)
        theirs = run(images.numpy())[: len(output_names(selects=selects))]
        ours = candidates.boxes_xyxy.numpy(), candidates.scores.numpy()
        if selects:
            assert detector.selection is not None
            wanted = [
                select(boxes * scale, scores, detector.selection, 0.0)
                for boxes, scores in zip(*ours, strict=True)
            ]
            results += map(compare_detections, wanted, split_selected(theirs))
            continue
        results += [
            compare_candidates((boxes * scale, scores), (their_boxes * scale, their_scores))
            for boxes, scores, their_boxes, their_scores in zip(*ours, *theirs, strict=True)
        ]
    found, boxes, scores = np.array(results).T
    return Equality(len(results), float(found.mean()), float(boxes.max()), float(scores.max()))


def compare_candidates(first: Candidates, second: Candidates) -> tuple[float, float, float]:
    """Compare the best detections of one image.

    Rows are matched by what they hold, because a query may have another place where scores are nearly equal.

    Args:
        first: Boxes [N, 4] in pixels and scores [N, K] of the reference.
        second: The same of the other.

    Returns:
        Share of the best pairs of ``first`` that are in ``second``, and the largest differences of a
        coordinate and of a score among these.
    """
    boxes, scores = first
    best = np.argsort(-scores, axis=None, kind="stable")[:BEST]
    found, box_differences, score_differences = 0, [0.0], [0.0]
    for row, label in zip(*np.unravel_index(best, scores.shape), strict=True):
        moved = np.abs(second[0] - boxes[row]).max(axis=1)  # [N]
        changed = np.abs(second[1][:, label] - scores[row, label])  # [N]
        nearest = int(np.argmin(np.maximum(moved / _SAME_BOX_PIXELS, changed / _SAME_SCORE)))
        if moved[nearest] <= _SAME_BOX_PIXELS and changed[nearest] <= _SAME_SCORE:
            found += 1
            box_differences.append(float(moved[nearest]))
            score_differences.append(float(changed[nearest]))
    return found / len(best), max(box_differences), max(score_differences)


def compare_detections(first: Selected, second: Selected) -> tuple[float, float, float]:
    """Compare the best detections of one image, as :func:`compare_candidates` does.

    Args:
        first: Detections of the reference, in pixels.
        second: Detections of the other.

    Returns:
        Share of the best of ``first`` that are in ``second`` (1 if there are none), and the largest
        differences of a coordinate and of a score among these.
    """
    moves, changes = [0.0], [0.0]
    for box, score, label in zip(*(values[:BEST] for values in first), strict=True):
        moved = np.abs(second.boxes_xyxy - box).max(axis=1)  # [N]
        changed = np.abs(second.scores - score)
        apart = np.maximum(moved / _SAME_BOX_PIXELS, changed / _SAME_SCORE)
        apart[second.labels != label] = np.inf
        if len(apart) and apart.min() <= 1:
            nearest = int(np.argmin(apart))
            moves.append(float(moved[nearest]))
            changes.append(float(changed[nearest]))
    wanted = min(len(first.scores), BEST)
    return (len(moves) - 1) / wanted if wanted else 1.0, max(moves), max(changes)

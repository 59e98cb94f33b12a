"""AP against the share of full depth: the router, beside chance and the true advantage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anydepth.deploy.routing.samples import ENDS
from anydepth.evaluation.coco_eval import CocoEvaluator
from anydepth.structures import Batch, Detections

SHARES: Final = tuple(step / 10 for step in range(11))
"""Shares of images at full depth that are evaluated."""
# Orders whose AP is averaged for chance: a single one is off by as much as a router gains.
_CHANCES: Final = 5


@dataclass(frozen=True)
class TradeOffRow:
    """AP at one share of full depth.

    Attributes:
        share: Share of images at full depth.
        router: AP in [0, 1] if the router chooses them.
        chance: AP if chance chooses them, mean of five orders.
        oracle: AP if the true advantage chooses them.
    """

    share: float
    router: float
    chance: float
    oracle: float


class KeptDetections:
    """Detections of both ends by image, as :func:`collect_samples` finds them."""

    def __init__(self) -> None:
        self.image_ids: list[int] = []
        self._by_end: dict[str, list[Detections]] = {end: [] for end in ENDS}

    def add(self, end: str, batch: Batch, found: list[Detections]) -> None:
        """Keep the detections of a batch."""
        if end == ENDS[0]:
            self.image_ids += batch.image_ids
        self._by_end[end] += [item.cpu() for item in found]

    def mixed(self, full: NDArray[np.bool_]) -> list[Detections]:
        """Return the detections of each image at the end that is chosen for it."""
        shallow, deep = (self._by_end[end] for end in ENDS)
        return [two if runs else one for one, two, runs in zip(shallow, deep, full, strict=True)]


def measure_tradeoff(
    kept: KeptDetections,
    predicted: NDArray[np.float32],
    advantages: NDArray[np.float32],
    *,
    ground_truth: Mapping[str, Any],
    category_ids: Sequence[Any],
    seed: int = 0,
) -> list[TradeOffRow]:
    """Evaluate mixes of both ends on still images.

    Each image is its own predecessor, as in a video that stands still; the path whose features the router
    sees is drawn by chance.

    Args:
        kept: Detections of N images.
        predicted: [N, 2] predicted advantages by path.
        advantages: [N] true advantages.
        ground_truth: COCO dictionary of these images.
        category_ids: Category id of each class.
        seed: Seed of paths and of the orders of chance.
    """
    random = np.random.default_rng(seed)
    count = len(advantages)
    chosen = predicted[np.arange(count), random.integers(0, 2, count)]
    orders = {
        ("router", 0): np.argsort(-chosen, kind="stable"),
        ("oracle", 0): np.argsort(-advantages, kind="stable"),
        **{("chance", number): random.permutation(count) for number in range(_CHANCES)},
    }
    evaluator = CocoEvaluator(ground_truth=ground_truth, category_ids=category_ids)
    for (name, number), order in orders.items():
        for share in SHARES:
            full = np.zeros(count, bool)
            full[order[: round(share * count)]] = True
            evaluator.add(f"{name}/{number}/{share}", kept.image_ids, kept.mixed(full))
    found = {key: result.figures["AP"] for key, result in evaluator.evaluate().items()}
    return [
        TradeOffRow(
            share,
            found[f"router/0/{share}"],
            float(np.mean([found[f"chance/{number}/{share}"] for number in range(_CHANCES)])),
            found[f"oracle/0/{share}"],
        )
        for share in SHARES
    ]

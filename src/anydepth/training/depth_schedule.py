"""The depth schedule: which depths each training step runs, and which pass teaches which."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from anydepth.depth import DepthConfig, DepthSpace
from anydepth.detector import WHOLE_TEACHING, Teaching


@dataclass(frozen=True)
class PlannedPass:
    """One forward pass of a training step.

    Attributes:
        name: Name that its losses are logged under, e.g. ``full``, ``minimal`` or ``random1``.
        depth: Depth of the pass.
        teacher: Position in the plan of the pass that teaches it, always an earlier one; None: it learns
            from the ground truth.
        weight: Factor of its losses in the sum of the step.
        teaching: How much it learns from its teacher.
    """

    name: str
    depth: DepthConfig
    teacher: int | None = None
    weight: float = 1.0
    teaching: Teaching = WHOLE_TEACHING


class DepthSchedule:
    """Samples the ordered passes of each step; the first learns from ground truth and teaches the rest.

    The passes are a function of the seed and the step alone, so that all processes of a run agree and a
    resumed run continues the same sequence.

    Training always runs all decoder layers (Kang et al. 2026); random points differ in their stages.

    Args:
        depths: Depths of every step, in this order, e.g. ``("full", "minimal")``.
        random_points: Number of further depths that each step draws, without repetition, from the
            configurations of the stages that are not among ``depths``.
        distill: Whether the later passes learn from the first one; otherwise from the ground truth.
        weights: Factor per entry of ``depths``, then one for all random points; None: 1 for every pass.

    Raises:
        ValueError: No depth, a negative number of points, or weights of a wrong number or sign.

    Example:
        >>> space = DepthSpace(stages=("stage1", "neck"))
        >>> schedule = DepthSchedule(depths=("full", "minimal"), random_points=1)
        >>> [(planned.name, planned.teacher) for planned in schedule.sample(space, seed=0, step=0)]
        [('full', None), ('minimal', 0), ('random1', 0)]
    """

    def __init__(
        self,
        *,
        depths: Sequence[str],
        random_points: int = 0,
        distill: bool = True,
        weights: Sequence[float] | None = None,
    ) -> None:
        if not depths or len(set(depths)) != len(depths):
            raise ValueError(f"depth_schedule.depths={list(depths)}: give at least one depth, each once")
        if random_points < 0:
            raise ValueError(f"depth_schedule.random_points={random_points}: allowed are 0 and above")
        kinds = len(depths) + (random_points > 0)
        if weights is not None and (len(weights) != kinds or min(weights) <= 0):
            raise ValueError(
                f"depth_schedule.weights={list(weights)}: give null or {kinds} positive factors, one per "
                f"entry of depths{' and one for the random points' if random_points else ''}"
            )
        self.depths = tuple(depths)
        self.random_points = random_points
        self.distill = distill
        self.weights = tuple(weights) if weights is not None else (1.0,) * kinds

    @property
    def is_alone(self) -> bool:
        """Whether each step has a single pass, which nothing teaches."""
        return len(self.depths) + self.random_points == 1

    def __str__(self) -> str:
        names = [*self.depths, *(["random"] * self.random_points)]
        if len(names) == 1:
            return f"{names[0]} from ground truth"
        teaching = f"distilled from {names[0]}" if self.distill else "from ground truth"
        return f"{names[0]} from ground truth, {' and '.join(names[1:])} {teaching}"

    def sample(self, space: DepthSpace, seed: int, step: int) -> tuple[PlannedPass, ...]:
        """Return the passes of one step.

        Args:
            space: Depth space of the detector in training.
            seed: Seed of the run.
            step: Optimizer steps done so far.

        Raises:
            DepthError: A depth that the detector does not have.
            ValueError: Two passes would train the same network, or there are too few points to draw.
        """
        fixed = [space.parse(text) for text in self.depths]
        if len({config.refine for config in fixed}) != len(fixed):
            raise ValueError(
                f"depth_schedule.depths={list(self.depths)} are the same network in training, which always "
                f"runs all decoder layers. For a detector of fixed depth use depth_schedule=full_only. "
                f"{space.describe()}"
            )
        drawn = self._draw(space, fixed, random.Random(f"{seed}/{step}")) if self.random_points else []
        names = [*self.depths, *(f"random{number}" for number in range(1, len(drawn) + 1))]
        weights = [*self.weights[: len(fixed)], *([self.weights[-1]] * len(drawn))]
        return tuple(
            PlannedPass(name, config, 0 if index and self.distill else None, weight)
            for index, (name, config, weight) in enumerate(zip(names, [*fixed, *drawn], weights, strict=True))
        )

    def trains_every_parameter(self, space: DepthSpace) -> bool:
        """Return whether every step uses all parameters: each stage refines in one pass and skips in another.

        If not, distributed training has to look for unused parameters.
        """
        flags = [space.parse(text).refine for text in self.depths]
        return all({refine[stage] for refine in flags} == {True, False} for stage in range(len(space.stages)))

    def _draw(self, space: DepthSpace, fixed: Sequence[DepthConfig], rng: random.Random) -> list[DepthConfig]:
        stages = len(space.stages)
        taken = {config.refine for config in fixed}
        if self.random_points > 2**stages - len(taken):
            raise ValueError(
                f"depth_schedule.random_points={self.random_points}: this detector has only "
                f"{2**stages - len(taken)} points besides {list(self.depths)}. {space.describe()}"
            )
        points: list[DepthConfig] = []
        while len(points) < self.random_points:
            refine = tuple(rng.random() < 0.5 for _ in range(stages))
            if refine not in taken:
                taken.add(refine)
                points.append(space.config(refine))
        return points

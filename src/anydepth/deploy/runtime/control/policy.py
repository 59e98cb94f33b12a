"""The interface of depth policies: rungs to choose from, the last frame, the target, the choice."""

import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, cast, get_args

from anydepth.deploy.runtime.bundle import FeatureMaps
from anydepth.detections import BaseDetections
from anydepth.utils.messages import short_repr

Unit = Literal["ms", "fps", "mj"]
UNITS: Final[tuple[str, ...]] = get_args(Unit)

_TARGET: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|fps|mj)", re.IGNORECASE)


class ControlError(ValueError):
    """A budget, a measurement or a choice of depths that no policy can work with; the message says why."""


class ControlWarning(UserWarning):
    """A budget that cannot be kept, said once."""


@dataclass(frozen=True)
class Target:
    """Cost that a frame may have on average, or at most if the policy keeps deadlines.

    Attributes:
        value: The number.
        unit: ``ms`` per frame, ``fps`` (frames per second), or ``mj`` (millijoules per frame).

    Raises:
        ControlError: A number that is not finite and above 0, or another unit.

    Example:
        >>> Target.of("25 fps"), Target.of(40).cost
        (Target(value=25.0, unit='fps'), 40)
    """

    value: float
    unit: Unit = "ms"

    def __post_init__(self) -> None:
        number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not number or not 0 < self.value < math.inf or self.unit not in UNITS:
            raise ControlError(
                f"got a budget of {short_repr(self.value)} {self.unit}, expected a number above 0 of "
                f"{', '.join(UNITS)}"
            )

    @property
    def cost(self) -> float:
        """Milliseconds of a frame, or millijoules."""
        return 1000 / self.value if self.unit == "fps" else self.value

    @classmethod
    def of(cls, given: "Target | float | str") -> "Target":
        """Return the target that a number (milliseconds) or a text such as ``25fps`` names.

        Raises:
            ControlError: Anything else.
        """
        if isinstance(given, Target):
            return given
        if not isinstance(given, str):
            return cls(given)
        match = _TARGET.fullmatch(given.strip())
        if match is None:
            raise ControlError(f"got the budget {given!r}, expected a text such as 8ms, 25fps or 40mj")
        return cls(float(match[1]), cast(Unit, match[2].lower()))


@dataclass(frozen=True)
class Rung:
    """A depth that a policy may choose.

    Attributes:
        depth: Text of the depth.
        value: What the depth is worth, in any unit: AP, or operations where AP is not known. A policy never
            chooses a depth that costs more than another one of the same or a higher value.
        cost: Milliseconds of a frame (or millijoules, if that is controlled); None: not measured, so that the
            policy measures it in the first frames.
    """

    depth: str
    value: float
    cost: float | None = None


@dataclass(frozen=True)
class FrameResult:
    """Depth, cost and detections of the frame that ran last.

    Attributes:
        depth: Depth that ran.
        milliseconds: Time that it took.
        millijoules: Energy that it took; None: nothing reads it.
        detections: What was found in it, above the policy's :attr:`DepthPolicy.statistics_threshold`.
        features: Pooled feature maps [C, G, G] by group; empty if nothing captures them.
    """

    depth: str
    milliseconds: float
    millijoules: float | None = None
    detections: BaseDetections[Any] | None = field(default=None, repr=False)
    features: Mapping[str, Any] = field(default_factory=dict, repr=False)


class DepthPolicy(ABC):
    """Chooses the depth of each frame from the frame before and the budget.

    A policy belongs to one stream of frames and is not shared between threads.

    Attributes:
        depths: Texts of the depths that it may choose.
        statistics_threshold: Lowest score of the detections that it looks at; None: it looks at none.
        features: Feature maps that it looks at: channels of each group, and side of the grid; None: none.
    """

    depths: tuple[str, ...]
    statistics_threshold: float | None = None
    features: FeatureMaps | None = None

    @abstractmethod
    def choose(self, last: FrameResult | None, target: Target | None = None) -> str:
        """Return the depth of the next frame.

        Args:
            last: The frame before; None for the first one. Each frame is to be given once.
            target: The budget of the next frame.

        Raises:
            ControlError: A measurement that is not a finite number above 0, a depth that the policy does not
                know, or a target that it lacks or cannot use.
        """


class FixedDepth(DepthPolicy):
    """The same depth for each frame, whatever the budget.

    Args:
        depth: Text of the depth.
    """

    def __init__(self, depth: str = "full") -> None:
        self.depths = (depth,)

    def choose(self, last: FrameResult | None, target: Target | None = None) -> str:
        """Return the depth."""
        return self.depths[0]


def check_rungs(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    """Return rungs by ascending value.

    Raises:
        ControlError: None, a depth twice, or a number that is not finite.
    """
    if not rungs or len({rung.depth for rung in rungs}) != len(rungs):
        raise ControlError(
            f"got the depths {[rung.depth for rung in rungs]}, expected at least one and each once"
        )
    for rung in rungs:
        if not math.isfinite(rung.value) or not (rung.cost is None or 0 < rung.cost < math.inf):
            raise ControlError(
                f"depth {rung.depth}: got value={rung.value} and cost={rung.cost}, expected finite numbers, "
                "and a cost above 0 or None for one that is not measured"
            )
    return tuple(sorted(rungs, key=lambda rung: rung.value))


def rungs_of(detector: Any, depths: Sequence[str] | None = None) -> tuple[Rung, ...]:
    """Return the depths of a detector as a policy takes them.

    Those of a bundle have its AP (operations, if AP is not known of all) as values, and the latency that
    ``anydepth-benchmark`` measured on this machine with these options. Those of a PyTorch detector have
    operations as values, relative to minimal, and no latency.

    Args:
        detector: A :class:`anydepth.deploy.runtime.detector.DeployedDetector`, or a
            :class:`anydepth.detector.Detector`.
        depths: Texts of some depths; None: all of a bundle, or the ladder of a PyTorch detector.

    Raises:
        DepthError: A depth that does not exist or was not exported.
    """
    if not hasattr(detector, "bundle"):
        space = detector.depth_space
        configs = space.parse_list(list(depths) if depths is not None else "ladder")
        return check_rungs([Rung(str(config), -float(space.saving(config))) for config in configs])
    texts = detector.depths if depths is None else [str(detector.resolve(depth).config) for depth in depths]
    rows = [row for row in detector.figures if row.depth in texts]
    by_ap = all(row.ap is not None for row in rows)
    return check_rungs([Rung(row.depth, row.ap if by_ap else row.gflops, row.milliseconds) for row in rows])


def measured_rungs(
    detector: Any,
    frame: object,
    depths: Sequence[str] | None = None,
    *,
    rounds: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Rung, ...]:
    """Measure the depths of a detector on a frame, so that a policy needs no warm-up of its own.

    Depths take turns; the first round, which opens them, does not count.

    Args:
        detector: As in :func:`rungs_of`.
        frame: A frame like those to come.
        depths: Texts of some depths; None: all.
        rounds: Timed passes of each depth, from 1.
        clock: Function that returns seconds.

    Raises:
        ControlError: ``rounds`` below 1.
    """
    if rounds < 1:
        raise ControlError(f"got rounds={rounds}, expected 1 or more")
    rungs = rungs_of(detector, depths)
    times: dict[str, list[float]] = {rung.depth: [] for rung in rungs}
    for _ in range(rounds + 1):
        for rung in rungs:
            start = clock()
            detector.predict(frame, depth=rung.depth)
            times[rung.depth].append(1000 * (clock() - start))
    medians = {depth: sorted(found[1:])[(len(found) - 1) // 2] for depth, found in times.items()}
    return tuple(replace(rung, cost=medians[rung.depth]) for rung in rungs)

"""A detector whose depth a policy chooses frame by frame, and the loop over a video."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from anydepth.deploy.runtime.bundle import FeatureMaps
from anydepth.deploy.runtime.control.policy import ControlError, DepthPolicy, FrameResult, Target
from anydepth.detections import BaseDetections
from anydepth.utils.arguments import check_share

Clock = Callable[[], float]
"""Function that returns seconds from any start."""


class DepthDetector(Protocol):
    """A detector with a depth per call, of a bundle or of PyTorch."""

    def predict(self, source: Any, depth: Any = ..., threshold: float = ...) -> list[Any]:
        """Detect objects in one image or several at a depth."""


@dataclass(frozen=True)
class VideoFrame:
    """A frame of a video.

    Attributes:
        index: Number in the video, from 0.
        result: Depth, cost and detections; None: the frame was skipped, because the next one had arrived
            before it could begin.
        late_ms: Milliseconds after its deadline at which it was done, negative before it; None without
            deadlines, and for a skipped frame.
    """

    index: int
    result: FrameResult | None
    late_ms: float | None = None


class ControlledDetector:
    """Runs a detector at the depth that a policy chooses, and tells the policy what each frame cost.

    Each object serves one stream of frames; several may share a detector.

    Args:
        detector: A detector of a bundle, or one of PyTorch in eval mode.
        policy: Chooses the depth.
        budget: Budget of each frame, ``"8ms"``, ``"25fps"``, ``"40mj"`` or milliseconds; None for a policy
            that needs none. The attribute of the same name changes it between two frames.
        threshold: Detections with a lower score are left out.
        clock: Clock that frames are timed with.
        energy: Reader of a counter of millijoules, if energy is controlled.
        features: Reader of the pooled feature maps of the last frame, for a router that needs them beside a
            PyTorch detector, see :class:`anydepth.deploy.routing.features.FeatureTap`. None: those that the
            graphs of a bundle return.

    Attributes:
        policy: Chooses the depth.
        last: The frame before; None before the first one.

    Raises:
        ControlError: A budget that cannot be used, or a policy that looks at feature maps that neither the
            bundle returns nor ``features``.
        ValueError: A threshold outside [0, 1], or an engine's refusal to open a depth.
    """

    def __init__(
        self,
        detector: DepthDetector,
        policy: DepthPolicy,
        budget: Target | float | str | None = None,
        *,
        threshold: float = 0.5,
        clock: Clock = time.perf_counter,
        energy: Callable[[], float] | None = None,
        features: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self.policy = policy
        self.last: FrameResult | None = None
        self.budget = budget
        self._detector = detector
        self._threshold = check_share("threshold", threshold)
        self._clock = clock
        self._energy = energy
        self._features = features
        self._returns_features = policy.features is not None and features is None
        if self._returns_features:
            _check_features(detector, policy.features)
        # Otherwise the first frame of each depth would pay for opening its graph.
        opens: Callable[[str], object] = getattr(detector, "open", lambda depth: None)
        for depth in policy.depths:
            opens(depth)

    @property
    def budget(self) -> Target | None:
        """Budget of the next frame."""
        return self._budget

    @budget.setter
    def budget(self, given: Target | float | str | None) -> None:
        self._budget = None if given is None else Target.of(given)

    def predict(self, frame: Any) -> BaseDetections[Any]:
        """Detect objects in the next frame.

        Args:
            frame: One image, as the detector takes it.

        Raises:
            ControlError: The policy lacks a budget, or a clock or reader returns nonsense.
            Exception: What the detector raises; the policy then knows nothing of this frame.
        """
        return self._run(frame, self._budget)

    def _run(self, frame: Any, target: Target | None) -> BaseDetections[Any]:
        last, self.last = self.last, None  # A frame is counted once, also if the next one fails.
        depth = self.policy.choose(last, target)
        lowest = self.policy.statistics_threshold
        threshold = self._threshold if lowest is None else min(lowest, self._threshold)
        energy = None if self._energy is None else self._energy()
        start = self._clock()
        found, features = self._detect(frame, depth, threshold)
        spent = 1000 * (self._clock() - start)
        self.last = FrameResult(
            depth=depth,
            milliseconds=spent,
            millijoules=None if self._energy is None or energy is None else self._energy() - energy,
            detections=None if lowest is None else found,
            features=self._features() if self._features else features,
        )
        return found.above(self._threshold) if threshold < self._threshold else found

    def _detect(
        self, frame: Any, depth: str, threshold: float
    ) -> tuple[BaseDetections[Any], Mapping[str, Any]]:
        if self._returns_features:
            detector: Any = self._detector
            both: tuple[BaseDetections[Any], Mapping[str, Any]]
            both = detector.detect_with_features(frame, depth=depth, threshold=threshold)
            return both
        found: BaseDetections[Any] = self._detector.predict(frame, depth=depth, threshold=threshold)[0]
        return found, {}


def _check_features(detector: object, wanted: FeatureMaps | None) -> None:
    """Check that the graphs of a bundle return the feature maps that a policy looks at.

    Raises:
        ControlError: They do not, or the detector is none of a bundle.
    """
    assert wanted is not None
    bundle = getattr(detector, "bundle", None)
    if bundle is None:
        raise ControlError(
            f"the router looks at feature maps ({wanted}), which a PyTorch detector does not return: give "
            f"features=FeatureTap(detector, {wanted.grid}) of anydepth.deploy.routing.features"
        )
    offered = bundle.features
    if offered is None:
        raise ControlError(
            f"the router looks at feature maps ({wanted}), and the graphs of {bundle.folder} return none: "
            f"export it again with feature_grid={wanted.grid}, or train a router of statistics "
            "(router.kind=statistics)"
        )
    own = {name: offered.channels.get(name) for name in wanted.channels}
    if offered.grid != wanted.grid or own != dict(wanted.channels):
        raise ControlError(
            f"the router looks at {wanted}, and the graphs of {bundle.folder} return {offered}: give a "
            f"router that anydepth-route trained for this detector with grid={offered.grid}, or export the "
            f"bundle again with feature_grid={wanted.grid}"
        )


@dataclass
class Schedule:
    """Arrival times and deadlines of the frames of a live video; a deadline is the arrival of the next frame.

    Attributes:
        period_ms: Milliseconds between two frames.
        clock: Clock of the arrivals.
        sleep: Function that waits for seconds.

    Raises:
        ControlError: A period that is not above 0.
    """

    period_ms: float
    clock: Clock = time.perf_counter
    sleep: Callable[[float], object] = time.sleep
    _start: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.period_ms = Target(self.period_ms).cost
        self._start = self.clock()

    def wait(self, index: int) -> float:
        """Wait until a frame arrives; return the milliseconds that are left until its deadline."""
        early = self._start + index * self.period_ms / 1000 - self.clock()
        if early > 0:
            self.sleep(early)
        return -self.late(index)

    def late(self, index: int) -> float:
        """Return the milliseconds since the deadline of a frame, negative before it."""
        return 1000 * (self.clock() - self._start) - (index + 1) * self.period_ms


def run_video(
    detector: ControlledDetector, frames: Iterable[Any], schedule: Schedule | None = None
) -> Iterator[tuple[VideoFrame, BaseDetections[Any] | None]]:
    """Run a controlled detector over a video.

    Args:
        detector: Detector and policy.
        frames: Images, as the detector takes them.
        schedule: Arrival of the frames, for live video: each frame is waited for, and the detector's policy
            gets the time that is left as its budget, unless the detector has a budget. A frame is skipped if
            the next one has arrived before it could begin. None: as fast as possible, none is skipped.

    Yields:
        Each frame and its detections; None for a skipped frame.

    Raises:
        ControlError: See :meth:`ControlledDetector.predict`.
    """
    for index, frame in enumerate(frames):
        if schedule is None:
            found = detector.predict(frame)
            yield VideoFrame(index, detector.last), found
            continue
        left = schedule.wait(index)
        if left <= 0:
            yield VideoFrame(index, None), None
            continue
        found = detector._run(frame, detector.budget or Target(left))
        yield VideoFrame(index, detector.last, schedule.late(index)), found

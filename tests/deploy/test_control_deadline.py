"""The deadline policy on simulated detectors, and the loop over a video."""

import numpy as np
import pytest
from plants import LATENCIES, Noise, Plant, bounded, constant, drifting, rungs

from anydepth.deploy.control import (
    ControlError,
    ControlledDetector,
    DeadlinePolicy,
    FixedDepth,
    FrameResult,
    LatencyController,
    Schedule,
    Target,
    VideoFrame,
    run_video,
)


def play(plant: Plant, period_ms: float, frames: int = 400, *, measured: bool = True) -> list[VideoFrame]:
    policy = DeadlinePolicy(rungs(measured=measured))
    detector = ControlledDetector(plant, policy, clock=plant.clock)
    schedule = Schedule(period_ms, plant.clock, plant.sleep)
    return [frame for frame, _ in run_video(detector, range(frames), schedule)]


@pytest.mark.parametrize("noise", [constant, bounded, drifting])
@pytest.mark.parametrize("period", [15.0, 18.0, 25.0, 40.0])
@pytest.mark.parametrize("measured", [True, False])
def test_no_frame_is_late_when_minimal_fits(noise: Noise, period: float, measured: bool) -> None:
    # Minimal takes at most 10 x 1.2 x a factor of noise of about 1.15 = 14 ms.
    plant = Plant(noise)
    played = play(plant, period, measured=measured)
    assert all(frame.late_ms is not None and frame.late_ms <= 0 for frame in played)


def test_the_deepest_depth_that_fits_runs() -> None:
    # A margin of 10 %: full counts as 22 ms, 1/2 as 15.4.
    for period, depth in ((23.0, "full"), (21.0, "1/2"), (15.5, "1/2"), (15.0, "1/4"), (11.5, "minimal")):
        plant = Plant()
        play(plant, period, frames=20)
        # The first frame only tells how right the measured latencies are.
        assert plant.ran == ["minimal", *[depth] * 19]


def test_depths_that_were_not_measured_are_reached_step_by_step() -> None:
    plant = Plant()
    play(plant, 60.0, frames=100, measured=False)
    assert list(dict.fromkeys(plant.ran)) == list(LATENCIES)
    assert plant.ran[-1] == "full"


def test_other_load_makes_the_depth_shallower_and_its_end_deeper_again() -> None:
    # Load of 1.8 from frame 100 to 200: minimal takes 18 ms, everything else more than 20 with its margin.
    plant = Plant(lambda frame, random: 1.8 if 100 <= frame < 200 else 1.0)
    played = play(plant, 24.0, frames=700)
    assert set(plant.ran[2:100]) == {"full"}
    assert set(plant.ran[120:200]) == {"minimal"}
    assert plant.ran[-1] == "full"
    # The frame that runs while the load comes is late; the one that loses its time may be, no other.
    assert sum((frame.late_ms or 0) > 0 for frame in played) <= 2


def test_lag_never_grows_when_nothing_fits() -> None:
    # Minimal takes 10 ms, frames come every 4 ms: two of three are skipped, and none is ever older than the
    # frame before it plus one pass.
    plant = Plant()
    played = play(plant, 4.0, frames=300)
    late = [frame.late_ms for frame in played if frame.late_ms is not None]
    assert max(late) <= 10.0
    assert len(late) == pytest.approx(300 * 4 / 10, abs=3)
    assert set(plant.ran) == {"minimal"}


def test_a_slow_frame_takes_time_from_the_next_one_alone() -> None:
    # Frame 50 takes 35 ms instead of 20, of a period of 23: frame 51 has 11 ms left, minimal fits into it.
    plant = Plant(lambda frame, random: 1.75 if frame == 50 else 1.0)
    played = play(plant, 23.0, frames=100)
    assert [frame.index for frame in played if (frame.late_ms or 0) > 0] == [50]
    assert plant.ran[51] == "minimal"


def test_frames_wait_for_their_arrival() -> None:
    plant = Plant()
    play(plant, 40.0, frames=10)
    # Frame 9 arrives at 360 ms.
    assert plant.now == pytest.approx(0.36 + plant.spent[-1] / 1000)


def test_without_deadlines_every_frame_runs_at_once() -> None:
    plant = Plant()
    detector = ControlledDetector(plant, LatencyController(rungs()), 14.0, clock=plant.clock)
    played = list(run_video(detector, range(50)))
    assert [frame.index for frame, _ in played] == list(range(50))
    assert all(frame.late_ms is None and found is not None for frame, found in played)
    assert plant.now == pytest.approx(sum(plant.spent) / 1000)


def test_a_fixed_depth_needs_no_budget() -> None:
    plant = Plant()
    detector = ControlledDetector(plant, FixedDepth("1/2"), clock=plant.clock)
    detector.predict("frame")
    assert plant.ran == ["1/2"]
    assert detector.last is not None
    assert detector.last.milliseconds == pytest.approx(14.0)


def test_a_frame_that_fails_leaves_nothing_behind() -> None:
    class Failing(Plant):
        def predict(self, *arguments: object, **options: object) -> list[object]:  # type: ignore[override]
            raise OSError("no such file")

    plant = Failing()
    detector = ControlledDetector(plant, LatencyController(rungs()), 14.0, clock=plant.clock)
    with pytest.raises(OSError, match="no such file"):
        detector.predict("frame")
    assert detector.last is None


@pytest.mark.parametrize("period", [0, -5, float("nan")])
def test_a_period_that_is_no_time_is_refused(period: float) -> None:
    with pytest.raises(ControlError):
        Schedule(period)


def test_the_deadline_policy_says_what_it_lacks() -> None:
    with pytest.raises(ControlError, match="give run_video period_ms"):
        DeadlinePolicy(rungs()).choose(None)
    with pytest.raises(ControlError, match="expected a quantile"):
        DeadlinePolicy(rungs(), quantile=0)


def test_time_left_is_the_budget_also_without_a_video() -> None:
    policy = DeadlinePolicy(rungs())
    last = None
    for left, depth in ((50.0, "minimal"), (50.0, "full"), (14.0, "1/4"), (3.0, "minimal")):
        chosen = policy.choose(last, Target(left))
        assert chosen == depth
        last = FrameResult(chosen, LATENCIES[chosen])
    assert np.isclose(policy.slow_frame("full") or 0, 22.0)

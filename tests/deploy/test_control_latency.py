"""The latency controller on simulated detectors, whose noise is seeded."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from plants import LATENCIES, Noise, Plant, constant, drifting, noisy, rungs

from anydepth.deploy.control import (
    ControlError,
    ControlledDetector,
    ControlWarning,
    FrameResult,
    Gains,
    LatencyController,
    Rung,
    Target,
)
from anydepth.deploy.runtime.control.costs import WARM_UP, CostTable
from anydepth.deploy.runtime.control.latency import PiLoop
from anydepth.deploy.runtime.control.tracking import sawtooth_schedule, step_schedule, tracking_error

FRAMES = 600
LOW, HIGH = LATENCIES["minimal"], LATENCIES["full"]


def follow(
    policy: LatencyController, plant: Plant, targets: np.ndarray, energy: Callable[[], float] | None = None
) -> list[float]:
    detector = ControlledDetector(plant, policy, clock=plant.clock, energy=energy)
    unit = "mj" if energy else "ms"
    for target in targets:
        detector.budget = Target(float(target), unit)
        detector.predict("frame")
    return plant.spent


@pytest.mark.parametrize("noise", [constant, noisy])
@pytest.mark.parametrize(("schedule", "limit"), [(step_schedule, 0.05), (sawtooth_schedule, 0.08)])
def test_mean_latency_follows_the_budget(
    noise: Noise, schedule: Callable[[int, float, float], np.ndarray], limit: float
) -> None:
    targets = schedule(FRAMES, LOW, HIGH)
    spent = follow(LatencyController(rungs()), Plant(noise), targets)
    assert tracking_error(spent, targets, HIGH - LOW) <= limit


def test_mean_latency_follows_the_budget_while_the_load_drifts() -> None:
    # With a load of 0.8 to 1.2, the depths take 12 to 16 ms whatever the load, so that all budgets are within
    # reach.
    targets = np.repeat([12.5, 15.5, 14.0], 200)
    spent = follow(LatencyController(rungs()), Plant(drifting), targets)
    assert tracking_error(spent, targets, HIGH - LOW) <= 0.05


def test_a_loop_that_is_told_wrong_costs_corrects_them() -> None:
    # Each depth takes 1.3 times what the bundle says, as if it was measured without reading and resizing.
    plant = Plant(latencies={depth: 1.3 * ms for depth, ms in LATENCIES.items()})
    spent = follow(LatencyController(rungs()), plant, np.full(300, 17.0))
    assert np.mean(spent[50:]) == pytest.approx(17.0, abs=0.2)


def test_a_budget_between_two_depths_mixes_these_two_alone() -> None:
    plant = Plant()
    follow(LatencyController(rungs()), plant, np.full(200, 13.0))
    assert set(plant.ran) == {"1/4", "1/2"}
    # 13.0 = 2/3 x 12.5 + 1/3 x 14.0.
    assert plant.ran.count("1/2") / 200 == pytest.approx(1 / 3, abs=0.02)


def test_rounding_errors_are_carried_without_the_loop() -> None:
    # All gains are 0, so that only what a frame misses and hands to the next one makes the mean.
    plant = Plant()
    follow(LatencyController(rungs(), Gains(0, 0, 0)), plant, np.full(300, 13.0))
    assert np.mean(plant.spent) == pytest.approx(13.0, abs=0.01)


def test_a_loop_at_its_limit_does_not_wind_up() -> None:
    # Frames miss their target by half of the range for 200 frames, in which full depth is all there is; the
    # first frames that are too slow by as much must lead away from it. Without back-calculation the integral
    # would hold 100 of them.
    loop = PiLoop(Gains())
    for _ in range(200):
        loop.observe(0.5)
        assert loop.output(1.0) == 1.0
    outputs = []
    for _ in range(8):
        loop.observe(-0.5)
        outputs.append(loop.output(1.0))
    assert outputs[-1] < 0.5


def test_a_depth_slower_than_a_deeper_one_never_runs() -> None:
    plant = Plant(latencies={"minimal": 10.0, "1/2": 21.0, "full": 20.0})
    follow(LatencyController(rungs(plant.latencies)), plant, np.linspace(10, 20, 200))
    assert set(plant.ran) == {"minimal", "full"}


def test_depths_that_were_not_measured_run_first_and_the_budget_is_kept_then() -> None:
    plant = Plant()
    spent = follow(LatencyController(rungs(measured=False)), plant, np.full(200, 13.0))
    warm_up = WARM_UP * len(LATENCIES)
    assert plant.ran[:warm_up] == [depth for depth in LATENCIES for _ in range(WARM_UP)]
    assert np.mean(spent[warm_up:]) == pytest.approx(13.0, abs=0.1)


def test_frames_per_second_are_a_budget() -> None:
    plant = Plant()
    detector = ControlledDetector(plant, LatencyController(rungs()), "62.5 fps", clock=plant.clock)
    for _ in range(200):
        detector.predict("frame")
    # 1000 / 62.5 = 16 ms.
    assert np.mean(plant.spent) == pytest.approx(16.0, abs=0.1)


def test_energy_is_a_budget_if_a_reader_is_given() -> None:
    plant = Plant()
    # 5 W: 10 to 20 ms are 50 to 100 mJ, and 70 mJ are 14 ms.
    follow(
        LatencyController([Rung(r.depth, r.value, 5 * r.cost) for r in rungs() if r.cost], energy=True),
        plant,
        np.full(200, 70.0),
        energy=lambda: 5000 * plant.now,
    )
    assert np.mean(plant.spent) == pytest.approx(14.0, abs=0.1)


def test_a_budget_out_of_reach_is_clipped_and_said_once() -> None:
    plant = Plant()
    with pytest.warns(ControlWarning, match=r"budget of 5 ms .* reach, 10 to 20 ms") as said:
        follow(LatencyController(rungs()), plant, np.full(100, 5.0))
    assert len(said) == 1
    assert set(plant.ran) == {"minimal"}


def test_time_out_of_reach_leaves_no_debt() -> None:
    # 200 frames of a budget that nothing meets must not delay the answer to the next one: without
    # anti-windup, the integral would hold 200 frames of error.
    plant = Plant(latencies={depth: 2 * ms for depth, ms in LATENCIES.items()})
    policy = LatencyController(rungs(plant.latencies))
    with warnings.catch_warnings(action="ignore"):
        follow(policy, plant, np.concatenate([np.full(200, 5.0), np.full(100, 36.0)]))
    assert np.mean(plant.spent[205:235]) == pytest.approx(36.0, rel=0.05)


def test_a_saturated_integrator_recovers_without_a_jump_of_the_budget() -> None:
    # Load doubles for 100 frames, so that a budget of 19 ms has no depth above it; then it goes.
    plant = Plant(lambda frame, random: 2.0 if 100 <= frame < 200 else 1.0)
    with warnings.catch_warnings(action="ignore"):
        follow(LatencyController(rungs()), plant, np.full(400, 19.0))
    assert np.mean(plant.spent[260:]) == pytest.approx(19.0, rel=0.03)


@pytest.mark.parametrize("spent", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_latency_that_is_no_number_above_0_is_refused(spent: float) -> None:
    policy = LatencyController(rungs())
    with pytest.raises(ControlError, match="expected a finite number above 0"):
        policy.choose(FrameResult("full", spent), Target(15.0))


@pytest.mark.parametrize("budget", [0, -1, float("nan"), True, "8", "0ms", "8 mb", "-8ms", [8]])
def test_a_budget_that_is_no_number_above_0_is_refused(budget: object) -> None:
    with pytest.raises(ControlError, match=r"got (a|the) budget"):
        Target.of(budget)  # type: ignore[arg-type]


def test_a_budget_of_another_quantity_or_none_is_refused() -> None:
    for target in (None, Target(5, "mj")):
        with pytest.raises(ControlError, match="expected one in milliseconds or frames per second"):
            LatencyController(rungs()).choose(None, target)
    with pytest.raises(ControlError, match="give energy=READER"):
        LatencyController(rungs(), energy=True).choose(FrameResult("full", 1.0), Target(5, "mj"))


@pytest.mark.parametrize(
    "given",
    [[], [Rung("full", 1), Rung("full", 2)], [Rung("full", float("nan"))], [Rung("full", 1, 0.0)]],
)
def test_depths_that_cannot_be_ordered_are_refused(given: list[Rung]) -> None:
    with pytest.raises(ControlError):
        LatencyController(given)


def test_gains_out_of_range_are_refused() -> None:
    for values in ((-1, 0, 0), (0, -1, 0), (0, 0, 1)):
        with pytest.raises(ControlError, match="expected gains from 0"):
            Gains(*values)


def test_the_load_of_one_depth_tells_about_the_others() -> None:
    table = CostTable(rungs())
    for _ in range(100):
        table.observe("minimal", 15.0)
    # 1.5 times the latency of minimal, so that full takes about as much longer; most of it is put down to
    # the load, some to the depth itself.
    assert 25 < (table.estimate("full") or 0) < 30


def test_schedules_are_the_published_ones() -> None:
    steps = step_schedule(6, 10, 20)
    assert steps.tolist() == [13, 13, 18, 18, 15, 15]
    ramps = sawtooth_schedule(400, 10, 20)
    # Four falls, from 90 % back to 10 %.
    assert (np.diff(ramps) < 0).sum() == 3
    assert ramps.min() == 11
    assert ramps.max() == pytest.approx(19, abs=0.1)

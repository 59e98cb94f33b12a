"""Statistics of detections, the router without PyTorch, and the policy of the two ends."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hand_made import write_bundle
from plants import Plant, rungs

from anydepth.deploy import load
from anydepth.deploy.control import (
    ControlError,
    ControlledDetector,
    FixedDepth,
    FrameResult,
    LatencyController,
    RoutedDepth,
    Router,
    Target,
    measured_rungs,
    read_router,
    rungs_of,
)
from anydepth.deploy.runtime.control.statistics import NAMES, detection_statistics
from anydepth.deploy.runtime.detector import DeployedDetector
from anydepth.detections import Detections


def detections(scores: list[float], side: float = 10.0) -> Detections:
    """Boxes beside each other, of this side."""
    left = 2 * side * np.arange(len(scores), dtype=np.float32)
    boxes = np.stack([left, 0 * left, left + side, 0 * left + side], 1)
    return Detections(boxes, np.asarray(scores, np.float32), np.zeros(len(scores), np.int64))


def counting_router(band: tuple[float, float] = (0.0, 5.0), threshold: float = 1.0) -> Router:
    """A router whose prediction is the log of 1 + the number of detections of a score of 0.5 or more."""
    hidden = np.zeros((1, len(NAMES) + 8), np.float32)
    hidden[0, NAMES.index("log_count_0.5")] = 1
    return Router(
        "statistics",
        (),
        0,
        band,
        threshold,
        {
            "mean": np.zeros(len(NAMES), np.float32),
            "deviation": np.ones(len(NAMES), np.float32),
            "path": np.zeros((2, 8), np.float32),
            "hidden.weight": hidden,
            "hidden.bias": np.zeros(1, np.float32),
            "last.weight": np.ones((1, 1), np.float32),
            "last.bias": np.zeros(1, np.float32),
        },
    )


def write(folder: Path, edit: Callable[[dict[str, object]], object] = lambda values: None) -> Path:
    router = counting_router()
    folder.mkdir()
    np.savez(folder / "router.npz", **dict(router.arrays))
    values: dict[str, object] = {
        "format": "anydepth_router",
        "format_version": 1,
        "kind": "statistics",
        "grid": 0,
        "channels": {},
        "statistics": list(NAMES),
        "band": [0.0, 5.0],
        "threshold": 1.0,
    }
    edit(values)
    (folder / "router.json").write_text(json.dumps(values))
    return folder


def test_statistics_count_and_compare() -> None:
    found = dict(zip(NAMES, detection_statistics(detections([0.9, 0.6, 0.2, 0.04])), strict=True))
    # The score of 0.04 is below all that is looked at; log(1 + count).
    assert found["log_count_0.1"] == pytest.approx(np.log(4))
    assert found["log_count_0.5"] == pytest.approx(np.log(3))
    assert found["score_mean"] == pytest.approx(1.7 / 3)
    # 0.1 + 0.4 + 0.2 wrong decisions are expected.
    assert found["log_doubt"] == pytest.approx(np.log(1.7))
    assert found["smallest_to_mean"] == pytest.approx(1)
    assert found["overlap"] == 0


def test_statistics_do_not_depend_on_the_resolution() -> None:
    scores = [0.9, 0.6, 0.2]
    assert np.allclose(
        detection_statistics(detections(scores, 10)), detection_statistics(detections(scores, 40)), atol=1e-6
    )


def test_a_frame_without_detections_has_statistics_of_zero() -> None:
    assert not detection_statistics(detections([])).any()


def test_the_first_frame_is_minimal_and_crowded_frames_lead_to_full_depth() -> None:
    policy = RoutedDepth(counting_router(), rungs())
    assert policy.depths == ("minimal", "full")
    assert policy.choose(None) == "minimal"
    # log(1 + 1) = 0.69 is below the threshold of 1, log(1 + 4) = 1.6 above.
    assert policy.choose(FrameResult("minimal", 10.0, detections=detections([0.9]))) == "minimal"
    assert policy.choose(FrameResult("minimal", 10.0, detections=detections([0.9] * 4))) == "full"
    assert policy.choose(FrameResult("full", 20.0, detections=detections([0.9]))) == "minimal"


class Scenes(Plant):
    """A plant that finds 0 to 5 objects in each frame, by chance."""

    def predict(self, source: object, depth: str = "full", threshold: float = 0.5) -> list[Detections]:
        super().predict(source, depth, threshold)
        return [detections([0.9] * int(source))]  # type: ignore[call-overload]


@pytest.mark.parametrize("budget", [12.0, 15.0, 18.0])
def test_with_a_budget_the_share_of_full_depth_follows_it(budget: float) -> None:
    plant = Scenes()
    detector = ControlledDetector(plant, RoutedDepth(counting_router(), rungs()), budget, clock=plant.clock)
    counts = np.random.default_rng(0).integers(0, 6, 400)
    for count in counts:
        detector.predict(int(count))
    assert np.mean(plant.spent[100:]) == pytest.approx(budget, abs=0.5)
    # What runs at full depth follows crowded frames: the choice falls on the frame after.
    deep = np.array(plant.ran[101:]) == "full"
    assert counts[100:-1][deep].mean() > counts[100:-1][~deep].mean() + 1


def test_low_scores_are_for_the_router_alone() -> None:
    class Unsure(Plant):
        def predict(self, source: object, depth: str = "full", threshold: float = 0.5) -> list[Detections]:
            super().predict(source, depth, threshold)
            return [detections([0.9, 0.1]).above(threshold)]

    plant = Unsure()
    detector = ControlledDetector(plant, RoutedDepth(counting_router(), rungs()), clock=plant.clock)
    assert len(detector.predict("frame")) == 1
    assert detector.last is not None
    assert len(detector.last.detections or ()) == 2


def test_a_router_is_read_as_it_was_written(tmp_path: Path) -> None:
    router = read_router(write(tmp_path / "router"))
    frame = FrameResult("full", 1.0, detections=detections([0.9] * 4))
    assert router.advantage(frame, deep=True) == pytest.approx(np.log(5))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda values: values.update(format="other"), "not a router"),
        (lambda values: values.update(format_version=2), "version 2, expected 1"),
        (lambda values: values.update(kind="x"), "got the kind 'x'"),
        (lambda values: values.update(statistics=["a"]), "not those of this version"),
        (lambda values: values.update(band=[0, float("nan")]), "NaN or infinite"),
        (lambda values: values.update(kind="tiny_conv", channels={"neck": 3}, grid=2), "damaged router"),
        (lambda values: values.update(kind="gap_mlp", channels={"neck": 10**12}, grid=2), "damaged router"),
        (lambda values: values.pop("band"), "damaged router"),
    ],
)
def test_a_damaged_router_is_refused(
    edit: Callable[[dict[str, object]], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ControlError, match=message):
        read_router(write(tmp_path / "router", edit))


def test_a_router_that_is_cut_short_or_missing_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "router")
    path = folder / "router.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ControlError, match="damaged router"):
        read_router(folder)
    path.unlink()
    with pytest.raises(ControlError, match="missing or too large"):
        read_router(folder)


def test_a_frame_without_maps_is_refused() -> None:
    router = Router("gap_mlp", ("neck",), 2, (0, 1), 0.5, {})
    assert RoutedDepth(router, rungs()).statistics_threshold is None
    with pytest.raises(ControlError, match=r"without the feature maps \['neck'\].* feature_grid=2, or give"):
        router.advantage(FrameResult("full", 1.0), deep=True)


def test_one_depth_leaves_nothing_to_route() -> None:
    with pytest.raises(ControlError, match="expected two to choose between"):
        RoutedDepth(counting_router(), rungs({"full": 20.0}))


# -- bundles -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> DeployedDetector:
    return load(write_bundle(tmp_path_factory.mktemp("control") / "bundle"), threads=1)


def test_depths_of_a_bundle_are_ordered_by_ap_and_not_measured_elsewhere(bundle: DeployedDetector) -> None:
    found = rungs_of(bundle)
    assert [(rung.depth, rung.value, rung.cost) for rung in found] == [
        ("minimal", 0.1, None),
        ("a@1", 0.2, None),
        ("full", 0.25, None),
    ]
    assert [rung.depth for rung in rungs_of(bundle, ["full", "minimal"])] == ["minimal", "full"]


def test_a_bundle_runs_under_every_policy(bundle: DeployedDetector) -> None:
    frame = np.zeros((20, 20, 3), np.uint8)
    measured = measured_rungs(bundle, frame, rounds=2)
    assert all(rung.cost and rung.cost > 0 for rung in measured)
    assert bundle.open_depths == ("minimal", "a@1", "full")
    policies = {
        "1000ms": LatencyController(rungs_of(bundle)),
        "1000fps": RoutedDepth(counting_router(), measured),
        None: FixedDepth("minimal"),
    }
    for budget, policy in policies.items():
        detector = ControlledDetector(bundle, policy, budget)
        for _ in range(3):
            found = detector.predict(frame)
        assert detector.last is not None
        expected = bundle.predict(frame, depth=detector.last.depth)[0]
        assert np.array_equal(found.scores, expected.scores)
    # Depths without a measurement run first, from the cheapest on.
    assert detector.last.depth == "minimal"


def test_a_controller_opens_its_depths_before_the_first_frame(bundle: DeployedDetector) -> None:
    bundle.close()
    ControlledDetector(bundle, LatencyController(rungs_of(bundle, ["full", "minimal"])), "5ms")
    assert set(bundle.open_depths) == {"full", "minimal"}


def test_measuring_needs_a_round() -> None:
    with pytest.raises(ControlError, match="expected 1 or more"):
        measured_rungs(Plant(), "frame", rounds=0)


def test_a_budget_can_change_between_two_frames() -> None:
    plant = Plant()
    detector = ControlledDetector(plant, LatencyController(rungs()), "10ms", clock=plant.clock)
    detector.predict("frame")
    detector.budget = "50fps"
    detector.predict("frame")
    assert plant.ran == ["minimal", "full"]
    assert detector.budget == Target(50.0, "fps")
    with pytest.raises(ControlError):
        detector.budget = 0

"""Budgets of a detector in PyTorch, by what lies beside its weights."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anydepth import zoo
from anydepth.budget import BudgetError
from anydepth.depth import DepthConfig, DepthError
from anydepth.detector import Detector
from anydepth.evaluation.cost import count_depth
from anydepth.measurement import Measurement
from anydepth.training.depth_schedule import DepthSchedule
from anydepth.weights import figures
from anydepth.weights.figures import conditions_here, measurements_path, record_measurements
from anydepth.weights.files import WeightsError

CPU = torch.device("cpu")
AP = {"full": 0.4, "neck@2": 0.39, "minimal": 0.3}


@pytest.fixture
def detector(tmp_path: Path, small_detector: Detector) -> Detector:
    return zoo.load(zoo.save(small_detector, tmp_path / "w.safetensors"))


def _write_curve(network: Detector, **changes: object) -> Path:
    """Write the parts of a depth curve that budgets read; operations are not those of the network."""
    assert network.weights_file is not None
    rows = [
        {"depth": depth, "gflops": gflops, "figures": {"AP": ap}}
        for (depth, ap), gflops in zip(AP.items(), (8.0, 6.0, 4.0), strict=True)
    ]
    curve = {"detector": "detr_tiny", "input_size": list(network.input_size), "rows": rows, **changes}
    path = network.weights_file.parent / "depth_curve.json"
    path.write_text(json.dumps(curve))
    return path


def _measurement(engine: str = "torch", **changes: Any) -> Measurement:
    conditions = conditions_here(engine, CPU, "fp32")
    values = {"median_ms": 5.0, "p90_ms": 6.0, "images_per_second": 200.0, "memory_mb": 90.0, "spread": 0.01}
    one = Measurement(**conditions._asdict(), **values, repetitions=20, date="2026-01-01")  # type: ignore[arg-type]
    return replace(one, **changes)


def _record(detector: Detector, found: dict[str, Measurement]) -> Path:
    assert detector.weights_file is not None
    return record_measurements(detector.weights_file, detector.measured_network, found)


def test_operations_need_neither_a_file_nor_a_measurement(small_detector: Detector):
    costs = {
        str(point): count_depth(small_detector, point).gflops for point in small_detector.depth_space.ladder()
    }
    assert {row.depth: row.gflops for row in small_detector.depth_figures()} == pytest.approx(costs)
    second = sorted(costs, key=lambda depth: costs[depth])[1]
    chosen = small_detector.resolve(f"<={costs[second] + 1e-9:.9f}gflops")
    assert str(chosen) == second
    with pytest.raises(BudgetError, match=r"no depth is within the budget <=0gflops. The depths are\ndepth"):
        small_detector.resolve("<=0gflops")


def test_operations_are_counted_once(small_detector: Detector, monkeypatch: pytest.MonkeyPatch):
    first = small_detector.resolve("<=99gflops")
    monkeypatch.setattr("anydepth.detector.contract.count_forward", None)
    assert small_detector.resolve("<=99gflops") == first == small_detector.depth_space.full


def test_prediction_and_specialisation_take_budgets(detector: Detector):
    _write_curve(detector)
    ran: list[str] = []
    detector.register_forward_pre_hook(
        lambda _, __, keywords: ran.append(str(keywords["depth"])), with_kwargs=True
    )
    image = np.zeros((40, 50, 3), np.uint8)
    detector.predict([image] * 2, depth=">=90%ap", batch_size=1)
    assert ran == ["neck@2"] * 2  # of two that reach 0.9 x 0.4, the one of fewer operations
    fast = detector.specialise("<=5gflops")
    assert str(fast.specialised_for) == "minimal"
    # A network of one depth has that one alone to offer.
    assert str(fast.resolve("<=5gflops")) == "minimal"
    with pytest.raises(BudgetError, match="no depth is within"):
        fast.predict(image, depth="<=3gflops")


def test_the_curve_beside_the_weights_names_the_candidates(detector: Detector):
    with pytest.raises(
        BudgetError, match=r"AP of the depths is not known; evaluate with `anydepth-evaluate weig"
    ):
        detector.resolve(">=95%ap")
    _write_curve(detector)
    assert [(row.depth, row.ap, row.gflops) for row in detector.depth_figures()] == [
        ("full", 0.4, 8.0),
        ("neck@2", 0.39, 6.0),
        ("minimal", 0.3, 4.0),
    ]
    assert str(detector.resolve(">=95%ap")) == "neck@2"  # 0.95 x 0.4 = 0.38
    assert str(detector.resolve(">=98%ap")) == "full"
    assert [str(depth) for depth in detector.resolve_list(["<=7gflops", "minimal", "neck@2"])] == [
        "neck@2",
        "minimal",
    ]


@pytest.mark.parametrize("changes", [{"detector": "yolo_s"}, {"input_size": [32, 64]}])
def test_the_curve_of_another_network_does_not_count(detector: Detector, changes: dict[str, object]):
    _write_curve(detector, **changes)
    with pytest.raises(BudgetError, match="AP of the depths is not known"):
        detector.resolve(">=95%ap")


def test_images_without_objects_give_no_ap(detector: Detector):
    rows = [{"depth": "full", "gflops": 8.0, "figures": {"AP": -1.0}}]
    _write_curve(detector, rows=rows)
    with pytest.raises(BudgetError, match="AP of the depths is not known"):
        detector.resolve(">=95%ap")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"detector": "detr_tiny", "input_size": [64, 64], "rows": [{"depth": "full"}]}',
        '{"detector": "detr_tiny", "input_size": [64, 64], "rows": [{"depth": "full", "gflops": NaN, '
        '"figures": {"AP": 1}}]}',
    ],
)
def test_a_damaged_curve_is_named(detector: Detector, text: str):
    path = _write_curve(detector)
    path.write_text(text)
    with pytest.raises(WeightsError, match=r"depth_curve\.json: not a depth curve as written by anydepth"):
        detector.resolve("<=9gflops")
    rows = [{"depth": "stage9", "gflops": 1.0, "figures": {"AP": 0.5}}]
    _write_curve(detector, rows=rows)
    with pytest.raises(WeightsError, match="are of another detector"):
        detector.resolve("<=9gflops")


def test_latency_is_that_of_what_runs(detector: Detector):
    command = (
        r"latency of the depths is not known; measure it with `anydepth-benchmark .*w\.safetensors threads=1"
    )
    with pytest.raises(BudgetError, match=f"{command} engine=eager`"):
        detector.resolve("<=6ms")
    with pytest.raises(BudgetError, match=f"{command}`"):
        detector.specialise("<=6ms")
    _record(detector, {"full": _measurement(), "minimal": _measurement(median_ms=3.0, memory_mb=50.0)})
    assert str(detector.specialise("<=6ms").specialised_for) == "full"
    assert str(detector.resolve("<=4ms", specialised=True)) == "minimal"
    assert str(detector.resolve("<=60mb", specialised=True)) == "minimal"
    # The detector of all depths is slower, and was not measured.
    with pytest.raises(BudgetError, match=r"engine=eager`; what was measured was under torch "):
        detector.predict(np.zeros((9, 9, 3), np.uint8), depth="<=6ms")
    _record(detector, {"minimal": _measurement("eager", median_ms=5.0)})
    assert str(detector.resolve("<=6ms")) == "minimal"
    with pytest.raises(BudgetError, match=r"no depth is within the budget <=1ms. The depths are\ndepth"):
        detector.resolve("<=1ms")


def test_measurements_under_other_conditions_do_not_count(detector: Detector):
    others = [
        {"threads": 9},
        {"machine": "another"},
        {"engine_version": "1"},
        {"batch": 8},
        {"precision": "bf16"},
    ]
    for changes in others:
        _record(detector, {"full": _measurement("eager", **changes)})
    with pytest.raises(BudgetError, match="not known"):
        detector.resolve("<=6ms")
    with torch.autocast("cpu", torch.bfloat16):
        assert str(detector.resolve("<=6ms")) == "full"
    detector.input_size = (32, 32)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(BudgetError, match="not known"):
        detector.resolve("<=6ms")


def test_measurements_replace_former_ones_under_the_same_conditions(detector: Detector):
    _record(detector, {"full": _measurement(), "minimal": _measurement()})
    path = _record(detector, {"full": _measurement(median_ms=7.0, date="2025-01-01")})
    assert path.name == "w.measurements.json"
    kept = json.loads(path.read_text())["depths"]
    assert [one["median_ms"] for one in kept["full"]] == [7.0]
    assert [one["median_ms"] for one in kept["minimal"]] == [5.0]
    # Those of weights that lay there before are replaced as a whole.
    detector.input_size = (32, 32)
    _record(detector, {"full": _measurement()})
    assert list(json.loads(path.read_text())["depths"]) == ["full"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": "x"}', '{"format": "anydepth_measurements", "format_version": 9}']
)
def test_damaged_measurements_are_named_and_kept(detector: Detector, text: str):
    assert detector.weights_file is not None
    path = measurements_path(detector.weights_file)
    path.write_text(text)
    for use in (lambda: detector.resolve("<=6ms"), lambda: _record(detector, {"full": _measurement()})):
        with pytest.raises(WeightsError, match=r"w\.measurements\.json: not measurements as written by"):
            use()
    assert path.read_text() == text


def test_a_detector_without_a_file_says_how_to_get_figures(small_detector: Detector):
    for budget in ("<=6ms", ">=95%ap"):
        with pytest.raises(BudgetError, match=r"load the detector with anydepth\.load"):
            small_detector.resolve(budget)


def test_other_weights_have_other_figures(detector: Detector, build_small: Callable[..., Detector]):
    _write_curve(detector)
    zoo.load_weights(detector, build_small(seed=1).state_dict())
    with pytest.raises(BudgetError, match=r"load the detector with anydepth\.load"):
        detector.resolve(">=95%ap")


def _parse(detector: Detector, text: str) -> DepthConfig:
    return detector.depth_space.parse(text)


def _run(detector: Detector, text: str) -> object:
    return detector(torch.zeros(1, 3, 64, 64), depth=text)


def _train(detector: Detector, text: str) -> object:
    return DepthSchedule(depths=("full", text)).sample(detector.depth_space, seed=0, step=0)


@pytest.mark.parametrize("use", [_parse, _run, _train])
def test_budgets_are_refused_where_a_depth_is_needed(small_detector: Detector, use: Callable[..., object]):
    with pytest.raises(
        DepthError, match=r"depth '<=8ms': a budget, which is allowed where .* not in training"
    ):
        use(small_detector, "<=8ms")


def test_the_precision_is_that_of_autocast():
    assert figures.autocast_precision(CPU) == "fp32"
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        with torch.autocast("cpu", dtype):
            assert figures.autocast_precision(CPU) == name

"""One pass over the data gives every depth its own figures and costs; a curve reads back as written."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from anydepth.depth import DepthConfig, DepthError, DepthSpace
from anydepth.detector import Detector
from anydepth.evaluation import cost
from anydepth.evaluation.coco_eval import CocoEvaluator, EvaluationError
from anydepth.evaluation.cost import LatencyProtocol, count_depth, measure_latency
from anydepth.evaluation.depth_curve import DepthCurve, evaluate_depths
from anydepth.evaluation.device import autocast, resolve_device
from anydepth.structures import Batch, Detections, DetectorOutput, Targets

SIDE = 16


class _Detector(Detector):
    """Detects one box per image at a position given by its brightness; only full depth detects it exactly."""

    config: Mapping[str, object] = {"name": "fake"}
    num_classes = 2
    class_names = ("cat", "dog")
    input_size = (SIDE, SIDE)

    def __init__(self) -> None:
        super().__init__()
        self.essential = nn.Conv2d(3, 4, 1, bias=False)
        self.refinement = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.depth_space = DepthSpace(stages=("stage1",), decoder_layers=2, minimal_decoder_layers=1)
        self.calls: list[tuple[str, bool, torch.dtype, tuple[int, ...]]] = []

    @property
    def stage_modules(self) -> tuple[str, ...]:
        return ("refinement",)

    def forward(
        self,
        images: Tensor,
        depth: str | DepthConfig = "full",
        targets: Sequence[Targets] | None = None,
        stem: Tensor | None = None,
    ) -> DetectorOutput:
        config = self.depth_space.parse(depth)
        features = self.stem_features(images) if stem is None else stem
        if config.refine[0]:
            features = self.refinement(features)
        self.calls.append((str(config), self.training, features.dtype, tuple(images.shape)))
        shift = 0.0 if config.refine[0] else 1.5
        return DetectorOutput((images.mean(dim=(1, 2, 3)) * 255 + shift,), (features,))

    def stem_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.essential(images)
        return features

    def postprocess(
        self, output: DetectorOutput, original_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        found = []
        for place in output.backbone_features[0].float():
            corner = place.repeat(2)
            box = torch.cat([corner, corner + 10])[None]
            found.append(Detections(box, torch.tensor([0.9]), torch.tensor([1])))
        return found

    def reset_classes(self, class_names: Sequence[str]) -> None:
        raise NotImplementedError


class _Loader:
    """Loader of batches of 2 that counts its passes."""

    def __init__(self, image_ids: Sequence[int]) -> None:
        self.image_ids = image_ids
        self.passes = 0

    def __iter__(self) -> Iterator[Batch]:
        self.passes += 1
        for start in range(0, len(self.image_ids), 2):
            ids = tuple(self.image_ids[start : start + 2])
            images = torch.stack([torch.full((3, SIDE, SIDE), i, dtype=torch.uint8) for i in ids])
            targets = tuple(Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) for _ in ids)
            yield Batch(images, targets, ids, ((100, 100),) * len(ids))


def _evaluator(image_ids: Sequence[int]) -> CocoEvaluator:
    return CocoEvaluator(
        ground_truth={
            "images": [{"id": i, "width": 100, "height": 100} for i in image_ids],
            "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 9, "bbox": [i, i, 10, 10], "area": 100, "iscrowd": 0}
                for i in image_ids
            ],
        }
    )


IDS = (3, 20, 50)


@pytest.fixture(scope="module")
def curve() -> DepthCurve:
    return evaluate_depths(
        _Detector(), _Loader(IDS), _evaluator(IDS), "ladder", latency_repetitions=3, progress=False
    )


def test_each_depth_gets_its_own_figures(curve: DepthCurve) -> None:
    assert [row.depth for row in curve.rows] == ["full", "none@2", "minimal"]
    assert curve.images == 3
    # Full is exact. A shift of 1.5 pixels both ways leaves an IoU of 8.5^2 / (200 - 8.5^2) = 0.566, which
    # passes the thresholds 0.50 and 0.55 of the ten.
    assert curve.row("full").figures["AP"] == pytest.approx(1, abs=1e-6)
    assert curve.row("minimal").figures["AP50"] == pytest.approx(1, abs=1e-6)
    assert curve.row("minimal").figures["AP"] == pytest.approx(0.2, abs=1e-6)
    assert curve.row("full").per_class == pytest.approx({"cat": -1, "dog": 1}, abs=1e-6)
    assert curve.row("full").refine == {"stage1": True}
    assert (curve.row("none@2").refine, curve.row("none@2").decoder_layers) == ({"stage1": False}, 2)
    with pytest.raises(EvaluationError, match=r"got depth '3/4', expected one of .*minimal"):
        curve.row("3/4")


def test_each_depth_gets_its_own_costs(curve: DepthCurve) -> None:
    places = SIDE * SIDE
    essential, refinement = 3 * 4, 4 * 4 * 9
    assert curve.parameters == essential + refinement
    assert curve.row("full").parameters_run == essential + refinement
    assert curve.row("minimal").parameters_run == essential
    assert curve.row("full").gflops == pytest.approx(2 * places * (essential + refinement) / 1e9)
    assert curve.row("minimal").gflops == pytest.approx(2 * places * essential / 1e9)


def test_the_data_is_read_once_in_eval_mode_and_the_detector_is_not_switched() -> None:
    detector, loader = _Detector().train(), _Loader(IDS)
    evaluate_depths(detector, loader, _evaluator(IDS), ["full", "minimal"], progress=False)
    assert loader.passes == 1
    assert detector.training
    batches = [call for call in detector.calls if call[3][0] == 2]
    assert [(depth, training) for depth, training, _, _ in batches] == [("full", False), ("minimal", False)]


def test_precision_applies_to_the_network_and_earlier_detections_are_removed() -> None:
    detector, evaluator = _Detector(), _evaluator(IDS)
    wrong = Detections(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([1.0]), torch.tensor([0]))
    evaluator.add("full", [IDS[0]], [wrong])
    found = evaluate_depths(detector, _Loader(IDS), evaluator, "full", precision="bf16", progress=False)
    assert detector.calls[0][2] == torch.bfloat16
    assert found.row("full").figures["AP"] == pytest.approx(1, abs=1e-6)
    assert (found.precision, found.protocol, found.rows[0].latency) == ("bf16", None, None)


def test_no_image_and_an_unknown_depth_are_errors() -> None:
    with pytest.raises(EvaluationError, match="got no image"):
        evaluate_depths(_Detector(), _Loader(()), _evaluator(IDS), "full", progress=False)
    with pytest.raises(DepthError, match="stage1"):
        evaluate_depths(_Detector(), _Loader(IDS), _evaluator(IDS), "deepest", progress=False)


def test_json_reads_back_equal(curve: DepthCurve) -> None:
    assert curve.protocol is not None
    assert DepthCurve.from_json(curve.to_json()) == curve
    bare = replace(curve, protocol=None, rows=tuple(replace(row, latency=None) for row in curve.rows))
    assert DepthCurve.from_json(bare.to_json()) == bare
    written = json.loads(curve.to_json())
    assert written.pop("boxes_clipped") is False
    assert DepthCurve.from_json(json.dumps(written)).boxes_clipped is None, "older files do not record it"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"rows": []}', '{"protocol": null, "rows": [{"depth": "full"}]}']
)
def test_json_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(EvaluationError, match="not a depth curve"):
        DepthCurve.from_json(text)


def test_csv_holds_one_line_per_depth_with_all_twelve_figures(curve: DepthCurve) -> None:
    lines = list(csv.DictReader(io.StringIO(curve.to_csv())))
    assert [line["depth"] for line in lines] == ["full", "none@2", "minimal"]
    assert [line["refine_stage1"] for line in lines] == ["1", "0", "0"]
    for line, row in zip(lines, curve.rows, strict=True):
        assert float(line["gflops"]) == row.gflops
        assert {name: float(line[name]) for name in row.figures} == row.figures
        assert len(row.figures) == 12
        assert {name: float(line[f"AP/{name}"]) for name in ("cat", "dog")} == row.per_class


def test_a_curve_gives_the_ladder_by_measured_ap(curve: DepthCurve) -> None:
    measured = curve.measured_ap(_Detector().depth_space)
    assert {str(depth): value for depth, value in measured.items()} == {
        row.depth: row.figures["AP"] for row in curve.rows
    }


# -- cost ----------------------------------------------------------------------------------------------


def test_latency_alternates_depths_and_excludes_the_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = _Detector()
    depths = detector.depth_space.parse_list(["full", "minimal"])
    # A clock on which passes last 1, 2, 3, ... ms.
    ticks = iter([value for n in range(1, 50) for value in (0.0, n / 1000)])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(ticks))
    latencies, protocol = measure_latency(
        detector, depths, warmup=2, repetitions=5, batch_size=3, input_size=(8, 4)
    )
    assert [call[0] for call in detector.calls] == ["full", "minimal"] * 7
    assert {call[3] for call in detector.calls} == {(3, 3, 8, 4)}
    # Full lasts 1, 3, 5, 7, 9 ms, minimal 2, 4, 6, 8, 10; the 90th percentile lies 0.6 of the last step up.
    assert [latency.median_ms for latency in latencies] == pytest.approx([5, 6])
    assert [latency.p90_ms for latency in latencies] == pytest.approx([8.2, 9.2])
    assert [latency.peak_memory_mib for latency in latencies] == [None, None]
    assert (protocol.warmup, protocol.repetitions, protocol.batch_size, protocol.input_size) == (
        2,
        5,
        3,
        (8, 4),
    )
    assert protocol.device.startswith("cpu")


def test_latency_of_specialised_networks_says_so() -> None:
    detector = _Detector()
    depths = detector.depth_space.parse_list(["full", "minimal"])
    made: list[str] = []

    def specialise(depth: DepthConfig) -> _Detector:
        made.append(str(depth))
        return _Detector()

    detector.specialise = specialise  # type: ignore[method-assign, assignment]
    _, protocol = measure_latency(detector, depths, repetitions=1, specialised=True)
    assert made == ["full", "minimal"]
    assert not detector.calls
    assert str(protocol).endswith("depths in turn, each specialised")
    # Protocols that were written before say nothing about it.
    assert not LatencyProtocol("cpu", "fp32", 1, (8, 8), 3, 20).specialised


def test_latency_refuses_counts_that_measure_nothing() -> None:
    detector = _Detector()
    with pytest.raises(ValueError, match="repetitions=0"):
        measure_latency(detector, [detector.depth_space.full], repetitions=0)


def test_counting_a_depth_uses_the_given_size() -> None:
    assert count_depth(_Detector(), "minimal", (8, 4)).macs == 8 * 4 * 3 * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_latency_and_memory_on_a_gpu() -> None:
    detector = _Detector().to("cuda")
    depths = detector.depth_space.parse_list(["full", "minimal"])
    latencies, protocol = measure_latency(detector, depths, batch_size=8, input_size=(512, 512))
    full, minimal = latencies
    # Both passes hold the input and the first map; the full one holds a further map of 4 channels.
    assert full.peak_memory_mib is not None
    assert minimal.peak_memory_mib is not None
    assert minimal.peak_memory_mib >= 8 * (3 + 4) * 512 * 512 * 4 / 2**20
    assert full.peak_memory_mib - minimal.peak_memory_mib >= 0
    assert 0 < full.median_ms <= full.p90_ms
    assert protocol.device == torch.cuda.get_device_name()


# -- devices -------------------------------------------------------------------------------------------


def test_devices_and_precisions_that_do_not_exist_are_refused() -> None:
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="expected auto, cpu, cuda"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match="PyTorch sees"):
        resolve_device("cuda:99")
    with pytest.raises(ValueError, match="expected one of fp32, bf16, fp16"):
        autocast(torch.device("cpu"), "int8")

"""``anydepth-benchmark`` with weights: PyTorch is measured, and budgets find the measurements."""

from pathlib import Path

import pytest
import torch

from anydepth import zoo
from anydepth.commands import benchmark as command
from anydepth.commands import weights_benchmark
from anydepth.commands.benchmark import parse
from anydepth.deploy.runtime.benchmark import Protocol, measure_memory
from anydepth.depth import DepthError
from anydepth.detector import Detector

QUICK = ("threads=1", "seconds=1e-9", "memory=false")


@pytest.fixture
def weights(tmp_path: Path, small_detector: Detector) -> Path:
    return zoo.save(small_detector, tmp_path / "w.safetensors")


def test_specialised_depths_are_measured_printed_and_found_by_budgets(
    weights: Path, capsys: pytest.CaptureFixture[str]
):
    command.run(parse([str(weights), *QUICK, "depths=[full, minimal]"]))
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}" in printed
    assert "cpu, 1 threads, fp32, batch 1, 20 passes per depth in turn" in printed
    assert "w.measurements.json" in printed.splitlines()[-1]
    detector = zoo.load(weights)
    times = {
        row.depth: row.milliseconds for row in detector.depth_figures(specialised=True) if row.milliseconds
    }
    assert set(times) == {"full", "minimal"}
    # 1 ms above the slower one, both fit, and full has more operations.
    assert str(detector.resolve(f"<={max(times.values()) + 1:.3f}ms", specialised=True)) == "full"
    command.run(
        parse([str(weights), *QUICK, "engine=eager", "depths=[minimal]", "precision=bf16", "record=false"])
    )
    assert "eager " in capsys.readouterr().out
    assert not [row for row in detector.depth_figures() if row.milliseconds]


def test_each_engine_runs_its_network(weights: Path, monkeypatch: pytest.MonkeyPatch):
    ran: list[tuple[bool, str]] = []

    def run(network: Detector, images: torch.Tensor, depth: object) -> None:
        assert not network.training
        ran.append((network.specialised_for is not None, str(depth)))

    monkeypatch.setattr(weights_benchmark, "_run", run)
    detector = zoo.load(weights)
    for engine in ("torch", "eager"):
        weights_benchmark.measure_weights(
            detector, ["full", "minimal"], engine, "fp32", Protocol(seconds=1e-9, memory=False)
        )
    # 3 passes of warm-up and 20 of each.
    assert ran[6:46] == [(True, "full"), (True, "minimal")] * 20
    assert ran[52:] == [(False, "full"), (False, "minimal")] * 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["batch=0"], "got batch=0"),
        (["engine=onnxruntime"], "got engine='onnxruntime' for weights, expected torch, eager, compile"),
        (["precision=auto"], "got precision=auto, expected one of fp32"),
        (["threads=0"], "got threads=0"),
        (["device=tpu"], "got device=tpu"),
        (["depths=[deepest]"], "deepest"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(weights: Path, arguments: list[str], message: str):
    with pytest.raises((ValueError, DepthError), match=message):
        command.run(parse([str(weights), *QUICK, *arguments]))
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_one_depth(weights: Path):
    request = {"weights": str(weights), "device": "cpu", "engine": "torch", "precision": "fp32"}
    memory = measure_memory(
        "anydepth.commands.weights_benchmark", {**request, "threads": 1, "batch": 1}, ["minimal"]
    )["minimal"]
    # A network of 30,000 parameters: what PyTorch takes for its first pass.
    assert memory is not None
    assert 0 < memory < 1000

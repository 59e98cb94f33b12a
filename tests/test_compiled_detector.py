"""Compiled networks of one depth: the results of the detector, one compilation for any number of images."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

import anydepth
from anydepth import zoo
from anydepth.commands import benchmark
from anydepth.deploy.task import TorchTask
from anydepth.depth import DepthError
from anydepth.detector import CompilationError, Detector, compilation, compile_depth, evaluating
from small_networks import SMALL_DETECTOR, SMALL_YOLO

SMALL = {"detr_tiny": SMALL_DETECTOR, "yolo_tiny": SMALL_YOLO}
IMAGES = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Let no compilation of one test serve another."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=["detr_tiny", "yolo_tiny"])
def detector(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    return anydepth.build(request.param, 3, **SMALL[request.param]).eval()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile to what PyTorch traced, which takes no compiler."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def boxes_and_scores(detector: Detector, images: torch.Tensor, depth: str) -> list[torch.Tensor]:
    with evaluating(detector) as network:
        found = network.candidates(network(images, depth=depth))
    return [found.boxes_xyxy, found.scores]


@pytest.mark.parametrize("depth", ["full", "minimal"])
def test_results_are_those_of_the_detector_for_any_number_of_images_in_two_compilations(
    detector: Detector, depth: str
) -> None:
    fast = compile_depth(detector, depth, backend="eager")
    assert graphs() == 0, "nothing is compiled before the first pass"
    for number in (4, 1, 3, 6, 2, 5, 1):
        wanted = boxes_and_scores(detector, IMAGES[:number], depth)
        torch.testing.assert_close(
            boxes_and_scores(fast, IMAGES[:number], depth), wanted, atol=1e-4, rtol=1e-4
        )
    assert graphs() == 2, "one for one image, and one for several"
    assert fast.compiled
    assert not detector.compiled
    assert not detector.specialise(depth).compiled


def test_more_depths_are_compiled_than_pytorch_keeps_forms_of_one_function() -> None:
    torch.manual_seed(0)
    detector = anydepth.build("yolo_tiny", 3, **SMALL_YOLO).eval()
    # Two forms of each depth, for one image and for several.
    with torch._dynamo.config.patch(recompile_limit=2):
        for depth in ("full", "minimal"):
            fast = compile_depth(detector, depth, backend="eager")
            for number in (1, 2):
                wanted = boxes_and_scores(detector, IMAGES[:number], depth)
                found = boxes_and_scores(fast, IMAGES[:number], depth)
                torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert graphs() == 4


def test_a_specialised_detector_is_compiled_and_stays_as_it_is(detector: Detector) -> None:
    specialised = detector.specialise("minimal")
    fast = compile_depth(specialised, "minimal", backend="eager")
    assert (fast.compiled, specialised.compiled) == (True, False)
    found = fast.predict(IMAGES, depth="minimal", threshold=0.0)
    wanted = detector.predict(IMAGES, depth="minimal", threshold=0.0)
    assert graphs() == 1
    for one, other in zip(found, wanted, strict=True):
        assert one.scores.tolist() == pytest.approx(other.scores.tolist(), abs=1e-4)


def test_other_depths_and_wrong_images_are_refused_as_without_compilation(detector: Detector) -> None:
    fast = compile_depth(detector, "minimal", backend="eager")
    with pytest.raises(DepthError, match="specialised for 'minimal'"):
        boxes_and_scores(fast, IMAGES, "full")
    with pytest.raises(DepthError, match="deepest"):
        compile_depth(detector, "deepest")
    for images in (IMAGES[0], IMAGES[:, :2], IMAGES[..., :33], IMAGES.to(torch.uint8)):
        for network in (detector, fast):
            with pytest.raises(ValueError, match=r"expected .*\[B, 3, H, W\]|multiple"):
                boxes_and_scores(network, images, "minimal")


def test_without_a_compiler_the_error_says_what_to_install(detector: Detector) -> None:
    def broken(*_: object) -> Callable[..., object]:
        raise RuntimeError("no working C++ compiler\nmore")

    with pytest.raises(CompilationError, match=r"\(.*no working C\+\+ compiler.*\); it needs a C\+\+"):
        boxes_and_scores(compile_depth(detector, "minimal", backend=broken), IMAGES, "minimal")  # type: ignore[arg-type]


def test_prediction_compiles_once_however_few_the_images_are(detector: Detector, traced: None) -> None:
    task = TorchTask(detector, "minimal", compiled=True)
    prepared = task.prepare(1)
    images = [(255 * image).to(torch.uint8) for image in IMAGES[:5]]
    found = prepared.detect(images, 0.0, 3)
    wanted = task.detect(images, 0.0, 3)
    assert graphs() == 1, "a batch of three, and one of two"
    for one, other in zip(found, wanted, strict=True):
        assert one.scores.tolist() == pytest.approx(other.scores.tolist(), abs=1e-4)


def test_a_benchmark_measures_compiled_depths_and_budgets_tell_them_from_others(
    tmp_path: Path, traced: None, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    weights = zoo.save(anydepth.build("yolo_tiny", 3, **SMALL_YOLO), tmp_path / "w.safetensors")
    options = ["engine=compile", "threads=1", "seconds=1e-9", "memory=false", "depths=[full,minimal]"]
    benchmark.run(benchmark.parse([str(weights), *options]))
    assert "compile " in capsys.readouterr().out
    assert graphs() == 2
    detector = zoo.load(weights)
    known = [row.depth for row in detector.depth_figures(compiled=True) if row.milliseconds]
    assert known == ["full", "minimal"]
    assert not [row for row in detector.depth_figures(specialised=True) if row.milliseconds]
    assert str(TorchTask(detector, "<=1000000ms", compiled=True).depth) == "full"
    with pytest.raises(DepthError, match="anydepth-benchmark"):
        TorchTask(detector, "<=1000000ms")


@pytest.mark.slow
def test_machine_code_gives_the_same_results(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    fast = compile_depth(detector, "minimal")
    for number in (3, 5, 1):
        wanted = boxes_and_scores(detector, IMAGES[:number], "minimal")
        torch.testing.assert_close(
            boxes_and_scores(fast, IMAGES[:number], "minimal"), wanted, atol=1e-4, rtol=1e-4
        )
    assert graphs() == 2

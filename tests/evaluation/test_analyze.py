"""``anydepth-analyze``: compatibility of features; AP of all configurations, interrupted and resumed."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from anydepth import analyze, zoo
from anydepth.config.compose import compose
from anydepth.depth import DepthCosts, DepthError, DepthSpace
from anydepth.detector import Detector
from anydepth.evaluation import depth_curve, depth_parts
from anydepth.evaluation.coco_eval import FIGURES, CocoEvaluator, EvaluationError
from anydepth.evaluation.compatibility import Compatibility
from anydepth.evaluation.cost import count_depth
from anydepth.evaluation.curve_analysis import CurveAnalysis, analyze_curve
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow, evaluate_depths
from anydepth.evaluation.depth_parts import join_parts
from anydepth.results.curve_analysis import print_curve_analysis
from anydepth.results.curve_parts import CurveParts
from found_data import unlike_itself, write_found_data

ALL_DEPTHS = 2**5


@pytest.fixture
def detector(build_small: Callable[..., Detector]) -> Detector:
    """Detector with 32 depth configurations."""
    return unlike_itself(build_small(decoder_layers=1))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, build_small: Callable[..., Detector]) -> Path:
    detector = unlike_itself(build_small(decoder_layers=1))
    return write_found_data(tmp_path_factory.mktemp("written") / "data", detector)


@pytest.fixture
def root(tmp_path: Path, written: Path) -> Path:
    """A copy of the data set, which a test may change."""
    return Path(shutil.copytree(written, tmp_path / "data"))


@pytest.fixture
def settings(tmp_path: Path, root: Path, detector: Detector) -> list[str]:
    weights = zoo.save(detector, tmp_path / "weights.safetensors")
    return [
        "data=custom",
        f"data.root={root}",
        "data.num_workers=0",
        f"weights={weights}",
        f"output={tmp_path / 'out'}",
        "device=cpu",
        "batch_size=2",
        "compatibility.images=4",
    ]


@pytest.fixture
def config(settings: list[str], tmp_path: Path) -> Iterator[Callable[..., DictConfig]]:
    def compose_job(*overrides: str) -> DictConfig:
        return compose("analyze", [*settings, f"paths.output_dir={tmp_path / 'out'}", *overrides])

    yield compose_job
    GlobalHydra.instance().clear()


def _detector_of(settings: list[str]) -> Detector:
    (path,) = (text.removeprefix("weights=") for text in settings if text.startswith("weights="))
    return zoo.load(path)


def _one_pass(objects: dict[str, Any]) -> DepthCurve:
    """Evaluate all configurations in one pass, without the parts of the entry point."""
    data = objects["data"]
    evaluator = CocoEvaluator(ground_truth=data.index("val").to_coco_dict(), category_ids=[18, 17])
    return evaluate_depths(objects["detector"], data.eval_dataloader("val"), evaluator, "all", progress=False)


def test_compatibility_is_written_printed_and_returned(
    config: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, objects = analyze.run(config("compatibility.depths=[full,minimal]"))
    written = {path.name for path in (tmp_path / "out").iterdir()} - {"uncommitted.patch"}
    assert written == {f"compatibility.{kind}" for kind in ("csv", "json", "png")} | {
        "analysis.json",
        "config.yaml",
        "provenance.json",
    }
    found = Compatibility.from_json((tmp_path / "out" / "compatibility.json").read_text())
    assert found == objects["compatibility"]
    assert (found.images, found.depths) == (4, ("full", "minimal"))
    assert figures["stage2/full/spatial_cka"] == pytest.approx(1)
    analysis = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert analysis["compatibility"] == json.loads(found.to_json())
    assert analysis["curve"] is None
    assert "spatial linear CKA" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_analysis_goes_on_and_equals_one_pass(
    config: Callable[..., DictConfig],
    settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = tmp_path / "out" / "depth_curve_parts"
    command = [sys.executable, "-m", "anydepth.analyze", *settings, "curve=all", "chunk=2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while len(list(parts.glob("0*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    finished = {path.name: path.stat().st_mtime_ns for path in parts.glob("0*.json")}
    assert 2 <= len(finished) < ALL_DEPTHS // 2
    # Counting operations would take most of the time with so small a network, and is not tested here.
    costs = cache(lambda depth: count_depth(_detector_of(settings), depth))
    monkeypatch.setattr(depth_curve, "count_depth", lambda _, depth: costs(depth))
    assert not (tmp_path / "out" / "depth_curve_all.json").exists()

    passes: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> DepthCurve:
        passes.append(len(args[3]))
        return evaluate_depths(*args, **{**kwargs, "progress": False})

    monkeypatch.setattr(depth_parts, "evaluate_depths", counted)
    # A different chunk size resumes as well.
    figures, objects = analyze.run(config("curve=all", "chunk=30", "compatibility.images=0"))
    assert sum(passes) == ALL_DEPTHS - 2 * len(finished)
    assert max(passes) <= 30
    assert {name: (parts / name).stat().st_mtime_ns for name in finished} == finished

    assert objects["curve"] == _one_pass(objects)
    assert len({figures[f"{row.depth}/AP"] for row in objects["curve"].rows}) > 8, "depths must differ"
    for suffix in ("csv", "json", "png"):
        assert (tmp_path / "out" / f"depth_curve_all.{suffix}").stat().st_size > 1000
    stored = DepthCurve.from_json((tmp_path / "out" / "depth_curve_all.json").read_text())
    assert stored == objects["curve"]
    analysis = json.loads((tmp_path / "out" / "analysis.json").read_text())["curve"]
    assert analysis == json.loads(json.dumps(asdict(objects["analysis"])))
    printed = capsys.readouterr().out
    assert f"{ALL_DEPTHS - 2 * len(finished)} of them to evaluate" in printed
    assert "largest cliff" in printed

    passes.clear()
    analyze.run(config("curve=all", "compatibility.images=0"))
    assert passes == [], "a finished evaluation is not repeated"


def test_parts_of_other_weights_data_or_settings_are_refused_and_kept(
    config: Callable[..., DictConfig],
    tmp_path: Path,
    root: Path,
    build_small: Callable[..., Detector],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = ("curve=all", "curve_images=1", "compatibility.images=0", "chunk=2")

    def once(*args: Any, **kwargs: Any) -> DepthCurve:
        monkeypatch.setattr(depth_parts, "evaluate_depths", stopped)
        return evaluate_depths(*args, **{**kwargs, "progress": False})

    def stopped(*args: Any, **kwargs: Any) -> DepthCurve:
        raise KeyboardInterrupt

    monkeypatch.setattr(depth_parts, "evaluate_depths", once)
    with pytest.raises(KeyboardInterrupt):
        analyze.run(config(*small))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    other = build_small(seed=1, decoder_layers=1)
    other.reset_classes(["dog", "cat"])
    weights = zoo.save(other, tmp_path / "other.safetensors")
    with pytest.raises(EvaluationError, match=r"differs in weights; choose another output="):
        analyze.run(config(*small, f"weights={weights}"))
    with pytest.raises(EvaluationError, match="differs in curve_images, input_size"):
        analyze.run(config(*small, "curve_images=2", "input_size=[64,128]"))
    annotations = root / "annotations" / "instances_val.json"
    document = json.loads(annotations.read_text())
    document["annotations"][0]["bbox"][2] /= 2
    annotations.write_text(json.dumps(document))
    with pytest.raises(EvaluationError, match="differs in data"):
        analyze.run(config(*small))
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    parts = CurveParts(tmp_path / "parts", {"weights": "a"})
    assert parts.load() == []
    parts.add(_curve(SPACE, _ap))
    assert CurveParts(tmp_path / "parts", {"weights": "a"}).load() == [_curve(SPACE, _ap)]
    (tmp_path / "parts" / "0002.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"0002\.json.*delete it"):
        parts.load()
    (tmp_path / "parts" / "fingerprint.json").write_text("[]")
    with pytest.raises(EvaluationError, match="damaged"):
        CurveParts(tmp_path / "parts", {"weights": "a"})


def test_parts_must_be_of_one_evaluation_and_complete() -> None:
    curve = _curve(SPACE, _ap)
    first, second = replace(curve, rows=curve.rows[:3]), replace(curve, rows=curve.rows[3:])
    depths = [row.depth for row in curve.rows]
    assert join_parts([second, first], depths) == curve
    with pytest.raises(EvaluationError, match="lack"):
        join_parts([first], depths)
    with pytest.raises(EvaluationError, match="different evaluations"):
        join_parts([first, replace(second, images=9)], depths)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["weights=null"], ValueError, "no weights"),
        (["weights=absent.safetensors"], FileNotFoundError, "absent"),
        pytest.param(["split=valid"], ValueError, "allowed are train, val, test", marks=pytest.mark.slow),
        (["curve=some"], ValueError, "allowed are null, and all"),
        (["chunk=0"], ValueError, "chunk=0"),
        pytest.param(["curve_images=0"], ValueError, "curve_images=0", marks=pytest.mark.slow),
        pytest.param(["compatibility.images=1"], ValueError, "2 or more", marks=pytest.mark.slow),
        (["compatibility.images=0"], ValueError, "nothing to do"),
        (["compatibility.depths=[full,none@9]"], DepthError, "decoder depth 9"),
        pytest.param(["compatibility.positions=0"], EvaluationError, "positions=0", marks=pytest.mark.slow),
        pytest.param(["precision=fp8"], ValueError, "fp32, bf16, fp16", marks=pytest.mark.slow),
        (["backend=coco", "curve=all"], EvaluationError, "hotcoco, pycocotools"),
        pytest.param(["input_size=[64]"], ValueError, "height, width", marks=pytest.mark.slow),
        (["device=gpu"], ValueError, "auto, cpu, cuda"),
    ],
)
def test_wrong_settings_are_refused_and_nothing_is_written(
    config: Callable[..., DictConfig],
    tmp_path: Path,
    overrides: list[str],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        analyze.run(config(*overrides))
    assert not (tmp_path / "out").exists()


def test_the_command_line_ends_in_one_message(
    settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["anydepth-analyze", *settings, "curve=half"])
    with pytest.raises(SystemExit):
        analyze.main()
    printed = capsys.readouterr().err
    assert "curve=half: allowed are null, and all" in printed
    assert "Traceback" not in printed


# -- the analysis of known curves ------------------------------------------------------------------------

SPACE = DepthSpace(
    stages=("stage1", "stage2"),
    decoder_layers=3,
    minimal_decoder_layers=2,
    costs=lambda: DepthCosts((100, 100), 50),
)


def _ap(refine: tuple[bool, ...], layers: int | None) -> float:
    """Stage 1 is worth 0.20 AP, stage 2 0.05; layer 3 0.01; layer 2, untrained below, 0.3."""
    worth = {3: 0.31, 2: 0.30, 1: 0.0}[layers or 0]
    return 0.1 + 0.20 * refine[0] + 0.05 * refine[1] + worth


def _curve(space: DepthSpace, ap: Callable[[tuple[bool, ...], int | None], float]) -> DepthCurve:
    rows = []
    for config in space.all():
        figures = dict.fromkeys(FIGURES, ap(config.refine, config.decoder_layers))
        gflops = 10.0 + 2 * sum(config.refine) + (config.decoder_layers or 0)
        stages = dict(zip(space.stages, config.refine, strict=True))
        rows.append(DepthRow(str(config), stages, config.decoder_layers, 1, gflops, None, figures, {}))
    return DepthCurve("detr", 10, (64, 64), "fp32", 7, None, tuple(rows))


@pytest.fixture
def analysis() -> CurveAnalysis:
    return analyze_curve(_curve(SPACE, _ap), SPACE)


def test_the_measured_ladder_removes_the_worst_part_per_cost_first(analysis: CurveAnalysis) -> None:
    """Per unit of cost: the decoder layer loses 0.01 / 50, stage 2 0.05 / 100, stage 1 0.20 / 100."""
    assert [rung.removed for rung in analysis.measured_ladder] == ["", "decoder layer", "stage2", "stage1"]
    assert [rung.depth for rung in analysis.measured_ladder] == [
        "full",
        "stage1+stage2@2",
        "stage1@2",
        "minimal",
    ]
    ap = [rung.ap for rung in analysis.measured_ladder]
    assert ap == pytest.approx([0.66, 0.65, 0.60, 0.40])
    assert [rung.removed for rung in analysis.stage_ladder] == ["", "stage1", "stage2", "decoder layer"]
    assert [rung.ap for rung in analysis.stage_ladder] == pytest.approx([0.66, 0.46, 0.41, 0.40])


def test_the_largest_cliff_is_named_with_both_sides(analysis: CurveAnalysis) -> None:
    assert analysis.configurations == 12
    assert analysis.largest_cliff.removed == "decoder layer"
    assert analysis.largest_cliff.deeper.endswith("@2") or analysis.largest_cliff.deeper == "minimal"
    assert analysis.largest_cliff.loss == pytest.approx(0.3)
    assert analysis.largest_cliff_in_range.removed == "stage1"
    assert analysis.largest_cliff_in_range.loss == pytest.approx(0.2)
    assert [(cliff.removed, round(cliff.loss, 6)) for cliff in analysis.cliffs] == [
        ("stage1", 0.2),
        ("stage2", 0.05),
        ("decoder layer", 0.01),
    ]


def test_the_pareto_front_holds_configurations_that_no_cheaper_one_matches(analysis: CurveAnalysis) -> None:
    """By cost: none@1 11; minimal 12; none@3 (0.41) and stage1@1 (0.30) 13, ...; full 17."""
    rows = {row.depth: (row.gflops, row.figures["AP"]) for row in _curve(SPACE, _ap).rows}
    expected = {
        depth
        for depth, (cost, ap) in rows.items()
        if not any((c <= cost and a > ap) or (c < cost and a >= ap) for c, a in rows.values())
    }
    assert set(analysis.pareto) == expected
    assert {"full", "minimal", "none@1", "stage1@2"} <= expected
    assert "stage1@1" not in expected


def test_the_analysis_prints_its_findings(
    analysis: CurveAnalysis, capsys: pytest.CaptureFixture[str]
) -> None:
    print_curve_analysis(analysis)
    printed = capsys.readouterr().out
    assert f"12 configurations on 7 images, {len(analysis.pareto)} of them Pareto-optimal" in printed
    assert "largest cliff: 30.00 AP without decoder layer" in printed
    assert "trained range: 20.00 AP without stage1" in printed
    # (0.66 + 0.65 + 0.60 + 0.40) / 4 and (0.66 + 0.46 + 0.41 + 0.40) / 4.
    assert "57.75 of the measured ladder, 48.25 of the ladder in stage order" in " ".join(printed.split())


def test_a_curve_that_lacks_a_configuration_or_objects_is_refused() -> None:
    curve = _curve(SPACE, _ap)
    with pytest.raises(EvaluationError, match=r"got a curve without 1 configurations, e\.g\. none@1"):
        analyze_curve(replace(curve, rows=curve.rows[:-1]), SPACE)
    with pytest.raises(EvaluationError, match="no object"):
        analyze_curve(_curve(SPACE, lambda *_: -1.0), SPACE)
    fixed = DepthSpace(stages=())
    with pytest.raises(EvaluationError, match="single depth"):
        analyze_curve(_curve(fixed, lambda *_: 0.5), fixed)


def test_a_detector_without_decoder_layers_has_one_kind_of_cliff() -> None:
    space = DepthSpace(stages=("stage1", "neck1"), costs=lambda: DepthCosts((1, 1)))
    found = analyze_curve(_curve(space, lambda refine, _: 0.1 + 0.2 * refine[0] + 0.1 * refine[1]), space)
    assert found.largest_cliff == found.largest_cliff_in_range
    assert found.configurations == 4
    assert [rung.removed for rung in found.measured_ladder] == ["", "neck1", "stage1"]

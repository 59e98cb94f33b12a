"""``anydepth-export``: settings, the depth curve beside the weights, and what is printed."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_graphs import grey_graph, replace_export

import anydepth
from anydepth import export, hub, zoo
from anydepth.config.compose import compose
from anydepth.deploy import load
from anydepth.deploy.export import bundle_writer
from anydepth.deploy.export.graph import ExportError
from anydepth.deploy.runtime.bundle import Bundle, read_bundle
from anydepth.deploy.runtime.engines.base import SELECTED_OUTPUTS
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow
from anydepth.hub import HubError
from hub_server import serve_hub
from small_networks import SMALL_DETECTOR


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a small detector; graphs are made by hand."""
    replace_export(monkeypatch)
    detector = zoo.build("detr_tiny", 2, **SMALL_DETECTOR)
    detector.reset_classes(("cat", "dog"))
    return zoo.save(detector, tmp_path / "run" / "weights.safetensors")


def _run(weights: Path, *overrides: str) -> tuple[dict[str, float], Bundle]:
    output = weights.parent.parent / "bundle"
    settings = [f"weights={weights}", f"output={output}", "engine=null", "paths.output_dir=out", *overrides]
    figures, objects = export.run(compose("export", settings))
    bundle: Bundle = objects["bundle"]
    return figures, bundle


def _write_curve(folder: Path, size: tuple[int, int] = (64, 64)) -> Path:
    stages = dict.fromkeys(("stage1", "stage2", "stage3", "stage4", "neck"), True)
    row = DepthRow("full", stages, 2, 1, 1.0, None, {"AP": 0.5}, {})
    parameters = sum(one.numel() for one in zoo.build("detr_tiny", 2, **SMALL_DETECTOR).parameters())
    curve = DepthCurve("detr_tiny", parameters, size, "fp32", 1, protocol=None, rows=(row,))
    folder.mkdir(exist_ok=True)
    (folder / "depth_curve.json").write_text(curve.to_json())
    return folder / "depth_curve.json"


def test_a_bundle_of_the_depths_is_written(weights: Path, capsys: pytest.CaptureFixture[str]):
    figures, bundle = _run(weights, "depths=[full,minimal]", "category_ids=[3,1]")
    assert read_bundle(weights.parent.parent / "bundle").files == bundle.files
    assert [str(entry.config) for entry in bundle.depths] == ["full", "minimal"]
    assert bundle.class_names == ("cat", "dog")
    assert bundle.category_ids == (3, 1)
    assert figures["depths"] == 2
    assert export.summarize(figures) == "2 depths, 0.0 MiB"
    printed = capsys.readouterr().out
    assert f"depth     full: {2 * bundle.depths[0].gmacs:.2f} GFLOPs" in printed
    assert printed.splitlines()[:2] == ["exports   full (1 of 2)", "exports   minimal (2 of 2)"]
    assert "no AP     is in the bundle: give curve=depth_curve.json of an evaluation" in printed


@pytest.mark.parametrize(
    "overrides", [(), ("graph=one",), ("format=openvino",), ("format=openvino", "graph=one")]
)
def test_graphs_select_by_choice(
    overrides: tuple[str, ...], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        bundle_writer, "export_graph", lambda detector, depth, batch, grid: grey_graph(detector, depth)
    )
    depths = ("full", "minimal")
    _, plain = _run(weights, "depths=[full,minimal]", *overrides)
    plain.folder.rename(tmp_path / "plain")
    _, bundle = _run(weights, "depths=[full,minimal]", "selection=graph", *overrides)
    assert (bundle.selects, bundle.normalised_boxes, plain.normalised_boxes) == (True, False, True)
    description = json.loads((bundle.folder / "bundle.json").read_text())
    assert description["output"]["names"] == [*description["output"]["meaning"]] == [*SELECTED_OUTPUTS]
    assert "Graphs select detections" in (bundle.folder / "README.md").read_text()
    photo = np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)
    for engine in ("openvino",) if "format=openvino" in overrides else ("onnxruntime", "openvino"):
        ours, wanted = (load(one, engine=engine, threads=1) for one in (bundle.folder, tmp_path / "plain"))
        for depth in depths:
            (found,), (expected,) = (one.predict(photo, depth, threshold=0.7) for one in (ours, wanted))
            assert found.labels.tolist() == expected.labels.tolist()
            np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-4)
            assert 0 < len(found) < 10


def test_the_curve_beside_the_weights_gives_ap(weights: Path, capsys: pytest.CaptureFixture[str]):
    _write_curve(weights.parent)
    _, bundle = _run(weights, "depths=[full,minimal]")
    assert [entry.figures for entry in bundle.depths] == [{"AP": 0.5}, {}]
    assert "GFLOPs, AP 50.0" in capsys.readouterr().out
    _, bundle = _run(weights, "depths=[full]", "curve=null")
    assert bundle.depths[0].figures == {}


def test_a_curve_of_another_input_size_is_left_out_or_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    beside = _write_curve(weights.parent, (96, 96))
    _, bundle = _run(weights, "depths=[full]")
    assert bundle.depths[0].figures == {}
    assert "is of (96, 96) pixels and left out" in capsys.readouterr().out
    with pytest.raises(ExportError, match="measured at"):
        _run(weights, "depths=[full]", f"curve={beside}")
    _, bundle = _run(weights, "depths=[full]", "input_size=[96,96]")
    assert bundle.depths[0].figures == {"AP": 0.5}
    assert bundle.input.size == (96, 96)
    with pytest.raises(ValueError, match=r"other\.json: no such depth curve"):
        _run(weights, "depths=[full]", f"curve={tmp_path}/other.json")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("weights=null", "no weights: give weights=FILE"),
        ("depths=[deep]", "unknown stage 'deep'"),
        ("depths=[]", "got an empty list of depths"),
        (
            "category_ids=[1]",
            "got 1 category ids, 1 of them different, expected one for each of the 2 classes",
        ),
        ("batch=0", "got batch=0, expected a number of images from 1, or null"),
        ("selection=nms", "got selection='nms', expected runtime or graph"),
        ("engine=torch", "got engine='torch', expected onnxruntime or openvino"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_and_nothing_is_written(
    override: str, message: str, weights: Path
):
    with pytest.raises(ValueError, match=message):
        _run(weights, "engine=null", override)
    assert not (weights.parent.parent / "bundle").exists()


def test_sigterm_leaves_nothing_half_written(weights: Path, monkeypatch: pytest.MonkeyPatch):
    before = sorted(weights.parent.parent.iterdir())

    def terminate(step: str) -> None:
        if step.startswith("exports   minimal"):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(export, "print_lines", terminate)
    with pytest.raises(SystemExit) as ended:
        _run(weights, "depths=[full,minimal]")
    assert ended.value.code == 143
    assert sorted(weights.parent.parent.iterdir()) == before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_missing_packages_are_named(weights: Path, monkeypatch: pytest.MonkeyPatch):
    # Not the package itself, whose attributes other tests' modules are.
    monkeypatch.delitem(sys.modules, "anydepth.deploy.export.bundle_writer")
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(
        ValueError, match=r"exporting needs the package onnx_ir, .*install the extra `export`"
    ):
        _run(weights)


def test_depths_at_which_detections_are_missing_are_warned_of(weights: Path):
    _, bundle = _run(weights, "depths=[full,minimal]")
    full, minimal = bundle.depths
    equality: dict[str, Any] = {"found": 0.9, "boxes": 0.1, "scores": 0.01, "images": 8.0}
    lacking = replace(minimal, equality=equality, equality_engine="onnxruntime")
    whole = replace(full, equality={**equality, "found": 1.0}, equality_engine="onnxruntime")
    lines = export._report(replace(bundle, depths=(whole, lacking)), 1.0, with_curve=True)
    assert "depth     minimal: " in lines[1]
    assert "; 90% of the best detections found, boxes within 1.0e-01 px" in lines[1]
    assert any(line.startswith("Warning: at minimal, onnxruntime does not find all") for line in lines)


def test_a_bundle_is_published_with_its_weights(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    with serve_hub(monkeypatch, tmp_path / "home") as server:
        _, bundle = _run(weights, "depths=[full]", "hub=ann/boats", "license=apache-2.0")
        (former, files) = server.repositories["ann/boats"]
        assert set(files) - set(former) == {*bundle.files, "bundle.json", "weights.safetensors"}
        assert files["weights.safetensors"] == weights.read_bytes()
        assert files["weights.bin"] == (bundle.folder / "weights.bin").read_bytes()
        assert server.private["ann/boats"] is True
        assert f"published {server.url}/ann/boats/commit/" in capsys.readouterr().out
        card = files["README.md"].decode()
        assert yaml.safe_load(card.split("---")[1]) == {
            "library_name": "anydepth",
            "pipeline_tag": "object-detection",
            "license": "apache-2.0",
            "tags": ["any-depth", "onnx"],
        }
        assert anydepth.load("ann/boats", cache_dir=tmp_path / "cache").class_names == ("cat", "dog")
        assert anydepth.deploy.load("ann/boats", cache_dir=tmp_path / "cache").depths == ("full",)


def test_what_cannot_be_published_is_known_before_the_export(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    with serve_hub(monkeypatch, tmp_path / "home"):
        for override, message in (
            ("hub=boats", "got hub='boats', expected the name of a repository"),
            ("license=My Licence", "got license='My Licence', expected an identifier in small letters"),
        ):
            with pytest.raises(ValueError, match=message):
                _run(weights, override)
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(HubError, match="the Hugging Face hub refused the request"):
            _run(weights, "hub=ann/boats")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_stays_if_publishing_fails(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(name: str, files: object, *, private: bool) -> str:
        raise HubError(f"{name}: the Hugging Face hub refused the request: storage is full")

    monkeypatch.setattr(hub, "check_publishing", lambda name: None)
    monkeypatch.setattr(hub, "publish", refuse)
    with pytest.raises(
        HubError, match=r"storage is full\. The bundle is complete in .*`hf upload ann/boats "
    ):
        _run(weights, "hub=ann/boats")
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "license" not in yaml.safe_load(card.split("---")[1])

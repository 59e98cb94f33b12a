"""Bundles in int8: description, refusals, all or nothing. NNCF is replaced; tests of its graphs are slow."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hand_made import AP, SIDE, write_bundle

from anydepth import quantize
from anydepth.config.compose import compose
from anydepth.deploy import load
from anydepth.deploy.export import int8_bundle, quantization
from anydepth.deploy.export.graph import ExportError
from anydepth.deploy.export.int8_bundle import write_int8_bundle
from anydepth.deploy.export.openvino_graph import to_openvino
from anydepth.deploy.export.quantization import QuantizationError
from anydepth.deploy.runtime.bundle import Bundle, BundleError, read_bundle
from anydepth.deploy.runtime.engines.base import EngineError
from anydepth.depth import DepthError
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow
from anydepth.selection import TopScores

IMAGES = np.random.default_rng(0).integers(0, 255, (5, 3, SIDE, SIDE), np.uint8)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A float bundle; quantising its graphs copies them."""

    def copy(path: Path, batches: list[np.ndarray]) -> ir.Model:
        return ir.external_data.load_to_model(ir.load(path))

    monkeypatch.setattr(int8_bundle, "quantize_graph", copy)
    return read_bundle(write_bundle(tmp_path / "float"))


def _curve(bundle: Bundle, ap: Mapping[str, float]) -> DepthCurve:
    rows = tuple(
        DepthRow(depth, {}, 3, 1, 1.0, None, {"AP": value, "APs": -1.0}, {}) for depth, value in ap.items()
    )
    return DepthCurve("two_products", 1, (SIDE, SIDE), "fp32", 1, protocol=None, rows=rows)


def test_ap_of_every_depth_before_and_after_is_in_the_bundle(source: Bundle, tmp_path: Path):
    seen = []

    def evaluate(bundle: Bundle) -> DepthCurve:
        seen.append(bundle.precision)
        return _curve(bundle, {"full": 0.5, "a@1": 0.4} if len(seen) == 1 else {"full": 0.48, "a@1": 0.41})

    made = write_int8_bundle(source, ["full", "a@1", "full"], tmp_path / "int8", IMAGES, evaluate=evaluate)
    assert seen == ["fp32", "int8"]
    assert read_bundle(tmp_path / "int8").depths == made.depths
    assert made.precision == "int8"
    # Figures of objects that the images do not hold (-1) are left out.
    assert [(str(one.config), one.float_figures, one.figures) for one in made.depths] == [
        ("full", {"AP": 0.5}, {"AP": 0.48}),
        ("a@1", {"AP": 0.4}, {"AP": 0.41}),
    ]
    assert "AP of the float bundle: `full` 50.0, `a@1` 40.0" in (made.folder / "README.md").read_text()
    assert "nncf" in made.versions
    made.check_files(*made.files)
    # The figures of int8 choose the depth of a budget.
    assert str(load(made.folder).resolve(">=99%ap").config) == "full"


def test_nothing_that_was_measured_in_float_is_repeated(source: Bundle, tmp_path: Path):
    def edit(description: dict[str, object]) -> None:
        for entry in description["depths"]:  # type: ignore[attr-defined]
            entry["equality"] = {"engine": "onnxruntime", "found": 1.0, "boxes": 0.1}

    source = read_bundle(write_bundle(tmp_path / "measured", edit=edit))
    assert source.depths[0].figures == {"AP": AP["full"]}
    made = write_int8_bundle(source, ["full"], tmp_path / "int8", IMAGES)
    (entry,) = made.depths
    assert (entry.figures, entry.float_figures, entry.equality, list(entry.measurements)) == ({}, {}, {}, [])


def test_the_bundle_detects(source: Bundle, tmp_path: Path):
    """Graphs were copied: what it finds is what the float bundle finds, from weights of its own."""
    made = write_int8_bundle(source, ["full", "minimal"], tmp_path / "int8", IMAGES)
    images = np.random.default_rng(1).random((2, 3, SIDE, SIDE), np.float32)
    for depth in ("full", "minimal"):
        expected = load(source.folder, threads=1).run(images, depth)
        for one, other in zip(load(made.folder, threads=1).run(images, depth), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(DepthError, match="it holds full, minimal"):
        made.depth("a@1")


def test_bundles_that_cannot_be_quantised_are_refused(source: Bundle, tmp_path: Path):
    made = write_int8_bundle(source, ["full"], tmp_path / "int8", IMAGES)
    with pytest.raises(QuantizationError, match="holds int8 numbers already; give the float bundle"):
        write_int8_bundle(made, ["full"], tmp_path / "again", IMAGES)
    with pytest.raises(QuantizationError, match="would be lost; give another output"):
        write_int8_bundle(source, ["full"], source.folder, IMAGES)
    with pytest.raises(QuantizationError, match="no depth"):
        write_int8_bundle(source, [], tmp_path / "again", IMAGES)
    with pytest.raises(QuantizationError, match=r"at least 1 of shape \(3, 32, 32\)"):
        write_int8_bundle(source, ["full"], tmp_path / "again", IMAGES[:0])
    with pytest.raises(DepthError, match="it holds full, a@1, minimal"):
        write_int8_bundle(source, ["b"], tmp_path / "again", IMAGES)
    (source.folder / "weights.bin").write_bytes(b"")
    with pytest.raises(BundleError, match="got 0 bytes"):
        write_int8_bundle(source, ["full"], tmp_path / "again", IMAGES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float", "int8"]


def test_graphs_that_select_stay_what_they_are(source: Bundle, tmp_path: Path):
    bundle = read_bundle(write_bundle(tmp_path / "selecting", selection=TopScores(5)))
    made = write_int8_bundle(bundle, ["full"], tmp_path / "int8", IMAGES)
    assert (made.selects, made.selection) == (True, TopScores(5))
    photo = np.random.default_rng(1).integers(0, 255, (20, 30, 3), np.uint8)
    (found,), (expected,) = (
        load(one.folder, threads=1).predict(photo, threshold=0.0) for one in (made, bundle)
    )
    assert len(found) == 5
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    with pytest.raises(
        QuantizationError, match=r"its graphs select .* export the bundle again with selection="
    ):
        write_int8_bundle(bundle, ["full"], tmp_path / "openvino", IMAGES, graph_format="openvino")
    assert not (tmp_path / "openvino").exists()


def test_a_graph_of_several_depths_is_refused(source: Bundle, tmp_path: Path):
    bundle = read_bundle(write_bundle(tmp_path / "one", one=True))
    with pytest.raises(
        QuantizationError, match=r"share one graph .* export the bundle again with graph=each"
    ):
        write_int8_bundle(bundle, ["full"], tmp_path / "int8", IMAGES)
    assert not (tmp_path / "int8").exists()


def test_int8_for_openvino_has_graphs_of_its_own(
    source: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("openvino")

    def read(path: Path, batches: list[np.ndarray]) -> Any:
        return to_openvino(ir.external_data.load_to_model(ir.load(path)))

    monkeypatch.setattr(int8_bundle, "quantize_for_openvino", read)
    made = write_int8_bundle(source, ["full", "minimal"], tmp_path / "int8", IMAGES, graph_format="openvino")
    assert (made.graph_format, made.precision) == ("openvino", "int8")
    assert [entry.graph for entry in made.depths] == ["full.xml", "minimal.xml"]
    detector, images = (
        load(made.folder, threads=1),
        np.random.default_rng(1).random((2, 3, SIDE, SIDE), np.float32),
    )
    for one, other in zip(detector.run(images, "full"), load(source.folder).run(images, "full"), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    with pytest.raises(QuantizationError, match="give the bundle of ONNX graphs"):
        write_int8_bundle(made, ["full"], tmp_path / "again", IMAGES)
    with pytest.raises(QuantizationError, match="got format='tflite', expected onnx or openvino"):
        write_int8_bundle(source, ["full"], tmp_path / "again", IMAGES, graph_format="tflite")
    assert not (tmp_path / "again").exists()


def test_openvino_refuses_int8_which_it_computes_wrongly(source: Bundle, tmp_path: Path):
    write_int8_bundle(source, ["full"], tmp_path / "int8", IMAGES)
    with pytest.raises(EngineError, match="got engine=openvino for a bundle of ONNX graphs in int8"):
        load(tmp_path / "int8", engine="openvino")


def test_images_come_in_batches_of_the_size_that_the_graphs_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Bundle
):
    sizes = []

    def note(path: Path, batches: list[np.ndarray]) -> ir.Model:
        sizes.append([len(batch) for batch in batches])
        return ir.external_data.load_to_model(ir.load(path))

    monkeypatch.setattr(int8_bundle, "quantize_graph", note)
    fixed = read_bundle(write_bundle(tmp_path / "fixed", batch=2))
    write_int8_bundle(source, ["full"], tmp_path / "a", IMAGES)
    write_int8_bundle(fixed, ["full"], tmp_path / "b", IMAGES)
    assert sizes == [[1] * 5, [2, 2]]


@pytest.mark.parametrize("place", ["quantising", "evaluating"])
def test_a_failure_leaves_the_former_bundle(
    source: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    former = write_int8_bundle(source, ["full"], tmp_path / "int8", IMAGES)

    def fail(path: Path, batches: list[np.ndarray]) -> ir.Model:
        if path.name == "minimal.onnx" and place == "quantising":
            raise QuantizationError("NNCF cannot quantise the graph")
        return ir.external_data.load_to_model(ir.load(path))

    def evaluate(bundle: Bundle) -> DepthCurve:
        if bundle.precision == "int8" and place == "evaluating":
            raise QuantizationError("the evaluation failed")
        return _curve(bundle, AP)

    monkeypatch.setattr(int8_bundle, "quantize_graph", fail)
    with pytest.raises(QuantizationError):
        write_int8_bundle(source, ["full", "minimal"], former.folder, IMAGES, evaluate=evaluate)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float", "int8"]
    assert read_bundle(former.folder).files == former.files
    former.check_files(*former.files)


def test_a_folder_that_holds_something_else_is_refused(source: Bundle, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years")
    with pytest.raises(ExportError, match=r"holds thesis\.txt"):
        write_int8_bundle(source, ["full"], tmp_path / "mine", IMAGES)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "three years"


def test_a_missing_nncf_is_named_before_any_work(
    source: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(quantization, "version", missing)
    with pytest.raises(QuantizationError, match=r"needs the package nncf.*install the extra `int8`"):
        write_int8_bundle(source, ["full"], tmp_path / "int8", IMAGES, evaluate=lambda bundle: 1 / 0)


def test_precisions_that_do_not_exist_are_refused(tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle", edit=lambda description: description.update(precision="int7"))
    with pytest.raises(BundleError, match="got precision='int7', expected fp32 or int8"):
        read_bundle(folder)


# -- the command ---------------------------------------------------------------------------------------------


def _settings(source: Bundle, output: Path, *overrides: str) -> tuple[dict[str, float], Bundle]:
    settings = [f"bundle={source.folder}", f"output={output}", "paths.output_dir=out", "data.num_workers=0"]
    figures, objects = quantize.run(compose("quantize", [*settings, *overrides]))
    bundle: Bundle = objects["bundle"]
    return figures, bundle


def test_the_command_calibrates_on_images_of_the_data_set(
    source: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    figures, made = _settings(
        source, tmp_path / "int8", "depths=[full]", "calibration.images=3", "engine=null"
    )
    description = json.loads((made.folder / "bundle.json").read_text())
    assert description["quantization"] == {"calibration_images": 3}
    assert figures.keys() == {"mebibytes", "depths"}
    assert quantize.summarize(figures) == "1 depths, 0.0 MiB"
    printed = capsys.readouterr().out
    assert "quantises full (1 of 1)" in printed
    assert "depth     full: AP was not measured" in printed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bundle=null", "give bundle=FOLDER"),
        ("depths=[b]", "it holds full, a@1, minimal"),
        ("split=best", "expected one of train, val, test"),
        ("calibration.split=best", "expected one of train, val, test"),
        ("calibration.images=0", r"calibration\.images"),
        ("engine=tensorflow", "expected onnxruntime or openvino"),
        ("engine=openvino", "got engine=openvino for a bundle of ONNX graphs in int8"),
        ("format=tflite", "got format=tflite, expected onnx or openvino"),
        ("data.root=/nowhere", "nowhere"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    source: Bundle, tmp_path: Path, override: str, message: str
):
    with pytest.raises(ValueError, match=message):
        _settings(source, tmp_path / "int8", "engine=null", override)
    assert not (tmp_path / "int8").exists()


def test_classes_of_the_data_set_must_be_those_of_the_bundle(source: Bundle, tmp_path: Path):
    with pytest.raises(ValueError, match=r"expected classes of the detector \(cat, dog\)"):
        _settings(source, tmp_path / "int8", "engine=onnxruntime")
    assert not (tmp_path / "int8").exists()

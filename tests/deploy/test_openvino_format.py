"""Bundles in OpenVINO's own format: detections, shared weights, and graphs of strangers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hand_made import DEPTHS, SIDE, outputs_of, write_bundle

pytest.importorskip("openvino")

from anydepth.deploy import load
from anydepth.deploy.export.bundle_writer import file_entry
from anydepth.deploy.export.openvino_graph import to_openvino, write_openvino
from anydepth.deploy.export.weights_file import weights_file
from anydepth.deploy.runtime.benchmark import Protocol, measure_bundle
from anydepth.deploy.runtime.bundle import BundleError, read_bundle
from anydepth.deploy.runtime.engines.base import EngineError, EngineOptions
from anydepth.deploy.runtime.hub_bundle import _needed


def convert(source: Path, folder: Path) -> Path:
    """Write a bundle of ONNX graphs in OpenVINO's format, as the export does."""
    description = json.loads((source / "bundle.json").read_text())
    folder.mkdir()
    graphs = dict.fromkeys(entry["graph"] for entry in description["depths"])
    with weights_file(folder / "weights.bin") as weights:
        for name in graphs:
            model = ir.external_data.load_to_model(ir.load(source / name))
            write_openvino(to_openvino(model), folder / name.replace(".onnx", ".xml"), weights)
    for entry in description["depths"]:
        entry["graph"] = entry["graph"].replace(".onnx", ".xml")
    description["graph_format"] = "openvino"
    description["files"] = {path.name: file_entry(path) for path in folder.iterdir()}
    (folder / "bundle.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return convert(write_bundle(tmp_path / "onnx"), tmp_path / "bundle")


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, SIDE, SIDE), np.float32)


@pytest.mark.parametrize("one", [False, True], ids=["each", "one"])
def test_depths_compute_what_their_weights_say(tmp_path: Path, one: bool) -> None:
    folder = convert(write_bundle(tmp_path / "onnx", one=one), tmp_path / "bundle")
    detector = load(folder, threads=1)
    assert detector.engine == "openvino"
    for depth in DEPTHS:
        for count in (1, 3):
            found = detector.run(_images(count), depth)
            for value, wanted in zip(found, outputs_of(_images(count), depth), strict=True):
                np.testing.assert_allclose(value, wanted, atol=1e-5)


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    folder = convert(write_bundle(tmp_path / "onnx", fill=0.5), tmp_path / "bundle")
    alone = convert(write_bundle(tmp_path / "one", depths=["full"], fill=0.5), tmp_path / "alone")
    kept, least = (read_bundle(one).files["weights.bin"].bytes for one in (folder, alone))
    assert kept == least
    # A depth's limit of memory counts its own weights.
    assert read_bundle(folder).check_graph("full.xml") <= kept


def test_a_depth_is_measured_and_its_files_are_downloaded(folder: Path) -> None:
    bundle = read_bundle(folder)
    protocol = Protocol(batch=1, spread=0.5, seconds=0.1, memory=False)
    found = measure_bundle(bundle, ["full"], "openvino", EngineOptions(threads=1), protocol)
    assert found["full"].engine == "openvino"
    assert set(_needed(bundle)) == {"full.xml", "a@1.xml", "minimal.xml", "weights.bin"}


def test_another_engine_is_refused(folder: Path) -> None:
    with pytest.raises(
        EngineError, match=r"graph_format=openvino, which is read by openvino alone; use engine=openvino"
    ):
        load(folder, engine="onnxruntime")


def _replace(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_replace('offset="0"', 'offset="999999"'), "at bytes 999999 to .*, expected weights.bin with"),
        (_replace('offset="0"', 'offset="-4"'), "got offset='-4' of a constant, expected a number"),
        (_replace('offset="0"', 'offset="0x4"'), "got offset='0x4' of a constant"),
        (_replace("<net ", '<!DOCTYPE net [<!ENTITY a "b">]><net '), "defines a document type"),
        (
            _replace('version="opset1"', 'version="my_extension"'),
            "a layer .* of 'my_extension', expected one of an opset",
        ),
        (
            _replace('version="11"', 'version="99"'),
            "got <net version=99>, expected <net> of version 10 or 11",
        ),
        (lambda text: text[: len(text) // 2], "not complete XML"),
        (lambda text: "\x08\x08", "not complete XML"),
    ],
    ids=["beyond", "negative", "hexadecimal", "entities", "extension", "version", "cut", "onnx"],
)
def test_graphs_of_strangers_are_refused(folder: Path, edit: Callable[[str], str], message: str) -> None:
    path = folder / "full.xml"
    path.write_text(edit(path.read_text()))
    description = json.loads((folder / "bundle.json").read_text())
    description["files"]["full.xml"] = file_entry(path)
    (folder / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(BundleError, match=message):
        load(folder, threads=1).open("full")
    # A damaged graph costs no other depth.
    load(folder, threads=1).open("minimal")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("onnx", r"expected files \*.onnx of graph_format=onnx"),
        ("tflite", "got graph_format='tflite', expected onnx or openvino"),
        (["openvino"], "got graph_format=\\['openvino'\\]"),
    ],
)
def test_a_format_that_the_graphs_are_not_in_is_refused(folder: Path, value: object, message: str) -> None:
    description = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**description, "graph_format": value}))
    with pytest.raises(BundleError, match=message):
        read_bundle(folder)


def test_nothing_of_this_machine_is_in_a_graph(folder: Path) -> None:
    for path in folder.glob("*.xml"):
        text = path.read_text()
        assert str(folder.parent) not in text
        assert "rt_info" not in text.partition("</layers>")[2]

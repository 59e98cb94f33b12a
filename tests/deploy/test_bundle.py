"""Reading of bundles, which may be damaged or come from strangers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hand_made import BOXES, DEPTHS, NAMES, write_bundle

from anydepth.deploy.runtime.bundle import BundleError, read_bundle
from anydepth.depth import DepthError
from anydepth.selection import NmsConfig, TopScores


def test_a_bundle_reads_back_what_was_written(tmp_path: Path):
    bundle = read_bundle(write_bundle(tmp_path / "bundle"))
    assert [str(entry.config) for entry in bundle.depths] == list(DEPTHS)
    assert bundle.class_names == NAMES
    assert bundle.category_ids == (7, 3)
    assert bundle.selection == TopScores(BOXES)
    assert bundle.depths[1].config.refine == (True, False)
    assert bundle.depths[0].figures == {"AP": 0.25}
    for entry in bundle.depths:
        bundle.check_files(entry.graph, "weights.bin")
        # Two matrices of 3 rows in float32: 3 * 6 * (4 + 2) * 4 bytes.
        assert bundle.check_graph(entry.graph) == 432


def test_fractions_are_those_of_the_detector(tmp_path: Path):
    # By the costs 100, 200 and 50 per layer, a@1 saves 300 of 400: a quarter is left.
    bundle = read_bundle(write_bundle(tmp_path / "bundle"))
    assert str(bundle.depth_space.parse("1/2").refine) == str(bundle.depth_space.parse("b@3").refine)


def test_a_depth_that_was_not_exported_names_those_that_were(tmp_path: Path):
    bundle = read_bundle(write_bundle(tmp_path / "bundle"))
    with pytest.raises(
        DepthError, match=r"'b@3' is not in the bundle .* it holds full, a@1, minimal; choose"
    ):
        bundle.depth("b@3")
    with pytest.raises(DepthError, match="unknown stage 'c'"):
        bundle.depth("c")


def _set(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(description: dict[str, Any]) -> None:
        place: Any = description
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return edit


def _rename_file(name: str) -> Callable[[dict[str, Any]], None]:
    def edit(description: dict[str, Any]) -> None:
        description["files"][name] = description["files"].pop("full.onnx")
        description["depths"][0]["graph"] = name

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("format", value="other"), "not the description of a bundle"),
        (_set("format_version", value=2), "version 2 of the format, expected 1; install"),
        (_set("format_version", value="1" * 500), "version '11"),
        (_rename_file("../full.onnx"), r"got a file '\.\./full\.onnx', expected the name of a file in"),
        (_rename_file("/etc/full.onnx"), "got a file '/etc"),
        (_rename_file("a\\b.onnx"), "got a file"),
        (_rename_file(".hidden.onnx"), "got a file"),
        (_rename_file("x" * 500), "got a file"),
        (_set("depths", 0, "graph", value="other.onnx"), "the graph 'other.onnx' is none of the files"),
        (_set("depths", 0, "depth", value="c@1"), "unknown stage 'c'"),
        (_set("depths", value=[]), "got 0 depths"),
        (_set("depths", value=[3]), "got the depth 3"),
        (_set("depths", 0, "gmacs", value="1"), "got gmacs='1', expected int or float"),
        (_set("depths", 0, "gmacs", value=-1.0), "got gmacs=-1.0, expected a finite number from 0"),
        (_set("depths", 0, "figures", value={"AP": float("nan")}), "got AP=nan, expected a finite number"),
        (_set("depths", 1, "depth", value="full"), "got 3 depths of which two are equal"),
        (
            _set("depths", 1, "graph", value="full.onnx"),
            "2 depths share the graph full.onnx, expected a number of each",
        ),
        (
            _set("input", "batch", value=2**20),
            "got a batch of 1048576 images, expected 1 to 262144 of 32 x 32",
        ),
        (_set("depths", 0, "parameters", value=True), "got parameters=True, expected int"),
        (_set("class_names", value=[]), "got 0 class names"),
        (_set("class_names", value=["cat", 3]), "got class_names=3, expected str"),
        (_set("class_names", value=None), "got class_names=None, expected list"),
        (_set("category_ids", value=[7, 7]), "1 different category ids, expected one per class"),
        (_set("input", "size", value=[10**9, 32]), "got the input size"),
        (_set("input", "size", value=[32]), "got the input size"),
        (_set("input", "fit", value="crop"), "got fit='crop', expected stretch or letter_box"),
        (_set("input", "batch", value=0), "got a batch of 0 images"),
        (_set("input", value=[]), r"got input=\[\], expected dict"),
        (_set("output", "selection", value={"kind": "all"}), "damaged .*expected a kind of top_scores, nms"),
        (_set("output", "selection", value={"kind": "top_scores", "detections": 0}), "damaged"),
        (_set("output", "normalised_boxes", value=1), "got normalised_boxes=1, expected bool"),
        (_set("files", "full.onnx", "sha256", value="0"), "got the hash '0', expected 64"),
        (_set("files", "full.onnx", "bytes", value=-1), "-1 bytes"),
        (_set("files", "full.onnx", "bytes", value=2**40), "expected at most"),
        (_set("files", "weights.bin", value=3), "got a file 'weights.bin'"),
        (_set("depth_space", "costs", "refinements", value=[1]), "got costs of 1 stages, expected 2"),
        (_set("depth_space", "stages", value=["full", "b"]), "damaged"),
        (
            _set("depth_space", "decoder_layers", value=10**400),
            "got 2 stages and .* decoder layers, expected at",
        ),
        (
            _set("depth_space", "stages", value=[f"s{i}" for i in range(65)]),
            "got costs of 2 stages, expected 65",
        ),
    ],
)
def test_a_description_that_is_not_allowed_is_refused(
    edit: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
):
    folder = write_bundle(tmp_path / "bundle", edit=edit)
    with pytest.raises(BundleError, match=message) as caught:
        read_bundle(folder)
    assert str(folder / "bundle.json") in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_selections_of_both_kinds_read_back(tmp_path: Path):
    nms = {"kind": "nms", "score": 0.01, "iou": 0.6, "candidates": 100, "detections": 10}
    bundle = read_bundle(write_bundle(tmp_path / "bundle", edit=_set("output", "selection", value=nms)))
    assert bundle.selection == NmsConfig(0.01, 0.6, 100, 10)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": "anydepth_bundle"']
)
def test_a_description_that_is_no_json_is_refused(content: bytes, tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle")
    (folder / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json: (damaged|not the description)"):
        read_bundle(folder)


def test_a_folder_without_a_description_is_no_bundle(tmp_path: Path):
    with pytest.raises(BundleError, match=r"not a bundle, because it has no bundle.json"):
        read_bundle(tmp_path)
    with pytest.raises(BundleError, match="no such folder"):
        read_bundle(tmp_path / "missing")


def test_files_that_are_missing_cut_short_or_altered_are_refused(tmp_path: Path):
    bundle = read_bundle(write_bundle(tmp_path / "bundle"))
    path = bundle.folder / "weights.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"weights.bin: altered since the export"):
        bundle.check_files("weights.bin")
    path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"weights.bin: got 1,295 bytes, expected 1,296"):
        bundle.check_files("weights.bin")
    path.unlink()
    with pytest.raises(BundleError, match=r"weights.bin: missing; the bundle is incomplete"):
        bundle.check_files("weights.bin")


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "", "Weights.bin", "weights.bin/..", "./weights.bin"]
)
def test_a_graph_that_takes_tensors_from_another_file_is_refused(location: str, tmp_path: Path):
    bundle = read_bundle(write_bundle(tmp_path / "bundle", location=location))
    with pytest.raises(BundleError, match=r"takes a tensor from .*expected weights.bin"):
        bundle.check_graph("full.onnx")


def test_a_tensor_beyond_the_end_of_the_weights_is_refused(tmp_path: Path):
    bundle = read_bundle(write_bundle(tmp_path / "bundle", shift=4))
    bundle.check_graph("full.onnx")
    with pytest.raises(BundleError, match=r"at bytes .* to 1300, expected weights.bin with 1,296 bytes"):
        bundle.check_graph("minimal.onnx")


def test_a_graph_of_another_size_is_not_read(tmp_path: Path):
    bundle = read_bundle(write_bundle(tmp_path / "bundle"))
    with (bundle.folder / "full.onnx").open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(BundleError, match=r"full.onnx: got 1,099,511,627,776 bytes"):
        bundle.check_graph("full.onnx")
    (bundle.folder / "full.onnx").unlink()
    (bundle.folder / "full.onnx").mkdir()
    with pytest.raises(BundleError, match=r"full.onnx: missing"):
        bundle.check_graph("full.onnx")


def test_a_graph_that_is_none_is_refused(tmp_path: Path):
    bundle = read_bundle(write_bundle(tmp_path / "bundle"))
    size = bundle.files["full.onnx"].bytes
    (bundle.folder / "full.onnx").write_bytes(b"\x0f" * size)
    with pytest.raises(BundleError, match=r"full.onnx: not a readable graph in the format onnx"):
        bundle.check_graph("full.onnx")


def test_a_description_of_any_size_is_not_read(tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle")
    with (folder / "bundle.json").open("ab") as file:
        file.truncate(2**27)
    with pytest.raises(BundleError, match="134,217,728 bytes, expected at most"):
        read_bundle(folder)


def test_further_keys_are_allowed(tmp_path: Path):
    # Those of a later version that older ones may ignore.
    assert read_bundle(write_bundle(tmp_path / "bundle", edit=_set("note", value="later")))

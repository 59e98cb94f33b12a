"""Export of real detectors: what the engines find is what PyTorch finds, and depths share their weights."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fake_graphs import replace_export
from PIL import Image
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

import anydepth
from anydepth import zoo
from anydepth.deploy import load
from anydepth.deploy.export import graph
from anydepth.deploy.export.bundle_writer import write_bundle
from anydepth.deploy.export.equality import compare_candidates
from anydepth.deploy.export.graph import ExportError
from anydepth.deploy.routing.networks import RouterNetwork
from anydepth.deploy.runtime.bundle import Bundle, read_bundle
from anydepth.deploy.runtime.control.router import Router
from anydepth.detector import Detector
from anydepth.evaluation.cost import count_depth
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow
from anydepth.images import fit_image, to_unit_range
from anydepth.pictures.sources import to_picture
from small_networks import SMALL_DETECTOR, SMALL_YOLO

FAMILIES = {"detr": ("detr_tiny", SMALL_DETECTOR), "yolo": ("yolo_tiny", SMALL_YOLO)}
GRID = 3
OUTPUTS = ["boxes", "scores", "backbone_features", "neck_features"]
NAMES = ("tree", "bird_nest", "b<r>d")


def build(family: str, **overrides: object) -> Detector:
    """A detector of three classes with norms whose statistics and weights are not those of an identity."""
    name, settings = FAMILIES[family]
    torch.manual_seed(0)
    detector = zoo.build(name, len(NAMES), **{**settings, **overrides})
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values, low, high in (
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.5, 2.0),
                    (module.weight, 0.7, 1.3),
                    (module.bias, -0.2, 0.2),
                ):
                    assert values is not None
                    values.copy_(low + (high - low) * torch.rand(values.shape, generator=random))
        if family == "yolo":
            _spread_predictions(detector, random)
    detector.reset_classes(NAMES)
    return detector.eval()


def _spread_predictions(detector: Detector, random: torch.Generator) -> None:
    """Make an untrained head of the YOLO family predict boxes of its own in each cell, of one to three cells.

    Otherwise all have the same size, and their overlaps are all near the limit of suppression.
    """
    for name, module in detector.named_modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None and name.startswith("head."):
            module.weight.normal_(0, 0.5, generator=random)
            if "box_branches" in name:
                module.bias.copy_(-torch.arange(16.0).repeat(4))


# Tracing takes twenty seconds per depth: the quick tests export one of one family, and all of a small
# detector in tests/test_other_packages.py.
@pytest.fixture(
    scope="module",
    params=[
        ("detr", ("minimal",)),
        *(pytest.param((name, ("full", "1/2", "minimal")), marks=pytest.mark.slow) for name in FAMILIES),
    ],
    ids=lambda param: "-".join([param[0], *param[1]]).replace("/", ""),
)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Detector, Bundle]:
    family, texts = request.param
    detector = build(family)
    depths = detector.depth_space.parse_list(texts)
    folder = tmp_path_factory.mktemp(family) / "bundle"
    return detector, write_bundle(detector, depths, folder, feature_grid=GRID)


def _pictures() -> list[Image.Image]:
    """Odd sizes, greyscale, and one that a camera stored on its side."""
    random = np.random.default_rng(0)
    colour = random.integers(0, 255, (53, 91, 3), np.uint8)
    pictures = [Image.fromarray(colour), Image.fromarray(colour[..., 0]), Image.fromarray(colour[:3, :90])]
    turned = Image.fromarray(colour.transpose(1, 0, 2).copy())
    turned.getexif()[0x0112] = 6
    return [*pictures, turned, Image.fromarray(random.integers(0, 255, (200, 64, 3), np.uint8))]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_find_what_pytorch_finds(exported: tuple[Detector, Bundle], engine: str):
    detector, bundle = exported
    deployed = load(bundle.folder, engine=engine, threads=1)
    for depth, batch in product(deployed.depths, (1, 2, 5)):
        theirs = detector.predict(_pictures(), depth, threshold=0.0, batch_size=batch)
        ours = deployed.predict(_pictures(), depth, threshold=0.0, batch_size=batch)
        for found, expected in zip(ours, theirs, strict=True):
            assert len(found) == len(expected) > 0
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
            # Where scores are equal to rounding, the order may differ: compare as sets of rows.
            best = min(len(found), 30)
            rows = np.column_stack([found.labels, found.boxes_xyxy])
            wanted = np.column_stack([expected.labels, expected.boxes_xyxy])[:best]
            distances = np.abs(rows[None] - wanted[:, None]).max(axis=2).min(axis=1)
            assert distances.max() < 1e-2


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_feature_maps_and_what_routers_make_of_them_are_those_of_pytorch(
    exported: tuple[Detector, Bundle], engine: str
):
    detector, bundle = exported
    features = bundle.features
    assert features is not None
    deployed = load(bundle.folder, engine=engine, threads=1)
    torch.manual_seed(2)
    networks = [RouterNetwork(kind, features.channels).eval() for kind in ("tiny_conv", "gap_mlp")]
    for depth, picture in product(deployed.depths, _pictures()[:2]):
        found, maps = deployed.detect_with_features(picture, depth, threshold=0.0)
        assert len(found) == len(deployed.predict(picture, depth, threshold=0.0)[0])
        image = torch.from_numpy(to_picture(picture)).permute(2, 0, 1)
        output = detector(to_unit_range(fit_image(image, (64, 64), detector.fit))[None], depth)
        wanted = {
            "backbone": [adaptive_avg_pool2d(level, GRID) for level in output.backbone_features],
            "neck": [adaptive_avg_pool2d(level, GRID) for level in output.neck_features],
        }
        for name, levels in wanted.items():
            expected = torch.cat(levels, 1)[0].detach()
            assert maps[name].shape == expected.shape == (features.channels[name], GRID, GRID)
            np.testing.assert_allclose(maps[name], expected, atol=1e-5, rtol=1e-5)
        for network in networks:
            router = Router(network.kind, network.groups, GRID, (0, 1), 0.5, network.to_arrays())
            inputs = {name: torch.cat(levels, 1) for name, levels in wanted.items()}
            with torch.no_grad():
                advantage = float(network(inputs, torch.tensor([1])))
            assert router.predict(maps, deep=True) == pytest.approx(advantage, abs=1e-5)


def test_the_description_says_what_the_detector_says(exported: tuple[Detector, Bundle]):
    detector, bundle = exported
    assert bundle.class_names == NAMES
    assert bundle.category_ids == (1, 2, 3)
    assert bundle.input.size == detector.input_size
    assert bundle.input.fit == detector.fit
    assert bundle.input.batch is None
    assert bundle.selection == detector.selection
    assert bundle.clips_boxes == detector.clips_boxes
    assert str(bundle.depth_space.parse("1/2").refine) == str(detector.depth_space.parse("1/2").refine)
    for entry in bundle.depths:
        cost = count_depth(detector, entry.config)
        assert (entry.gmacs, entry.parameters) == (cost.macs / 1e9, cost.parameters_run)
        # Measured at the export, on eight photographs.
        assert entry.equality["found"] == 1
        assert entry.equality["images"] == 8
        assert 0 < entry.equality["boxes"] < 1e-2
        assert entry.equality_engine == "onnxruntime"
    bundle.check_files(*bundle.files)


def test_depths_share_their_weights(exported: tuple[Detector, Bundle]):
    detector, bundle = exported
    # All parameters and statistics of the detector once; 64 bytes of padding for each tensor.
    tensors = list(detector.state_dict().values())
    once = sum(tensor.nbytes for tensor in tensors)
    assert bundle.files["weights.bin"].bytes < once + 64 * len(tensors) + 4096 * 4
    read = [bundle.check_graph(entry.graph) for entry in bundle.depths]
    if len(read) > 1:
        assert sum(read) > 1.2 * bundle.files["weights.bin"].bytes
    for entry in bundle.depths:
        # Little but the structure is in a graph.
        assert bundle.files[entry.graph].bytes < 500_000


def test_graphs_take_any_number_of_images_and_keep_norms_as_nodes(exported: tuple[Detector, Bundle]):
    _, bundle = exported
    for entry in bundle.depths:
        model = onnx.load_model(bundle.folder / entry.graph, load_external_data=False)
        for value in (*model.graph.input, *model.graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param
        assert [value.name for value in model.graph.output] == OUTPUTS
        assert "BatchNormalization" in {node.op_type for node in model.graph.node}
        # A bias of zeros keeps engines from folding the norm behind a convolution.
        constants = {one.name: one for one in model.graph.initializer}
        biases = [
            node.input[2] for node in model.graph.node if node.op_type == "Conv" and len(node.input) > 2
        ]
        inside = [
            onnx.numpy_helper.to_array(constants[name])
            for name in biases
            if not constants[name].external_data
        ]
        assert all(np.any(values) for values in inside)
        onnx.checker.check_model(bundle.folder / entry.graph)


def test_graphs_name_no_file_of_this_machine(exported: tuple[Detector, Bundle]):
    _, bundle = exported
    for path in bundle.folder.iterdir():
        content = path.read_bytes()
        assert str(Path(anydepth.__file__).parent).encode() not in content
        assert str(Path(__file__).parent).encode() not in content
        assert b"site-packages" not in content


def test_the_card_shows_the_depths(exported: tuple[Detector, Bundle]):
    _, bundle = exported
    card = (bundle.folder / "README.md").read_text()
    assert all(f"| `{entry.config}` |" in card for entry in bundle.depths)
    # Class names are escaped: a stranger's may be markup.
    assert "tree, bird&#95;nest, b&#60;r&#62;d" in card


def _curve(detector: Detector) -> DepthCurve:
    space = detector.depth_space
    minimal = DepthRow(
        depth="minimal",
        refine=dict(zip(space.stages, space.minimal.refine, strict=True)),
        decoder_layers=space.minimal.decoder_layers,
        parameters_run=1,
        gflops=1.0,
        latency=None,
        figures={"AP": 0.25, "APs": -1.0},
        per_class={},
    )
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    return DepthCurve("detr_tiny", parameters, detector.input_size, "fp32", 1, protocol=None, rows=(minimal,))


@pytest.fixture
def small() -> Detector:
    return build("detr")


def test_a_curve_gives_its_depths_their_figures(
    small: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    replace_export(monkeypatch)
    depths = small.depth_space.parse_list(["full", "minimal"])
    bundle = write_bundle(
        small, depths, tmp_path / "b", curve=_curve(small), category_ids=[9, 5, 7], engine=None
    )
    # -1 is COCO's figure of what no image holds.
    assert [entry.figures for entry in bundle.depths] == [{}, {"AP": 0.25}]
    assert bundle.category_ids == (9, 5, 7)
    assert bundle.depths[0].equality == {}
    assert "| 25.0 |" in (bundle.folder / "README.md").read_text()


def test_depths_that_are_equal_are_exported_once(
    small: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = replace_export(monkeypatch)
    depths = [small.depth_space.parse(text) for text in ("1/4", "minimal", "none@1", "full", "1/2")]
    bundle = write_bundle(small, depths, tmp_path / "bundle", engine=None)
    assert len(calls) == len({(depth.refine, depth.decoder_layers) for depth in depths})
    assert {entry.graph for entry in bundle.depths} >= {"1-4.onnx", "full.onnx", "1-2.onnx"}


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (lambda folder: folder.write_text("x"), {}, "a file; give another output"),
        (
            lambda folder: (folder.mkdir(), (folder / "photo.jpg").touch()),
            {},
            "holds photo.jpg, which is not of a bundle",
        ),
        (
            lambda folder: None,
            {"category_ids": [1, 2]},
            "got 2 category ids, 2 of them different, expected one for each of the 3",
        ),
        (lambda folder: None, {"category_ids": [1, 1, 2]}, "got 3 category ids, 2 of them different"),
        (lambda folder: None, {"depths": []}, "got no depth to export"),
        (lambda folder: None, {"size": (32, 64)}, "measured at .64, 64. pixels, the export is for .32, 64."),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    prepare: Callable[[Path], object],
    arguments: dict[str, object],
    message: str,
    small: Detector,
    tmp_path: Path,
):
    folder = tmp_path / "bundle"
    prepare(folder)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    curve = _curve(small)
    small.input_size = arguments.pop("size", small.input_size)  # type: ignore[assignment]
    depths = arguments.pop("depths", [small.depth_space.full])
    with pytest.raises(ExportError, match=message):
        write_bundle(small, depths, folder, curve=curve, **arguments)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_detector_that_states_no_selection_cannot_be_exported(
    small: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(type(small), "selection", property(lambda self: None))
    with pytest.raises(ExportError, match="DetrDetector does not state how its detections are selected"):
        write_bundle(small, [small.depth_space.full], tmp_path / "bundle")


def test_an_export_that_fails_leaves_the_former_bundle(
    small: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "bundle"
    replace_export(monkeypatch)
    write_bundle(small, [small.depth_space.full], folder, engine=None)
    replace_export(monkeypatch, fail="minimal")
    depths = small.depth_space.parse_list(["full", "minimal"])
    with pytest.raises(ExportError, match="cannot export"):
        write_bundle(small, depths, folder, engine=None)
    assert [str(entry.config) for entry in read_bundle(folder).depths] == ["full"]
    replace_export(monkeypatch)
    write_bundle(small, depths, folder, engine=None)
    assert len(read_bundle(folder).depths) == 2
    # Nothing of the former one is left, inside or beside.
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "README.md",
        "bundle",
        "bundle.json",
        "full.onnx",
        "minimal.onnx",
        "weights.bin",
    ]


@pytest.mark.parametrize("moment", ["partial", "former"])
def test_a_former_bundle_comes_back_if_the_folder_cannot_be_replaced(
    moment: str, small: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    replace_export(monkeypatch)
    folder = tmp_path / "bundle"
    write_bundle(small, [small.depth_space.full], folder, engine=None)
    original = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.endswith(f".{moment}") or (moment == "former" and self.name == "bundle"):
            if self.name.endswith(".former"):
                return original(self, target)
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(small, [small.depth_space.minimal], folder, engine=None)
    assert [str(entry.config) for entry in read_bundle(folder).depths] == ["full"]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_is_not_of_a_bundle_is_never_replaced(
    small: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    replace_export(monkeypatch)
    folder = tmp_path / "bundle"
    write_bundle(small, [small.depth_space.full], folder, engine=None)
    (folder / "export.log").touch()  # Hydra's
    write_bundle(small, [small.depth_space.full], folder, engine=None)
    (folder / "note.txt").touch()
    with pytest.raises(ExportError, match=r"holds note.txt, which is not of a bundle"):
        write_bundle(small, [small.depth_space.full], folder, engine=None)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "bundle.json").write_text("{}")
    with pytest.raises(ExportError, match=r"holds a bundle.json that is not of a bundle"):
        write_bundle(small, [small.depth_space.full], tmp_path / "site", engine=None)
    monkeypatch.chdir(tmp_path)
    for output in (".", "..", "../" + tmp_path.name):
        with pytest.raises(ExportError, match="the working directory or a disk cannot be replaced"):
            write_bundle(small, [small.depth_space.full], output, engine=None)


def test_a_link_to_a_bundle_stays_a_link(small: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    replace_export(monkeypatch)
    write_bundle(small, [small.depth_space.full], tmp_path / "bundle", engine=None)
    (tmp_path / "link").symlink_to("bundle")
    write_bundle(small, [small.depth_space.minimal], tmp_path / "link", engine=None)
    assert (tmp_path / "link").is_symlink()
    assert str(read_bundle(tmp_path / "bundle").depths[0].config) == "minimal"


def test_a_curve_of_another_detector_is_refused(
    small: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    replace_export(monkeypatch)
    for curve in (replace(_curve(small), parameters=5), _curve(build("yolo"))):
        with pytest.raises(ExportError, match="the depth curve is of a detr_tiny with"):
            write_bundle(small, [small.depth_space.full], tmp_path / "bundle", curve=curve, engine=None)


def test_a_graph_of_a_fixed_number_of_images_is_refused_where_any_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
):
    import onnx_ir as ir

    image = ir.Value(name="images", shape=ir.Shape([2, 3, 64, 64]), type=ir.TensorType(ir.DataType.FLOAT))
    model = ir.Model(ir.Graph([image], [], nodes=[], opset_imports={"": 18}), ir_version=9)
    with pytest.raises(ExportError, match="images came out with 2 images, expected any number"):
        graph._check_batch(model, None)
    graph._check_batch(model, 2)


def test_differences_between_candidates_are_those_computed_by_hand():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [5, 5, 9, 9]], np.float32)
    scores = np.array([[0.9], [0.8], [0.1]], np.float32)
    # Rows in another order, one box moved by 0.25 pixels and one score by 0.004.
    other = boxes[[1, 0, 2]] + np.float32([[0, 0, 0.25, 0], [0] * 4, [0] * 4])
    other_scores = scores[[1, 0, 2]] + np.float32([[0], [0.004], [0]])
    found, moved, changed = compare_candidates((boxes, scores), (other, other_scores))
    assert (found, moved) == (1.0, 0.25)
    assert changed == pytest.approx(0.004, abs=1e-6)
    # A box that moved by more than half a pixel is another one.
    other[0] += 1
    assert compare_candidates((boxes, scores), (other, other_scores))[0] == pytest.approx(2 / 3)


def test_the_description_is_plain_json(exported: tuple[Detector, Bundle]):
    _, bundle = exported
    values = json.loads((bundle.folder / "bundle.json").read_text())
    assert values["input"]["colour_order"] == "RGB"
    assert values["output"]["names"] == list(values["output"]["meaning"]) == OUTPUTS
    card = (bundle.folder / "README.md").read_text()
    assert f"feature maps for a router of depths: {GRID} x {GRID} cells of backbone" in card
    assert set(values["files"]) == {path.name for path in bundle.folder.iterdir()} - {"bundle.json"}


def test_one_graph_has_a_number_for_each_depth(
    small: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    replace_export(monkeypatch)
    # The largest depth is number 0, in which the others are found.
    depths = small.depth_space.parse_list(["minimal", "full"])
    bundle = write_bundle(small, depths, tmp_path / "bundle", graph="one", engine=None)
    assert [(entry.graph, entry.number) for entry in bundle.depths] == [
        ("depths.onnx", 1),
        ("depths.onnx", 0),
    ]
    assert sorted(bundle.files) == ["README.md", "depths.onnx", "weights.bin"]
    assert "one graph for all depths (`depths.onnx`)" in (bundle.folder / "README.md").read_text()
    inputs = onnx.load_model(bundle.folder / "depths.onnx", load_external_data=False).graph.input
    assert [value.name for value in inputs] == ["images", "depth"]
    with pytest.raises(ExportError, match="got graph='two', expected each or one"):
        write_bundle(small, depths, tmp_path / "other", graph="two")


def test_two_exports_of_one_process_into_one_folder_leave_a_whole_bundle(
    small: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    replace_export(monkeypatch)
    replaced = threading.Barrier(2)
    depths = small.depth_space.parse_list(["full", "minimal"])

    def export(graph: str) -> Bundle:
        def wait(step: str) -> None:
            if step.endswith("(2 of 2)"):
                replaced.wait(60)

        return write_bundle(small, depths, tmp_path / "bundle", engine=None, graph=graph, on_step=wait)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(export, ("each", "one")))
    bundle = read_bundle(tmp_path / "bundle")
    bundle.check_files(*bundle.files)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_one_graph_finds_what_pytorch_finds(family: str, tmp_path: Path):
    detector = build(family)
    texts = ("full", "3/4", "1/2", "minimal")
    depths = detector.depth_space.parse_list(texts)
    bundle = write_bundle(detector, depths, tmp_path / "bundle", graph="one", feature_grid=GRID)
    tensors = list(detector.state_dict().values())
    once = sum(tensor.nbytes for tensor in tensors)
    # A share for copies in branches at the beginning of the network, and padding.
    assert bundle.files["weights.bin"].bytes < 1.03 * once + 64 * len(tensors) + 4096 * 4
    onnx.checker.check_model(bundle.folder / "depths.onnx")
    assert [entry.equality["found"] for entry in bundle.depths] == [1.0] * len(bundle.depths)
    for engine in ("onnxruntime", "openvino"):
        deployed = load(bundle.folder, engine=engine, threads=1)
        for depth in deployed.depths:
            theirs = detector.predict(_pictures(), depth, threshold=0.0)
            ours = deployed.predict(_pictures(), depth, threshold=0.0)
            for found, expected in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)

"""Graphs that select detections: in both engines exactly what the runtime selects, ties included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hand_made import DEPTHS, NAMES, SIDE, outputs_of, write_bundle
from onnx import TensorProto, helper
from PIL import Image

from anydepth.deploy import load
from anydepth.deploy.export.equality import compare_detections
from anydepth.deploy.export.graph import ExportError
from anydepth.deploy.export.selection_graph import MEANING, append_selection
from anydepth.deploy.runtime.bundle import BundleError, read_bundle
from anydepth.deploy.runtime.engines.base import SELECTED_OUTPUTS, EngineError
from anydepth.deploy.runtime.outputs import NonFiniteOutputError, check_outputs
from anydepth.deploy.runtime.selection import Selected, select
from anydepth.selection import NmsConfig, Selection, TopScores

ENGINES = ("onnxruntime", "openvino")
Run = Callable[[np.ndarray, np.ndarray, float], list[np.ndarray]]


def _candidates(boxes: Any, classes: Any) -> ir.Model:
    """A graph that returns its inputs as candidates."""
    shapes = {"boxes": ["batch", boxes, 4], "scores": ["batch", boxes, classes]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    inputs = [
        helper.make_tensor_value_info(f"given_{name}", TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    nodes = [helper.make_node("Identity", [f"given_{name}"], [name]) for name in shapes]
    graph = helper.make_graph(nodes, "candidates", inputs, values)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def _open(engine: str, model: ir.Model) -> Run:
    data = ir.to_proto(model)
    onnx.checker.check_model(data, full_check=True)
    if engine == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(data.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        return lambda *given: session.run(
            [*SELECTED_OUTPUTS], dict(zip(names, _as_arrays(given), strict=True))
        )
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(data.SerializeToString()), "CPU", settings)

    def run(*given: Any) -> list[np.ndarray]:
        found = compiled(_as_arrays(given))
        return [np.array(found[name]) for name in SELECTED_OUTPUTS]

    return run


def _as_arrays(given: Any) -> list[np.ndarray]:
    return [np.asarray(one, np.float32) for one in given]


def _selecting(engine: str, boxes: int, classes: int, selection: Selection) -> Run:
    model = _candidates(boxes, classes)
    append_selection(model, selection, normalised=False, input_size=(SIDE, SIDE))
    return _open(engine, model)


def _random(seed: int, images: int, boxes: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates; of an even seed with equal scores and boxes, and IoUs such as 7/10 that are a limit."""
    random = np.random.default_rng(seed)
    if seed % 2:
        corners, sides = random.uniform(0, 60, (images, boxes, 2)), random.uniform(0, 40, (images, boxes, 2))
        scores = random.uniform(0, 1, (images, boxes, classes))
    else:
        corners, sides = random.integers(0, 8, (images, boxes, 2)), random.integers(0, 11, (images, boxes, 2))
        scores = random.uniform(0, 1, (images, boxes, classes)).round(1)
    sides[:, ::7] *= -1  # corners that are swapped
    return np.concatenate([corners, corners + sides], axis=2).astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("boxes", "classes", "selection"),
    [
        (60, 3, NmsConfig()),
        (60, 3, NmsConfig(0.1, 0.3, candidates=50, detections=20)),  # float32 of 0.3 is above 0.3
        (40, 1, NmsConfig(0.25, 0.5, candidates=10, detections=5)),
        (40, 2, NmsConfig(0.0, 0.0, candidates=79)),
        (30, 2, NmsConfig(0.0, 1.0, candidates=59)),
        (60, 3, TopScores(20)),
        (10, 2, TopScores(300)),
    ],
    ids=str,
)
def test_engines_select_what_numpy_selects(engine: str, boxes: int, classes: int, selection: Selection):
    run = _selecting(engine, boxes, classes, selection)
    for seed in range(10):
        for images, threshold in ((1, 0.0), (2, 0.3), (5, 0.5), (1, 1.0)):
            own, scores = _random(seed, images, boxes, classes)
            found, found_scores, labels, counts = run(own, scores, threshold)
            most = min(selection.detections, boxes * classes)
            assert (found.shape, labels.shape, labels.dtype) == ((images, most, 4), (images, most), np.int64)
            for image in range(images):
                wanted = select(own[image], scores[image], selection, threshold)
                count = counts[image]
                assert count == len(wanted.scores)
                assert found_scores[image, :count].tolist() == wanted.scores.tolist()
                assert labels[image, :count].tolist() == wanted.labels.tolist()
                assert found[image, :count].tolist() == wanted.boxes_xyxy.tolist()
                # Nothing behind the last detection could be taken for one.
                assert not found[image, count:].any()
                assert not found_scores[image, count:].any()
                assert (labels[image, count:] == -1).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("selection", [NmsConfig(), TopScores(20)], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_told_of_the_image_that_has_them(
    engine: str, selection: Selection, value: float
):
    run = _selecting(engine, 60, 3, selection)
    own, scores = _random(1, 2, 60, 3)
    clean = run(own, scores, 0.5)
    for place in (own, scores):
        former, place[1, 5, 1] = place[1, 5, 1], value
        found = run(own, scores, 0.5)
        place[1, 5, 1] = former
        assert found[3][1] == -1
        for one, other in zip(found, clean, strict=True):
            np.testing.assert_array_equal(one[0], other[0])


def test_a_graph_without_a_fixed_number_of_boxes_is_refused():
    with pytest.raises(ExportError, match=r"expected a fixed number of boxes and classes; export without"):
        append_selection(_candidates("boxes", 3), TopScores(5), normalised=False, input_size=(8, 8))


def _pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, size, np.uint8)) for size in ((40, 30, 3), (9, 70, 3))]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("selection", [NmsConfig(0.2, 0.4), TopScores(6)], ids=str)
def test_a_bundle_detects_the_same_with_the_selection_in_its_graphs(
    tmp_path: Path, engine: str, one: bool, selection: Selection
):
    def state(description: dict[str, Any]) -> None:
        description["output"]["selection"] = {"kind": selection.kind, **vars(selection)}

    plain = load(write_bundle(tmp_path / "plain", one=one, edit=state), engine=engine, threads=1)
    folder = write_bundle(tmp_path / "selecting", one=one, selection=selection)
    selecting = load(folder, engine=engine, threads=1)
    for depth in DEPTHS:
        for threshold, batch in ((0.0, 1), (0.4, 2)):
            ours = selecting.predict(_pictures(), depth, threshold, batch)
            for found, wanted in zip(ours, plain.predict(_pictures(), depth, threshold, batch), strict=True):
                assert found.labels.tolist() == wanted.labels.tolist()
                np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
                np.testing.assert_allclose(found.boxes_xyxy, wanted.boxes_xyxy, atol=1e-4)
                assert len(found) > 0 or threshold > 0


def test_boxes_are_in_pixels_of_the_input(tmp_path: Path):
    detector = load(write_bundle(tmp_path / "bundle", selection=TopScores(1)), threads=1)
    images = np.random.default_rng(1).random((2, 3, SIDE, SIDE), np.float32)
    found, scores, labels, counts = detector.run(images)
    boxes, wanted = outputs_of(images, "full")
    best = wanted.reshape(2, -1).argmax(1)
    for image in range(2):
        row, label = divmod(best[image], len(NAMES))
        np.testing.assert_allclose(found[image, 0], SIDE * boxes[image, row], rtol=1e-5)
        assert (labels[image, 0], counts[image]) == (label, 1)
        assert scores[image, 0] == pytest.approx(wanted[image, row, label])


@pytest.mark.parametrize("engine", ENGINES)
def test_output_that_is_not_finite_is_an_error(tmp_path: Path, engine: str):
    folder = write_bundle(tmp_path / "bundle", selection=NmsConfig(), fill=float("nan"))
    with pytest.raises(NonFiniteOutputError, match="NaN or infinite"):
        load(folder, engine=engine, threads=1).predict(_pictures())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("selects", [True, False])
def test_a_description_that_does_not_fit_the_graph_is_refused(tmp_path: Path, engine: str, selects: bool):
    def lie(description: dict[str, Any]) -> None:
        description["output"] |= {"selects": selects, "normalised_boxes": False}

    folder = write_bundle(tmp_path / "bundle", edit=lie, selection=None if selects else TopScores(5))
    with pytest.raises(EngineError, match=r"got the outputs .*expected boxes and scores"):
        load(folder, engine=engine, threads=1).open("full")


def test_shares_of_the_input_are_refused_where_graphs_select(tmp_path: Path):
    def lie(description: dict[str, Any]) -> None:
        description["output"]["normalised_boxes"] = True

    with pytest.raises(BundleError, match="normalised boxes of graphs that select"):
        read_bundle(write_bundle(tmp_path / "bundle", edit=lie, selection=TopScores(5)))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (3, np.array([3]), "counts .* expected -1 to 2"),
        (3, np.array([-2]), "counts .* expected -1 to 2"),
        (2, np.array([[0, 7]]), "labels outside 0 to 1"),
        (2, np.array([[0, -1]]), "labels outside 0 to 1"),
        (1, np.zeros((1, 3), np.float32), r"scores \(1, 3\) float32.*expected boxes \[1, D, 4\]"),
        (2, np.zeros((1, 2), np.int32), r"labels \(1, 2\) int32.*labels \[1, D\] and counts \[1\] int64"),
    ],
)
def test_selected_outputs_are_checked(place: int, value: np.ndarray, message: str):
    outputs = [np.zeros((1, 2, 4), np.float32), np.zeros((1, 2), np.float32)]
    outputs += [np.zeros((1, 2), np.int64), np.array([2])]
    check_outputs(outputs, 1, 2, selects=True)
    outputs[place] = value
    with pytest.raises(BundleError, match=message):
        check_outputs(outputs, 1, 2, selects=True)


def test_detections_are_compared_with_those_of_their_class():
    boxes = np.array([[0, 0, 9, 9], [5, 5, 9, 9]], np.float32)
    first = Selected(boxes, np.array([0.9, 0.5], np.float32), np.array([0, 1]))
    moved = Selected(boxes[::-1] + np.float32(0.25), first.scores[::-1], first.labels[::-1])
    assert compare_detections(first, moved) == (1.0, 0.25, 0.0)
    assert compare_detections(first, first._replace(labels=np.array([0, 0])))[0] == 0.5
    nothing = Selected(boxes[:0], first.scores[:0], first.labels[:0])
    assert compare_detections(first, nothing) == (0.0, 0.0, 0.0)
    assert compare_detections(nothing, first) == (1.0, 0.0, 0.0)


def test_every_output_has_a_meaning():
    assert tuple(MEANING) == SELECTED_OUTPUTS

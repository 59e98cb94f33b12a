"""The selection of detections as nodes of a graph, for programs that run it without this package.

The nodes select what :func:`anydepth.deploy.runtime.selection.select` selects, in any engine.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from anydepth.deploy.export.graph import ExportError
from anydepth.deploy.runtime.engines.base import OUTPUTS, SELECTED_OUTPUTS, THRESHOLD
from anydepth.selection import NmsConfig, Selection

MEANING: Final = {
    "boxes": "[B, D, 4] float32, x1, y1, x2, y2 in pixels of the input, not clipped to it; best score first",
    "scores": "[B, D] float32, 0 to 1; 0 behind the last detection",
    "labels": "[B, D] int64, index of the class; -1 behind the last detection",
    "counts": "[B] int64, number of detections; -1 if the network computed NaN or infinite values",
}
"""Meanings of the outputs of a graph that selects detections."""

_TYPES: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT64)
_LARGEST: Final = float(np.finfo(np.float32).max)
# A product with it is the next lower number in float32.
_BELOW_ONE: Final = float(np.nextafter(np.float32(1), np.float32(0)))


def append_selection(
    model: ir.Model, selection: Selection, *, normalised: bool, input_size: Sequence[int]
) -> None:
    """Let a graph select detections among its boxes and scores.

    Args:
        model: Graph with the outputs ``boxes`` [B, N, 4] and ``scores`` [B, N, K], whose names are final. It
            gets the further input ``threshold``, float32 without axes: detections with a lower score are left
            out. Its outputs become those of :data:`MEANING`, with D the maximum number of detections, and
            further ones, such as feature maps, stay behind them.
        selection: How the detector selects.
        normalised: Whether the boxes are shares of the input.
        input_size: (height, width) of the input in pixels.

    Raises:
        ExportError: A graph whose number of boxes or classes is not fixed.
    """
    graph = model.graph
    values = {value.name: value for value in graph.outputs}
    boxes, scores = (values[name] for name in OUTPUTS)
    threshold = ir.Value(name=THRESHOLD, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT))
    builder = _Builder(boxes, scores, selection, threshold)
    if normalised:
        builder.scale_boxes(input_size)
    outputs = builder.select()
    batch = scores.shape[0] if scores.shape else None
    boxes.name, scores.name = (f"candidate_{name}" for name in OUTPUTS)
    axes = ([batch, builder.detections, 4], [batch, builder.detections], [batch, builder.detections], [batch])
    for value, name, kind, shape in zip(outputs, SELECTED_OUTPUTS, _TYPES, axes, strict=True):
        value.name, value.type, value.shape = name, ir.TensorType(kind), ir.Shape(shape)
    graph.extend(builder.nodes)
    for value in builder.constants:
        graph.register_initializer(value)
    graph.inputs.append(threshold)
    graph.outputs[:] = [*outputs, *(value for name, value in values.items() if name not in OUTPUTS)]


def _sides(scores: ir.Value) -> tuple[int, int]:
    """Return the numbers of boxes and classes."""
    sides = list(scores.shape or ())[1:]
    if len(sides) != 2 or not isinstance(sides[0], int) or not isinstance(sides[1], int):
        raise ExportError(
            f"the graph has scores of shape {scores.shape}, expected a fixed number of boxes and classes; "
            "export without the selection (selection=runtime)"
        )
    return sides[0], sides[1]


class _Builder:
    """Nodes behind the candidates of a graph.

    Shapes: ``B`` images, ``N`` boxes, ``K`` classes, ``P`` pairs of a box and a class, ``D``
    detections.
    """

    def __init__(self, boxes: ir.Value, scores: ir.Value, selection: Selection, threshold: ir.Value) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self._named = 0
        self._boxes, self._scores, self._threshold = boxes, scores, threshold
        self._selection = selection
        count, self._classes = _sides(scores)
        self._pairs = self._most_pairs = count * self._classes
        self.detections = min(selection.detections, self._pairs)
        # A sum is finite if all of it is.
        sums = [self._op("ReduceSum", value, self._ints(1, 2), keepdims=0) for value in (boxes, scores)]
        total = self._op("Abs", self._op("Add", *sums))
        self._finite = self._op("LessOrEqual", total, self._number(_LARGEST))  # [B]

    def scale_boxes(self, input_size: Sequence[int]) -> None:
        """Turn shares of the input into pixels."""
        height, width = input_size
        size = self._constant(np.array([width, height] * 2, np.float32))
        self._boxes = self._op("Mul", self._boxes, size)

    def select(self) -> list[ir.Value]:
        """Return boxes [B, D, 4], scores [B, D], labels [B, D] and counts [B]."""
        if isinstance(self._selection, NmsConfig):
            lowest = self._lowest_score(self._selection)
            self._keep_boxes(lowest)
            pairs = self._best_pairs(self._flat(self._scores), lowest, self._selection)
            pairs = self._unsuppressed(pairs, lowest)
            scores, places = self._top(pairs, self.detections, self._number(0.0), ordered=True)
            found = self._op("Greater", scores, self._number(0.0))
        else:
            pairs = self._flat(self._scores)
            scores, places = self._top(pairs, self.detections, self._number(-1.0), ordered=True)
            found = self._op("GreaterOrEqual", scores, self._threshold)  # [B, D]
        classes = self._integer(self._classes)
        rows = self._op("Div", places, classes)
        labels = self._op("Sub", places, self._op("Mul", rows, classes))
        last = self._ints(2)
        boxes = self._op("GatherND", self._boxes, self._op("Unsqueeze", rows, last), batch_dims=1)
        counts = self._op("ReduceSum", self._to(found, ir.DataType.INT64), self._ints(1), keepdims=0)
        return [
            self._op("Where", self._op("Unsqueeze", found, last), boxes, self._number(0.0)),
            self._op("Where", found, scores, self._number(0.0)),
            self._op("Where", found, labels, self._integer(-1)),
            self._op("Where", self._finite, counts, self._integer(-1)),
        ]

    def _lowest_score(self, nms: NmsConfig) -> ir.Value:
        """Return the number that scores must exceed: the detector's own, or the one below the threshold."""
        below = self._op("Mul", self._threshold, self._number(_BELOW_ONE))
        return self._op("Max", below, self._number(nms.score))

    def _keep_boxes(self, lowest: ir.Value) -> None:
        """Leave out the boxes that are eligible in no image and class: most of them, which saves time."""
        best = self._op("ReduceMax", self._scores, self._ints(2), keepdims=0)  # [B, N]
        # Image by image: NaN in one must not hide boxes of the others.
        above = self._to(self._op("Greater", best, lowest), ir.DataType.INT64)
        eligible = self._op("NonZero", self._op("ReduceMax", above, self._ints(0), keepdims=0))  # [1, boxes]
        rows = self._op("Squeeze", eligible, self._ints(0))
        # Boxes without scores behind them, so that there are always enough pairs.
        fill = -(-self.detections // self._classes)
        self._most_pairs = self._pairs + fill * self._classes
        sides = self._ints(0, 0, 0, 0, fill, 0)
        self._boxes, self._scores = (
            self._op("Pad", self._op("Gather", value, rows, axis=1), sides)
            for value in (self._boxes, self._scores)
        )

    def _best_pairs(self, pairs: ir.Value, lowest: ir.Value, nms: NmsConfig) -> ir.Value:
        """Return scores [B, P] without those behind the maximum number of candidates."""
        if nms.candidates >= self._pairs:
            return pairs
        # Sorting takes long, and images with so many candidates are rare.
        number = self._count(self._op("Greater", pairs, lowest))
        too_many = self._any(self._op("Greater", number, self._integer(nms.candidates)))
        outer, self.nodes = self.nodes, []
        scores, places = self._top(pairs, nms.candidates, lowest, ordered=False)
        best = self._op("ScatterElements", self._zeros(pairs), places, scores, axis=1)
        then = self._branch("sort", best)
        otherwise = self._branch("keep", self._op("Identity", pairs))
        self.nodes = outer
        return self._op("If", too_many, then_branch=then, else_branch=otherwise)

    def _branch(self, name: str, *outputs: ir.Value) -> ir.Graph:
        """Return the nodes since the last branch as a graph."""
        for value, kind in zip(outputs, (ir.DataType.FLOAT, ir.DataType.INT64), strict=False):
            value.type, value.shape = ir.TensorType(kind), ir.Shape([None, None])
        nodes, self.nodes = self.nodes, []
        return ir.Graph([], outputs, nodes=nodes, name=name)

    def _unsuppressed(self, pairs: ir.Value, lowest: ir.Value) -> ir.Value:
        """Return scores [B, P] that are 0 where a better box of the class suppresses the pair."""
        assert isinstance(self._selection, NmsConfig)
        per_box = self._op("Reshape", pairs, self._op("Shape", self._scores))
        kept = self._op(
            "NonMaxSuppression",
            self._ordered_corners(),
            self._op("Transpose", per_box, perm=[0, 2, 1]),
            self._integer(self.detections),
            self._iou_limit(self._selection.iou),
            lowest,
        )  # [kept, 3]: image, class, box
        image, label, box = (self._op("Gather", kept, self._ints(column), axis=1) for column in range(3))
        place = self._op("Add", self._op("Mul", box, self._integer(self._classes)), label)
        where = self._op("Concat", image, place, axis=1)
        return self._op("ScatterND", self._zeros(pairs), where, self._op("GatherND", pairs, where))

    def _ordered_corners(self) -> ir.Value:
        """Return boxes [B, N, 4] of which those whose corners are swapped have no area, and suppress nothing.

        ONNX would swap them back; the runtime does not.
        """
        axis = self._ints(2)
        low = self._op("Slice", self._boxes, self._ints(0), self._ints(2), axis)
        high = self._op("Slice", self._boxes, self._ints(2), self._ints(4), axis)
        return self._op("Concat", low, self._op("Max", low, high), axis=2)

    def _zeros(self, like: ir.Value) -> ir.Value:
        return self._op("Expand", self._number(0.0), self._op("Shape", like))

    def _iou_limit(self, iou: float) -> ir.Value:
        """Return the IoU above which a box is suppressed, as this engine compares.

        ONNX leaves open what happens at the limit itself: ONNX Runtime 1.32.0 suppresses above it, OpenVINO
        2026.4.1 also at it, which then needs the next number. Two boxes whose IoU is the limit tell which;
        their lowest score depends on an input, so that the answer is not a constant that is computed
        elsewhere. Floats that exceed this limit are those that exceed the given one in float64.
        """
        limit = np.float32(iou)
        if float(limit) > iou:
            limit = np.nextafter(limit, np.float32(0))
        above = max(np.nextafter(limit, np.float32(2)), np.finfo(np.float32).tiny)
        negative = self._op("Neg", self._op("Max", self._threshold, self._number(0.0)))
        kept = self._op(
            "NonMaxSuppression",
            self._constant(np.array([[[0, 0, 2, 1], [0, 0, 1, 1]]], np.float32)),
            self._constant(np.array([[[1, 0.5]]], np.float32)),
            self._integer(2),
            self._number(0.5),
            negative,
        )
        both = self._op(
            "Equal", self._op("Gather", self._op("Shape", kept), self._integer(0)), self._integer(2)
        )
        return self._op("Where", both, self._number(float(limit)), self._number(float(above)))

    def _top(self, pairs: ir.Value, count: int, lowest: ir.Value, *, ordered: bool) -> list[ir.Value]:
        """Return the best scores [B, count] and their places; equal ones in their order, unlike OpenVINO's.

        Args:
            pairs: [B, P] scores.
            count: Number that is returned.
            lowest: Number that a score must exceed for its place to matter.
            ordered: Whether they must come best first.
        """
        found = self._values("TopK", [pairs, self._ints(count)], {"axis": 1}, 2)
        cut = self._op("Slice", found[0], self._ints(count - 1), self._ints(count), self._ints(1))  # [B, 1]
        ties = self._op("Equal", pairs, cut)
        above = self._op("Greater", pairs, cut)
        # Ties are rare, and what puts them in order takes long.
        doubtful = self._any(
            self._op(
                "And", self._op("Greater", self._count(ties), self._ints(1)), self._op("Greater", cut, lowest)
            )
        )
        if ordered and count > 1:
            first = self._op("Slice", found[0], self._ints(0), self._ints(count - 1), self._ints(1))
            second = self._op("Slice", found[0], self._ints(1), self._ints(count), self._ints(1))
            equal = self._op("And", self._op("Equal", first, second), self._op("Greater", second, lowest))
            doubtful = self._op("Or", doubtful, self._any(equal))
        outer, self.nodes = self.nodes, []
        best = self._first_best(pairs, count, ties, above)
        then = self._branch("ties", *(self._ranked(*best, count) if ordered else best))
        otherwise = self._branch("none", *(self._op("Identity", value) for value in found))
        self.nodes = outer
        return [*self._values("If", [doubtful], {"then_branch": then, "else_branch": otherwise}, 2)]

    def _first_best(
        self, pairs: ir.Value, count: int, ties: ir.Value, above: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Return the best scores and their places, in the order of the places; of equal ones the first."""
        free = self._op("Sub", self._integer(count), self._count(above))
        nth = self._op("CumSum", self._to(ties, ir.DataType.INT64), self._integer(1))
        chosen = self._op("Or", above, self._op("And", ties, self._op("LessOrEqual", nth, free)))
        number = self._op("CumSum", self._to(chosen, ir.DataType.INT64), self._integer(1))
        keys = self._op("Sub", self._integer(self._most_pairs + 1), number)
        keys = self._op("Where", chosen, keys, self._integer(0))
        _, places = self._values("TopK", [keys, self._ints(count)], {"axis": 1}, 2)
        return self._op("GatherElements", pairs, places, axis=1), places

    def _ranked(self, scores: ir.Value, places: ir.Value, count: int) -> list[ir.Value]:
        """Put scores [B, count] and their ascending places in order, the best first."""
        row, column = (
            self._op("Unsqueeze", scores, self._ints(2)),
            self._op("Unsqueeze", scores, self._ints(1)),
        )
        earlier = self._constant(np.tri(count, k=-1, dtype=np.bool_))  # [count, count]
        ahead = self._op(
            "Or", self._op("Less", row, column), self._op("And", self._op("Equal", row, column), earlier)
        )
        ranks = self._op("ReduceSum", self._to(ahead, ir.DataType.INT64), self._ints(2), keepdims=0)
        return [self._op("ScatterElements", value, ranks, value, axis=1) for value in (scores, places)]

    def _count(self, found: ir.Value) -> ir.Value:
        """Return how many are true in each row, [B, 1]."""
        return self._op("ReduceSum", self._to(found, ir.DataType.INT64), self._ints(1))

    def _any(self, found: ir.Value) -> ir.Value:
        """Return whether anything is true, without axes."""
        return self._to(
            self._op("ReduceMax", self._to(found, ir.DataType.INT64), keepdims=0), ir.DataType.BOOL
        )

    def _flat(self, scores: ir.Value) -> ir.Value:
        return self._op("Reshape", scores, self._ints(0, -1))

    def _to(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        return self._op("Cast", value, to=int(kind))

    def _op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self._values(kind, inputs, attributes)[0]

    def _values(
        self, kind: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any], outputs: int = 1
    ) -> Sequence[ir.Value]:
        node = ir.node(kind, inputs, attributes, num_outputs=outputs)
        for value in node.outputs:
            value.name = self._next_name()
        self.nodes.append(node)
        return node.outputs

    def _number(self, value: float) -> ir.Value:
        return self._constant(np.array(value, np.float32))

    def _integer(self, value: int) -> ir.Value:
        return self._constant(np.array(value, np.int64))

    def _ints(self, *values: int) -> ir.Value:
        return self._constant(np.array(values, np.int64))

    def _constant(self, array: NDArray[Any]) -> ir.Value:
        name = self._next_name()
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )
        self.constants.append(value)
        return value

    def _next_name(self) -> str:
        """Return a name that no value of a graph of this package has."""
        self._named += 1
        return f"selection{self._named}"

"""One graph for several depths: nodes that all of them have run always, the others in branches.

The graphs of the depths are laid side by side. What all have is held once. Between two such nodes each depth
may have nodes of its own (a refinement path, further layers of a decoder): they go into the branches of an
``If``, which chooses by the input ``depth``, so that nothing runs that a depth does not need. Norms with two
sets of vectors are one node whose vectors are chosen by ``depth``. Where maps are large and kernels small, at
the beginning of the network, branches hold whole stages: norms are folded there, and copies cost little.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from anydepth.deploy.export.alignment import Label, Labels, Parts, align, constant, is_constant

INPUT: Final = "depth"
"""Name of the input that chooses the depth: a number, in the order of the merged graphs."""
# Share of the weights that copies in branches at the beginning of the network may add.
_COPIES: Final = 0.025

Choice = tuple[tuple[int, ir.Value], ...]
"""A value that depends on the depth: number of the depth, and the value in the graph of that depth."""


@dataclass
class _Scope:
    """A graph that is being built: the main one, or a branch, which sees the values of those around it."""

    outer: "_Scope | None" = None
    nodes: list[ir.Node] = field(default_factory=list)
    values: dict[ir.Value, ir.Value] = field(default_factory=dict)
    chosen: dict[Choice, ir.Value] = field(default_factory=dict)

    def find(self, value: ir.Value) -> ir.Value | None:
        """Return what a value of a depth's graph became here."""
        found = self.values.get(value)
        return found if found is not None or self.outer is None else self.outer.find(value)

    def find_choice(self, choice: Choice) -> ir.Value | None:
        """Return the value that holds each of these at its depth, if a branch returned it."""
        for known, value in self.chosen.items():
            if set(choice) <= set(known):
                return value
        return None if self.outer is None else self.outer.find_choice(choice)


@dataclass
class _Plan:
    """How parts are laid side by side: gaps and common nodes take turns, beginning and ending with a gap.

    Attributes:
        common: Position in each part of the nodes that all have.
        outputs: For each gap the values that later nodes need of it.
    """

    common: list[dict[int, int]]
    outputs: list[list[Choice]]

    def gap(self, parts: Parts, number: int) -> dict[int, Sequence[ir.Node]]:
        """Return the nodes of a gap, by depth."""
        return {
            depth: nodes[
                self.common[number - 1][depth] + 1 if number else 0 : self.common[number][depth]
                if number < len(self.common)
                else len(nodes)
            ]
            for depth, nodes in parts.items()
        }


def merge_graphs(models: Sequence[ir.Model]) -> ir.Model:
    """Merge the graphs of several depths of a detector.

    Args:
        models: Graphs of one detector with the same inputs and outputs, the largest first; not to be used
            afterwards, because their constants are those of the result.

    Returns:
        A graph with the further input ``depth``, int64 without axes: the number of the graph among
        ``models`` that it computes. Its constants are those of ``models``, each content once.
    """
    # Branches must state how many axes their outputs have.
    return _Merger([passes.ShapeInferencePass()(model).model for model in models]).merge()


class _Merger:
    def __init__(self, models: Sequence[ir.Model]) -> None:
        self._models = models
        self._labels = Labels()
        self._constants: dict[Label, ir.Value] = {}
        self._constants_of_depth: dict[Label, ir.Value] = {}
        self._prelude: list[ir.Node] = []
        self._depth = ir.Value(name=INPUT, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))

    def merge(self) -> ir.Model:
        first = self._models[0].graph
        main = _Scope()
        inputs = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in first.inputs]
        for model in self._models:
            main.values.update(zip(model.graph.inputs, inputs, strict=True))
        parts = {number: [*model.graph] for number, model in enumerate(self._models)}
        wanted = [
            tuple(enumerate(values))
            for values in zip(*(model.graph.outputs for model in self._models), strict=True)
        ]
        outputs = self._merge(main, parts, wanted, is_main=True)
        for value, original in zip(outputs, first.outputs, strict=True):
            value.name, value.type, value.shape = original.name, original.type, original.shape
        graph = ir.Graph(
            [*inputs, self._depth],
            outputs,
            nodes=[*self._prelude, *main.nodes],
            initializers=[*self._constants.values()],
            opset_imports=dict(first.opset_imports),
            name=first.name,
        )
        return ir.Model(graph, ir_version=self._models[0].ir_version)

    def _merge(
        self, scope: _Scope, parts: Parts, wanted: Sequence[Choice], *, is_main: bool = False
    ) -> list[ir.Value]:
        """Add the nodes of parts to a graph, and return the values in it that are wanted."""
        common = align(parts, self._labels)
        if is_main:
            common = common[self._count_copied(parts, common) :]
        plan = self._plan(scope, parts, common, wanted)
        for number in range(len(plan.common) + 1):
            if plan.outputs[number]:
                self._branch(scope, plan.gap(parts, number), plan.outputs[number])
            if number < len(plan.common):
                nodes = {depth: parts[depth][place] for depth, place in plan.common[number].items()}
                self._add_common(scope, nodes)
        return [self._resolve(scope, choice) for choice in wanted]

    # How parts are laid side by side.

    def _count_copied(self, parts: Parts, common: Sequence[dict[int, int]]) -> int:
        """Return how many of the first common nodes shall be copied into branches all the same."""
        limit = _COPIES * self._bytes(node for nodes in parts.values() for node in nodes)
        plan, count = _Plan([*common], []), 0
        for number in range(len(common)):
            if not any(plan.gap(parts, number).values()):
                continue
            heads = {depth: nodes[: common[number][depth]] for depth, nodes in parts.items()}
            variants = {tuple(map(self._labels.exact, nodes)): nodes for nodes in heads.values()}
            sizes = [self._bytes(nodes) for nodes in variants.values()]
            if sum(sizes) - max(sizes) > limit:
                break
            count = number
        return count

    def _bytes(self, nodes: Iterable[ir.Node]) -> int:
        used = {
            self._labels.content(value): constant(value).nbytes
            for node in nodes
            for value in node.inputs
            if value is not None and is_constant(value)
        }
        return sum(used.values())

    def _plan(
        self, scope: _Scope, parts: Parts, common: list[dict[int, int]], wanted: Sequence[Choice]
    ) -> _Plan:
        """Find what each gap must return; gaps that depend on each other in other ways become one."""
        while True:
            layout = _Layout(scope, parts, common, self._labels)
            outputs, crossing = layout.plan(wanted)
            if crossing is None:
                return _Plan(common, outputs)
            common = [*common[: crossing[0]], *common[crossing[1] :]]

    # What is added to a graph.

    def _add_common(self, scope: _Scope, nodes: Mapping[int, ir.Node]) -> None:
        first = next(iter(nodes.values()))
        inputs = [
            None
            if first.inputs[place] is None
            else self._resolve(scope, tuple((depth, _input(node, place)) for depth, node in nodes.items()))
            for place in range(len(first.inputs))
        ]
        outputs = [ir.Value(type=value.type, shape=value.shape) for value in first.outputs]
        scope.nodes.append(
            ir.Node(
                first.domain,
                first.op_type,
                inputs,
                [*first.attributes.values()],
                outputs=outputs,
                version=first.version,
            )
        )
        for node in nodes.values():
            scope.values.update(zip(node.outputs, outputs, strict=True))

    def _branch(self, scope: _Scope, parts: Parts, wanted: Sequence[Choice]) -> None:
        """Add an ``If`` whose branches compute values of two groups of depths."""
        chosen = self._split(parts)
        branches = []
        for name, depths in (("then_branch", chosen), ("else_branch", [*set(parts) - set(chosen)])):
            inner = _Scope(scope)
            own = {depth: nodes for depth, nodes in parts.items() if depth in depths}
            asked = [tuple(pair for pair in choice if pair[0] in depths) for choice in wanted]
            values = self._returned(inner, self._merge(inner, own, asked))
            graph = ir.Graph([], values, nodes=inner.nodes, name=name.removesuffix("_branch"))
            branches.append(ir.AttrGraph(name, graph))
        outputs = [_like(choice) for choice in wanted]
        for attribute in branches:
            for value, output in zip(attribute.as_graph().outputs, outputs, strict=True):
                value.type, value.shape = output.type, output.shape
        scope.nodes.append(ir.Node("", "If", [self._condition(frozenset(chosen))], branches, outputs=outputs))
        for choice, output in zip(wanted, outputs, strict=True):
            scope.chosen[choice] = output
            for _, value in choice:
                if not is_constant(value) and scope.find(value) is None:
                    scope.values[value] = output

    def _split(self, parts: Parts) -> list[int]:
        """Choose the depths of the first branch: those that share a kernel with the first depth."""
        first, *others = sorted(parts)
        kernels = {depth: self._kernels(nodes) for depth, nodes in parts.items()}
        alike = [first, *(depth for depth in others if kernels[depth] & kernels[first])]
        if len(alike) < len(parts):
            return alike
        own = [*map(self._labels.exact, parts[first])]
        alike = [depth for depth in parts if [*map(self._labels.exact, parts[depth])] == own]
        return alike if len(alike) < len(parts) else [first]

    def _kernels(self, nodes: Iterable[ir.Node]) -> set[Label]:
        return {
            self._labels.content(value)
            for node in nodes
            for value in node.inputs
            if value is not None and is_constant(value) and len(constant(value).shape) > 1
        }

    def _returned(self, scope: _Scope, values: Sequence[ir.Value]) -> list[ir.Value]:
        """Return outputs of a branch, which must be values of its own, each once."""
        own = {value for node in scope.nodes for value in node.outputs}
        returned: list[ir.Value] = []
        for value in values:
            if value not in own or value in returned:
                copy = ir.Node("", "Identity", [value])
                scope.nodes.append(copy)
                value = copy.outputs[0]
            returned.append(value)
        return returned

    def _resolve(self, scope: _Scope, choice: Choice) -> ir.Value:
        """Return the value in a graph that holds each of these at its depth."""
        values = [value for _, value in choice]
        if all(map(is_constant, values)):
            return self._constant_of(scope, choice)
        known = scope.find_choice(choice)
        if known is not None:
            return known
        found = {scope.find(value) for value in values}
        assert len(found) == 1, choice
        value = found.pop()
        assert value is not None, choice
        return value

    def _constant_of(self, scope: _Scope, choice: Choice) -> ir.Value:
        """Return a constant, or a vector that is chosen by the depth."""
        contents = list(dict.fromkeys(self._labels.content(value) for _, value in choice))
        if len(contents) == 1:
            return self._constant(constant(choice[0][1]), contents[0])
        rows = {self._labels.content(value): constant(value).numpy() for _, value in choice}
        places = np.zeros(len(self._models), np.int64)
        for depth, value in choice:
            places[depth] = contents.index(self._labels.content(value))
        table = self._array(np.stack([rows[content] for content in contents]))
        row = self._lookup(places)
        node = ir.Node("", "Gather", [table, row])
        scope.nodes.append(node)
        node.outputs[0].shape, node.outputs[0].type = choice[0][1].shape, choice[0][1].type
        return node.outputs[0]

    def _lookup(self, places: NDArray[Any]) -> ir.Value:
        key = ("lookup", places.tobytes(), places.dtype.str)
        if key not in self._constants_of_depth:
            node = ir.Node("", "Gather", [self._array(places), self._depth])
            self._prelude.append(node)
            self._constants_of_depth[key] = node.outputs[0]
        return self._constants_of_depth[key]

    def _condition(self, depths: frozenset[int]) -> ir.Value:
        return self._lookup(np.array([number in depths for number in range(len(self._models))]))

    def _array(self, array: NDArray[Any]) -> ir.Value:
        probe = ir.Value(const_value=ir.tensor(array))
        return self._constant(ir.tensor(array), self._labels.content(probe))

    def _constant(self, tensor: ir.TensorProtocol, content: Label) -> ir.Value:
        if content not in self._constants:
            self._constants[content] = ir.Value(
                name=f"c{len(self._constants)}",
                const_value=tensor,
                shape=ir.Shape(tensor.shape.numpy()),
                type=ir.TensorType(tensor.dtype),
            )
        return self._constants[content]


class _Layout:
    """Gaps and common nodes of parts, and where each value is computed among them."""

    def __init__(self, scope: _Scope, parts: Parts, common: Sequence[dict[int, int]], labels: Labels) -> None:
        self._scope, self._parts, self._common, self._labels = scope, parts, common, labels
        self._places: dict[ir.Value, tuple[str, int, int]] = {}
        self._gap_nodes: list[tuple[int, int, ir.Node]] = []
        self._filled: set[int] = set()
        for depth, nodes in parts.items():
            number = 0
            for place, node in enumerate(nodes):
                is_common = number < len(common) and common[number][depth] == place
                for index, value in enumerate(node.outputs):
                    self._places[value] = ("common" if is_common else "gap", number, index)
                if is_common:
                    number += 1
                else:
                    self._gap_nodes.append((depth, number, node))
                    self._filled.add(number)

    def plan(self, wanted: Sequence[Choice]) -> tuple[list[list[Choice]], tuple[int, int] | None]:
        """Return what each gap must return; and two gaps that must become one, if there are such."""
        outputs: list[list[Choice]] = [[] for _ in range(len(self._common) + 1)]
        placed: set[Choice] = set()
        for use, choice in self._uses(wanted):
            if choice in placed or self._is_same(choice):
                continue
            gaps = [self._gap_of(value) for _, value in choice]
            ready = max(self._ready(value) for _, value in choice)
            earliest = min((gap for gap in gaps if gap is not None), default=None)
            if earliest is not None and earliest < ready:
                return outputs, (earliest, ready)
            place = ready if earliest is not None else self._filled_before(use, ready)
            outputs[place].append(choice)
            placed.add(choice)
        exported = {pair for choice in placed for pair in choice}
        for depth, number, node in self._gap_nodes:
            for value in node.inputs:
                gap = None if value is None else self._gap_of(value)
                if value is not None and gap is not None and gap < number and (depth, value) not in exported:
                    return outputs, (gap, number)
        return outputs, None

    def _uses(self, wanted: Sequence[Choice]) -> Iterable[tuple[int, Choice]]:
        for number, places in enumerate(self._common):
            nodes = {depth: self._parts[depth][place] for depth, place in places.items()}
            first = next(iter(nodes.values()))
            for place, value in enumerate(first.inputs):
                if value is not None:
                    yield number, tuple((depth, _input(node, place)) for depth, node in nodes.items())
        for choice in wanted:
            yield len(self._common), choice

    def _is_same(self, choice: Choice) -> bool:
        """Return whether one value serves all depths without a branch."""
        values = [value for _, value in choice]
        if all(map(is_constant, values)):
            # Other constants than vectors are never different in nodes that are the same.
            return len(constant(values[0]).shape) == 1 or len({self._labels.content(v) for v in values}) == 1
        if self._scope.find_choice(choice) is not None:
            return True
        return len(choice) == 1 or (
            len({self._key(value) for value in values}) == 1 and self._gap_of(values[0]) is None
        )

    def _key(self, value: ir.Value) -> object:
        if is_constant(value):
            return self._labels.content(value)
        return self._places.get(value) or self._scope.find(value)

    def _gap_of(self, value: ir.Value) -> int | None:
        kind, number, _ = self._places.get(value, ("", 0, 0))
        return number if kind == "gap" else None

    def _ready(self, value: ir.Value) -> int:
        """Return the first gap in which a value is known."""
        kind, number, _ = self._places.get(value, ("", 0, 0))
        return number + 1 if kind == "common" else number

    def _filled_before(self, use: int, ready: int) -> int:
        return max((gap for gap in self._filled if ready <= gap <= use), default=use)


def _input(node: ir.Node, place: int) -> ir.Value:
    value = node.inputs[place]
    assert value is not None
    return value


def _like(choice: Choice) -> ir.Value:
    """Return a value of the type of others, with the sides that all have."""
    shapes = [value.shape for _, value in choice]
    first = shapes[0]
    shape = None
    if first is not None and all(one is not None and len(one) == len(first) for one in shapes):
        shape = ir.Shape(
            [
                side if isinstance(side, int) and all(one and one[axis] == side for one in shapes) else None
                for axis, side in enumerate(first)
            ]
        )
    return ir.Value(type=choice[0][1].type, shape=shape)

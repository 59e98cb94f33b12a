"""Graphs in OpenVINO's own format, which keep their numbers in a file that all depths share."""

import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx_ir as ir

from anydepth.deploy.export.graph import ExportError
from anydepth.deploy.export.weights_file import WeightsFile
from anydepth.deploy.runtime.ir_file import constants, parse_graph

# A graph and its numbers pass from ONNX to OpenVINO as one message, which Protocol Buffers limit to 2 GiB.
_MAX_BYTES = 2**31 - 2**20


def to_openvino(model: ir.Model) -> Any:
    """Convert a graph of the export to a model of OpenVINO, which keeps its norms as nodes.

    Args:
        model: Graph whose numbers are in memory.

    Returns:
        An ``openvino.Model``.

    Raises:
        ExportError: OpenVINO cannot read the graph, or it is beyond 2 GiB.
    """
    import openvino

    proto = ir.to_proto(model)
    if proto.ByteSize() > _MAX_BYTES:
        raise ExportError("the graph of a depth has more than 2 GiB of weights; export it with format=onnx")
    try:
        return openvino.Core().read_model(proto.SerializeToString())
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot read the graph of a depth: {error}") from error


def write_openvino(model: Any, path: Path, weights: WeightsFile) -> None:
    """Write a model of OpenVINO whose numbers go to the file of weights.

    Args:
        model: ``openvino.Model``.
        path: ``.xml`` file to write.
        weights: File of weights beside it; equal numbers of earlier graphs are used again.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        graph, numbers = Path(folder) / "graph.xml", Path(folder) / "graph.bin"
        openvino.serialize(model, graph, numbers)
        root = parse_graph(graph.read_bytes())
        content = memoryview(numbers.read_bytes())
    for data, place in constants(root):
        assert place.length is not None
        offset, _ = weights.store(content[place.offset : place.offset + place.length])
        data.set("offset", str(offset))
    # How the model was made: options, and folders of this machine.
    for notes in root.findall("rt_info"):
        root.remove(notes)
    root.set("name", path.stem)
    for element in root.iter():
        # Indentation, a third of the file.
        element.text, element.tail = (element.text or "").strip() or None, None
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)

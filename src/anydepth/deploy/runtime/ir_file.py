"""The constants that an OpenVINO graph takes from its file of weights, read without OpenVINO.

A graph in OpenVINO's intermediate representation (IR, version 11 of OpenVINO 2026) is an XML file; its layers
of type ``Const`` name a place in one binary file. A bundle may come from a stranger, so that definitions of
entities are refused, and places are checked before an engine sees them.
"""

from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree

from anydepth.deploy.runtime.onnx_file import ExternalTensor

CONSTANT: Final = "Const"
"""Type of the layers that hold numbers."""
_VERSIONS: Final = range(10, 12)


def parse_graph(text: bytes) -> ElementTree.Element:
    """Parse a graph.

    Args:
        text: Bytes of the ``.xml`` file.

    Raises:
        ValueError: The bytes are no such file, or define a document type, with which few bytes may stand for
            many.
    """
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text or b"\0" in text:
        raise ValueError("it defines a document type, or is not in UTF-8")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not complete XML: {error}") from error
    if root.tag != "net" or root.get("version") not in [str(version) for version in _VERSIONS]:
        raise ValueError(
            f"got <{root.tag[:40]} version={str(root.get('version'))[:40]}>, expected <net> of version "
            f"{' or '.join(map(str, _VERSIONS))}"
        )
    return root


def constants(root: ElementTree.Element) -> Iterator[tuple[ElementTree.Element, ExternalTensor]]:
    """Yield the description of each constant, also those in branches, with its place in the file of weights.

    Args:
        root: A graph of :func:`parse_graph`.

    Raises:
        ValueError: A layer of an extension, or a constant without a place.
    """
    for layer in root.iter("layer"):
        kind, version = layer.get("type"), str(layer.get("version"))
        if not (version.startswith("opset") and version[5:].isdecimal()):
            raise ValueError(f"a layer {str(kind)[:40]!r} of {version[:40]!r}, expected one of an opset")
        if kind == CONSTANT:
            data = layer.find("data")
            if data is None:
                raise ValueError("a constant without data")
            yield data, ExternalTensor("", _number(data, "offset"), _number(data, "size"))


def _number(data: ElementTree.Element, key: str) -> int:
    text = str(data.get(key))
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"got {key}={text[:40]!r} of a constant, expected a number")
    return int(text)

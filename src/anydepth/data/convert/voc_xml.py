"""Pascal VOC xmls: the texts of an annotation by element, with the line of each."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax import SAXException, SAXParseException, make_parser
from xml.sax.handler import ContentHandler, LexicalHandler, property_lexical_handler
from xml.sax.xmlreader import AttributesImpl, Locator

from anydepth.data.errors import DataError

_FIRST_BYTES = 4096  # The outermost element comes after the xml declaration and, at most, a comment.
_MAX_DEPTH = 50  # Nested elements: Pascal VOC has four, and a hostile file could nest millions.


@dataclass
class Entry:
    """Texts of the elements below an element, by their names joined with slashes, and the line of each."""

    line: int
    fields: dict[str, tuple[str, int]] = field(default_factory=dict)

    def error(self, xml: Path, key: str, message: str) -> DataError:
        """Create an error that names the file and the line of a text, or of the element without it."""
        line = self.fields[key][1] if key in self.fields else self.line
        return DataError(f"{xml}, line {line}: {message}")

    def text(self, xml: Path, key: str, default: str = "") -> str:
        """Return a text.

        Raises:
            DataError: It is missing or empty, and there is no default.
        """
        text = self.fields.get(key, ("", 0))[0] or default
        if not text:
            raise self.error(xml, key, f"the object has no <{key.replace('/', '><')}>; add it")
        return text

    def number(self, xml: Path, key: str) -> float:
        """Return a number of pixels.

        Raises:
            DataError: It is missing or not a finite number.
        """
        text = self.text(xml, key)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self.error(xml, key, f"<{key.rsplit('/', 1)[-1]}> is {text!r}, expected a number of pixels")
        return number


@dataclass
class Annotation:
    """Content of an xml.

    Attributes:
        filename: Its ``<filename>``, which tools keep when an image is renamed; empty if it has none.
        objects: Its objects.
        frame: Its ``<size>``.
        source: Its ``<source>``.
    """

    filename: str = ""
    objects: list[Entry] = field(default_factory=list)
    frame: Entry = field(default_factory=lambda: Entry(0))
    source: Entry = field(default_factory=lambda: Entry(0))

    @property
    def database(self) -> str:
        """The ``<database>`` of the source; empty if there is none."""
        return self.source.fields.get("database", ("", 0))[0]

    def size(self, xml: Path) -> tuple[int, int] | None:
        """Return the (height, width); None if the xml has none or, as some tools write, 0.

        Raises:
            DataError: It is not a number.
        """
        if not {"height", "width"} <= self.frame.fields.keys():
            return None
        height, width = (round(self.frame.number(xml, key)) for key in ("height", "width"))
        return (height, width) if height > 0 and width > 0 else None


class _Collector(ContentHandler):
    """Collects an annotation; unlike a parsed tree it knows the line of each element."""

    def __init__(self) -> None:
        super().__init__()
        self.annotation = Annotation()
        self._path: list[str] = []
        self._texts: list[str] = []
        self._position = Locator()

    def startElement(self, name: str, attrs: AttributesImpl) -> None:  # noqa: N802 (the base class's name)
        self._path.append(name)
        self._texts = []
        if len(self._path) > _MAX_DEPTH:
            raise SAXException(f"it nests more than {_MAX_DEPTH} elements, which no annotation needs")
        if len(self._path) == 1 and name != "annotation":
            raise SAXException(f"its outermost element is <{name}>, not <annotation>")
        if self._path == ["annotation", "object"]:
            self.annotation.objects.append(Entry(self._line))
        if self._path == ["annotation", "size"]:
            self.annotation.frame.line = self._line

    def characters(self, content: str) -> None:
        self._texts.append(content)

    def endElement(self, name: str) -> None:  # noqa: N802
        owner, key = "".join(self._path[1:2]), "/".join(self._path[2:])
        content = self.annotation
        entries = {"object": content.objects[-1:], "size": [content.frame], "source": [content.source]}
        if self._path == ["annotation", "filename"]:
            content.filename = "".join(self._texts).strip()
        for entry in entries.get(owner, []) if key else []:
            entry.fields[key] = ("".join(self._texts).strip(), self._line)
        self._path.pop()
        self._texts = []

    def setDocumentLocator(self, locator: Locator) -> None:  # noqa: N802
        self._position = locator

    @property
    def _line(self) -> int:
        return self._position.getLineNumber() or 0


def refuse_cvat(xmls: Iterable[Path]) -> None:
    """Check that no xml is CVAT's own, which holds the objects of all images.

    Raises:
        DataError: One is.
    """
    for xml in xmls:
        with xml.open("rb") as file:
            start = file.read(_FIRST_BYTES)
        if re.search(rb"<annotations[\s>]", start):
            raise DataError(
                f"{xml}: CVAT's own format, which holds all images, is not read; export it from CVAT as "
                '"PASCAL VOC 1.1", "YOLO 1.1" or "COCO 1.0"'
            )


class _RefuseEntities(LexicalHandler):
    """Refuses document types, whose entities could expand without limit or read other files."""

    def startDTD(self, name: str, public_id: str | None, system_id: str | None) -> None:  # noqa: N802
        raise SAXException("it declares a document type, which no annotation needs")


def parse_annotation(xml: Path) -> Annotation:
    """Parse an untrusted xml.

    Raises:
        DataError: It is not a Pascal VOC xml, or declares a document type.
    """
    collector = _Collector()
    parser = make_parser()
    parser.setContentHandler(collector)
    parser.setProperty(property_lexical_handler, _RefuseEntities())
    try:
        with xml.open("rb") as file:
            parser.parse(file)
    except SAXParseException as error:
        raise DataError(
            f"{xml}, line {error.getLineNumber()}: not an xml ({error.getMessage()}); repair it"
        ) from error
    # An encoding that the parser does not know raises a ValueError or a LookupError.
    except (SAXException, OSError, ValueError, LookupError) as error:
        raise DataError(f"{xml}: not a Pascal VOC xml ({error}); repair or remove it") from error
    return collector.annotation

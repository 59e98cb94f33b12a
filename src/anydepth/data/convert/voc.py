"""The reader of Pascal VOC data sets: one xml per image, splits by folders or lists in ``ImageSets/Main``."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax import SAXException, SAXParseException, make_parser
from xml.sax.handler import ContentHandler, LexicalHandler, property_lexical_handler
from xml.sax.xmlreader import AttributesImpl, Locator

from anydepth.data.coco.layout import SplitName
from anydepth.data.convert.dataset import (
    ForeignDataset,
    ForeignImage,
    ForeignObject,
    files_below,
    pictures_below,
    read_lines,
    read_picture_sizes,
    split_folders,
)
from anydepth.data.errors import DataError
from anydepth.utils.messages import join_few


def read_voc(
    root: Path,
    *,
    images: Path | None = None,
    annotations: Path | None = None,
    zero_based: bool = False,
    keep_difficult: bool = False,
) -> ForeignDataset:
    """Read a data set of Pascal VOC xmls.

    An image and its xml have the same name and the same subfolder. Splits are the lists
    ``ImageSets/Main/{train,val,test}.txt`` (``trainval`` if there is no ``train``), or else folders of these
    names; without either, all images are for training. Classes are sorted by name.

    Args:
        root: Folder with ``Annotations/`` and ``JPEGImages/``; or with xmls beside the images; or with
            folders ``train``, ``val`` (or ``valid``) and ``test`` of either kind.
        images: Folder of the images, if it has another name; requires ``annotations``.
        annotations: Folder of the xmls; requires ``images``.
        zero_based: Whether pixels count from 0 and ``xmax`` is the right edge. In VOC the first pixel is 1
            and ``xmax`` the last one inside, so that 1 is subtracted from ``xmin`` and ``ymin``.
        keep_difficult: Whether to treat difficult objects as ordinary ones. VOC's evaluation ignores them,
            and COCO ignores crowd regions: by default they become crowd regions, which are not training
            targets and on which detections are neither right nor wrong.

    Raises:
        DataError: A folder is missing, or an xml or list is malformed; the message names file and line.
    """
    dataset = ForeignDataset()
    reader = _Reader(dataset, zero_based, keep_difficult)
    for split, part in _find_splits(root, images, annotations).items():
        dataset.splits[split] = reader.read(part)
    names = {item.class_name for part in dataset.splits.values() for image in part for item in image.objects}
    dataset.class_names = tuple(sorted(names))
    if reader.at_zero:
        dataset.remarks.append(
            f"{reader.at_zero} boxes start at pixel 0, which VOC does not have, e.g. {reader.first_at_zero}: "
            "if all files count from 0, import again with --zero-based"
        )
    return dataset


@dataclass(frozen=True)
class _SplitFiles:
    """Files of one split; ``listed`` maps names without suffix to their lines in a list."""

    images: Path
    annotations: Path
    listed: Mapping[str, str] | None = None


def _find_splits(root: Path, images: Path | None, annotations: Path | None) -> dict[SplitName, _SplitFiles]:
    if (images is None) != (annotations is None):
        raise DataError(f"got images={images} and annotations={annotations}; give both, or neither")
    if images is not None and annotations is not None:
        return _splits_of_lists(root, _SplitFiles(images, annotations))
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder of the data set")
    folders = split_folders(root)
    if folders and not (root / "Annotations").is_dir():
        return {split: _locate_files(path) for split, path in folders.items()}
    return _splits_of_lists(root, _locate_files(root))


def _locate_files(folder: Path) -> _SplitFiles:
    annotations = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    images = next((folder / name for name in ("JPEGImages", "images") if (folder / name).is_dir()), folder)
    return _SplitFiles(images, annotations)


def _splits_of_lists(root: Path, everything: _SplitFiles) -> dict[SplitName, _SplitFiles]:
    lists = {
        name: root / "ImageSets" / "Main" / f"{name}.txt" for name in ("train", "trainval", "val", "test")
    }
    there = {name: path for name, path in lists.items() if path.is_file()}
    if not there:
        return {"train": everything}
    chosen: dict[SplitName, Path] = {}
    if "train" in there or "trainval" in there:
        chosen["train"] = there.get("train", there.get("trainval", root))
    if "val" in there and "train" in there:
        chosen["val"] = there["val"]
    if "test" in there:
        chosen["test"] = there["test"]
    return {
        split: _SplitFiles(everything.images, everything.annotations, _read_list(path))
        for split, path in chosen.items()
    }


def _read_list(path: Path) -> dict[str, str]:
    """Read the names of a list without its second column, which lists of one class have (-1, 0 or 1)."""
    listed = {}
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if len(words) > 1 and words[-1] in ("-1", "0", "1"):
            words.pop()
        if words:
            listed[" ".join(words)] = f"{path}, line {number}"
    return listed


class _Reader:
    """Reads the splits of one data set, and counts boxes that hint at another origin."""

    def __init__(self, dataset: ForeignDataset, zero_based: bool, keep_difficult: bool) -> None:
        self.dataset = dataset
        self.first_pixel = 0 if zero_based else 1
        self.keep_difficult = keep_difficult
        self.at_zero = 0
        self.first_at_zero = ""

    def read(self, part: _SplitFiles) -> list[ForeignImage]:
        pictures = self._by_name(pictures_below(part.images), part.images)
        xmls = self._by_name(_xmls_below(part.annotations), part.annotations)
        if not xmls:
            raise DataError(
                f"{part.annotations}: no xml file found; give the folder of a Pascal VOC data set"
            )
        if part.listed is not None:
            self._check_listed(part.listed, pictures, xmls)
        else:
            self._skip_unpaired(pictures, xmls)
        names = sorted(pictures.keys() & xmls.keys()) if part.listed is None else part.listed
        read = (self._read_image(pictures[name], xmls[name]) for name in names)
        return [image for image in read if image is not None]

    def _by_name(self, paths: Iterable[Path], folder: Path) -> dict[str, Path]:
        """Return files by their name without suffix, relative to the folder."""
        named: dict[str, Path] = {}
        for path in paths:
            first = named.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
            if first != path:
                self.dataset.skip("files with the name of another file", f"{path} ({first})")
        return named

    def _check_listed(
        self, listed: Mapping[str, str], pictures: Mapping[str, Path], xmls: Mapping[str, Path]
    ) -> None:
        missing = [
            f"{where}: {name}" for name, where in listed.items() if name not in pictures or name not in xmls
        ]
        if missing:
            raise DataError(
                f"{len(missing)} listed names have no image or no xml: {join_few(missing)}; restore them"
            )

    def _skip_unpaired(self, pictures: Mapping[str, Path], xmls: Mapping[str, Path]) -> None:
        for name in sorted(pictures.keys() - xmls.keys()):
            self.dataset.skip("images without an xml (images without objects need one, too)", pictures[name])
        for name in sorted(xmls.keys() - pictures.keys()):
            self.dataset.skip("xmls without an image", xmls[name])

    def _read_image(self, picture: Path, xml: Path) -> ForeignImage | None:
        annotation = _parse(xml)
        try:
            upright, stored = read_picture_sizes(picture)
        except DataError as error:
            self.dataset.skip("unreadable images", error)
            return None
        size = annotation.size(xml) or upright
        if size not in (upright, stored):
            self.dataset.skip(
                "images with another size than in their xml",
                f"{xml}, line {annotation.size_line}: {size}, {picture}: {upright} (height, width)",
            )
            return None
        objects = [self._read_object(xml, entry) for entry in annotation.objects]
        return ForeignImage(picture, size, self.dataset.keep_usable(objects, size))

    def _read_object(self, xml: Path, entry: "_Entry") -> ForeignObject:
        left, top, right, bottom = (entry.number(xml, f"bndbox/{side}") for side in _SIDES)
        if self.first_pixel and min(left, top) == 0:
            self.at_zero += 1
            self.first_at_zero = self.first_at_zero or f"{xml}, line {entry.line}"
        difficult = entry.text(xml, "difficult", "0")
        if difficult not in ("0", "1"):
            raise entry.error(xml, "difficult", f"'difficult' is {difficult!r}, expected 0 or 1")
        return ForeignObject(
            entry.text(xml, "name"),
            (left - self.first_pixel, top - self.first_pixel, right, bottom),
            f"{xml}, line {entry.line}",
            ignored=difficult == "1" and not self.keep_difficult,
        )


_MAX_DEPTH = 50  # Nested elements: Pascal VOC has four, and a hostile file could nest millions.
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def _xmls_below(folder: Path) -> list[Path]:
    return sorted(path for path in files_below(folder) if path.suffix.lower() == ".xml")


@dataclass
class _Entry:
    """Texts of the elements below an element, by their names joined with slashes, and the line of each."""

    line: int
    fields: dict[str, tuple[str, int]] = field(default_factory=dict)

    def error(self, xml: Path, key: str, message: str) -> DataError:
        line = self.fields[key][1] if key in self.fields else self.line
        return DataError(f"{xml}, line {line}: {message}")

    def text(self, xml: Path, key: str, default: str = "") -> str:
        text = self.fields.get(key, ("", 0))[0] or default
        if not text:
            raise self.error(xml, key, f"the object has no <{key.replace('/', '><')}>; add it")
        return text

    def number(self, xml: Path, key: str) -> float:
        text = self.text(xml, key)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self.error(xml, key, f"<{key.rsplit('/', 1)[-1]}> is {text!r}, expected a number of pixels")
        return number


class _Annotation(ContentHandler):
    """SAX handler that collects one annotation; unlike a parsed tree it knows the line of each element."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: list[_Entry] = []
        self.size_line = 0
        self._size = _Entry(0)
        self._path: list[str] = []
        self._texts: list[str] = []
        self._position = Locator()

    def size(self, xml: Path) -> tuple[int, int] | None:
        """Return the (height, width); None if the xml has none or, as some tools write, 0."""
        if not {"height", "width"} <= self._size.fields.keys():
            return None
        height, width = (round(self._size.number(xml, key)) for key in ("height", "width"))
        return (height, width) if height > 0 and width > 0 else None

    def startElement(self, name: str, attrs: AttributesImpl) -> None:  # noqa: N802 (the base class's name)
        self._path.append(name)
        self._texts = []
        if len(self._path) > _MAX_DEPTH:
            raise SAXException(f"it nests more than {_MAX_DEPTH} elements, which no annotation needs")
        if len(self._path) == 1 and name != "annotation":
            raise SAXException(f"its outermost element is <{name}>, not <annotation>")
        if self._path == ["annotation", "object"]:
            self.objects.append(_Entry(self._line))
        if self._path == ["annotation", "size"]:
            self.size_line = self._line

    def characters(self, content: str) -> None:
        self._texts.append(content)

    def endElement(self, name: str) -> None:  # noqa: N802
        owner, key = self._path[1:2], "/".join(self._path[2:])
        entry = {"object": self.objects[-1:], "size": [self._size]}.get("".join(owner), [])
        if entry and key:
            entry[0].fields[key] = ("".join(self._texts).strip(), self._line)
        self._path.pop()
        self._texts = []

    def setDocumentLocator(self, locator: Locator) -> None:  # noqa: N802
        self._position = locator

    @property
    def _line(self) -> int:
        return self._position.getLineNumber() or 0


class _RefuseEntities(LexicalHandler):
    """Refuses document types, whose entities could expand without limit or read other files."""

    def startDTD(self, name: str, public_id: str | None, system_id: str | None) -> None:  # noqa: N802
        raise SAXException("it declares a document type, which no annotation needs")


def _parse(xml: Path) -> _Annotation:
    annotation = _Annotation()
    parser = make_parser()
    parser.setContentHandler(annotation)
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
    return annotation

"""The reader of Pascal VOC data sets: one xml per image, splits by folders or lists in ``ImageSets/Main``."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from anydepth.data.coco.layout import SplitName
from anydepth.data.coco.orientation import read_picture_sizes
from anydepth.data.convert.dataset import ForeignDataset, ForeignImage, ForeignObject
from anydepth.data.convert.folders import files_below, pictures_below
from anydepth.data.convert.pairing import Pairs, pair_names, without_suffix
from anydepth.data.convert.voc_layout import Part, find_parts, split_pairs
from anydepth.data.convert.voc_origin import OriginEvidence
from anydepth.data.convert.voc_xml import Annotation, Entry, parse_annotation, refuse_cvat
from anydepth.data.errors import DataError
from anydepth.data.spelling import match_key
from anydepth.utils.messages import join_few

T = TypeVar("T")

_SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    root: Path,
    *,
    images: Path | None = None,
    annotations: Path | None = None,
    zero_based: bool = False,
    keep_difficult: bool = False,
    empty_without_xml: bool = False,
) -> ForeignDataset:
    """Read a data set of Pascal VOC xmls.

    An image and its xml have the same name, in any spelling of :func:`anydepth.data.spelling.match_key`; of
    several such names, those that share their subfolder belong together. The ``<filename>`` decides between
    images that differ in their suffix only, and finds the image of an xml without one of its name (not with
    ``empty_without_xml``); elsewhere it is ignored, as it often is the name that an image had before. Splits
    are the lists ``{train,val,test}.txt`` in ``ImageSets/Main``, ``ImageSets`` or the root (if there is no
    ``train``, ``trainval`` without the images of ``val``), or else folders of these names; without either,
    all images are for training. Classes are sorted by name.

    Args:
        root: Folder with ``Annotations/`` and ``JPEGImages/``; or with images and xmls anywhere below; or
            with folders ``train``, ``val`` (or ``valid``) and ``test`` of either kind.
        images: Folder of the images, if it has another name; requires ``annotations``.
        annotations: Folder of the xmls; requires ``images``.
        zero_based: Whether pixels count from 0 and ``xmax`` is the right edge. In VOC the first pixel is 1
            and ``xmax`` the last one inside, so that 1 is subtracted from ``xmin`` and ``ymin``.
        keep_difficult: Whether to treat difficult objects as ordinary ones. VOC's evaluation ignores them,
            and COCO ignores crowd regions: by default they become crowd regions, which are not training
            targets and on which detections are neither right nor wrong.
        empty_without_xml: Whether images without an xml have no objects, as datumaro writes them; by default
            they are skipped, or refused if a list names them.

    Raises:
        DataError: A folder is missing, or an xml or list is malformed; the message names file and line.
    """
    dataset = ForeignDataset()
    reader = _Reader(dataset, zero_based, keep_difficult, empty_without_xml)
    for part in find_parts(root, images, annotations, dataset):
        for split, pairs in reader.pair(part).items():
            dataset.splits[split] = reader.read(pairs)
    names = {item.class_name for part in dataset.splits.values() for image in part for item in image.objects}
    dataset.class_names = tuple(sorted(names))
    dataset.remarks.append(reader.origin.describe())
    return dataset


class _Reader:
    """Reads the parts of one data set, and collects evidence of the origin of its pixels."""

    def __init__(
        self, dataset: ForeignDataset, zero_based: bool, keep_difficult: bool, empty_without_xml: bool
    ) -> None:
        self.dataset = dataset
        self.first_pixel = 0 if zero_based else 1
        self.keep_difficult = keep_difficult
        self.empty_without_xml = empty_without_xml
        self.origin = OriginEvidence(zero_based=zero_based)

    def pair(self, part: Part) -> Mapping[SplitName, list[tuple[Path, Path | None]]]:
        """Return the image and the xml of each name, by split; None is an image without objects."""
        candidates = _by_name(pictures_below(part.images), part.images)
        xmls = {
            name: self._take(paths, paths[0])
            for name, paths in _by_name(_xmls_below(part.annotations), part.annotations).items()
        }
        if not xmls and not candidates and part.split not in (None, "train"):
            self.dataset.skip("splits without images", part.root)
            return {}
        if not xmls:
            raise DataError(
                f"{part.annotations}: no xml file found; give the folder of a Pascal VOC data set"
            )
        names = pair_names(candidates, xmls)
        if not names.label_of:
            refuse_cvat(xmls.values())
        # Where images without an xml have no objects, a name that an image had before must not give it some.
        if not self.empty_without_xml:
            names = names.with_pairs(self._pair_by_filename(names, candidates, xmls))
        pictures = {
            name: self._choose(paths, _of(xmls, names.label_of.get(name)))
            for name, paths in candidates.items()
        }
        if self.empty_without_xml:
            names = names.with_empty_pictures()
        if part.split is None:
            splits = split_pairs(part, names, pictures, self.dataset)
        else:
            splits = {part.split: sorted(names.label_of)}
        for name in names.lone_pictures:
            self.dataset.skip(
                "images without an xml (if they have no objects, import with --empty-without-xml)",
                pictures[name],
            )
        for name in names.lone_labels:
            self.dataset.skip("xmls without an image", xmls[name])
        if names.elsewhere:
            pairs = [f"{pictures[name]} with {_of(xmls, names.label_of[name])}" for name in names.elsewhere]
            self.dataset.remarks.append(
                f"{len(pairs)} images were paired with an xml of their name in another folder: "
                f"{join_few(pairs, 2)}"
            )
        return {
            split: [(pictures[name], _of(xmls, names.label_of[name])) for name in chosen]
            for split, chosen in splits.items()
        }

    def read(self, pairs: Iterable[tuple[Path, Path | None]]) -> list[ForeignImage]:
        """Read images with their objects; those that cannot be used are skipped."""
        read = (self._read_image(picture, xml) for picture, xml in pairs)
        return [image for image in read if image is not None]

    def _pair_by_filename(
        self, names: Pairs, candidates: Mapping[str, Sequence[Path]], xmls: Mapping[str, Path]
    ) -> dict[str, str]:
        """Return the xmls of images, both without another of their name, that their ``<filename>`` names."""
        named = _group(
            (_file_key(path.name), name) for name in names.lone_pictures for path in candidates[name]
        )
        naming = _group((_filename(xmls[name]), name) for name in names.lone_labels)
        pairs: dict[str, str] = {}
        for key in sorted(named.keys() & naming.keys()):
            if len(named[key]) == len(naming[key]) == 1:
                # Of images that differ in their suffix only, one is taken.
                pairs.setdefault(named[key][0], naming[key][0])
        if pairs:
            shown = [f"{candidates[name][0]} with {xmls[label]}" for name, label in sorted(pairs.items())]
            self.dataset.remarks.append(
                f"{len(pairs)} images were paired with an xml by its <filename>: {join_few(shown, 2)}"
            )
        return pairs

    def _choose(self, paths: Sequence[Path], xml: Path | None) -> Path:
        """Return the image of an xml among those of its name, and take note of the others."""
        if len(paths) == 1 or xml is None:
            return self._take(paths, paths[0])
        key = _filename(xml)
        return self._take(paths, next((path for path in paths if _file_key(path.name) == key), paths[0]))

    def _take(self, paths: Sequence[Path], chosen: Path) -> Path:
        for path in paths:
            if path != chosen:
                self.dataset.skip("files with the name of another file", f"{path} ({chosen})")
        return chosen

    def _read_image(self, picture: Path, xml: Path | None) -> ForeignImage | None:
        annotation = Annotation() if xml is None else parse_annotation(xml)
        try:
            upright, stored = read_picture_sizes(picture)
        except DataError as error:
            self.dataset.skip("unreadable images", error)
            return None
        if xml is None:
            return ForeignImage(picture, upright, ())
        size = annotation.size(xml) or upright
        if size not in (upright, stored):
            self.dataset.skip(
                "images with another size than in their xml",
                f"{xml}, line {annotation.frame.line}: {size}, {picture}: {upright} (height, width)",
            )
            return None
        self.origin.add_database(annotation.database)
        objects = [self._read_object(xml, entry) for entry in annotation.objects]
        return ForeignImage(picture, size, self.dataset.keep_usable(objects, size))

    def _read_object(self, xml: Path, entry: Entry) -> ForeignObject:
        left, top, right, bottom = (entry.number(xml, f"bndbox/{side}") for side in _SIDES)
        self.origin.add_box(left, top, f"{xml}, line {entry.line}")
        difficult = entry.text(xml, "difficult", "0")
        if difficult not in ("0", "1"):
            raise entry.error(xml, "difficult", f"'difficult' is {difficult!r}, expected 0 or 1")
        return ForeignObject(
            entry.text(xml, "name"),
            (left - self.first_pixel, top - self.first_pixel, right, bottom),
            f"{xml}, line {entry.line}",
            ignored=difficult == "1" and not self.keep_difficult,
        )


def _by_name(paths: Iterable[Path], folder: Path) -> dict[str, list[Path]]:
    """Return files by their name without suffix, relative to the folder."""
    return _group((without_suffix(path, folder), path) for path in paths)


def _group(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    grouped: dict[str, list[T]] = {}
    for key, value in pairs:
        grouped.setdefault(key, []).append(value)
    return grouped


def _filename(xml: Path) -> str:
    """Return the key of the file that an xml names; empty if it names none or cannot be read."""
    try:
        return _file_key(parse_annotation(xml).filename)
    except DataError:
        return ""  # Refused where its objects are read, if it has an image.


def _file_key(name: str) -> str:
    return match_key(name).rpartition("/")[2]


def _of(xmls: Mapping[str, Path], name: str | None) -> Path | None:
    return None if name is None else xmls[name]


def _xmls_below(folder: Path) -> list[Path]:
    return sorted(path for path in files_below(folder) if path.suffix.lower() == ".xml")

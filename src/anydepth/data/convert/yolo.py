"""The reader of YOLO data sets: one text file per image, with boxes or polygons relative to its size."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from anydepth.data.coco.orientation import read_picture_sizes
from anydepth.data.convert.dataset import ForeignDataset, ForeignImage, ForeignObject
from anydepth.data.convert.folders import named_folder, read_lines, split_of
from anydepth.data.convert.pairing import pair_names
from anydepth.data.convert.yolo_layout import NAME_LISTS, Layout, find_layout
from anydepth.data.errors import DataError
from anydepth.utils.messages import join_few

_PLAUSIBLE_RANGE = (-1.0, 2.0)
"""Relative coordinates: boxes may leave the image a little; a whole image outside, they are pixels."""


def read_yolo(source: Path, *, anywhere: bool = False) -> ForeignDataset:
    """Read a data set of YOLO text files.

    The labels of ``images/.../a.jpg`` are ``labels/.../a.txt``, or ``a.txt`` beside it, in any spelling of
    :func:`anydepth.data.spelling.match_key`. An image without label file, or with an empty one, has no
    objects and is kept. Polygons and rotated boxes (four corners) become the upright boxes around them, and
    the polygons are kept in the json.

    Args:
        source: ``data.yaml`` with ``names`` and the locations of ``train``, ``val`` and ``test``; Darknet's
            ``obj.data`` with those of ``names``, ``train`` and ``valid``; or a folder with such a file; or
            one with ``classes.txt`` or ``obj.names`` and folders named after the splits, in or around
            ``images``, or lists ``train.txt``, ``valid.txt`` and ``test.txt``.
        anywhere: Whether ``data.yaml`` and lists may refer to files outside their folder. Only for files that
            are trusted, because untrusted ones could name any folder of this machine. Symbolic links in the
            folder are always followed, as the user's own.

    Raises:
        DataError: A file or folder is missing, or a line is malformed; the message names file and line.
    """
    dataset = ForeignDataset()
    layout = find_layout(source, dataset, anywhere=anywhere)
    dataset.class_names = tuple(layout.names.values())
    labels, orphans = _find_labels([path for pictures in layout.pictures.values() for path in pictures])
    for split, pictures in layout.pictures.items():
        if not pictures and split != "train":
            dataset.skip("splits without images", split)
            continue
        if not any(labels[path] for path in pictures):
            if split != "test":
                first = next(map(_label_file, pictures), layout.file)
                raise DataError(
                    f"{layout.file}: no image of {split} has a label file; looked e.g. for {first}"
                )
            dataset.skip("splits without any label file", split)
            continue
        read = (_read_image(dataset, layout, picture, labels[picture]) for picture in pictures)
        dataset.splits[split] = [image for image in read if image is not None]
    _note_orphans(dataset, labels, orphans)
    return dataset


def _find_labels(pictures: Iterable[Path]) -> tuple[dict[Path, Path | None], list[Path]]:
    """Return the label file of each picture, and the label files without a picture."""
    expected = {picture: _label_file(picture) for picture in pictures}
    labels = {picture: label if label.is_file() else None for picture, label in expected.items()}
    taken = set(labels.values())
    lone: dict[Path, dict[str, Path]] = defaultdict(dict)
    for picture, label in expected.items():
        lone[label.parent] |= {} if labels[picture] else {picture.stem: picture}
    orphans: list[Path] = []
    for folder, by_stem in sorted(lone.items()):
        texts = {path.stem: path for path in _label_files_in(folder) if path not in taken}
        pairs = pair_names(by_stem, texts)
        labels |= {by_stem[name]: texts[label] for name, label in pairs.label_of.items() if label is not None}
        orphans += [texts[name] for name in pairs.lone_labels]
    return labels, orphans


def _note_orphans(
    dataset: ForeignDataset, labels: Mapping[Path, Path | None], orphans: Sequence[Path]
) -> None:
    for path in orphans:
        dataset.skip("label files without an image", path)
    empty = [picture for picture, label in labels.items() if label is None]
    if orphans and empty:
        dataset.remarks.append(
            f"{len(empty)} images have no label file and count as images without objects "
            f"({join_few(empty, 3)}), while {len(orphans)} label files have no image "
            f"({join_few(orphans, 3)}): rename those that belong together"
        )


def _label_files_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    texts = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt" and path.is_file())
    return [path for path in texts if path.name not in NAME_LISTS and split_of(path.stem) is None]


def _label_file(picture: Path) -> Path:
    beside = picture.with_suffix(".txt")
    # The folder of images that is nearest to the picture.
    folder = next((parent for parent in picture.parents if parent.name.lower() == "images"), None)
    if folder is not None:
        apart = _folder_of_labels(folder) / beside.relative_to(folder)
        if apart.is_file() or not beside.is_file():
            return apart
    return beside


@lru_cache(maxsize=64)
def _folder_of_labels(images: Path) -> Path:
    """Return the folder ``labels``, in any case, beside one of images; whether or not it is there."""
    exact = images.with_name("labels")
    return exact if exact.is_dir() else named_folder(images.parent, "labels") or exact


def _read_image(
    dataset: ForeignDataset, layout: Layout, picture: Path, label: Path | None
) -> ForeignImage | None:
    try:
        size, _ = read_picture_sizes(picture)  # Labels are drawn on upright pictures.
    except DataError as error:
        dataset.skip("unreadable images", error)
        return None
    objects = list(_read_objects(layout, label, size)) if label is not None else []
    return ForeignImage(picture, size, dataset.keep_usable(objects, size))


def _read_objects(layout: Layout, label: Path, size: tuple[int, int]) -> Iterator[ForeignObject]:
    height, width = size
    for number, line in enumerate(read_lines(label), start=1):
        if not line.strip():
            continue
        where = f"{label}, line {number}"
        class_id, values = _parse_line(line, where)
        if class_id not in layout.names:
            raise DataError(
                f"{where}: got class {class_id}, expected one of {sorted(layout.names)} from {layout.file}"
            )
        if layout.keypoint_values and len(values) == 4 + layout.keypoint_values:
            values = values[:4]
        polygon = None
        if len(values) == 4:
            x, y, w, h = values
            relative = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        elif len(values) >= 6 and len(values) % 2 == 0:
            xs, ys = ([min(max(value, 0.0), 1.0) for value in values[axis::2]] for axis in (0, 1))
            relative = (min(xs), min(ys), max(xs), max(ys))
            polygon = tuple(v for x, y in zip(xs, ys, strict=True) for v in (x * width, y * height))
        else:
            raise DataError(
                f"{where}: got {len(values)} numbers after the class, expected 4 (x y width height) or a "
                "polygon of at least 3 points; if the last one is the score of a detection, remove it"
            )
        left, top, right, bottom = relative
        box = (left * width, top * height, right * width, bottom * height)
        yield ForeignObject(layout.names[class_id], box, where, polygon=polygon)


def _parse_line(line: str, where: str) -> tuple[int, list[float]]:
    try:
        class_id, *values = (float(word) for word in line.split())
    except ValueError:
        class_id, values = math.nan, []
    if not all(map(math.isfinite, (class_id, *values))) or not class_id.is_integer():
        raise DataError(
            f"{where}: {line.strip()[:80]!r}; expected a class id and numbers, separated by spaces"
        )
    if any(not _PLAUSIBLE_RANGE[0] <= value <= _PLAUSIBLE_RANGE[1] for value in values):
        raise DataError(
            f"{where}: {line.strip()[:80]!r}; expected coordinates relative to the image's width and height, "
            "from 0 to 1, not pixels"
        )
    return int(class_id), values

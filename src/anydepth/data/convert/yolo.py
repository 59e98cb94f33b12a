"""The reader of YOLO data sets: one text file per image, with boxes or polygons relative to its size."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anydepth.data.coco.json_rows import exists, is_file
from anydepth.data.coco.layout import SplitName
from anydepth.data.convert.dataset import (
    SPLIT_FOLDERS,
    ForeignDataset,
    ForeignImage,
    ForeignObject,
    pictures_below,
    read_lines,
    read_picture_sizes,
    split_folders,
)
from anydepth.data.errors import DataError
from anydepth.utils.messages import short_repr
from anydepth.utils.yaml_text import YamlTextError, load_yaml

_NAME_LISTS = ("classes.txt", "obj.names", "names.txt")
_WHOLE_NUMBER = re.compile("[0-9]{1,9}")
_OUTSIDE_HELP = (
    "which is outside the folder of data.yaml. Move the file or the images there; or, if you trust its "
    "author, allow files anywhere (anydepth-data import --anywhere)"
)
_PLAUSIBLE_RANGE = (-1.0, 2.0)
"""Relative coordinates: boxes may leave the image a little; a whole image outside, they are pixels."""


def read_yolo(source: Path, *, anywhere: bool = False) -> ForeignDataset:
    """Read a data set of YOLO text files.

    The labels of ``images/.../a.jpg`` are ``labels/.../a.txt``, or ``a.txt`` beside it. An image without
    label file, or with an empty one, has no objects and is kept. Polygons and rotated boxes (four corners)
    become the upright boxes around them, and the polygons are kept in the json.

    Args:
        source: ``data.yaml`` with ``names`` and the locations of ``train``, ``val`` and ``test``; or a folder
            with such a file; or one with ``classes.txt`` and folders named after the splits, in or around
            ``images``.
        anywhere: Whether ``data.yaml`` and lists may refer to files outside their folder. Only for files that
            are trusted, because untrusted ones could name any folder of this machine. Symbolic links in the
            folder are always followed, as the user's own.

    Raises:
        DataError: A file or folder is missing, or a line is malformed; the message names file and line.
    """
    layout = _find_layout(source, anywhere)
    dataset = ForeignDataset(tuple(layout.names.values()))
    for split, pictures in layout.pictures.items():
        labels = {path: _label_file(path) for path in pictures}
        if not any(path.is_file() for path in labels.values()):
            first = next(iter(labels.values()), layout.file)
            if split != "test":
                raise DataError(
                    f"{layout.file}: no image of {split} has a label file; looked e.g. for {first}"
                )
            dataset.skip("splits without any label file", split)
            continue
        read = (_read_image(dataset, layout, picture, label) for picture, label in labels.items())
        dataset.splits[split] = [image for image in read if image is not None]
        _skip_orphans(dataset, labels)
    return dataset


@dataclass(frozen=True)
class _Layout:
    """The files of a data set.

    Attributes:
        file: The yaml or the list of class names.
        names: Name of each class id.
        keypoint_values: Count of numbers after the box in the lines of a pose data set.
        pictures: Image files of each split.
    """

    file: Path
    names: Mapping[int, str]
    keypoint_values: int
    pictures: Mapping[SplitName, Sequence[Path]]


def _find_layout(source: Path, anywhere: bool) -> _Layout:
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; give the data set's folder or its data.yaml")
    if source.is_file():
        return _layout_of_yaml(source, anywhere)
    yamls = [path for path in sorted(source.iterdir()) if path.suffix in (".yaml", ".yml")]
    described = [path for path in yamls if "names" in _read_yaml(path)]
    if len(described) > 1:
        raise DataError(f"{source}: several files name classes ({', '.join(map(str, described))}); give one")
    if described:
        return _layout_of_yaml(described[0], anywhere)
    lists = [source / name for name in _NAME_LISTS if (source / name).is_file()]
    if not lists:
        raise DataError(
            f"{source}: neither a data.yaml with 'names' nor {', '.join(_NAME_LISTS)} found; add one of them "
            "to name the class ids"
        )
    names = dict(enumerate(line.strip() for line in read_lines(lists[0]) if line.strip()))
    return _Layout(lists[0], _check_names(names, lists[0]), 0, _pictures_of_folders(source))


def _layout_of_yaml(path: Path, anywhere: bool) -> _Layout:
    content = _read_yaml(path)
    names = content.get("names")
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict) or not all(
        _WHOLE_NUMBER.fullmatch(str(key)) and isinstance(names[key], str) for key in names
    ):
        raise DataError(
            f"{path}: 'names' is {_as_written(names)}, expected a list of names or one name per class id"
        )
    numbered = _check_names(
        {int(key): name for key, name in sorted(names.items(), key=lambda e: int(e[0]))}, path
    )
    if content.get("nc", str(len(numbered))) != str(len(numbered)):
        raise DataError(
            f"{path}: 'nc' is {_as_written(content['nc'])}, but 'names' has {len(numbered)}; correct one of "
            "them"
        )
    pictures: dict[SplitName, Sequence[Path]] = {}
    for key in ("train", "val", "valid", "test"):
        if content.get(key):
            pictures[SPLIT_FOLDERS[key]] = _pictures_of_yaml(path, content, key, anywhere)
    return _Layout(
        path, numbered, _keypoint_values(path, content), pictures or _pictures_of_folders(path.parent)
    )


def _read_yaml(path: Path) -> dict[str, object]:
    """Read a YAML file with all scalars as text; otherwise a class named ``no`` would be false."""
    try:
        content = load_yaml("\n".join(read_lines(path)), as_text=True)
    except YamlTextError as error:
        raise DataError(f"{path}: not a YAML file ({error}); repair it") from error
    return content if isinstance(content, dict) else {}


def _as_written(value: object) -> str:
    return value[:80] if isinstance(value, str) else short_repr(value)


def _check_names(names: Mapping[int, str], path: Path) -> Mapping[int, str]:
    if not names or len(set(names.values())) < len(names):
        raise DataError(
            f"{path}: got class names {list(names.values())[:10]}; give at least one, each only once"
        )
    return names


def _keypoint_values(path: Path, content: Mapping[str, object]) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(_WHOLE_NUMBER.fullmatch(str(value)) for value in shape)
    ):
        raise DataError(f"{path}: 'kpt_shape' is {_as_written(shape)}, expected [points, values per point]")
    return int(shape[0]) * int(shape[1])


def _pictures_of_yaml(path: Path, content: Mapping[str, object], key: str, anywhere: bool) -> list[Path]:
    """Return the pictures of ``train``, ``val`` or ``test``: folders, or text files with a file per line."""
    root = None if anywhere else path.parent
    given = content[key]
    pictures: list[Path] = []
    for entry in given if isinstance(given, list) else [given]:
        place = _resolve(path, str(content.get("path") or ""), str(entry), key, root)
        pictures += _pictures_of_list(place, root) if place.is_file() else pictures_below(place)
    return pictures


def _resolve(path: Path, base: str, entry: str, key: str, root: Path | None) -> Path:
    # Export tools often write ../train/images for the folder beside the file.
    written = [path.parent / base / entry, path.parent / entry, path.parent / entry.removeprefix("../")]
    tried = [Path(os.path.normpath(place)) for place in written]
    for candidate in tried:
        if exists(candidate):
            if not _is_inside(candidate, root):
                raise DataError(f"{path}: '{key}' leads to {candidate}; {_OUTSIDE_HELP}")
            return candidate
    places = " nor ".join(str(place)[:300] for place in dict.fromkeys(tried))
    raise DataError(f"{path}: '{key}' is {entry[:300]}, but there is no {places}")


def _is_inside(place: Path, root: Path | None) -> bool:
    """Return whether a path stays in a folder, links aside; any path does without a folder."""
    normal = os.path.normpath(place.absolute())
    return root is None or Path(normal).is_relative_to(os.path.normpath(root.absolute()))


def _pictures_of_list(path: Path, root: Path | None) -> list[Path]:
    pictures = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            picture = Path(os.path.normpath(path.parent / line.strip()))
            shown = str(picture)[:300]
            if not _is_inside(picture, root):
                raise DataError(f"{path}, line {number}: leads to {shown}; {_OUTSIDE_HELP}")
            if not is_file(picture):
                raise DataError(
                    f"{path}, line {number}: no such image {shown}; restore it or remove the line"
                )
            pictures.append(picture)
    return pictures


def _pictures_of_folders(root: Path) -> dict[SplitName, Sequence[Path]]:
    """Return the pictures in ``images/SPLIT`` or ``SPLIT``; without such folders, all are for training."""
    for parent in (root / "images", root):
        found = split_folders(parent)
        if found:
            return {split: pictures_below(path) for split, path in found.items()}
    return {"train": pictures_below(root)}


def _label_file(picture: Path) -> Path:
    beside = picture.with_suffix(".txt")
    parts = list(beside.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
        apart = Path(*parts)
        if apart.is_file() or not beside.is_file():
            return apart
    return beside


def _skip_orphans(dataset: ForeignDataset, labels: Mapping[Path, Path]) -> None:
    used = set(labels.values())
    for folder in sorted({path.parent for path in used}):
        for path in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
            if path not in used and path.name not in _NAME_LISTS:
                dataset.skip("label files without an image", path)


def _read_image(dataset: ForeignDataset, layout: _Layout, picture: Path, label: Path) -> ForeignImage | None:
    try:
        size, _ = read_picture_sizes(picture)  # Labels are drawn on upright pictures.
    except DataError as error:
        dataset.skip("unreadable images", error)
        return None
    objects = list(_read_objects(layout, label, size)) if label.is_file() else []
    return ForeignImage(picture, size, dataset.keep_usable(objects, size))


def _read_objects(layout: _Layout, label: Path, size: tuple[int, int]) -> Iterator[ForeignObject]:
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

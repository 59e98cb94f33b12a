"""YOLO data sets: one text file per image, ``class x y width height`` in shares of the image, or polygons."""

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
    picture_sizes,
    pictures_below,
    read_lines,
    split_folders,
)
from anydepth.data.errors import DataError
from anydepth.utils.messages import short_repr
from anydepth.utils.yaml_text import YamlTextError, load_yaml

_NAME_LISTS = ("classes.txt", "obj.names", "names.txt")
_COUNT = re.compile("[0-9]{1,9}")
_LEAVES = (
    "that is not in the folder of data.yaml. Move the file or the images there; or, if you trust who wrote "
    "it, allow paths to anywhere (anydepth-data import --anywhere)"
)
# Far outside the image: the numbers are pixels, not shares.
_NO_SHARE = (-1.0, 2.0)


def read_yolo(source: Path, *, anywhere: bool = False) -> ForeignDataset:
    """Read a data set of YOLO text files.

    The labels of ``images/.../a.jpg`` are ``labels/.../a.txt``, or ``a.txt`` beside it. An image without
    label file, or with an empty one, has no objects and is kept. Of polygons and of turned boxes (four
    corners) the upright box around them is learnt, and the polygon is kept in the json.

    Args:
        source: ``data.yaml`` with ``names`` and the paths of ``train``, ``val`` and ``test``; or a folder
            with such a file; or one with ``classes.txt`` and folders named after the splits, in or around
            ``images``.
        anywhere: Follow paths of ``data.yaml`` and of lists that lead out of their folder; right only for
            files of one's own, as those of others could name any folder of this machine. Links in the folder
            are followed either way: they are the user's own.

    Raises:
        DataError: A file or folder is not there, or a line is wrong; the message names file and line.
    """
    layout = _layout_of(source, anywhere)
    dataset = ForeignDataset(tuple(layout.names.values()))
    for split, pictures in layout.pictures.items():
        labels = {path: _labels_of(path) for path in pictures}
        if not any(path.is_file() for path in labels.values()):
            first = next(iter(labels.values()), layout.file)
            if split != "test":
                raise DataError(
                    f"{layout.file}: no image of {split} has a label file; looked e.g. for {first}"
                )
            dataset.skip("splits without any label file", split)
            continue
        read = (_image(dataset, layout, picture, label) for picture, label in labels.items())
        dataset.splits[split] = [image for image in read if image is not None]
        _skip_orphans(dataset, labels)
    return dataset


@dataclass(frozen=True)
class _Layout:
    """Where everything is.

    Attributes:
        file: The yaml or the list of names.
        names: Name of each class id.
        keypoint_values: Numbers after the box in the lines of a pose data set.
        pictures: Files of each split.
    """

    file: Path
    names: Mapping[int, str]
    keypoint_values: int
    pictures: Mapping[SplitName, Sequence[Path]]


def _layout_of(source: Path, anywhere: bool) -> _Layout:
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; give the data set's folder or its data.yaml")
    if source.is_file():
        return _from_yaml(source, anywhere)
    yamls = [path for path in sorted(source.iterdir()) if path.suffix in (".yaml", ".yml")]
    described = [path for path in yamls if "names" in _read_yaml(path)]
    if len(described) > 1:
        raise DataError(f"{source}: several files name classes ({', '.join(map(str, described))}); give one")
    if described:
        return _from_yaml(described[0], anywhere)
    lists = [source / name for name in _NAME_LISTS if (source / name).is_file()]
    if not lists:
        raise DataError(
            f"{source}: neither a data.yaml with 'names' nor {', '.join(_NAME_LISTS)}; add one of them: "
            "without it the class ids have no names"
        )
    names = dict(enumerate(line.strip() for line in read_lines(lists[0]) if line.strip()))
    return _Layout(lists[0], _checked(names, lists[0]), 0, _pictures_of_folders(source))


def _from_yaml(path: Path, anywhere: bool) -> _Layout:
    content = _read_yaml(path)
    names = content.get("names")
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict) or not all(
        _COUNT.fullmatch(str(key)) and isinstance(names[key], str) for key in names
    ):
        raise DataError(f"{path}: 'names' is {_as_written(names)}; give a list of names, or one per class id")
    numbered = _checked(
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
    """All scalars as text: as YAML a class named ``no`` would be false."""
    try:
        content = load_yaml("\n".join(read_lines(path)), as_text=True)
    except YamlTextError as error:
        raise DataError(f"{path}: no YAML file ({error}); repair it") from error
    return content if isinstance(content, dict) else {}


def _as_written(value: object) -> str:
    return value[:80] if isinstance(value, str) else short_repr(value)


def _checked(names: Mapping[int, str], path: Path) -> Mapping[int, str]:
    if not names or len(set(names.values())) < len(names):
        raise DataError(f"{path}: class names {list(names.values())[:10]}; give at least one, each only once")
    return names


def _keypoint_values(path: Path, content: Mapping[str, object]) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(_COUNT.fullmatch(str(value)) for value in shape)
    ):
        raise DataError(f"{path}: 'kpt_shape' is {_as_written(shape)}; give [points, values per point]")
    return int(shape[0]) * int(shape[1])


def _pictures_of_yaml(path: Path, content: Mapping[str, object], key: str, anywhere: bool) -> list[Path]:
    """The pictures that ``train``, ``val`` or ``test`` name: folders, or text files with a path per line."""
    root = None if anywhere else path.parent
    given = content[key]
    pictures: list[Path] = []
    for entry in given if isinstance(given, list) else [given]:
        place = _resolve(path, str(content.get("path") or ""), str(entry), key, root)
        pictures += _pictures_of_list(place, root) if place.is_file() else pictures_below(place)
    return pictures


def _resolve(path: Path, base: str, entry: str, key: str, root: Path | None) -> Path:
    # Exports often write ../train/images and mean the folder beside the file.
    written = [path.parent / base / entry, path.parent / entry, path.parent / entry.removeprefix("../")]
    tried = [Path(os.path.normpath(place)) for place in written]
    for candidate in tried:
        if exists(candidate):
            if not _is_inside(candidate, root):
                raise DataError(f"{path}: '{key}' leads to {candidate}; {_LEAVES}")
            return candidate
    places = " nor ".join(str(place)[:300] for place in dict.fromkeys(tried))
    raise DataError(f"{path}: '{key}' is {entry[:300]}, but there is no {places}")


def _is_inside(place: Path, root: Path | None) -> bool:
    """Whether a path, by its spelling, stays in a folder; anywhere without one."""
    normal = os.path.normpath(place.absolute())
    return root is None or Path(normal).is_relative_to(os.path.normpath(root.absolute()))


def _pictures_of_list(path: Path, root: Path | None) -> list[Path]:
    pictures = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            picture = Path(os.path.normpath(path.parent / line.strip()))
            shown = str(picture)[:300]
            if not _is_inside(picture, root):
                raise DataError(f"{path}, line {number}: leads to {shown}; {_LEAVES}")
            if not is_file(picture):
                raise DataError(
                    f"{path}, line {number}: no such image {shown}; restore it or remove the line"
                )
            pictures.append(picture)
    return pictures


def _pictures_of_folders(root: Path) -> dict[SplitName, Sequence[Path]]:
    """Pictures in ``images/SPLIT`` or ``SPLIT``; else all are for training."""
    for parent in (root / "images", root):
        found = split_folders(parent)
        if found:
            return {split: pictures_below(path) for split, path in found.items()}
    return {"train": pictures_below(root)}


def _labels_of(picture: Path) -> Path:
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


def _image(dataset: ForeignDataset, layout: _Layout, picture: Path, label: Path) -> ForeignImage | None:
    try:
        size, _ = picture_sizes(picture)  # Labels are drawn on upright pictures.
    except DataError as error:
        dataset.skip("unreadable images", error)
        return None
    objects = list(_objects(layout, label, size)) if label.is_file() else []
    return ForeignImage(picture, size, dataset.usable(objects, size))


def _objects(layout: _Layout, label: Path, size: tuple[int, int]) -> Iterator[ForeignObject]:
    height, width = size
    for number, line in enumerate(read_lines(label), start=1):
        if not line.strip():
            continue
        where = f"{label}, line {number}"
        class_id, values = _numbers(line, where)
        if class_id not in layout.names:
            raise DataError(f"{where}: class {class_id}, but {layout.file} names {sorted(layout.names)}")
        if layout.keypoint_values and len(values) == 4 + layout.keypoint_values:
            values = values[:4]
        polygon = None
        if len(values) == 4:
            x, y, w, h = values
            shares = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        elif len(values) >= 6 and len(values) % 2 == 0:
            xs, ys = ([min(max(value, 0.0), 1.0) for value in values[axis::2]] for axis in (0, 1))
            shares = (min(xs), min(ys), max(xs), max(ys))
            polygon = tuple(v for x, y in zip(xs, ys, strict=True) for v in (x * width, y * height))
        else:
            raise DataError(
                f"{where}: {len(values)} numbers after the class; give 4 (x y width height) or a polygon of "
                "at least 3 points; if the last one is a confidence, these are detections: remove it"
            )
        left, top, right, bottom = shares
        box = (left * width, top * height, right * width, bottom * height)
        yield ForeignObject(layout.names[class_id], box, where, polygon=polygon)


def _numbers(line: str, where: str) -> tuple[int, list[float]]:
    try:
        class_id, *values = (float(word) for word in line.split())
    except ValueError:
        class_id, values = math.nan, []
    if not all(map(math.isfinite, (class_id, *values))) or not class_id.is_integer():
        raise DataError(f"{where}: {line.strip()[:80]!r}; give a class id and numbers, parted by spaces")
    if any(not _NO_SHARE[0] <= value <= _NO_SHARE[1] for value in values):
        raise DataError(
            f"{where}: {line.strip()[:80]!r}; coordinates are shares of the image's width and height, from 0 "
            "to 1, not pixels"
        )
    return int(class_id), values

"""Layouts of YOLO data sets: a data.yaml, Darknet's obj.data and lists, or folders named after splits."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anydepth.data.coco.json_rows import exists, is_file
from anydepth.data.coco.layout import SplitName
from anydepth.data.convert.dataset import ForeignDataset
from anydepth.data.convert.folders import (
    IMAGE_SUFFIXES,
    UNLISTED_IMAGES,
    UNNAMED_FOLDERS,
    files_below,
    find_data_set,
    named_folder,
    other_folders,
    pictures_below,
    read_lines,
    split_folders,
    split_lists,
    split_of,
)
from anydepth.data.convert.json_kinds import advise
from anydepth.data.errors import DataError
from anydepth.data.spelling import SpelledNames
from anydepth.utils.messages import short_repr
from anydepth.utils.yaml_text import YamlTextError, load_yaml

NAME_LISTS: Final = ("classes.txt", "obj.names", "names.txt", "_darknet.labels")
"""Lists of class names: of labelImg and Label Studio, Darknet, and Roboflow's export for Darknet."""
_WHOLE_NUMBER = re.compile("[0-9]{1,9}")
_OUTSIDE_HELP = (
    "which is outside the folder of data.yaml. Move the file or the images there; or, if you trust its "
    "author, allow files anywhere (anydepth-data import --anywhere)"
)
_EXPORT_PREFIX = "data/"
"""Exports of CVAT and datumaro write this before paths relative to their folder; Darknet ran beside it."""


@dataclass(frozen=True)
class Layout:
    """The files of a data set.

    Attributes:
        file: The yaml, obj.data or list of class names.
        names: Name of each class id.
        keypoint_values: Count of numbers after the box in the lines of a pose data set.
        pictures: Image files of each split.
    """

    file: Path
    names: Mapping[int, str]
    keypoint_values: int
    pictures: Mapping[SplitName, Sequence[Path]]


def find_layout(source: Path, dataset: ForeignDataset, *, anywhere: bool) -> Layout:
    """Find the class names and the pictures of each split; see :func:`anydepth.data.convert.yolo.read_yolo`.

    Args:
        source: File or folder of the data set.
        dataset: Takes note of the lists and folders that are not used.
        anywhere: Whether paths in files may lead out of their folder.

    Raises:
        DataError: A file or folder is missing or malformed.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; give the data set's folder or its data.yaml")
    if source.is_file():
        read = _layout_of_data_file if source.suffix == ".data" else _layout_of_yaml
        return read(source, dataset, anywhere)
    root = find_data_set(source, _describes_classes)
    if root != source:
        dataset.remarks.append(f"the data set was found in {root}")
    described = _yamls_with_names(root)
    if len(described) > 1:
        raise DataError(f"{root}: several files name classes ({', '.join(map(str, described))}); give one")
    if described:
        return _layout_of_yaml(described[0], dataset, anywhere)
    data_files = _data_files(root)
    if len(data_files) > 1:
        raise DataError(f"{root}: got several data files ({', '.join(map(str, data_files))}); give one")
    if data_files:
        return _layout_of_data_file(data_files[0], dataset, anywhere)
    names = _find_names(root)
    return Layout(names, _read_names(names), 0, _pictures_of_folder(root, dataset, anywhere))


def _describes_classes(folder: Path) -> bool:
    if split_of(folder.name) is not None or folder.name.lower() in ("images", "labels"):
        return False  # Parts of a data set, which may hold lists of names, too.
    return bool(
        _yamls_with_names(folder)
        or _data_files(folder)
        or any((folder / name).is_file() for name in NAME_LISTS)
    )


def _yamls_with_names(folder: Path) -> list[Path]:
    yamls = [path for path in sorted(folder.iterdir()) if path.suffix in (".yaml", ".yml")]
    return [path for path in yamls if "names" in _read_yaml(path)]


def _data_files(folder: Path) -> list[Path]:
    """Return Darknet's data files; other programs write files of this suffix, too."""
    return sorted(path for path in folder.glob("*.data") if path.is_file() and "train" in _read_pairs(path))


def _read_pairs(path: Path) -> dict[str, str]:
    """Read lines of ``key = value``; none if it is not a text file."""
    try:
        pairs = [line.split("=", 1) for line in read_lines(path) if "=" in line]
    except DataError:
        return {}
    return {key.strip(): value.strip() for key, value in pairs}


def _find_names(folder: Path) -> Path:
    lists = [folder / name for name in NAME_LISTS if (folder / name).is_file()]
    if lists:
        return lists[0]
    below = sorted(path for path in files_below(folder) if path.name in NAME_LISTS)
    different = next((path for path in below if _read_names(path) != _read_names(below[0])), None)
    if different is not None:
        raise DataError(f"{below[0]} and {different} name different classes; give {folder} a classes.txt")
    if below:
        return below[0]
    jsons = [path for path in files_below(folder) if path.suffix.lower() == ".json"]
    advice = advise(jsons)
    raise DataError(
        f"{folder}: neither a data.yaml with 'names' nor {', '.join(NAME_LISTS)} found; add one of them "
        f"to name the class ids{f'. {advice}' if advice else ''}"
    )


def _read_names(path: Path) -> Mapping[int, str]:
    lines = [line.strip() for line in read_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        # Without it, all later classes would get the id of their neighbour.
        raise DataError(f"{path}, line {lines.index('') + 1}: is empty; give one class name per line")
    return _check_names(dict(enumerate(lines)), path)


def _layout_of_data_file(path: Path, dataset: ForeignDataset, anywhere: bool) -> Layout:
    """Return the layout of Darknet's ``obj.data``, which names the lists of the splits."""
    content = _read_pairs(path)
    root = None if anywhere else path.parent
    names = _resolve(path, "", content["names"], "names", root) if content.get("names") else None
    names = names or _find_names(path.parent)
    lists = {
        split_of(key): _resolve(path, "", value, key, root)
        for key, value in content.items()
        if split_of(key) is not None and value
    }
    pictures = {
        split: _pictures_of_list(place, root) if place.is_file() else pictures_below(place)
        for split, place in lists.items()
        if split is not None
    }
    return Layout(
        path, _read_names(names), 0, pictures or _pictures_of_folder(path.parent, dataset, anywhere)
    )


def _layout_of_yaml(path: Path, dataset: ForeignDataset, anywhere: bool) -> Layout:
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
    for key in content:
        split = split_of(key)
        if split is not None and content[key]:
            if split in pictures:
                raise DataError(f"{path}: {key!r} names the {split} split a second time; remove one")
            if split == "test" and not _is_there(path, content, key):
                # Roboflow lists it even if it exports none, and training does without it.
                dataset.skip("splits that are listed, but not there", f"{key}: {_as_written(content[key])}")
                continue
            pictures[split] = _pictures_of_yaml(path, content, key, anywhere)
    return Layout(
        path,
        numbered,
        _keypoint_values(path, content),
        pictures or _pictures_of_folder(path.parent, dataset, anywhere),
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
    pictures: list[Path] = []
    for entry in _entries(content, key):
        place = _resolve(path, str(content.get("path") or ""), entry, key, root)
        pictures += _pictures_of_list(place, root) if place.is_file() else pictures_below(place)
    return pictures


def _entries(content: Mapping[str, object], key: str) -> list[str]:
    given = content[key]
    return [str(entry) for entry in given] if isinstance(given, list) else [str(given)]


def _is_there(path: Path, content: Mapping[str, object], key: str) -> bool:
    base = str(content.get("path") or "")
    return any(exists(place) for entry in _entries(content, key) for place in _candidates(path, base, entry))


def _candidates(path: Path, base: str, entry: str) -> list[Path]:
    entry = entry.replace("\\", "/")
    # Export tools often write ../train/images for the folder beside the file.
    shorter = [entry.removeprefix("../"), entry.removeprefix(_EXPORT_PREFIX)]
    written = [path.parent / base / entry, path.parent / entry, *(path.parent / end for end in shorter)]
    return [Path(os.path.normpath(place)) for place in written]


def _resolve(path: Path, base: str, entry: str, key: str, root: Path | None) -> Path:
    tried = _candidates(path, base, entry)
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
    spelled = SpelledNames(path.parent)
    lines = ((number, line.strip()) for number, line in enumerate(read_lines(path), start=1))
    return [_listed_picture(path, number, line, root, spelled) for number, line in lines if line]


def _listed_picture(path: Path, number: int, line: str, root: Path | None, spelled: SpelledNames) -> Path:
    picture = Path(os.path.normpath(path.parent / line))
    shown = str(picture)[:300]
    if not _is_inside(picture, root):
        raise DataError(f"{path}, line {number}: leads to {shown}; {_OUTSIDE_HELP}")
    if is_file(picture):
        return picture
    written = os.path.normpath(line.replace("\\", "/"))
    for name in (written, written.removeprefix(_EXPORT_PREFIX)):
        # A backslash may have hidden a "..".
        found = spelled.find(name) if ".." not in Path(name).parts and not Path(name).anchor else None
        if found is not None:
            return path.parent / found
    raise DataError(f"{path}, line {number}: no such image {shown}; restore it or remove the line")


def _pictures_of_folder(
    root: Path, dataset: ForeignDataset, anywhere: bool
) -> dict[SplitName, Sequence[Path]]:
    """Return the pictures in ``images/SPLIT`` or ``SPLIT``, or in ``SPLIT.txt``, or else all for training."""
    lists, others = split_lists(root)
    # The objects of a picture test.png are in test.txt.
    lists = {split: path for split, path in lists.items() if not _labels_a_picture(path)}
    for parent in (named_folder(root, "images") or root, root):
        folders = split_folders(parent)
        if folders:
            for path in other_folders(parent) if parent != root else []:
                dataset.skip(UNNAMED_FOLDERS, path)
            if lists:
                dataset.remarks.append(
                    f"the splits are the folders {', '.join(map(str, folders.values()))}; not used: "
                    f"{', '.join(map(str, lists.values()))}"
                )
            return {split: pictures_below(path) for split, path in folders.items()}
    pictures = pictures_below(root)
    if not lists:
        _check_no_list(root, others, pictures)
        return {"train": pictures}
    listed: dict[SplitName, Sequence[Path]] = {
        split: _pictures_of_list(path, None if anywhere else root) for split, path in lists.items()
    }
    for path in sorted(set(pictures).difference(*listed.values())):
        dataset.skip(UNLISTED_IMAGES, path)
    return listed


def _labels_a_picture(text: Path) -> bool:
    beside = (path for path in text.parent.iterdir() if path.stem == text.stem)
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in beside)


def _check_no_list(root: Path, texts: Sequence[Path], pictures: Sequence[Path]) -> None:
    """Check that no text file lists images: its name would have to say of which split."""
    stems = {path.stem for path in pictures}
    for path in texts:
        if path.name in NAME_LISTS or path.stem in stems:
            continue
        lines = [line.strip() for line in read_lines(path) if line.strip()]
        if lines and all(Path(line).suffix.lower() in IMAGE_SUFFIXES for line in lines):
            raise DataError(
                f"{path} lists images, but is not named after a split; rename it to train.txt, val.txt or "
                "test.txt, or move it out of the folder to train on all images"
            )

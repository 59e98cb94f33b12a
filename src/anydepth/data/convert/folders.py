"""Folders and lists of foreign data sets: their pictures, and the split that a name stands for."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from anydepth.data.coco.layout import SplitName
from anydepth.data.errors import DataError
from anydepth.utils.messages import join_few

IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".ppm"}
)
UNNAMED_FOLDERS: Final = "folders with images that are not named after a split (train, val or test)"
UNNAMED_LISTS: Final = "lists that are not named after a split (train, val or test)"
UNLISTED_IMAGES: Final = "images that are in no list of a split"
_SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_END = re.compile(r"[-_]?(list|set|images|data)?[-_]?((19|20)[0-9]{2})?$")
"""Endings that may follow the name of a split, as in train2017 (COCO) or train_list (PaddleX)."""


def split_of(name: str) -> SplitName | None:
    """Return the split that the name of a folder or list stands for, in any case.

    Example:
        >>> split_of("Validation"), split_of("train2017"), split_of("test_list"), split_of("night")
        ('val', 'train', 'test', None)
    """
    return _SPLIT_NAMES.get(_END.sub("", name.lower(), count=1))


def pictures_below(folder: Path) -> list[Path]:
    """Return the sorted pictures in a folder and its subfolders, by suffix in any case, without hidden files.

    Raises:
        DataError: There is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder of the images")
    return sorted(path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def folders_in(parent: Path) -> list[Path]:
    """Return the sorted subfolders of a folder, without hidden ones; none if it is not a folder."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def named_folder(parent: Path, *names: str) -> Path | None:
    """Return the subfolder of one of the names in any case, the first ones first; None if there is none."""
    folders = folders_in(parent)
    found = (path for name in names for path in folders if path.name == name)
    return next(found, None) or next(
        (path for name in names for path in folders if path.name.lower() == name.lower()), None
    )


def split_folders(parent: Path) -> dict[SplitName, Path]:
    """Return the subfolders that are named after splits.

    Raises:
        DataError: Two of them name the same split.
    """
    return _by_split(folders_in(parent))


def other_folders(parent: Path) -> list[Path]:
    """Return the subfolders that hold pictures, but are not named after a split."""
    others = [path for path in folders_in(parent) if split_of(path.name) is None]
    return [path for path in others if _holds_picture(path)]


def split_lists(folder: Path) -> tuple[dict[SplitName, Path], list[Path]]:
    """Return the text files of a folder that are named after splits, and the others.

    Raises:
        DataError: Two of them name the same split.
    """
    if not folder.is_dir():
        return {}, []
    lists = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt" and path.is_file())
    named = [path for path in lists if split_of(path.stem) is not None]
    return _by_split(named), [path for path in lists if path not in named]


def find_data_set(source: Path, is_data_set: Callable[[Path], bool]) -> Path:
    """Return the folder of a data set: the given one, or the only one up to two levels below.

    Args:
        source: Folder to search.
        is_data_set: Whether a folder is one of a data set.

    Returns:
        ``source`` itself if there is none.

    Raises:
        DataError: There are several below, which may be different data sets.
    """
    level = [source]
    for _ in range(3):
        found = [folder for folder in level if is_data_set(folder)]
        if len(found) > 1:
            raise DataError(f"{source}: holds several data sets ({join_few(found)}); give one of them")
        if found:
            return found[0]
        level = [child for folder in level for child in folders_in(folder)]
    return source


def files_below(folder: Path) -> Iterator[Path]:
    """Iterate over the files in a folder and its subfolders, without hidden ones.

    Symbolic links are trusted as the user's own, because archives with links are never unpacked here: they
    are followed out of the folder, but into each folder only once, because links may form cycles.
    """
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file with any line endings.

    Raises:
        DataError: It is missing or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a text file in UTF-8") from error


def _by_split(paths: list[Path]) -> dict[SplitName, Path]:
    found: dict[SplitName, Path] = {}
    for path in paths:
        split = split_of(path.stem if path.is_file() else path.name)
        if split is None:
            continue
        if split in found:
            raise DataError(f"{found[split]} and {path} are both the {split} split; remove or rename one")
        found[split] = path
    return found


def _holds_picture(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in files_below(folder))

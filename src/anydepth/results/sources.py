"""Images of a folder and its subfolders, and a name of its own for the picture of each."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anydepth.results.video import VIDEO_SUFFIXES

IMAGE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
# Formats that every browser shows; images of other formats are drawn as PNG.
_KEPT_FORMATS = frozenset({".jpg", ".jpeg", ".png", ".webp"})
# File systems allow 255 bytes; a picture's name may get a number and a suffix.
_MAX_NAME_BYTES = 200


class SourceError(ValueError):
    """A source holds nothing to detect in; the message names it."""


@dataclass(frozen=True)
class FoundImages:
    """Images of a source.

    Attributes:
        root: Folder that the names are relative to.
        names: Image files with ``/`` between folders, in sorted order; none for a video.
        other_files: Number of visible files that are not images by their suffixes.
        left_out: Number of images in subfolders that were not entered.
        problems: Subfolders that cannot be read, with the reason.
    """

    root: Path
    names: tuple[str, ...] = ()
    other_files: int = 0
    left_out: int = 0
    problems: tuple[str, ...] = ()


def find_images(
    source: Path, *, subfolders: bool = True, exclude: Callable[[Path], bool] = lambda folder: False
) -> FoundImages:
    """Find the image files of a source by their suffixes.

    Files and folders whose name starts with a dot are ignored. Linked folders are entered, each folder once.

    Args:
        source: An image, a folder of images, or a video.
        subfolders: Whether to enter subfolders; if not, their images are counted as left out.
        exclude: Function that says of a subfolder whether it is ignored.

    Raises:
        SourceError: A missing source, a folder without images, or a file that is neither image nor video.
    """
    if source.is_dir():
        return _find_in_folder(source, subfolders, exclude)
    if not source.is_file():
        raise SourceError(f"{source}: no such file or folder; give an image, a folder of images or a video")
    if source.suffix.lower() in IMAGE_SUFFIXES:
        return FoundImages(source.parent, (source.name,))
    if source.suffix.lower() in VIDEO_SUFFIXES:
        return FoundImages(source.parent)
    raise SourceError(
        f"{source}: unknown suffix; give an image ({', '.join(sorted(IMAGE_SUFFIXES))}) or a video "
        f"({', '.join(sorted(VIDEO_SUFFIXES))})"
    )


def _find_in_folder(source: Path, subfolders: bool, exclude: Callable[[Path], bool]) -> FoundImages:
    problems: list[str] = []
    found: list[str] = []
    others = left_out = 0
    for folder, files in _walk(source, exclude, problems):
        images = [file for file in files if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES]
        if subfolders or folder == source:
            found += [(folder / file).relative_to(source).as_posix() for file in images]
            others += len(files) - len(images)
        else:
            left_out += len(images)
    if not found:
        more = f", {left_out} images in its subfolders, which subfolders=true enters" if left_out else ""
        raise SourceError(
            f"{source}: no image in this folder ({others} other files{more}); allowed suffixes are "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    names = tuple(sorted(found, key=lambda name: PurePosixPath(name).parts))
    return FoundImages(source, names, others, left_out, tuple(problems))


def _walk(
    source: Path, exclude: Callable[[Path], bool], problems: list[str]
) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder with its visible files."""
    entered = {_identity(source)}

    def is_new(folder: Path) -> bool:
        if folder.name.startswith(".") or exclude(folder):
            return False
        identity = _identity(folder)
        if identity in entered:
            return False
        entered.add(identity)
        return True

    def note(error: OSError) -> None:
        problems.append(f"{error.filename}: {error.strerror}")

    for top, folders, files in os.walk(source, onerror=note, followlinks=True):
        folder = Path(top)
        folders[:] = [name for name in sorted(folders) if is_new(folder / name)]
        visible = [name for name in files if not name.startswith(".")]
        regular = [name for name in visible if (folder / name).is_file()]
        problems.extend(
            f"{folder / name}: a broken link, or not a regular file"
            for name in sorted({*visible} - {*regular})
            if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
        )
        yield folder, regular


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def name_pictures(names: Sequence[str]) -> dict[str, str]:
    """Return a file name for the drawn picture of each image; no two are equal.

    Args:
        names: Images with ``/`` between folders.

    Returns:
        Names with ``/`` between folders, by image: the image's own if browsers show its format, otherwise
        with ``.png`` after it; shortened if it is too long for a file system.

    Example:
        >>> name_pictures(["a.bmp", "a.bmp.png"])
        {'a.bmp': 'a.bmp.2.png', 'a.bmp.png': 'a.bmp.png'}
    """
    kept = {name for name in names if _is_kept(name)}
    # A folder may be named like a picture; some file systems do not tell capitals from small letters.
    taken = {name.casefold() for name in kept}
    taken |= {str(parent).casefold() for name in names for parent in PurePosixPath(name).parents}
    pictures = {}
    for name in names:
        picture = name
        if name not in kept:
            picture = _free_name(name, taken)
            taken.add(picture.casefold())
        pictures[name] = picture
    return pictures


def _is_kept(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in _KEPT_FORMATS and len(os.fsencode(path.name)) <= _MAX_NAME_BYTES


def _free_name(name: str, taken: set[str]) -> str:
    path = PurePosixPath(name)
    stem = os.fsdecode(os.fsencode(path.name)[:_MAX_NAME_BYTES])
    suffix = path.suffix if path.suffix.lower() in _KEPT_FORMATS else ".png"
    number = 1
    while True:
        number_text = f".{number}" if number > 1 else ""
        picture = str(path.with_name(f"{stem}{number_text}{suffix}"))
        if picture.casefold() not in taken:
            return picture
        number += 1

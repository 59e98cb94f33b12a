"""Reading of every picture of a split, as training reads it."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from anydepth.data.coco.orientation import read_in_json_frame
from anydepth.data.coco.tables import CocoTables
from anydepth.data.errors import DataError
from anydepth.data.spelling import SpelledNames
from anydepth.images import read_image
from anydepth.utils.wide_pixels import observe_bits


@dataclass(frozen=True)
class CheckedPicture:
    """One picture.

    Attributes:
        name: Its name in the json.
        path: Its file.
        problem: Why training cannot read it; None if it can.
        digest: Hash of its pixels, the same for files that differ only in their metadata or compression
            without loss; None if it cannot be read.
        bits: Number of bits that its values are taken to use, if the file has 16 or 32 for each.
    """

    name: str
    path: Path
    problem: str | None
    digest: bytes | None
    bits: int | None = None


def check_pictures(
    tables: CocoTables, json_path: Path, root: Path, *, workers: int, advance: Callable[[], None]
) -> list[CheckedPicture]:
    """Read every picture of a split; one that cannot be read does not end it.

    Args:
        tables: Tables of the json.
        json_path: The json, for messages.
        root: Folder of the pictures.
        workers: Number of threads; decoders run without the interpreter's lock.
        advance: Called after each picture.
    """
    spelled = SpelledNames(root)
    paths = [_locate(root, name, spelled) for name in tables.names]

    def check(row: int) -> CheckedPicture:
        height, width = tables.sizes[row].tolist()
        entry = f"{json_path}: image id {tables.image_ids[row]}"
        checked = _check(tables.names[row], paths[row], (height, width), entry)
        advance()
        return checked

    return list(_in_threads(check, range(len(paths)), workers))


def find_duplicates(splits: Sequence[tuple[str, Sequence[CheckedPicture]]]) -> list[list[tuple[str, str]]]:
    """Return the groups of pictures with equal pixels, as (split, name), in the order of their first one.

    Args:
        splits: Name and pictures of each split.
    """
    groups: dict[bytes, list[tuple[str, str]]] = {}
    for split, pictures in splits:
        for picture in pictures:
            if picture.digest is not None:
                groups.setdefault(picture.digest, []).append((split, picture.name))
    return [group for group in groups.values() if len(group) > 1]


def _in_threads(
    check: Callable[[int], CheckedPicture], rows: range, workers: int
) -> Iterator[CheckedPicture]:
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(check, rows)
    finally:
        pool.shutdown(cancel_futures=True)  # An interruption must not wait for the rest of the pictures.


def _locate(root: Path, name: str, spelled: SpelledNames) -> Path:
    found = spelled.find(name)
    return root / (name if found is None else found)


def _check(name: str, path: Path, size: tuple[int, int], entry: str) -> CheckedPicture:
    try:
        with observe_bits() as bits:
            image = read_in_json_frame(
                lambda upright: read_image(path, upright=upright), size, name=str(path), entry=entry
            )
    except DataError as error:
        return CheckedPicture(name, path, str(error), None)
    pixels = image.permute(1, 2, 0).contiguous().numpy()  # [H, W, 3], the order in memory.
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.data)
    return CheckedPicture(name, path, None, digest.digest(), max(bits, default=None))

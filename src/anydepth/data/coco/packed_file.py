"""Packed index files, which load at once and without the json."""

import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anydepth.data.coco.categories import Categories
from anydepth.data.coco.index import CocoIndex
from anydepth.data.coco.json_rows import JsonRow, check_file_name
from anydepth.data.coco.memory import SharedArrays
from anydepth.data.coco.tables import BoxRepairs
from anydepth.data.errors import DataError

_ARRAYS = (
    "image_ids",
    "sizes",
    "boxes_xywh",
    "labels",
    "crowd",
    "areas",
    "annotation_ids",
    "starts",
    "names",
    "name_starts",
)
_TYPES = dict(zip(_ARRAYS, ("i8", "i4", "f8", "i2", "?", "f8", "i8", "i4", "u1", "i4"), strict=True))


def save_packed(index: CocoIndex, path: Path) -> None:
    """Write the arrays of an index as ``.npz``, without its categories and outlines."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: index.arrays[name] for name in _ARRAYS})


def load_packed(path: Path, where: str, categories: Categories) -> CocoIndex:
    """Read a file that :func:`save_packed` wrote.

    Args:
        path: File to read.
        where: Name of its folder or address in messages.
        categories: Categories of its labels.

    Raises:
        DataError: The file is damaged, or its arrays contradict each other.
    """
    try:
        arrays = _read_arrays(path)
        _check(arrays, len(categories.ids))
    # Archives are arbitrary bytes, on which decoders raise exceptions of any kind.
    except Exception as error:
        raise DataError(
            f"{where}: its packed annotations cannot be used ({error}); prepare or copy the shards again"
        ) from error
    index = CocoIndex.from_memory(
        Path(where),
        Path(where),
        categories=categories,
        repairs=BoxRepairs(0, 0, 0, 0, ()),
        memory=SharedArrays.of(arrays),
    )
    _check_names(index)
    return index


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(path) as archive:
        # A compressed member may expand to any size.
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")
        for name in _ARRAYS:
            _check_header(archive, f"{name}.npy")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in _ARRAYS}


def _check_header(archive: zipfile.ZipFile, name: str) -> None:
    """Check that a member is as large as its shape says: numpy allocates before it reads."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(member)
    if any(side < 0 for side in shape) or prod(shape) * dtype.itemsize > archive.getinfo(name).file_size:
        raise ValueError(f"{name} is {dtype}{list(shape)}, which needs more bytes than the file holds")


def _check(arrays: dict[str, NDArray[Any]], num_classes: int) -> None:
    """Check types, shapes and that all indices are valid."""
    images, annotations = len(arrays["image_ids"]), len(arrays["labels"])
    shapes = {
        "image_ids": (images,),
        "sizes": (images, 2),
        "boxes_xywh": (annotations, 4),
        "starts": (images + 1,),
        "names": (len(arrays["names"]),),
        "name_starts": (images + 1,),
    }
    for name, array in arrays.items():
        if array.dtype != np.dtype(_TYPES[name]) or array.shape != shapes.get(name, (annotations,)):
            raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, an unexpected type or shape")
    _check_starts(arrays["starts"], annotations)
    _check_starts(arrays["name_starts"], len(arrays["names"]))
    labels, boxes = arrays["labels"], arrays["boxes_xywh"]
    if annotations and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"got labels {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}")
    if not np.isfinite(boxes).all() or (boxes[:, 2:] <= 0).any() or (arrays["sizes"] < 1).any():
        raise ValueError("a box or an image has no size")
    for name in ("image_ids", "annotation_ids"):
        if len(np.unique(arrays[name])) != len(arrays[name]):
            raise ValueError(f"{name} are not unique")


def _check_starts(starts: NDArray[Any], end: int) -> None:
    if starts[0] != 0 or starts[-1] != end or (starts[1:] < starts[:-1]).any():
        raise ValueError("rows overlap")


def _check_names(index: CocoIndex) -> None:
    for row in range(len(index)):
        try:
            entry = {"id": int(index.image_ids[row]), "file_name": index.file_name(row)}
        except UnicodeDecodeError as error:
            raise DataError(
                f"{index.json_path}: file name of row {row}: {error}; prepare it again"
            ) from error
        check_file_name(JsonRow(index.json_path, "image", row, entry))

"""The fingerprint of annotated images, which identifies the data behind a result."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np

from anydepth.data.coco.index import CocoIndex

_COLUMNS = {
    "image_ids": np.int64,
    "sizes": np.int32,
    "names": np.uint8,
    "name_starts": np.int64,
    "boxes_xywh": np.float64,
    "labels": np.int64,
    "crowd": np.uint8,
    "starts": np.int64,
}


def fingerprint(indices: Iterable[CocoIndex]) -> str:
    """Hash ids, file names, sizes, boxes, labels, crowd flags and class names of some splits with SHA-256.

    The order of images matters, because training depends on it; pixels and the location of files do not:
    files and the shards prepared from them have equal fingerprints. COCO's training split takes about 0.1 s.

    Args:
        indices: Indices of the splits; their order matters.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for index in indices:
        digest.update(json.dumps([index.class_names, index.category_ids]).encode())
        for name, dtype in _COLUMNS.items():
            values = np.ascontiguousarray(index.arrays[name], dtype=dtype)
            digest.update(f"{name}{values.shape}".encode())
            digest.update(values.data)
    return digest.hexdigest()

"""The manifest of a split in shards: ``manifest.json``, which is written last and checked first.

Its content comes from wherever the shards were copied from, and is untrusted until checked.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anydepth.data.coco.categories import Categories, parse_categories
from anydepth.data.errors import DataError

MANIFEST = "manifest.json"
ANNOTATIONS = "annotations.npz"
INDEX = "index.json"
"""The engine's own list of shards."""

MAX_SHARD_BYTES = 2**32 - 1
"""The engine counts bytes within a shard in 32 bits."""
_MAX_MANIFEST_BYTES = 64 << 20
"""A shard takes about 150 bytes: it allows some 400,000 shards, and a hostile file cannot fill the memory."""
_MAX_ROWS = 2**31 - 1
"""The packed index counts annotations in int32."""
_FORMAT = "anydepth-shards"
_VERSION = 1

# The engine's description of items that are plain bytes. It is compared as a whole, because everything else
# that its file might request (pickled items, compression, encryption) is refused.
_INDEX_CONFIG: Mapping[str, object] = {
    "chunk_bytes": None,
    "chunk_size": None,
    "compression": None,
    "compression_batch_size": None,
    "compression_level": None,
    "data_format": ["bytes"],
    "data_spec": '[1, {"type": null, "context": null, "children_spec": []}]',
    "encryption": None,
    "ipc_compression": None,
    "item_loader": "PyTreeLoader",
    "types": "bytes",
}


@dataclass(frozen=True)
class StoredFile:
    """A file beside the manifest.

    Attributes:
        name: File name without a folder.
        size: Size in bytes.
        sha256: Checksum of the content, in hexadecimal digits.
    """

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, name: str | None = None) -> "StoredFile":
        """Describe a file on disk."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(name or path.name, path.stat().st_size, digest)


@dataclass(frozen=True)
class Shard:
    """A shard and the number of its images."""

    file: StoredFile
    rows: int


@dataclass(frozen=True)
class Manifest:
    """The contents of one split.

    Attributes:
        categories: Map between labels and category ids.
        images: Number of images.
        boxes: Number of annotations, including crowd regions.
        annotations: File of the packed index.
        shards: Shards in the order of the rows.
    """

    categories: Categories
    images: int
    boxes: int
    annotations: StoredFile
    shards: tuple[Shard, ...]

    @property
    def key(self) -> str:
        """Name that identifies these contents."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        pairs = zip(self.categories.ids, self.categories.names, strict=True)
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "images": self.images,
            "boxes": self.boxes,
            "categories": [{"id": category_id, "name": name} for category_id, name in pairs],
            "annotations": _entry_of(self.annotations),
            "shards": [{**_entry_of(shard.file), "rows": shard.rows} for shard in self.shards],
        }
        return json.dumps(document, indent=1) + "\n"

    def engine_json(self) -> str:
        """Return the text of the engine's ``index.json``, which is never fetched."""
        return json.dumps(self.engine_index(), indent=1) + "\n"

    def engine_index(self) -> dict[str, object]:
        """Return the engine's list of these shards."""
        chunks = [
            {
                "chunk_bytes": shard.file.size,
                "chunk_size": shard.rows,
                "dim": None,
                "filename": shard.file.name,
            }
            for shard in self.shards
        ]
        return {"chunks": chunks, "config": dict(_INDEX_CONFIG)}


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.bin"


def read_manifest(path: Path, where: str) -> Manifest:
    """Read and check a manifest.

    Args:
        path: Local copy of the manifest.
        where: Name of the manifest in messages: its address.

    Raises:
        DataError: It is not a manifest, has another version, or is inconsistent.
    """
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise DataError(
            f"{where}: got {path.stat().st_size} bytes, expected at most {_MAX_MANIFEST_BYTES}; "
            "prepare it again"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a json file ({error}); prepare or copy the shards again") from error
    entry = _Entry(where, document if isinstance(document, dict) else {})
    if entry.values.get("format") != _FORMAT or entry.values.get("version") != _VERSION:
        raise DataError(
            f"{where}: not a manifest of shards in version {_VERSION}; give the folder of one split that "
            "`anydepth-data shards` wrote, or prepare it again with this version"
        )
    manifest = Manifest(
        categories=parse_categories({"categories": entry.values.get("categories")}, Path(where)),
        images=entry.integer("images", _MAX_ROWS),
        boxes=entry.integer("boxes", _MAX_ROWS, least=0),
        annotations=_stored_file(entry.part("annotations"), ANNOTATIONS),
        shards=_shards(entry),
    )
    rows = sum(shard.rows for shard in manifest.shards)
    if rows != manifest.images:
        raise DataError(
            f"{where}: its shards hold {rows} images, expected {manifest.images} by its count; prepare it "
            "again"
        )
    return manifest


def check_engine_index(folder: Path, manifest: Manifest) -> None:
    """Check that ``index.json`` describes these shards.

    Raises:
        DataError: It is missing, or requests anything else of the engine, such as unpickling items.
    """
    path = folder / INDEX
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); prepare or copy the shards again") from error
    if found != manifest.engine_index():
        raise DataError(
            f"{path}: does not describe the shards of {MANIFEST}, or requests another way of reading them "
            "(pickled items are never read); prepare or copy the shards again"
        )


@dataclass(frozen=True)
class _Entry:
    """An object of the manifest with checked access to its values."""

    where: str
    values: Mapping[str, Any]

    def integer(self, key: str, most: int, least: int = 1) -> int:
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.error(key, f"a whole number from {least} to {most}")
        return value

    def part(self, key: str) -> "_Entry":
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return _Entry(f"{self.where}: {key}", value)

    def error(self, key: str, allowed: str) -> DataError:
        value = repr(self.values.get(key))[:80]
        return DataError(f"{self.where}: {key!r} is {value}, expected {allowed}; prepare the shards again")


def _shards(entry: _Entry) -> tuple[Shard, ...]:
    values = entry.values.get("shards")
    if not isinstance(values, list) or not values:
        raise entry.error("shards", "a list with at least one shard")
    parts = [
        _Entry(f"{entry.where}: shard {number}", value if isinstance(value, dict) else {})
        for number, value in enumerate(values)
    ]
    return tuple(
        Shard(_stored_file(part, shard_name(number)), part.integer("rows", _MAX_ROWS))
        for number, part in enumerate(parts)
    )


def _stored_file(entry: _Entry, name: str) -> StoredFile:
    """Parse a file entry; its name is known in advance, so that it cannot lead out of the folder."""
    if entry.values.get("file") != name:
        raise entry.error("file", repr(name))
    digest = entry.values.get("sha256")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise entry.error("sha256", "64 hexadecimal digits")
    return StoredFile(name, entry.integer("bytes", MAX_SHARD_BYTES), digest)


def _entry_of(file: StoredFile) -> dict[str, object]:
    return {"file": file.name, "bytes": file.size, "sha256": file.sha256}

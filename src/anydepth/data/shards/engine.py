"""The streaming engine litdata: its chunk files and its S3 client, imported only when they are used."""

import importlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from anydepth.data.errors import DataError


def import_engine(module: str) -> Any:
    """Import a module of the engine.

    Raises:
        DataError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(f"litdata.{module}")
    except ModuleNotFoundError as error:
        raise DataError(
            f"streaming needs litdata, which cannot be imported ({error}); install it with "
            '`pip install ".[stream]"` in the checkout'
        ) from error


def write_chunk(
    items: Iterable[bytes], count: int, path: Path, *, check: Callable[[int, bytes], object]
) -> None:
    """Write items as one chunk file and verify them, or leave nothing.

    Args:
        items: Items to write.
        count: Number of items.
        path: File to write; its folder exists.
        check: Called with the position of each item and the item as it is read back; raises if it is wrong.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as name:
        folder = Path(name)
        cache = import_engine("streaming").Cache(name, chunk_size=count)
        for number, item in enumerate(items):
            cache[number] = item
        (written,) = (Path(chunk) for chunk in cache.done())
        (list_of_chunks,) = folder.glob("*.index.json")
        list_of_chunks.rename(folder / "index.json")
        reader = ChunkReader(folder)
        for number in range(count):
            check(number, reader.read(number, 0))
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.replace(path)


class ChunkReader:
    """Reader of single items of the chunk files in a folder; keeps no file open.

    Args:
        folder: Folder of the chunk files and the engine's index of all of them.
    """

    def __init__(self, folder: Path) -> None:
        self._loader = import_engine("streaming.item_loader").PyTreeLoader()
        self._reader = import_engine("streaming.reader").BinaryReader(str(folder), item_loader=self._loader)
        self._reader.get_length()  # Loads the index.
        self._place = import_engine("streaming.sampler").ChunkedIndex

    def read(self, number: int, chunk: int) -> bytes:
        """Read an item by its position within a chunk.

        The engine's usual access (litdata 0.2.76) either reads the whole chunk for an item or maps the file,
        and a mapped file that is truncated ends the process. Its access to single items of remote chunks
        reads only the item, of local files too.
        """
        data = self._reader.read_item_bytes(self._place(index=number, chunk_index=chunk), 0)
        item = self._loader.load_item_from_bytes(data, chunk)
        if not isinstance(item, bytes):
            raise TypeError(f"got an item of {type(item).__name__}, expected bytes")
        return item


def fetch_s3(url: str, file: IO[bytes], options: dict[str, Any]) -> None:
    """Download an object to an open file in a single try."""
    config = importlib.import_module("botocore.config").Config(
        retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=60
    )
    downloader = import_engine("streaming.downloader").get_downloader(
        url, tempfile.gettempdir(), [], {"config": config, **options}
    )
    downloader.download_fileobj(url, file)

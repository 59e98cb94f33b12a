"""The streaming engine, litdata: its chunk files and its S3 client, imported only when they are used."""

import importlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from anydepth.data.errors import DataError


def engine(module: str) -> Any:
    """A module of the engine.

    Raises:
        DataError: It is not installed; the message says how to.
    """
    try:
        return importlib.import_module(f"litdata.{module}")
    except ModuleNotFoundError as error:
        raise DataError(
            f"streaming needs litdata, which cannot be imported ({error}); install it with "
            '`pip install "anydepth[stream]"`'
        ) from error


def write_chunk(
    items: Iterable[bytes], count: int, path: Path, *, check: Callable[[int, bytes], object]
) -> None:
    """Write items as one chunk file and read them back, or leave nothing.

    Args:
        items: The content.
        count: How many they are.
        path: Where the file goes; the folder exists.
        check: Called with each item, as it is read back, and its place; raises if it is not right.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as name:
        folder = Path(name)
        cache = engine("streaming").Cache(name, chunk_size=count)
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
    """Reads single items of the chunk files in a folder; keeps no file open.

    Args:
        folder: Holds the chunk files that are read, and the engine's index of all of them.
    """

    def __init__(self, folder: Path) -> None:
        self._loader = engine("streaming.item_loader").PyTreeLoader()
        self._reader = engine("streaming.reader").BinaryReader(str(folder), item_loader=self._loader)
        self._reader.get_length()  # Loads the index.
        self._place = engine("streaming.sampler").ChunkedIndex

    def read(self, number: int, chunk: int) -> bytes:
        """An item by its place within a chunk.

        The reader's own way to an item reads the whole chunk for it (litdata 0.2.76, where it does not map
        it: a mapped file that is cut short ends the process), so its way to single items of distant chunks
        is taken, which reads them alone here too.
        """
        data = self._reader.read_item_bytes(self._place(index=number, chunk_index=chunk), 0)
        item = self._loader.load_item_from_bytes(data, chunk)
        if not isinstance(item, bytes):
            raise TypeError(f"an item is {type(item).__name__}, not bytes")
        return item


def fetch_s3(url: str, file: IO[bytes], options: dict[str, Any]) -> None:
    """Write an object to an open file, in a single try."""
    config = importlib.import_module("botocore.config").Config(
        retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=60
    )
    downloader = engine("streaming.downloader").get_downloader(
        url, tempfile.gettempdir(), [], {"config": config, **options}
    )
    downloader.download_fileobj(url, file)

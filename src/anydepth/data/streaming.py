"""The Lightning data module of data sets in shards."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from anydepth.data.coco.categories import Categories
from anydepth.data.coco.index import CocoIndex
from anydepth.data.coco.layout import SPLIT_NAMES, SplitName
from anydepth.data.datamodule import DetectionDataModule, LoadingSettings
from anydepth.data.errors import DataError
from anydepth.data.shards.source import Stream, open_stream
from anydepth.data.source import SampleSource


class StreamingDataModule(DetectionDataModule):
    """A data set in shards, as ``anydepth-data shards`` writes it.

    Args:
        root: Folder or URL (``s3://``, ``http://``, ``https://``) that holds one folder per split.
        cache_dir: Folder that caches shards from a URL; None means the user's cache folder.
        cache_gb: Size of that cache in gigabytes (10^9 bytes).
        storage_options: Options of the S3 client.
        settings: See :class:`DetectionDataModule`.
    """

    def __init__(
        self,
        *,
        root: str,
        cache_dir: str | Path | None = None,
        cache_gb: float = 20.0,
        storage_options: Mapping[str, Any] | None = None,
        **settings: Unpack[LoadingSettings],
    ) -> None:
        super().__init__(**settings)
        if cache_gb <= 0:
            raise ValueError(f"got cache_gb={cache_gb}, expected a positive number of gigabytes")
        self._root = str(root).rstrip("/")
        self._cache_dir = None if cache_dir is None else Path(cache_dir)
        self._cache_gb = cache_gb
        self._storage_options = dict(storage_options or {})
        self._streams: dict[SplitName, Stream] = {}

    @cached_property
    def categories(self) -> Categories:
        """See :attr:`DetectionDataModule.categories`."""
        try:
            return self._open("train").categories
        except DataError:
            for name in SPLIT_NAMES[1:]:
                with suppress(DataError):
                    return self._open(name).categories
            raise

    def stream(self, name: SplitName) -> Stream:
        """Return a split, opened at the first call.

        Raises:
            DataError: It is missing, damaged, cannot be fetched, or differs from the others in its
                categories.
        """
        stream, reference = self._open(name), self.categories
        own = stream.categories
        if (own.ids, own.names) != (reference.ids, reference.names):
            own.check_against(reference)
            raise DataError(
                f"{own.source}: got {len(own.ids)} categories, expected the {len(reference.ids)} of "
                f"{reference.source}; prepare all splits with the same categories in their json"
            )
        return stream

    def index(self, name: SplitName) -> CocoIndex:
        """See :meth:`DetectionDataModule.index`."""
        return self.stream(name).index

    def source(self, name: SplitName) -> SampleSource:
        """See :meth:`DetectionDataModule.source`."""
        return self.stream(name).source

    def _open(self, name: SplitName) -> Stream:
        if name not in self._streams:
            self._streams[name] = open_stream(
                f"{self._root}/{name}",
                cache_dir=self._cache_dir,
                cache_gb=self._cache_gb,
                storage_options=self._storage_options,
            )
        return self._streams[name]

"""Fetching files of a split from where it is kept: an http(s) address or an S3 bucket."""

import errno
import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from anydepth.data.errors import DataError
from anydepth.data.fetch.download import DownloadError, download
from anydepth.data.shards.engine import fetch_s3
from anydepth.data.shards.manifest import StoredFile

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT_S = 60.0


class Remote(Protocol):
    """Where a split is kept."""

    def address(self, name: str) -> str:
        """What messages call one of its files."""
        ...

    def fetch(self, name: str, path: Path, expected: StoredFile | None) -> None:
        """Write a file to ``path``, complete and as expected, or leave nothing there.

        Args:
            name: Of the file, without a folder.
            path: Where it goes; the folder exists, the file does not.
            expected: Its size and checksum, where they are known.

        Raises:
            DataError: It cannot be had; what may pass was tried again, each time after a longer wait.
        """
        ...


def open_remote(location: str, options: Mapping[str, Any], *, attempts: int, backoff_s: float) -> Remote:
    """The remote at an address.

    Args:
        location: ``s3://...``, ``http://...`` or ``https://...``, of the folder that holds the manifest.
        options: For S3, see :class:`S3Remote`.
        attempts: Tries of each file.
        backoff_s: Seconds before the second try, doubled for each further one.

    Raises:
        DataError: Another kind of address, or options that it does not take.
    """
    parts = urlsplit(location)
    if parts.query or parts.fragment:
        raise DataError(f"{location}: give the address of a folder, without anything after '?' or '#'")
    if parts.scheme == "s3" and parts.netloc:
        return S3Remote(location.rstrip("/"), dict(options), attempts, backoff_s)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DataError(
            f"{location}: give a folder on this machine, or an address beginning with s3://, http:// or "
            "https://"
        )
    if options:
        raise DataError(f"{location}: storage_options are for s3:// alone; remove {', '.join(options)}")
    return HttpRemote(location.rstrip("/"), attempts, backoff_s)


@dataclass(frozen=True)
class HttpRemote:
    """A folder behind a web server.

    Attributes:
        base: Its address.
        attempts: See :func:`open_remote`.
        backoff_s: See :func:`open_remote`.
    """

    base: str
    attempts: int
    backoff_s: float

    def address(self, name: str) -> str:
        """See :meth:`Remote.address`."""
        return f"{self.base}/{quote(name)}"

    def fetch(self, name: str, path: Path, expected: StoredFile | None) -> None:
        """See :meth:`Remote.fetch`."""
        try:
            download(
                self.address(name),
                path,
                size=None if expected is None else expected.size,
                sha256=None if expected is None else expected.sha256,
                attempts=self.attempts,
                backoff_s=self.backoff_s,
            )
        finally:
            path.with_name(path.name + ".part").unlink(missing_ok=True)


@dataclass(frozen=True)
class S3Remote:
    """A prefix of a bucket, in S3 or anything that speaks its protocol.

    Attributes:
        base: Its address.
        options: For the client of boto3: ``endpoint_url``, ``region_name``, ``aws_access_key_id``,
            ``aws_secret_access_key`` and so on. What is missing comes from where AWS tools look for it.
        attempts: See :func:`open_remote`.
        backoff_s: See :func:`open_remote`.
    """

    base: str
    # Holds credentials, which have no place in a message or a log.
    options: dict[str, Any] = field(repr=False)
    attempts: int
    backoff_s: float

    def address(self, name: str) -> str:
        """See :meth:`Remote.address`."""
        return f"{self.base}/{name}"

    def fetch(self, name: str, path: Path, expected: StoredFile | None) -> None:
        """See :meth:`Remote.fetch`."""
        part = path.with_name(path.name + ".part")
        try:
            self._receive(self.address(name), part)
            self._check(self.address(name), part, expected)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _receive(self, url: str, part: Path) -> None:
        for attempt in range(1, self.attempts + 1):
            try:
                with part.open("wb") as file:
                    fetch_s3(url, file, self.options)
                return
            except DataError:
                raise
            # boto3, its transfer library and the sockets beneath have no error class in common.
            except Exception as error:
                _refuse_lasting(error, url, part)
                if attempt == self.attempts:
                    raise DownloadError(
                        f"{url}: {_said(error)}; {attempt} tries in a row failed. Check the network and the "
                        "object store, and run the command again"
                    ) from error
            time.sleep(min(self.backoff_s * 2 ** (attempt - 1), _LONGEST_WAIT_S))

    def _check(self, url: str, part: Path, expected: StoredFile | None) -> None:
        if expected is None:
            return
        found = StoredFile.of(part, expected.name)
        if found != expected:
            raise DownloadError(
                f"{url}: the file is not the expected one: {difference(found, expected)}. It was removed; if "
                "it happens again, the file has changed at its source: prepare or copy the shards again"
            )


def difference(found: StoredFile, expected: StoredFile) -> str:
    """What keeps a file from being the expected one."""
    if found.size != expected.size:
        return f"it holds {found.size:,} bytes, expected were {expected.size:,}"
    return f"its sha256 is {found.sha256}, expected was {expected.sha256}"


def _refuse_lasting(error: Exception, url: str, part: Path) -> None:
    """Raise what another try cannot change."""
    if isinstance(error, OSError) and error.errno in _DISK:
        raise DownloadError(f"{url}: {part} cannot be written ({error.strerror})") from error
    if not _may_pass(error):
        raise DownloadError(
            f"{url}: {_said(error)}; check the address, the credentials and storage_options"
        ) from error


def _may_pass(error: Exception) -> bool:
    """Whether trying again can help: the server is overloaded, or the connection failed or broke."""
    status = _status(error)
    if status is not None:
        return status in _PASSING
    errors = importlib.import_module("botocore.exceptions")
    transfer = importlib.import_module("s3transfer.exceptions")
    transport = importlib.import_module("urllib3.exceptions")
    return isinstance(
        error,
        OSError
        | errors.ConnectionError
        | errors.HTTPClientError
        | errors.IncompleteReadError
        | errors.ResponseStreamingError
        | transfer.RetriesExceededError
        | transport.HTTPError,
    )


def _status(error: Exception) -> int | None:
    """The status code in an error that a server answered with."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return None
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _said(error: Exception) -> str:
    status = _status(error)
    return f"the server answered {status} ({error})" if status else f"{type(error).__name__}: {error}"

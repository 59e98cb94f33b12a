"""Remote storage of a split: an http(s) address or an S3 bucket."""

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

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The status codes of conditions that may pass (RFC 9110, 6585 and 8470).
_RETRIED_CODES = (408, 425, 429, 500, 502, 503, 504)
_MAX_WAIT_S = 60.0  # Between two tries: longer waits would leave the workers of a training idle.


class Remote(Protocol):
    """Interface of the remote storage of a split."""

    def address(self, name: str) -> str:
        """Return the address of a file, for messages."""
        ...

    def fetch(self, name: str, path: Path, expected: StoredFile | None) -> None:
        """Fetch a file to ``path``, complete and verified, or leave nothing there.

        Args:
            name: File name without a folder.
            path: Destination; its folder exists, the file does not.
            expected: Size and checksum of the file, if known.

        Raises:
            DataError: It cannot be fetched. Transient failures were retried with growing waits.
        """
        ...


def open_remote(location: str, options: Mapping[str, Any], *, attempts: int, backoff_s: float) -> Remote:
    """Open the remote storage at an address.

    Args:
        location: Address (``s3://...``, ``http://...`` or ``https://...``) of the folder with the manifest.
        options: Options of S3, see :class:`S3Remote`.
        attempts: Number of tries per file.
        backoff_s: Seconds before the second try, doubled for each further one.

    Raises:
        DataError: The address is of another kind, or does not take options.
    """
    parts = urlsplit(location)
    if parts.query or parts.fragment:
        raise DataError(f"{location}: give the address of a folder, without anything after '?' or '#'")
    if parts.scheme == "s3" and parts.netloc:
        return S3Remote(location.rstrip("/"), dict(options), attempts, backoff_s)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DataError(
            f"{location}: not a supported address; give a local folder, or an address with s3://, http:// or "
            "https://"
        )
    if options:
        raise DataError(f"{location}: storage_options are only for s3://; remove {', '.join(options)}")
    return HttpRemote(location.rstrip("/"), attempts, backoff_s)


@dataclass(frozen=True)
class HttpRemote:
    """A folder on a web server.

    Attributes:
        base: Address of the folder.
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
    """A prefix of a bucket in S3 or a store with the same protocol.

    Attributes:
        base: Address of the prefix.
        options: Options of the boto3 client: ``endpoint_url``, ``region_name``, ``aws_access_key_id``,
            ``aws_secret_access_key`` and so on. Missing ones come from the usual AWS configuration.
        attempts: See :func:`open_remote`.
        backoff_s: See :func:`open_remote`.
    """

    base: str
    # Holds credentials, which must not appear in messages or logs.
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
            # boto3, its transfer library and sockets have no common error class.
            except Exception as error:
                _raise_if_permanent(error, url, part)
                if attempt == self.attempts:
                    raise DownloadError(
                        f"{url}: {_describe(error)}; {attempt} tries in a row failed. Check the network and "
                        "the object store, and run the command again"
                    ) from error
            time.sleep(min(self.backoff_s * 2 ** (attempt - 1), _MAX_WAIT_S))

    def _check(self, url: str, part: Path, expected: StoredFile | None) -> None:
        if expected is None:
            return
        found = StoredFile.of(part, expected.name)
        if found != expected:
            raise DownloadError(
                f"{url}: not the expected file: {describe_difference(found, expected)}. It was removed; if "
                "it happens again, the file has changed at its source: prepare or copy the shards again"
            )


def describe_difference(found: StoredFile, expected: StoredFile) -> str:
    """Describe how a file differs from the expected one."""
    if found.size != expected.size:
        return f"it holds {found.size:,} bytes, expected {expected.size:,}"
    return f"its sha256 is {found.sha256}, expected {expected.sha256}"


def _raise_if_permanent(error: Exception, url: str, part: Path) -> None:
    """Raise an error that another try cannot change."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        raise DownloadError(f"{url}: {part} cannot be written ({error.strerror})") from error
    if not _is_transient(error):
        raise DownloadError(
            f"{url}: {_describe(error)}; check the address, the credentials and storage_options"
        ) from error


def _is_transient(error: Exception) -> bool:
    """Return whether another try can help: the server is overloaded, or the connection failed or broke."""
    status = _status_code(error)
    if status is not None:
        return status in _RETRIED_CODES
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


def _status_code(error: Exception) -> int | None:
    """Return the status code of an error response, or None if there was no response."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return None
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _describe(error: Exception) -> str:
    status = _status_code(error)
    return f"the server answered {status} ({error})" if status else f"{type(error).__name__}: {error}"

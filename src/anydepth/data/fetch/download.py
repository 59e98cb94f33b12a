"""Downloads over http(s) that resume after failures; a file is either complete and verified, or absent."""

import hashlib
import http.client
import re
import shutil
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO
from urllib import error, request
from urllib.parse import urlsplit

from filelock import FileLock

from anydepth.data.errors import DataError

_TIMEOUT_S = 60.0  # Without a byte: slow servers answer within it, and a dead connection is noticed soon.
_MAX_WAIT_S = 60.0  # Between two tries, whatever a server asks for: a command must not sleep for hours.
_CHUNK_BYTES = 1 << 20  # Few system calls, and a progress bar that still moves on slow connections.
# The status codes of conditions that may pass (RFC 9110, 6585 and 8470).
_RETRIED_CODES = {408, 425, 429, 500, 502, 503, 504}

Progress = Callable[[int, int | None], None]
"""Called with the number of bytes received and the size of the whole file (None if unknown)."""


class DownloadError(DataError):
    """A file cannot be fetched; the message names the address, the reason and the remedy."""


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    md5: str | None = None,
    attempts: int = 5,
    backoff_s: float = 1.0,
    progress: Progress | None = None,
) -> None:
    """Fetch a file, resuming an interrupted transfer.

    Bytes are collected in ``NAME.part`` beside ``path``, which is kept after a failure and renamed when it is
    complete and verified. A file at ``path`` with the expected size and checksums is kept; another one is
    replaced. Several processes may ask for the same file: one fetches it, the others wait. A part left by an
    earlier call is used only if ``size`` or a checksum can show whether the file has changed since.

    Args:
        url: Address, http or https; redirects must lead to one, too.
        path: Destination; missing folders are created.
        size: Size of the file in bytes, if known.
        sha256: SHA-256 checksum in hexadecimal digits, if known.
        md5: MD5 checksum, if the source publishes no other.
        attempts: Number of consecutive tries without new bytes after which to give up.
        backoff_s: Seconds before the second try, doubled for each further one.
        progress: Callback that reports the progress of the transfer.

    Raises:
        DownloadError: The server refuses or keeps failing, the disk is full, or the file is not the expected
            one.
    """
    _check_url(url)
    if attempts < 1:
        raise ValueError(f"got attempts={attempts}, expected a whole number from 1")
    expected = _ExpectedFile(path, size, {"sha256": sha256, "md5": md5})
    try:
        if expected.find_problem(path) is None:  # Before the lock: a shared folder may be read-only.
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if expected.find_problem(path) is not None:
                _fetch(_Transfer(url, expected.part, size, progress), expected, attempts, backoff_s)
    except OSError as problem:
        raise DownloadError(f"{path}: cannot be written ({problem}); choose another folder") from problem


@dataclass(frozen=True)
class _ExpectedFile:
    """The known properties of a file before it is fetched."""

    path: Path
    size: int | None
    checksums: dict[str, str | None]

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def can_be_checked(self) -> bool:
        return self.size is not None or any(self.checksums.values())

    def find_problem(self, path: Path) -> str | None:
        """Return how a file differs from the expected one; None if it does not."""
        if not path.is_file():
            return "it is missing"
        if self.size is not None and path.stat().st_size != self.size:
            return f"it holds {path.stat().st_size:,} bytes, expected {self.size:,}"
        for algorithm, expected in self.checksums.items():
            if expected is None:
                continue
            with path.open("rb") as file:
                found = hashlib.file_digest(file, algorithm).hexdigest()
            if found != expected.lower():
                return f"its {algorithm} is {found}, expected {expected.lower()}"
        return None


@dataclass(frozen=True)
class _Transfer:
    url: str
    part: Path
    size: int | None
    progress: Progress | None


class _TransientError(Exception):
    """A try failed for a reason that may pass; ``wait_s`` is the wait that the server asks for."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def _fetch(transfer: _Transfer, expected: _ExpectedFile, attempts: int, backoff_s: float) -> None:
    if not expected.can_be_checked:
        expected.part.unlink(missing_ok=True)
    _receive_all(transfer, attempts, backoff_s)
    problem = expected.find_problem(expected.part)
    if problem is not None:
        expected.part.unlink(missing_ok=True)
        raise DownloadError(
            f"{transfer.url}: not the expected file: {problem}. It was removed; try again. If that fails, "
            "the file has changed at its source, or something on the way alters it"
        )
    expected.part.replace(expected.path)


def _receive_all(transfer: _Transfer, attempts: int, backoff_s: float) -> None:
    failures, most = 0, _size_of(transfer.part)
    while True:
        try:
            return _receive_some(transfer)
        except _TransientError as failure:
            here = _size_of(transfer.part)
            failures = 1 if here > most else failures + 1
            most = max(most, here)
            if failures >= attempts:
                kept = f"; {here:,} bytes are kept in {transfer.part}" if here else ""
                raise DownloadError(
                    f"{transfer.url}: {failure}; {attempts} tries in a row failed{kept}. Check the network "
                    "and run the command again"
                ) from failure
            time.sleep(max(min(backoff_s * 2 ** (failures - 1), _MAX_WAIT_S), failure.wait_s))


def _receive_some(transfer: _Transfer) -> None:
    """Try once to receive the bytes after the end of the part."""
    start = _size_of(transfer.part)
    if transfer.size is not None and start > transfer.size:
        transfer.part.unlink()
        start = 0
    if transfer.size is not None and start == transfer.size:
        return
    if transfer.size is not None:
        _check_space(transfer, transfer.size - start)
    headers = {"User-Agent": "anydepth", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with _OPENER.open(request.Request(transfer.url, headers=headers), timeout=_TIMEOUT_S) as response:
            _store(transfer, response, start)
    except error.HTTPError as answer:
        if answer.code == 416 and start:
            _handle_416(transfer, answer.headers, start)
        else:
            _raise_for_status(transfer, answer)
    except error.URLError as problem:
        if isinstance(problem.reason, ssl.SSLCertVerificationError):
            raise DownloadError(f"{transfer.url}: certificate not trusted ({problem.reason})") from problem
        raise _TransientError(f"no connection ({problem.reason})") from problem
    except (_BrokenConnectionError, http.client.HTTPException, TimeoutError, ConnectionError) as problem:
        raise _TransientError(f"the connection broke ({problem or type(problem).__name__})") from problem


def _handle_416(transfer: _Transfer, headers: Message, start: int) -> None:
    """Handle an unsatisfiable range: the part is complete, or belongs to another version of the file."""
    match = re.fullmatch(r"bytes \*/(\d+)", headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start:
        transfer.part.unlink()
        _receive_some(transfer)


def _raise_for_status(transfer: _Transfer, answer: error.HTTPError) -> None:
    reason = f"the server answered {answer.code} {answer.msg}".rstrip()
    if answer.code in _RETRIED_CODES:
        raise _TransientError(reason, _retry_after(answer.headers.get("Retry-After", ""))) from answer
    raise DownloadError(f"{transfer.url}: {reason}; check the address and your permissions") from answer


def _retry_after(text: str) -> float:
    """Return the seconds that a server asks to wait, as a number or a date; at most a minute."""
    try:
        seconds = float(text) if text.strip().isdigit() else _seconds_until(parsedate_to_datetime(text))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), _MAX_WAIT_S)


def _seconds_until(moment: datetime) -> float:
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()


def _store(transfer: _Transfer, response: http.client.HTTPResponse, requested: int) -> None:
    """Append the body of a response to the part; a server that ignores ranges starts again at 0."""
    start, total = _content_extent(response, requested)
    if transfer.size is not None and total is not None and total != transfer.size:
        raise DownloadError(
            f"{transfer.url}: the server has {total:,} bytes, expected {transfer.size:,}; the file has "
            "changed at its source"
        )
    total = total if total is not None else transfer.size
    if total is not None:
        _check_space(transfer, total - start)
    with transfer.part.open("ab", buffering=0) as file:
        if start < _size_of(transfer.part):
            file.truncate(start)
        done = _copy(transfer, response, file, start, total)
    if total is not None and done != total:
        raise _TransientError(f"the body ended after {done:,} of {total:,} bytes")


def _content_extent(response: http.client.HTTPResponse, requested: int) -> tuple[int, int | None]:
    """Return the position of the first byte of a body, and the size of the whole file if it is known."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != requested:
            raise _TransientError(f"the server sent another range than requested ({match and match[0]})")
        return requested, None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _copy(
    transfer: _Transfer, response: http.client.HTTPResponse, file: IO[bytes], done: int, total: int | None
) -> int:
    """Write the body, and return the size of the part at its end."""
    while chunk := _read(response):
        done += len(chunk)
        if total is not None and done > total:
            raise DownloadError(
                f"{transfer.url}: got more than the {total:,} bytes of the file; they were not stored"
            )
        _write(transfer, file, chunk)
        if transfer.progress is not None:
            transfer.progress(done, total)
    return done


class _BrokenConnectionError(Exception):
    """Reading failed; distinguishes it from a failure to write, which is an OSError, too."""


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as problem:
        raise _BrokenConnectionError(str(problem) or type(problem).__name__) from problem


def _write(transfer: _Transfer, file: IO[bytes], chunk: bytes) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as problem:
        raise DownloadError(
            f"{transfer.part}: cannot be written ({problem.strerror}); {_size_of(transfer.part):,} bytes are "
            "kept. Free disk space and run the command again to resume"
        ) from problem


def _check_space(transfer: _Transfer, needed: int) -> None:
    check_space(transfer.part.parent, needed, transfer.url)


def check_space(folder: Path, needed: int, purpose: str) -> None:
    """Check that a disk has enough free space.

    Args:
        folder: Existing folder on the disk.
        needed: Needed bytes.
        purpose: Purpose of the bytes, for the message.

    Raises:
        DownloadError: There is too little space; the message names the needed and the free space.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{purpose}: needs {needed / 1e9:.2f} GB in {folder.resolve()}, but {free / 1e9:.2f} GB are free "
            "there; free disk space or choose another folder"
        )


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_url(url: str) -> None:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise DownloadError(f"{url}: not a supported address; give one with http:// or https://")


class _Redirects(request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise DownloadError(f"{req.full_url}: redirects to {newurl}; only http and https are followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> request.OpenerDirector:
    """Return an opener without the handlers of file:, ftp: and data:, which ``build_opener`` always adds."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        _Redirects(),
        request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


_OPENER = _opener()

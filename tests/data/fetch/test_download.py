"""Downloads: resuming after failures, refusing wrong files, never leaving an incomplete one."""

import hashlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anydepth.data.fetch import download as module
from anydepth.data.fetch.download import DownloadError, download
from failing_server import FailingServer, serve

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture
def server() -> Iterator[FailingServer]:
    with serve({"/file.bin": BODY}) as running:
        yield running


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been slept."""
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    return slept


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "file.bin"


def fetch(server: FailingServer, path: Path, **options: Any) -> None:
    download(server.url("/file.bin"), path, **{"sha256": SHA256, **options})


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir() if not entry.name.endswith(".lock")}


# -- results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "known",
    [{}, {"size": len(BODY)}, {"sha256": SHA256}, {"md5": MD5.upper()}],
    ids=["nothing", "size", "sha256", "md5"],
)
def test_file_arrives_under_its_name_alone(server: FailingServer, path: Path, known: dict[str, Any]) -> None:
    fetch(server, path, **{"sha256": None, **known})

    assert path.read_bytes() == BODY
    assert names(path) == {"file.bin"}


def test_progress_ends_at_the_whole_file(server: FailingServer, path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    server.script = [{"cut": 100_000}]

    fetch(server, path, progress=lambda *step: seen.append(step), backoff_s=0)

    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert done[-1] == len(BODY)
    assert {step[1] for step in seen} == {len(BODY)}


def test_complete_file_is_left_alone(server: FailingServer, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(BODY)

    fetch(server, path)

    assert server.ranges == []


def test_file_with_another_content_is_replaced(server: FailingServer, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(BODY[:-1] + b"?")

    fetch(server, path)

    assert path.read_bytes() == BODY


def test_processes_that_want_the_same_file_fetch_it_once(server: FailingServer, path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=(server, path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert path.read_bytes() == BODY
    assert len(server.ranges) == 1


# -- resuming ---------------------------------------------------------------------------------------------


def test_broken_transfer_resumes_where_it_stopped(
    server: FailingServer, path: Path, waits: list[float]
) -> None:
    server.script = [{"cut": 100_000}, {"cut": 50_000}]

    fetch(server, path)

    assert path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_next_call_resumes_where_the_last_gave_up(server: FailingServer, path: Path) -> None:
    server.script = [{"cut": 100_000}]
    with pytest.raises(DownloadError, match=r"100,000 of 300,000 bytes.*100,000 bytes are kept in .*\.part"):
        fetch(server, path, attempts=1)
    assert names(path) == {"file.bin.part"}

    fetch(server, path)

    assert path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-"]
    assert names(path) == {"file.bin"}


def test_server_that_ignores_ranges_starts_again(
    server: FailingServer, path: Path, waits: list[float]
) -> None:
    server.script = [{"cut": 100_000}, {"ignore_range": True}]

    fetch(server, path)

    assert path.read_bytes() == BODY


def test_server_that_ignores_ranges_and_always_breaks_is_abandoned(
    server: FailingServer, path: Path, waits: list[float]
) -> None:
    server.script = [{"cut": 100_000, "ignore_range": True}] * 10

    with pytest.raises(DownloadError, match="3 tries in a row failed"):
        fetch(server, path, attempts=3)
    assert len(server.ranges) == 3


def test_tries_are_counted_from_the_last_one_that_brought_something(
    server: FailingServer, path: Path, waits: list[float]
) -> None:
    server.script = [{"cut": 1000}] * 20

    fetch(server, path, attempts=2)

    assert path.read_bytes() == BODY


def test_wrong_range_is_never_stored(server: FailingServer, path: Path, waits: list[float]) -> None:
    server.script = [{"cut": 100_000}, {"shift": 7}]

    fetch(server, path)

    assert path.read_bytes() == BODY


def test_complete_part_needs_no_bytes_from_the_server(server: FailingServer, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(BODY)

    fetch(server, path)  # The size is not known: the server answers 416 with the size of the file.

    assert path.read_bytes() == BODY
    assert server.ranges == ["bytes=300000-"]


@pytest.mark.parametrize("known", [{}, {"size": len(BODY)}], ids=["unknown size", "known size"])
def test_part_longer_than_the_file_is_fetched_again(
    server: FailingServer, path: Path, known: dict[str, int]
) -> None:
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(BODY + b"more")

    fetch(server, path, **known)

    assert path.read_bytes() == BODY


def test_part_of_an_earlier_call_is_not_trusted_if_nothing_can_verify_it(
    server: FailingServer, path: Path
) -> None:
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(b"another version")

    fetch(server, path, sha256=None)

    assert path.read_bytes() == BODY


def test_body_without_a_length_that_ends_early_is_resumed(
    server: FailingServer, path: Path, waits: list[float]
) -> None:
    server.script = [{"cut": 100_000, "no_length": True}]

    fetch(server, path, size=len(BODY))

    assert path.read_bytes() == BODY


# -- waiting and giving up --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_transient_failures_are_retried_with_growing_waits(
    server: FailingServer, path: Path, waits: list[float], status: int
) -> None:
    server.script = [{"status": status}] * 3

    fetch(server, path, backoff_s=0.5)

    assert path.read_bytes() == BODY
    assert waits == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_permanent_failures_are_not_retried(server: FailingServer, path: Path, status: int) -> None:
    server.script = [{"status": status}] * 3

    with pytest.raises(DownloadError, match=f"answered {status}.*check the address"):
        fetch(server, path)
    assert len(server.ranges) == 1
    assert names(path) == set()


@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        ("7", 7.0),
        ("86400", 60.0),
        ("soon", 1.0),
        (format_datetime(datetime.now(UTC) + timedelta(days=2), usegmt=True), 60.0),
        (format_datetime(datetime.now(UTC) - timedelta(days=2), usegmt=True), 1.0),
    ],
    ids=["seconds", "too long", "nonsense", "far date", "past date"],
)
def test_wait_that_the_server_asks_for_is_kept_within_reason(
    server: FailingServer, path: Path, waits: list[float], asked: str, waited: float
) -> None:
    server.script = [{"status": 429, "headers": {"Retry-After": asked}}]

    fetch(server, path)

    assert waits == [waited]


def test_no_server_is_reported_after_all_tries(path: Path, waits: list[float]) -> None:
    with serve({}) as gone:
        url = gone.url("/file.bin")

    with pytest.raises(DownloadError, match=r"no connection .*; 3 tries in a row failed. Check the network"):
        download(url, path, attempts=3)
    assert waits == [1.0, 2.0]


# -- refusing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_wrong_checksum_names_both_and_removes_the_part(
    server: FailingServer, path: Path, algorithm: str
) -> None:
    found = hashlib.new(algorithm, BODY).hexdigest()
    expected = found[::-1]

    with pytest.raises(DownloadError) as raised:
        fetch(server, path, **{"sha256": None, algorithm: expected})

    assert f"its {algorithm} is {found}, expected {expected}" in str(raised.value)
    assert names(path) == set()


def test_failed_replacement_keeps_the_former_file(server: FailingServer, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"former")

    with pytest.raises(DownloadError):
        fetch(server, path, sha256="0" * 64)
    assert path.read_bytes() == b"former"


def test_server_with_a_file_of_another_size_is_refused_before_its_body(
    server: FailingServer, path: Path
) -> None:
    with pytest.raises(DownloadError, match="the server has 300,000 bytes, expected 299,999"):
        fetch(server, path, size=len(BODY) - 1)
    assert names(path) == set()


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://host/file", "/a/path", "http:///file", ""])
def test_only_http_addresses_are_fetched(path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="give one with http:// or https://"):
        download(url, path)


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/file", "gopher://host/"])
def test_redirects_stay_with_http(server: FailingServer, path: Path, target: str) -> None:
    server.script = [{"status": 302, "headers": {"Location": target}}]

    with pytest.raises(DownloadError):
        fetch(server, path)
    assert names(path) == set()


def test_redirect_within_http_is_followed(server: FailingServer, path: Path) -> None:
    server.script = [{"status": 302, "headers": {"Location": server.url("/file.bin")}}]

    fetch(server, path)

    assert path.read_bytes() == BODY


def test_endless_redirects_end(server: FailingServer, path: Path) -> None:
    server.script = [{"status": 302, "headers": {"Location": server.url("/file.bin")}}] * 50

    with pytest.raises(DownloadError, match="302"):
        fetch(server, path)


# -- the disk ---------------------------------------------------------------------------------------------


def test_too_little_space_is_reported_before_any_request(server: FailingServer, path: Path) -> None:
    with pytest.raises(DownloadError, match=r"needs 1000000000.00 GB in .*new, but .* GB are free there"):
        fetch(server, path, size=10**18)
    assert server.ranges == []


def test_full_disk_keeps_the_part(server: FailingServer, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("file.bin.part").symlink_to("/dev/full")

    with pytest.raises(DownloadError, match=r"file\.bin\.part: .*No space left on device.*run"):
        fetch(server, path)
    assert names(path) == {"file.bin.part"}


def test_folder_that_cannot_be_made_is_named(server: FailingServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(DownloadError, match=r"cannot be written .*choose another folder"):
        fetch(server, tmp_path / "file" / "file.bin")


def test_number_of_attempts_is_checked(path: Path) -> None:
    with pytest.raises(ValueError, match="attempts=0"):
        download("http://localhost/", path, attempts=0)

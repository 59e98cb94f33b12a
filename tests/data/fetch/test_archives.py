"""Archives: fetched and unpacked whole, restartable, and never outside their folder."""

import hashlib
import io
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from anydepth.data.fetch.archives import Archive, ArchiveError, check_space_for, install, unpack
from anydepth.data.fetch.download import DownloadError
from failing_server import FailingServer, serve

FILES = {"val/a.jpg": b"a" * 1000, "val/b.jpg": b"b" * 2000, "annotations/x.json": b"{}", "readme": b"?"}


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def tar_of(member: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(member)
    return buffer.getvalue()


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture
def server() -> Iterator[FailingServer]:
    with serve({"/set.zip": zipped(FILES)}) as running:
        yield running


@pytest.fixture
def archive(server: FailingServer) -> Archive:
    body = server.files["/set.zip"]
    digest = hashlib.sha256(body).hexdigest()
    return Archive(server.url("/set.zip"), len(body), digest, 3002, {"val": 2, "annotations/x.json": 1})


# -- unpacking --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [zipped(FILES), tarred(FILES), tarred(FILES, "w:gz")], ids=["zip", "tar", "tar.gz"]
)
def test_every_kind_is_unpacked(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "packed").write_bytes(body)

    unpack(tmp_path / "packed", tmp_path / "out", limit_bytes=10_000)

    assert content_of(tmp_path / "out") == FILES


def test_only_requested_files_are_written(tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(zipped(FILES | {"valley/c.jpg": b""}))

    unpack(tmp_path / "packed", tmp_path / "out", limit_bytes=10_000, only=("val", "readme"))

    assert set(content_of(tmp_path / "out")) == {"val/a.jpg", "val/b.jpg", "readme"}


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "\\\\host\\share\\evil"]
)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_no_path_leaves_the_folder(tmp_path: Path, name: str, pack: object) -> None:
    (tmp_path / "packed").write_bytes((zipped if pack is zipped else tarred)({name: b"evil"}))

    with pytest.raises(ArchiveError, match="leaves the folder"):
        unpack(tmp_path / "packed", tmp_path / "out", limit_bytes=10_000)
    assert {path.name for path in tmp_path.rglob("*")} <= {"packed", "out"}


def test_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "packed", "w") as archive:
        archive.writestr(entry, "/etc")

    with pytest.raises(ArchiveError, match="'link' is a link"):
        unpack(tmp_path / "packed", tmp_path / "out", limit_bytes=10_000)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_link_or_device_in_a_tar_is_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("link")
    member.type, member.linkname = kind, "/etc/hostname"
    (tmp_path / "packed").write_bytes(tar_of(member))

    with pytest.raises(ArchiveError, match="'link' is a link or device"):
        unpack(tmp_path / "packed", tmp_path / "out", limit_bytes=10_000)


def test_bomb_is_stopped(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(50_000_000))

    with pytest.raises(ArchiveError, match="unpacks to more than 1,000,000 bytes"):
        unpack(tmp_path / "packed", tmp_path / "out", limit_bytes=1_000_000)
    assert (tmp_path / "out" / "zeros").stat().st_size <= 1_000_000


@pytest.mark.parametrize(
    "body",
    [b"no archive", zipped(FILES)[:1500], tarred(FILES, "w:gz")[:80]],
    # The bytes of an archive hold the time at which it was packed.
    ids=["none", "truncated zip", "truncated tar"],
)
def test_damaged_archive_is_named(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "packed").write_bytes(body)

    with pytest.raises(ArchiveError, match=r"packed: .*fetch (it|the archive) again"):
        unpack(tmp_path / "packed", tmp_path / "out", limit_bytes=10_000)


def test_altered_byte_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(zipped(FILES).replace(b"a" * 1000, b"a" * 999 + b"?"))

    with pytest.raises(ArchiveError, match="damaged"):
        unpack(tmp_path / "packed", tmp_path / "out", limit_bytes=10_000)


# -- installing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_contents_arrive_and_nothing_else(archive: Archive, tmp_path: Path, keep: bool) -> None:
    install(archive, tmp_path, keep_archive=keep)

    expected = {name: data for name, data in FILES.items() if name != "readme"}
    assert {name for name in content_of(tmp_path) if name != "set.zip"} == set(expected)
    assert (tmp_path / "set.zip").exists() == keep
    assert not (tmp_path / ".set.zip.unpacking").exists()


def test_installed_contents_are_not_fetched_again(
    archive: Archive, server: FailingServer, tmp_path: Path
) -> None:
    install(archive, tmp_path)
    install(archive, tmp_path)

    assert len(server.ranges) == 1


def test_missing_content_is_restored_beside_the_rest(archive: Archive, tmp_path: Path) -> None:
    install(archive, tmp_path)
    (tmp_path / "annotations" / "x.json").unlink()
    (tmp_path / "annotations" / "mine.json").write_text("kept")

    install(archive, tmp_path)

    assert {path.name for path in (tmp_path / "annotations").iterdir()} == {"x.json", "mine.json"}


def test_wrong_number_of_files_installs_nothing(archive: Archive, tmp_path: Path) -> None:
    wrong = replace(archive, contents={"annotations/x.json": 1, "val": 3})

    with pytest.raises(ArchiveError, match="got 2 files at val, expected 3"):
        install(wrong, tmp_path, keep_archive=True)
    assert set(content_of(tmp_path)) == {"set.zip"}


def test_space_is_checked_for_the_archive_and_what_it_unpacks_to(archive: Archive, tmp_path: Path) -> None:
    large = replace(archive, size=10**15, unpacked_bytes=2 * 10**15)

    with pytest.raises(DownloadError, match=r"set.zip: needs 3000000\.00 GB in .*, but .* GB are free there"):
        check_space_for([large], tmp_path / "not" / "there", keep_archives=False)


@pytest.mark.parametrize(("keep", "needed"), [(False, "5000000.00"), (True, "6000000.00")])
def test_space_counts_archives_only_while_they_are_there(
    archive: Archive, tmp_path: Path, keep: bool, needed: str
) -> None:
    large = replace(archive, size=10**15, unpacked_bytes=2 * 10**15)

    with pytest.raises(DownloadError, match=f"needs {needed} GB"):
        check_space_for([large, large], tmp_path, keep_archives=keep)


def test_installed_contents_need_no_space(archive: Archive, tmp_path: Path) -> None:
    install(archive, tmp_path)

    check_space_for([replace(archive, size=10**18)], tmp_path, keep_archives=False)

"""Shards from a web server that fails in all the usual ways, through a cache of limited size."""

import errno
import hashlib
import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shard_files import Shards, assert_same_samples, files_of_at_most, flip

from anydepth.data.errors import DataError, DataWarning
from anydepth.data.shards.source import Stream, open_stream
from failing_server import FailingServer, serve


@pytest.fixture
def server(shards: Shards) -> Iterator[FailingServer]:
    with serve(shards.contents("/train")) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def opened(server: FailingServer, cache: Path, gb: float = 1.0, attempts: int = 3) -> Stream:
    """A stream that does not wait for long; the first two requests are those of opening it."""
    return open_stream(server.url("/train"), cache_dir=cache, cache_gb=gb, attempts=attempts, backoff_s=0.001)


def cached(cache: Path) -> list[str]:
    """Shards in the cache, and whatever else is there of them."""
    return sorted(path.name for path in cache.glob("*/*shard-*") if path.suffix not in (".use", ".lock"))


def test_samples_are_those_of_the_files(shards: Shards, server: FailingServer, cache: Path) -> None:
    stream = opened(server, cache)
    assert_same_samples(stream.source, shards.index)
    assert stream.index.to_coco_dict() == shards.index.to_coco_dict()


def test_shards_are_fetched_when_needed_and_once(server: FailingServer, cache: Path) -> None:
    source = opened(server, cache).source
    assert len(server.ranges) == 2  # The manifest and the annotations.
    for row in (0, 1, 0, 8, 1, 9):
        source.read(row)
    assert len(server.ranges) == 4
    assert cached(cache) == ["shard-00000.bin", "shard-00004.bin"]
    again = opened(server, cache).source
    again.read(1)
    assert len(server.ranges) == 5  # The manifest, which shows whether the cache is still valid.


def test_a_trailing_slash_of_the_address_does_not_matter(server: FailingServer, cache: Path) -> None:
    assert open_stream(server.url("/train/"), cache_dir=cache).source.read(3).image_id == 70


# -- the cache ---------------------------------------------------------------------------------------------


@pytest.fixture
def size(shards: Shards) -> int:
    return max(shards.shard(number).stat().st_size for number in range(5))


@pytest.mark.filterwarnings("ignore::anydepth.data.errors.DataWarning")
def test_the_cache_keeps_to_its_size_and_drops_what_was_used_least_recently(
    shards: Shards, server: FailingServer, cache: Path, size: int
) -> None:
    source = opened(server, cache, gb=2.5 * size / 1e9).source
    for number in (0, 1):
        source.read(2 * number)
    _set_age(cache, 0, seconds=50)
    _set_age(cache, 1, seconds=100)
    source.read(4)
    assert cached(cache) == ["shard-00000.bin", "shard-00002.bin"]
    for row in [*range(10)] * 2:
        source.read(row)
        total = sum(path.stat().st_size for path in cache.glob("*/*shard-*"))
        assert total <= 2.5 * size
    assert_same_samples(source, shards.index)


def test_reading_a_shard_counts_as_using_it(server: FailingServer, cache: Path, size: int) -> None:
    opened(server, cache).source.read(0)
    opened(server, cache).source.read(2)
    for number, seconds in ((0, 1000), (1, 500)):
        _set_age(cache, number, seconds)
    source = opened(server, cache, gb=2.5 * size / 1e9).source
    source.read(0)
    source.read(4)
    assert cached(cache) == ["shard-00000.bin", "shard-00002.bin"]


def test_a_cache_that_is_too_small_for_the_shards_in_use_warns_once(
    server: FailingServer, cache: Path, size: int
) -> None:
    source = opened(server, cache, gb=2.1 * size / 1e9).source
    with pytest.warns(DataWarning, match=r"Raise data\.cache_gb") as caught:
        [source.read(row) for row in [*range(10)] * 2]
    assert sum(warning.category is DataWarning for warning in caught) == 1


def test_a_cache_that_cannot_hold_two_shards_is_refused(
    server: FailingServer, cache: Path, size: int
) -> None:
    with pytest.raises(DataError, match=r"data\.cache_gb=.* cannot hold two shards of .* give"):
        opened(server, cache, gb=1.9 * size / 1e9)


def test_parts_of_killed_processes_make_room_and_those_of_live_ones_stay(
    server: FailingServer, cache: Path, size: int
) -> None:
    source = opened(server, cache, gb=4.5 * size / 1e9).source
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    dead, live = folder / "shard-00003.bin.part", folder / "shard-00004.bin.part"
    for path in (dead, live):
        path.write_bytes(bytes(2 * size))
    os.utime(dead, (0, 0))
    source.read(0)
    assert cached(cache) == ["shard-00000.bin", "shard-00004.bin.part"]


def test_data_sets_share_a_cache_without_being_mixed_up(
    shards: Shards, server: FailingServer, cache: Path
) -> None:
    """The same address holds another data set later."""
    assert opened(server, cache).source.read(0).image_id == 100
    text = server.files["/train/manifest.json"].decode()
    server.files["/train/manifest.json"] = text.replace('"cat"', '"lynx"').encode()
    renamed = opened(server, cache)
    assert renamed.categories.names == ("lynx", "dog")
    renamed.source.read(0)
    assert len(cached(cache)) == 2
    assert len({path.parent for path in cache.glob("*/shard-00000.bin")}) == 2


def _set_age(cache: Path, number: int, seconds: float) -> None:
    (path,) = cache.glob(f"*/shard-{number:05d}.bin")
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


# -- several processes -------------------------------------------------------------------------------------


def _read_all(packed: bytes, repeats: int, results: "multiprocessing.Queue[object]") -> None:
    source = pickle.loads(packed)
    try:
        results.put([source.read(row).image_id for row in [*range(10)] * repeats])
    except DataError as error:
        results.put(str(error))


def _in_processes(stream: Stream, count: int, repeats: int) -> list[object]:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[object] = context.Queue()
    processes = [
        context.Process(target=_read_all, args=(pickle.dumps(stream.source), repeats, results))
        for _ in range(count)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return found


def test_processes_fetch_each_shard_once_between_them(server: FailingServer, cache: Path) -> None:
    found = _in_processes(opened(server, cache), count=4, repeats=1)
    assert found == [list(range(100, 0, -10))] * 4
    assert len(server.ranges) == 2 + 5


@pytest.mark.filterwarnings("ignore::anydepth.data.errors.DataWarning")
def test_processes_that_take_shards_from_each_other_still_read_right(
    server: FailingServer, cache: Path, size: int
) -> None:
    found = _in_processes(opened(server, cache, gb=2.1 * size / 1e9), count=3, repeats=3)
    assert found == [list(range(100, 0, -10)) * 3] * 3


# -- a server that fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_an_overloaded_server_is_tried_again(
    shards: Shards, server: FailingServer, cache: Path, status: int
) -> None:
    source = opened(server, cache).source
    server.script = [{"status": status}, {"status": status}]
    assert source.read(0).image_id == 100
    assert len(server.ranges) == 2 + 3


def test_a_body_that_stops_in_the_middle_is_resumed(server: FailingServer, cache: Path) -> None:
    source = opened(server, cache).source
    server.script = [{"cut": 5000}, {"cut": 2000}]
    assert source.read(0).image_id == 100
    assert server.ranges[2:] == [None, "bytes=5000-", "bytes=7000-"]


def test_a_server_that_keeps_failing_gives_one_clear_error(server: FailingServer, cache: Path) -> None:
    source = opened(server, cache).source
    server.script = [{"status": 500}] * 100
    with pytest.raises(
        DataError, match=r"http://.*/train/shard-00000\.bin.* answered 500.* 3 tries in a row"
    ):
        source.read(0)
    assert len(server.ranges) == 2 + 3
    assert cached(cache) == []
    server.script = []
    assert source.read(0).image_id == 100


@pytest.mark.parametrize("status", [404, 403])
def test_a_shard_that_is_refused_is_named_at_once(server: FailingServer, cache: Path, status: int) -> None:
    source = opened(server, cache).source
    server.script = [{"status": status}]
    with pytest.raises(DataError, match=rf"/train/shard-00001\.bin.* answered {status}.*check the address"):
        source.read(2)
    assert len(server.ranges) == 2 + 1
    assert cached(cache) == []


def test_a_manifest_that_is_not_there_is_named(server: FailingServer, cache: Path) -> None:
    del server.files["/train/manifest.json"]
    with pytest.raises(DataError, match=r"/train/manifest\.json.* answered 404"):
        opened(server, cache)


def test_a_server_that_is_gone_is_named(cache: Path) -> None:
    with serve({}) as server:
        address = server.url("/train")
    with pytest.raises(DataError, match=r"/train/manifest\.json.* 2 tries in a row failed"):
        open_stream(address, cache_dir=cache, attempts=2, backoff_s=0.001)


@pytest.mark.parametrize("cut", [100, 0])
def test_a_truncated_shard_is_not_cached(server: FailingServer, cache: Path, cut: int) -> None:
    source = opened(server, cache).source
    server.files["/train/shard-00000.bin"] = server.files["/train/shard-00000.bin"][: -cut or None][cut:]
    if cut == 0:
        server.files["/train/shard-00000.bin"] += b"more"
    with pytest.raises(DataError, match=r"shard-00000\.bin.* expected [0-9,]+"):
        source.read(0)
    assert cached(cache) == []


def test_an_altered_shard_is_not_cached(server: FailingServer, cache: Path) -> None:
    source = opened(server, cache).source
    data = bytearray(server.files["/train/shard-00000.bin"])
    data[len(data) // 2] ^= 1
    server.files["/train/shard-00000.bin"] = bytes(data)
    with pytest.raises(DataError, match=r"shard-00000\.bin.* its sha256 is .*, expected [0-9a-f]+"):
        source.read(0)
    assert cached(cache) == []
    assert source.read(2).image_id == 80


def test_an_altered_list_of_the_engine_is_not_even_fetched(server: FailingServer, cache: Path) -> None:
    server.files["/train/index.json"] = b'{"config": {"data_format": ["pickle"]}}'
    assert opened(server, cache).source.read(0).image_id == 100


# -- a cache that is damaged -------------------------------------------------------------------------------


def _only_shard(cache: Path) -> Path:
    (path,) = cache.glob("*/shard-*.bin")
    return path


@pytest.mark.parametrize("again", [False, True])
def test_a_cached_shard_that_was_altered_is_fetched_again(
    server: FailingServer, cache: Path, again: bool
) -> None:
    source = opened(server, cache).source
    expected = source.read(0)
    flip(_only_shard(cache), 1000)
    if not again:
        source = opened(server, cache).source
    before = len(server.ranges)
    assert (source.read(0).image == expected.image).all()
    assert len(server.ranges) == before + 1


def test_a_shard_that_is_wrong_at_its_source_is_not_fetched_again_and_again(
    server: FailingServer, cache: Path
) -> None:
    """Its checksum in the manifest is right: it was prepared with defective memory, or on purpose."""
    data = bytearray(server.files["/train/shard-00000.bin"])
    data[1000] ^= 1
    good, bad = (hashlib.sha256(part).hexdigest() for part in (server.files["/train/shard-00000.bin"], data))
    server.files["/train/shard-00000.bin"] = bytes(data)
    manifest = server.files["/train/manifest.json"].decode()
    server.files["/train/manifest.json"] = manifest.replace(good, bad).encode()
    source = opened(server, cache).source
    with pytest.raises(
        DataError, match=r"/train/shard-00000\.bin: this shard cannot be read: .*row 0 was altered"
    ):
        source.read(0)
    assert len(server.ranges) == 2 + 1


def test_a_cached_shard_that_was_truncated_is_fetched_again(server: FailingServer, cache: Path) -> None:
    source = opened(server, cache).source
    source.read(0)
    os.truncate(_only_shard(cache), 3000)
    assert source.read(1).image_id == 90


def test_a_cached_shard_that_was_removed_is_fetched_again(server: FailingServer, cache: Path) -> None:
    source = opened(server, cache).source
    source.read(0)
    _only_shard(cache).unlink()
    assert source.read(1).image_id == 90


def test_cached_annotations_that_were_altered_are_fetched_again(server: FailingServer, cache: Path) -> None:
    opened(server, cache)
    (annotations,) = cache.glob("*/annotations.npz")
    flip(annotations, 500)
    assert len(opened(server, cache).index) == 10


def test_a_cache_folder_that_cannot_be_made_is_named(server: FailingServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/cache: cannot be used as a cache .*set data\.cache_dir"):
        opened(server, tmp_path / "file" / "cache")


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_full_disk_is_named_and_leaves_nothing(server: FailingServer, cache: Path, size: int) -> None:
    source = opened(server, cache).source
    with files_of_at_most(size // 2), pytest.raises(DataError) as caught:
        source.read(0)
    message = str(caught.value)
    assert "/train/shard-00000.bin: cannot be cached" in message
    assert os.strerror(errno.EFBIG) in message
    assert "data.cache_dir chooses another disk" in message
    assert cached(cache) == []
    assert source.read(0).image_id == 100


# -- addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://host/train", "give a local folder, or an address with s3://"),
        ("file:///data/train", "give a local folder"),
        ("http:///train", "give a local folder"),
        ("https://host/train?token=1", "without anything after"),
    ],
)
def test_addresses_that_are_not_fetched_are_refused(address: str, message: str, cache: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_stream(address, cache_dir=cache)
    assert message in str(caught.value)


def test_options_of_s3_are_refused_elsewhere(cache: Path) -> None:
    with pytest.raises(DataError, match=r"storage_options are only for s3://; remove endpoint_url"):
        open_stream("http://host/x", cache_dir=cache, storage_options={"endpoint_url": "x"})


def test_the_users_cache_folder_is_the_default(
    server: FailingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    open_stream(server.url("/train")).source.read(0)
    assert cached(tmp_path / "user" / "anydepth" / "shards") == ["shard-00000.bin"]

"""Shards in a bucket: of moto's server, and of one that fails in all the usual ways."""

import errno
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from shard_files import Shards, assert_same_samples, files_of_at_most

from anydepth.data.errors import DataError
from anydepth.data.shards.source import Stream, open_stream
from failing_server import FailingServer, serve

KEYS = {"aws_access_key_id": "someone", "aws_secret_access_key": "secret", "region_name": "us-east-1"}


@pytest.fixture
def bucket(shards: Shards) -> Iterator[dict[str, Any]]:
    """Options of a client; the bucket ``pictures`` holds the shards under ``coco/train``."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"endpoint_url": f"http://{host}:{port}", **KEYS}
        client = boto3.client("s3", **options)
        client.create_bucket(Bucket="pictures")
        for key, body in shards.contents("coco/train").items():
            client.put_object(Bucket="pictures", Key=key, Body=body)
        yield options
    finally:
        server.stop()


@pytest.fixture
def failing(shards: Shards) -> Iterator[FailingServer]:
    """As much of S3 as reading takes: a request for the size, then the object itself."""
    with serve(shards.contents("/pictures/coco/train")) as server:
        server.delay_s = 0.0
        methods = {"do_HEAD": _head, "do_GET": _slow(server.RequestHandlerClass)}
        server.RequestHandlerClass = type("Handler", (server.RequestHandlerClass,), methods)
        yield server


def _slow(plain: Any) -> Callable[[Any], None]:
    def get(handler: Any) -> None:
        time.sleep(handler.server.delay_s)
        plain.do_GET(handler)

    return get


def _head(handler: Any) -> None:
    """Answers as GET does, but the script is for GET alone."""
    body = handler.server.files.get(handler.path)
    if body is None:
        handler._answer(404, {})
    else:
        handler._answer(200, {"Content-Length": str(len(body)), "ETag": '"x"'})


def opened(server: FailingServer, cache: Path) -> Stream:
    options = {"endpoint_url": server.url("").rstrip("/"), **KEYS}
    return open_stream(
        "s3://pictures/coco/train",
        cache_dir=cache,
        storage_options=options,
        attempts=3,
        backoff_s=0.001,
    )


def cached(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*/shard-*"))


def test_samples_are_those_of_the_files(bucket: dict[str, Any], shards: Shards, tmp_path: Path) -> None:
    stream = open_stream("s3://pictures/coco/train/", cache_dir=tmp_path / "cache", storage_options=bucket)
    assert cached(tmp_path / "cache") == []
    assert_same_samples(stream.source, shards.index)
    assert stream.index.to_coco_dict() == shards.index.to_coco_dict()
    assert len(cached(tmp_path / "cache")) == 5


@pytest.mark.parametrize("address", ["s3://pictures/coco/other", "s3://elsewhere/coco/train"])
def test_a_missing_object_is_named_at_once(bucket: dict[str, Any], tmp_path: Path, address: str) -> None:
    with pytest.raises(DataError, match=rf"{address}/manifest\.json: the server answered 404"):
        open_stream(address, cache_dir=tmp_path, storage_options=bucket, backoff_s=100)


def test_options_that_the_client_does_not_know_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unexpected keyword argument 'endpoint'.*storage_options"):
        open_stream("s3://pictures/x", cache_dir=tmp_path, storage_options={"endpoint": "x"}, backoff_s=100)


def test_credentials_appear_in_no_message(failing: FailingServer, tmp_path: Path) -> None:
    source = opened(failing, tmp_path).source
    failing.script = [{"status": 403}]
    with pytest.raises(DataError, match=r"shard-00000\.bin: the server answered 403") as caught:
        source.read(0)
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(source.__dict__["_store"].__dict__)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503},
        {"cut": 4000},
        pytest.param({"status": 500}, marks=pytest.mark.slow),
        pytest.param({"status": 429}, marks=pytest.mark.slow),
    ],
)
def test_transient_failures_are_retried(
    failing: FailingServer, tmp_path: Path, fault: dict[str, int]
) -> None:
    source = opened(failing, tmp_path).source
    before = len(failing.ranges)
    failing.script = [fault, fault]
    assert source.read(0).image_id == 100
    assert len(failing.ranges) == before + 3


def test_processes_fetch_each_shard_once_between_them(failing: FailingServer, tmp_path: Path) -> None:
    source = opened(failing, tmp_path).source
    before = len(failing.ranges)
    context = multiprocessing.get_context("fork")
    # An object takes long enough for the others to request it meanwhile.
    failing.delay_s = 0.1
    processes = [context.Process(target=source.read, args=(0,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(failing.ranges) == before + 1


@pytest.mark.slow
def test_a_store_that_keeps_failing_gives_one_clear_error(failing: FailingServer, tmp_path: Path) -> None:
    source = opened(failing, tmp_path).source
    before = len(failing.ranges)
    failing.script = [{"status": 500}] * 100
    with pytest.raises(
        DataError, match=r"s3://pictures/.*shard-00000\.bin.* answered 500.* 3 tries in a row"
    ):
        source.read(0)
    assert len(failing.ranges) == before + 3
    assert cached(tmp_path) == []


def test_a_store_that_stays_broken_in_mid_stream_gives_one_clear_error(
    failing: FailingServer, tmp_path: Path
) -> None:
    source = opened(failing, tmp_path).source
    failing.script = [{"cut": 4000}] * 100
    with pytest.raises(DataError, match=r"shard-00000\.bin.* 3 tries in a row failed"):
        source.read(0)
    assert cached(tmp_path) == []


def test_a_store_that_is_gone_is_tried_again_and_named(tmp_path: Path) -> None:
    with serve({}) as server:
        pass
    with pytest.raises(DataError, match=r"manifest\.json.* 3 tries in a row failed"):
        opened(server, tmp_path)


def test_an_altered_object_is_not_cached(failing: FailingServer, tmp_path: Path) -> None:
    source = opened(failing, tmp_path).source
    data = bytearray(failing.files["/pictures/coco/train/shard-00000.bin"])
    data[3000] ^= 1
    failing.files["/pictures/coco/train/shard-00000.bin"] = bytes(data)
    with pytest.raises(DataError, match=r"shard-00000\.bin.* its sha256 is .*, expected [0-9a-f]+"):
        source.read(0)
    failing.files["/pictures/coco/train/shard-00000.bin"] = bytes(data[:-9])
    with pytest.raises(DataError, match=r"shard-00000\.bin.* it holds .* bytes, expected [0-9,]+"):
        source.read(0)
    assert cached(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_full_disk_is_named_and_leaves_nothing(
    failing: FailingServer, shards: Shards, tmp_path: Path
) -> None:
    source = opened(failing, tmp_path).source
    with files_of_at_most(shards.shard(0).stat().st_size // 2), pytest.raises(DataError) as caught:
        source.read(0)
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert "data.cache_dir chooses another disk" in str(caught.value)
    assert cached(tmp_path) == []

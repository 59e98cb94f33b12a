"""Arrays that worker processes share, whichever way they are started."""

import copy
import multiprocessing
import os
import pickle
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anydepth.data.coco.memory import SharedArrays

SIZE = 5_000_000
SMALL = {
    "empty": np.empty((0, 4), dtype=np.float32),
    "flags": np.array([True, False, True]),
    "matrix": np.arange(6, dtype=np.int64).reshape(2, 3).T,
    "bytes": np.frombuffer(b"abc", dtype=np.uint8),
}


def private_bytes() -> int:
    """Memory that this process shares with no other, by the kernel's count."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private"))


def read_all(shared: SharedArrays, sender: Connection) -> None:
    """Work as a worker: read everything, and send the sum and the private memory that it took."""
    before = private_bytes()
    total = float(shared.arrays["ones"].sum())
    sender.send((total, private_bytes() - before, shared.arrays["ones"].flags.writeable))


def sleep(shared: SharedArrays, sender: Connection) -> None:
    sender.send(float(shared.arrays["ones"][0]))
    signal.pause()


def assert_equal(found: SharedArrays, expected: dict[str, np.ndarray]) -> None:
    assert list(found.arrays) == list(expected)
    for name, array in expected.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux reports private memory")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_the_arrays_without_a_copy(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    shared = SharedArrays.of({"ones": np.ones(SIZE)})
    # The parent reads first: otherwise pages that only the worker has seen would count as its own.
    assert shared.arrays["ones"].sum() == SIZE
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=read_all, args=(shared, sender))
    worker.start()
    total, growth, writeable = receiver.recv()
    worker.join()
    assert total == SIZE
    assert growth < shared.nbytes / 10, "the worker copied the arrays"
    assert not writeable


def test_arrays_keep_type_shape_and_values() -> None:
    shared = SharedArrays.of(SMALL)
    assert_equal(shared, SMALL)
    assert shared.nbytes == 3 + 48 + 3


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_a_pickle_for_another_purpose_holds_the_values(copied: Any) -> None:
    assert_equal(copied(SharedArrays.of(SMALL)), SMALL)


def test_writing_into_shared_arrays_is_refused() -> None:
    with pytest.raises(ValueError, match="read-only"):
        SharedArrays.of(SMALL).arrays["flags"][0] = False


def test_arrays_outlive_their_block() -> None:
    # A view of an array may be all that is left of an index.
    array = SharedArrays.of(SMALL).arrays["matrix"]
    np.testing.assert_array_equal(array, SMALL["matrix"])


def names_in(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="looks into Linux's folder of shared memory")
def test_nothing_is_left_behind_even_when_a_worker_is_killed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    mine, files = names_in("/dev/shm"), names_in("/proc/self/fd")
    shared = SharedArrays.of({"ones": np.ones(10)})
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=sleep, args=(shared, sender))
    worker.start()
    assert receiver.recv() == 1
    assert names_in("/dev/shm") <= mine
    worker.kill()
    worker.join()
    worker.close()
    receiver.close()
    sender.close()
    del shared
    assert names_in("/proc/self/fd") == files
    assert not list(tmp_path.iterdir())


def test_a_system_without_memory_files_uses_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert_equal(SharedArrays.of(SMALL), SMALL)
    assert not list(tmp_path.iterdir())

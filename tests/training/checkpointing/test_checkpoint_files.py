"""Checkpoints on the disk: complete or absent, whatever ends the process or fills the disk."""

import errno
import os
import resource
import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from anydepth.config.errors import explain
from anydepth.training.checkpointing import write
from anydepth.training.checkpointing.write import CheckpointFiles, CheckpointWriteError

# 3 MB in total: large enough for limits of file size and memory to act in the middle of it.
TENSORS = 12
NUMBERS = 65536


def checkpoint(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    state = {f"weight{i}": torch.randn(NUMBERS, generator=generator) for i in range(TENSORS)}
    return {"state_dict": state, "detector": {}, "global_step": seed}


def saved_step(path: Path) -> int:
    """Return the step of a checkpoint after checking that all its tensors are as they were written."""
    found: dict[str, Any] = torch.load(path, weights_only=True)
    expected = checkpoint(found["global_step"])["state_dict"]
    assert found["state_dict"].keys() == expected.keys()
    assert all(torch.equal(found["state_dict"][name], value) for name, value in expected.items())
    return int(found["global_step"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints" / "last.ckpt"


def test_a_checkpoint_replaces_the_one_before_it(path: Path) -> None:
    files = CheckpointFiles()
    for step in (1, 2):
        files.save_checkpoint(checkpoint(step), path)
        assert saved_step(path) == step
        assert files.load_checkpoint(path, weights_only=True)["global_step"] == step
    assert [found.name for found in path.parent.iterdir()] == ["last.ckpt"]


def test_file_and_folder_reach_the_disk_before_and_after_the_file_takes_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(opened: int) -> None:
        name = Path(f"/proc/self/fd/{opened}").readlink().name
        done.append(f"fsync {name}")
        fsync(opened)

    def record_replace(self: Path, target: Path) -> Path:
        done.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    CheckpointFiles().save_checkpoint(checkpoint(), path)
    assert done == [f"fsync .last.{os.getpid()}.partial.ckpt", "replace", "fsync checkpoints"]


def test_memory_holds_no_copy_of_a_checkpoint_while_it_is_written(path: Path) -> None:
    """Lightning's writer collects all of it in memory first: 3 MB and more."""
    content = checkpoint()
    tracemalloc.start()
    try:
        CheckpointFiles().save_checkpoint(content, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 4 * NUMBERS, "two tensors"


# -- disks that fail -------------------------------------------------------------------------------------


@contextmanager
def limited_file_size(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_untouched(path: Path, message: str) -> None:
    assert saved_step(path) == 1
    assert [found.name for found in path.parent.iterdir()] == ["last.ckpt"], "no partial file is left"
    assert message.startswith(f"{path}: this checkpoint could not be written (")
    assert "The one before it is complete" in message
    assert f"hydra.run.dir={path.parents[1]} and ckpt_path=auto" in message


@pytest.mark.parametrize("limit", [0, 1000, 1_000_000, 3_100_000], ids=lambda limit: f"after {limit} bytes")
def test_a_file_that_may_not_grow_leaves_the_former_checkpoint_intact(path: Path, limit: int) -> None:
    """A real error of the operating system, in the first bytes, in the tensors, and at the very end."""
    CheckpointFiles().save_checkpoint(checkpoint(1), path)
    assert path.stat().st_size > 3_145_728
    with limited_file_size(limit), pytest.raises(CheckpointWriteError) as raised:
        CheckpointFiles().save_checkpoint(checkpoint(2), path)
    assert_untouched(path, str(raised.value))
    assert "(File too large)" in str(raised.value)
    assert "Allow larger files (ulimit -f)" in str(raised.value)
    CheckpointFiles().save_checkpoint(checkpoint(2), path)
    assert saved_step(path) == 2


def test_a_full_disk_is_named_whenever_it_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network disks report it only when the file is synced."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    CheckpointFiles().save_checkpoint(checkpoint(1), path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(CheckpointWriteError) as raised:
            CheckpointFiles().save_checkpoint(checkpoint(2), path)
    assert_untouched(path, str(raised.value))
    assert "(No space left on device)" in str(raised.value)
    assert "Free space for two of them" in str(raised.value)
    assert explain(raised.value) == str(raised.value), "ends a run as a message, without a traceback"


def test_a_full_device_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real error of a full device, while the tensors are written."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")

    @contextmanager
    def on_full_device(_: Path) -> Iterator[Path]:
        yield full

    monkeypatch.setattr(write, "atomic_path", on_full_device)
    with pytest.raises(CheckpointWriteError, match=r"\(No space left on device\)\. There was none before it"):
        CheckpointFiles().save_checkpoint(checkpoint(), path)


def test_a_file_in_place_of_the_folder_is_named(path: Path) -> None:
    path.parents[1].mkdir()
    path.parent.write_text("a file in its place")
    with pytest.raises(CheckpointWriteError, match=r"last\.ckpt: this checkpoint could not be written \("):
        CheckpointFiles().save_checkpoint(checkpoint(), path)
    assert path.parent.read_text() == "a file in its place"


def _save_as_nobody(path: Path, answers: Any) -> None:
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        CheckpointFiles().save_checkpoint(checkpoint(2), path)
    except CheckpointWriteError as error:
        answers.put(str(error))
    else:
        answers.put("written")


def test_a_folder_without_permission_is_named() -> None:
    """As another user if this one is root, in a folder that others may read."""
    with TemporaryDirectory() as root:
        path = Path(root) / "run" / "checkpoints" / "last.ckpt"
        CheckpointFiles().save_checkpoint(checkpoint(1), path)
        Path(root).chmod(0o755)
        path.parent.chmod(0o555)
        context = get_context("fork")
        answers = context.SimpleQueue()
        process = context.Process(target=_save_as_nobody, args=(path, answers))
        process.start()
        message = answers.get()
        process.join()
        path.parent.chmod(0o755)
        assert_untouched(path, message)
    assert "(Permission denied)" in message
    assert f"Make {path.parent} a folder on a working disk that this user may write to" in message


# -- processes that are killed ---------------------------------------------------------------------------


def _killed_at_write(path: Path, number: int) -> None:
    count, original = 0, write._File.write

    def deadly(self: Any, data: bytes) -> int:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, data)

    write._File.write = deadly  # type: ignore[method-assign, assignment]
    CheckpointFiles().save_checkpoint(checkpoint(2), path)


@pytest.mark.parametrize("number", [1, 20, 45])
def test_a_process_killed_while_it_writes_leaves_the_former_checkpoint(path: Path, number: int) -> None:
    CheckpointFiles().save_checkpoint(checkpoint(1), path)
    process = get_context("fork").Process(target=_killed_at_write, args=(path, number))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert saved_step(path) == 1
    partial = path.with_name(f".last.{process.pid}.partial.ckpt")
    assert partial.exists()
    CheckpointFiles().save_checkpoint(checkpoint(2), path)
    assert not partial.exists(), "the next write removes partial files"
    assert saved_step(path) == 2

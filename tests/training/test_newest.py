"""Which checkpoint a run goes on from: the newest whole one among damaged and foreign files."""

from pathlib import Path

import pytest
import torch

from anydepth.training.checkpointing.newest import Newest, check_content, newest_checkpoint
from anydepth.training.checkpointing.read import CheckpointError, read_checkpoint


def write(path: Path, step: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"weight": torch.full((1000,), float(step))}
    torch.save({"state_dict": state, "detector": {}, "global_step": step}, path)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    """Change one byte of the weights."""
    content = bytearray(path.read_bytes())
    content[
        content.index(torch.full((2,), float(read_checkpoint(path)["global_step"])).numpy().tobytes())
    ] ^= 1
    path.write_bytes(content)


def zeros(path: Path) -> None:
    """What a file may hold after a loss of power where nothing sees to it that it is on the disk."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def test_an_empty_folder_holds_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == Newest()
    assert newest_checkpoint(tmp_path / "none") == Newest()


def test_most_steps_win_and_last_among_equals(tmp_path: Path, folder: Path) -> None:
    best, last = write(folder / "best.ckpt", 30), write(folder / "last.ckpt", 20)
    assert newest_checkpoint(tmp_path) == newest_checkpoint(folder) == Newest(best, 30)
    write(last, 30)
    write(folder / "zebra.ckpt", 30)
    assert newest_checkpoint(tmp_path) == Newest(last, 30)
    # Not finished by a killed process, or none at all.
    write(folder / ".last.12.partial.ckpt", 40)
    write(folder / "last.ckpt.old", 40)
    assert newest_checkpoint(tmp_path) == Newest(last, 30)


@pytest.mark.parametrize("damage", [cut, flip, zeros, lambda path: path.write_bytes(b"")], ids=range(4))
def test_damaged_ones_are_passed_over_and_named(tmp_path: Path, folder: Path, damage: object) -> None:
    assert callable(damage)
    last, best = write(folder / "last.ckpt", 20), write(folder / "best.ckpt", 10)
    damage(last)
    found = newest_checkpoint(tmp_path)
    assert (found.path, found.step) == (best, 10)
    (reason,) = found.passed_over
    assert reason.startswith(f"{last}: ")
    damage(best)
    found = newest_checkpoint(tmp_path)
    assert (found.path, len(found.passed_over)) == (None, 2)


def test_reading_a_checkpoint_does_not_notice_changed_weights(folder: Path) -> None:
    """Why checksums are compared."""
    last = write(folder / "last.ckpt", 20)
    check_content(last)
    flip(last)
    assert read_checkpoint(last)["state_dict"]["weight"][0] != 20
    with pytest.raises(CheckpointError, match=r"last\.ckpt: its content is damaged \(checksum of .*data/0\)"):
        check_content(last)


def test_files_of_other_programs_are_passed_over(tmp_path: Path, folder: Path) -> None:
    folder.mkdir()
    torch.save({"model": torch.zeros(1)}, folder / "other.ckpt")
    (folder / "folder.ckpt").mkdir()
    found = newest_checkpoint(tmp_path)
    assert found.path is None
    assert "not a checkpoint of anydepth-train" in found.passed_over[1]

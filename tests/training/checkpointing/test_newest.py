"""The checkpoint that a run resumes from: the newest undamaged one among damaged and foreign files."""

from pathlib import Path

import pytest
import torch

from anydepth.training.checkpointing.newest import NewestCheckpoint, check_content, find_newest_checkpoint
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
    """Fill a file with zeros, as a loss of power may leave one that was not synced to the disk."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert find_newest_checkpoint(tmp_path) == NewestCheckpoint()
    assert find_newest_checkpoint(tmp_path / "none") == NewestCheckpoint()


def test_most_steps_win_and_last_among_equals(tmp_path: Path, folder: Path) -> None:
    best, last = write(folder / "best.ckpt", 30), write(folder / "last.ckpt", 20)
    assert find_newest_checkpoint(tmp_path) == find_newest_checkpoint(folder) == NewestCheckpoint(best, 30)
    write(last, 30)
    write(folder / "zebra.ckpt", 30)
    assert find_newest_checkpoint(tmp_path) == NewestCheckpoint(last, 30)
    # The partial file of a killed process, and a file with another suffix.
    write(folder / ".last.12.partial.ckpt", 40)
    write(folder / "last.ckpt.old", 40)
    assert find_newest_checkpoint(tmp_path) == NewestCheckpoint(last, 30)


@pytest.mark.parametrize("damage", [cut, flip, zeros, lambda path: path.write_bytes(b"")], ids=range(4))
def test_damaged_ones_are_skipped_and_named(tmp_path: Path, folder: Path, damage: object) -> None:
    assert callable(damage)
    last, best = write(folder / "last.ckpt", 20), write(folder / "best.ckpt", 10)
    damage(last)
    found = find_newest_checkpoint(tmp_path)
    assert (found.path, found.step) == (best, 10)
    (reason,) = found.damaged
    assert reason.startswith(f"{last}: ")
    damage(best)
    found = find_newest_checkpoint(tmp_path)
    assert (found.path, len(found.damaged)) == (None, 2)


def test_reading_a_checkpoint_does_not_notice_changed_weights(folder: Path) -> None:
    """The reason for comparing checksums."""
    last = write(folder / "last.ckpt", 20)
    check_content(last)
    flip(last)
    assert read_checkpoint(last)["state_dict"]["weight"][0] != 20
    with pytest.raises(CheckpointError, match=r"last\.ckpt: its content is damaged \(checksum of .*data/0\)"):
        check_content(last)


def test_files_of_other_programs_are_skipped(tmp_path: Path, folder: Path) -> None:
    folder.mkdir()
    torch.save({"model": torch.zeros(1)}, folder / "other.ckpt")
    (folder / "folder.ckpt").mkdir()
    found = find_newest_checkpoint(tmp_path)
    assert found.path is None
    assert "not a checkpoint of anydepth-train" in found.damaged[1]

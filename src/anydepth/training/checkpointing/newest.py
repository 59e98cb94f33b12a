"""Find the checkpoint to resume from: the newest undamaged one of a run."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from anydepth.training.checkpointing.read import CheckpointError, read_checkpoint

AUTO = "auto"
"""Value of ``ckpt_path``: the newest checkpoint of the run's own folder, or a fresh start if it has none."""

FOLDER = "checkpoints"
"""Name of the folder of checkpoints in a run's folder."""

LAST = "last.ckpt"
"""Name of the checkpoint in that folder that training usually resumes from."""


@dataclass(frozen=True)
class NewestCheckpoint:
    """The newest undamaged checkpoint of a folder.

    Attributes:
        path: File of the checkpoint; None: there is none, or all are damaged.
        step: Optimizer steps done at the checkpoint.
        damaged: Errors of newer checkpoints that cannot be used, or of all of them.
    """

    path: Path | None = None
    step: int = 0
    damaged: tuple[str, ...] = ()


def find_newest_checkpoint(folder: str | Path) -> NewestCheckpoint:
    """Find the newest undamaged checkpoint: the one of most steps, ``last.ckpt`` before others.

    Args:
        folder: Folder of the run or of its checkpoints; need not exist.
    """
    folder = Path(folder)
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    steps: dict[Path, int] = {}
    damaged: list[str] = []
    # Partial files of other processes have hidden names.
    for path in sorted(path for path in folder.glob("*.ckpt") if not path.name.startswith(".")):
        try:
            steps[path] = _step(path)
        except (CheckpointError, FileNotFoundError) as error:
            damaged.append(str(error))
    for path in sorted(steps, key=lambda path: (steps[path], path.name == LAST, path.name), reverse=True):
        try:
            check_content(path)
        except CheckpointError as error:
            damaged.append(str(error))
        else:
            return NewestCheckpoint(path, steps[path], tuple(damaged))
    return NewestCheckpoint(damaged=tuple(damaged))


def check_content(path: str | Path) -> None:
    """Verify the checksum of every tensor of a checkpoint, which reading alone does not.

    Raises:
        CheckpointError: Something in the file has changed since it was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if wrong is not None:
        raise CheckpointError(f"{path}: its content is damaged (checksum of {wrong})")


def _step(path: Path) -> int:
    step = read_checkpoint(path).get("global_step", 0)
    return step if isinstance(step, int) else 0

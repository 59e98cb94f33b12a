"""Which checkpoint of a run to go on from: the newest one that is whole."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from anydepth.training.checkpointing.read import CheckpointError, read_checkpoint

AUTO = "auto"
"""As ``ckpt_path``: the newest checkpoint of the run's own folder, or a fresh start where there is none."""

FOLDER = "checkpoints"
"""In a run's folder."""

LAST = "last.ckpt"
"""In that folder: what training goes on from as a rule."""


@dataclass(frozen=True)
class Newest:
    """What a folder holds to go on from.

    Attributes:
        path: None: no checkpoint, or none that is whole.
        step: Optimizer steps that it has done.
        passed_over: Why newer ones, or all of them, cannot be used.
    """

    path: Path | None = None
    step: int = 0
    passed_over: tuple[str, ...] = ()


def newest_checkpoint(folder: str | Path) -> Newest:
    """The newest checkpoint of a run that is whole: of most steps, ``last.ckpt`` before others.

    Args:
        folder: Of the run, or the one of its checkpoints; need not exist.
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
            return Newest(path, steps[path], tuple(damaged))
    return Newest(passed_over=tuple(damaged))


def check_content(path: str | Path) -> None:
    """Check every tensor of a checkpoint against its checksum, which reading it does not.

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

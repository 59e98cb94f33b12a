"""Runs that SIGTERM or Ctrl-C ends: which of them it was, what is saved, and how to go on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from anydepth.config.resolvers import is_sweep
from anydepth.distributed import is_first_process
from anydepth.training.checkpointing.newest import find_newest_checkpoint
from anydepth.training.checkpointing.sigterm import Terminated
from anydepth.utils.command_line import setting
from anydepth.utils.console import print_lines
from anydepth.utils.interrupt import INTERRUPTED


class Interrupted(SystemExit):
    """Ctrl-C ended the run."""

    def __init__(self) -> None:
        super().__init__(INTERRUPTED)


@contextmanager
def recognise_interrupt() -> Iterator[None]:
    """Within the block, Ctrl-C raises :class:`Interrupted`.

    Lightning turns it into exit code 1, which a failed run has, too.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted from error
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise Interrupted from error


def cause_of(error: Terminated | Interrupted) -> str:
    """Return what ended the run."""
    return "Ctrl-C" if isinstance(error, Interrupted) else "SIGTERM"


def how_to_resume(folder: Path) -> str:
    """Return how the run or the sweep of a job goes on."""
    if is_sweep():
        return f"the same command and {setting('hydra.sweep.dir', HydraConfig.get().sweep.dir)}"
    return f"the same command and {setting('hydra.run.dir', folder)} and ckpt_path=auto"


@contextmanager
def explain_interruption(folder: Path) -> Iterator[None]:
    """Within the block, print one line when SIGTERM or Ctrl-C ends it: what is saved, and how to resume."""
    try:
        yield
    except (Terminated, Interrupted) as error:
        found = find_newest_checkpoint(folder)
        saved = "before its first checkpoint"
        if found.path is not None:
            saved = f"after step {found.step}, {found.path} is saved"
        if is_first_process():
            print_lines(f"stopped   by {cause_of(error)} {saved}; resume with {how_to_resume(folder)}")
        raise

"""The folder that Hydra makes for a command, checked before Hydra does."""

import os
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf


class FolderCheck(Callback):
    """Hydra callback that makes the folder of a run or a sweep, or says why it cannot be made.

    Hydra would end with a traceback of its own.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of a single run.

        Raises:
            SystemExit: It cannot be made or written to.
        """
        _check_given(config)
        _make(Path(str(config.hydra.run.dir)), "output" if "output" in config else "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of a sweep.

        Raises:
            SystemExit: It cannot be made or written to.
        """
        _check_given(config)
        _make(Path(str(config.hydra.sweep.dir)), "hydra.sweep.dir")


def _check_given(config: DictConfig) -> None:
    """Refuse an empty text, as from an unset variable of a shell, which would stand for another folder."""
    for key in ("output", "paths.output_root", "hydra.run.dir", "hydra.sweep.dir"):
        if OmegaConf.select(config, key, default=None) == "":
            sys.stderr.write(f"\nError: got {key}= without a value, expected a folder; give {key}=FOLDER\n")
            raise SystemExit(1)


def _make(folder: Path, key: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "it may not be written to"
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
    if reason:
        # Hydra turns exceptions of callbacks into warnings.
        sys.stderr.write(
            f"\nError: got {key}={folder}, expected a folder that can be made and written to ({reason}); "
            f"give another {key}\n"
        )
        raise SystemExit(1)

"""Reading the checkpoints that training writes."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anydepth.detector import Detector

_PREFIX = "detector."


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the remedy."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of a run, on the CPU; nothing in the file is executed.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It was cut short, or is no checkpoint of this framework.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; give a .ckpt file of a run's checkpoints folder"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is empty"
        raise CheckpointError(
            f"{path}: no complete checkpoint ({reason}). If it was cut short, resume from another one "
            "of the same folder"
        ) from error
    if not isinstance(checkpoint, Mapping) or not {"state_dict", "detector"} <= checkpoint.keys():
        raise CheckpointError(
            f"{path}: not a checkpoint of anydepth-train. Other weights start a run with weights=PATH"
        )
    return dict(checkpoint)


def detector_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The detector's weights in a checkpoint: the averaged ones where weights were averaged."""
    return {
        key.removeprefix(_PREFIX): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(_PREFIX)
    }


def check_resumable(path: str | Path, detector: Detector) -> None:
    """Check that a run of this detector can go on from a checkpoint.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is damaged, or holds another detector or other classes; says what differs.
    """
    checkpoint = read_checkpoint(path)
    saved, current = dict(checkpoint["detector"]), {**detector.config, "num_classes": detector.num_classes}
    differing = [
        f"{key}: {saved.get(key)!r} there, {current.get(key)!r} here"
        for key in sorted(saved.keys() | current.keys())
        if saved.get(key) != current.get(key)
    ]
    if tuple(checkpoint["class_names"]) != tuple(detector.class_names):
        differing.append(f"classes: {checkpoint['class_names']} there, {list(detector.class_names)} here")
    if differing:
        raise CheckpointError(
            f"{path}: cannot resume, the detector differs ({'; '.join(differing)}). Resume with the run's "
            "own settings, or start anew from its weights with weights=PATH"
        )

"""Reading the checkpoints that training writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anydepth.detector import Detector
from anydepth.utils.messages import short_repr
from anydepth.weights.files import check_archive

_PREFIX = "detector."


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the remedy."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of a run, on the CPU; nothing in the file is executed.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is truncated, not a checkpoint of this framework, or unpacks to more than its
            size.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; give a .ckpt file of a run's checkpoints folder"
        )
    try:
        check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # Arbitrary bytes may raise any exception: torch interprets them as pickle instructions.
    except Exception as error:
        reason = str(error).splitlines()[0][:300] if str(error) else "it is empty"
        raise CheckpointError(
            f"{path}: not a complete checkpoint ({reason}). If it is truncated, resume from another one of "
            "the same folder"
        ) from error
    if not isinstance(checkpoint, Mapping) or not _has_our_layout(checkpoint):
        raise CheckpointError(
            f"{path}: not a checkpoint of anydepth-train. To start a run from other weights, give "
            "weights=PATH"
        )
    return dict(checkpoint)


def _has_our_layout(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint has the entries that this framework reads, each of the right type."""
    weights, names = checkpoint.get("state_dict"), checkpoint.get("class_names", [])
    return (
        isinstance(weights, Mapping)
        and all(isinstance(key, str) for key in weights)
        and isinstance(checkpoint.get("detector"), Mapping)
        and all(isinstance(key, str) for key in checkpoint["detector"])
        and isinstance(names, list | tuple)
        and all(isinstance(name, str) for name in names)
    )


def _differ(there: object, here: object) -> bool:
    try:
        return bool(there != here)
    except Exception:  # A tensor of several elements has no single truth value.
        return True


def detector_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the detector's weights in a checkpoint: the averaged ones if the run averaged weights."""
    return {
        key.removeprefix(_PREFIX): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(_PREFIX)
    }


def check_resumable(path: str | Path, detector: Detector) -> None:
    """Check that a run of this detector can resume from a checkpoint.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is damaged, or holds another detector or other classes; the message says what
            differs.
    """
    checkpoint = read_checkpoint(path)
    saved, current = dict(checkpoint["detector"]), {**detector.config, "num_classes": detector.num_classes}
    differing = [
        f"{key}: {short_repr(saved.get(key))} in the checkpoint, {short_repr(current.get(key))} in this run"
        for key in sorted(saved.keys() | current.keys())
        if _differ(saved.get(key), current.get(key))
    ]
    names = list(checkpoint.get("class_names", []))
    if names != list(detector.class_names):
        current_names = short_repr(list(detector.class_names))
        differing.append(f"classes: {short_repr(names)} in the checkpoint, {current_names} in this run")
    if differing:
        raise CheckpointError(
            f"{path}: cannot resume, the detector differs ({'; '.join(differing)}). Resume with the run's "
            "own settings, or start a new run from its weights with weights=PATH"
        )

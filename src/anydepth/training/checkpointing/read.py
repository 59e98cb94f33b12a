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
    """A checkpoint of a run, on the CPU; nothing in the file is executed.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It was cut short, or is no checkpoint of this framework, or unfolds to more than its
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
    # Bytes that are no pickle of torch's raise whatever the instructions that they happen to be lead to.
    except Exception as error:
        reason = str(error).splitlines()[0][:300] if str(error) else "it is empty"
        raise CheckpointError(
            f"{path}: no complete checkpoint ({reason}). If it was cut short, resume from another one "
            "of the same folder"
        ) from error
    if not isinstance(checkpoint, Mapping) or not _is_ours(checkpoint):
        raise CheckpointError(
            f"{path}: not a checkpoint of anydepth-train. Other weights start a run with weights=PATH"
        )
    return dict(checkpoint)


def _is_ours(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has the parts that are read from it, each of its kind."""
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
    except Exception:  # Of a tensor there is no single answer.
        return True


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
        f"{key}: {short_repr(saved.get(key))} there, {short_repr(current.get(key))} here"
        for key in sorted(saved.keys() | current.keys())
        if _differ(saved.get(key), current.get(key))
    ]
    names = list(checkpoint.get("class_names", []))
    if names != list(detector.class_names):
        differing.append(f"classes: {short_repr(names)} there, {short_repr(list(detector.class_names))} here")
    if differing:
        raise CheckpointError(
            f"{path}: cannot resume, the detector differs ({'; '.join(differing)}). Resume with the run's "
            "own settings, or start anew from its weights with weights=PATH"
        )

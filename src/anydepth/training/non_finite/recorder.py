"""Files of single training steps, which ``anydepth-replay`` runs again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anydepth.depth import DepthSpace
from anydepth.structures import Batch, Targets
from anydepth.training.depth_schedule import PlannedPass
from anydepth.training.step_context import StepPlace
from anydepth.utils.files import atomic_path
from anydepth.weights.files import check_archive

FORMAT_VERSION = 1


class StepFileError(ValueError):
    """A file of a step that cannot be used; the message names it and says why."""


@dataclass(frozen=True, kw_only=True)
class RecordedStep:
    """What one process needs to run a step again, beside the weights.

    Attributes:
        batch: Images and boxes of this process.
        place: In the run.
        plan: The paths that ran: ``name``, ``depth`` as text, ``teacher`` and ``weight`` of each.
        terms: Losses by path and name, as they were found.
        message: What was wrong.
        rank: Of the process, from 0.
        processes: How many trained together; the others have files of their own.
        run: What the run was: ``config``, ``num_classes`` and ``device``.
    """

    batch: Batch
    place: StepPlace
    plan: tuple[Mapping[str, Any], ...]
    terms: Mapping[str, Mapping[str, float]]
    message: str
    rank: int = 0
    processes: int = 1
    run: Mapping[str, Any] = field(default_factory=dict)

    def paths(self, space: DepthSpace) -> tuple[PlannedPass, ...]:
        """The plan, for a detector of these depths.

        Raises:
            DepthError: A depth that the detector does not have.
        """
        return tuple(
            PlannedPass(str(path["name"]), space.parse(path["depth"]), path["teacher"], float(path["weight"]))
            for path in self.plan
        )


class StepRecorder:
    """Writes steps, each process its part, and the first process the weights that they began with.

    Files are ``step_N_rank_R.pt``, of about the size of the images, and ``step_N_weights.pt``, of about the
    size of the weights.

    Args:
        folder: Created with the first file.
        module: Whose weights a step begins with.
        config: Of the run, plain values.
        num_classes: Of the detector.
        limit: Steps that are written; 0: none.
        weights: Whether the weights are written too.

    Attributes:
        recorded: Steps written so far, over all resumed parts.

    Raises:
        ValueError: A negative limit.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        module: nn.Module,
        config: Mapping[str, Any],
        num_classes: int,
        limit: int = 3,
        weights: bool = True,
    ) -> None:
        if limit < 0:
            raise ValueError(f"non_finite.files={limit}: allowed are 0 (none) and above")
        self.folder = Path(folder)
        self.config = config
        self.num_classes = num_classes
        self.limit = limit
        self.weights = weights
        self.recorded = 0
        self._module = module

    def record(self, step: RecordedStep) -> str:
        """Write a step unless enough were written; a disk that refuses ends in a remark, not in an error.

        Returns:
            Where it was written, as a further line of a message, or an empty text.
        """
        if self.recorded >= self.limit:
            return ""
        self.recorded += 1
        name = f"step_{step.place.step}"
        path = self.folder / f"{name}_rank_{step.rank}.pt"
        try:
            with atomic_path(path) as partial:
                torch.save(_as_plain(step) | {"run": self._run(step)}, partial)
            if self.weights and step.rank == 0:
                with atomic_path(self.folder / f"{name}_weights.pt") as partial:
                    torch.save(_on_host(self._module.state_dict()), partial)
        except (OSError, RuntimeError) as error:
            # torch.save reports a full disk as a RuntimeError.
            return f"\nThe step could not be written to {path}: {error}"
        return f"\nRun it again with: anydepth-replay {path}"

    def _run(self, step: RecordedStep) -> dict[str, Any]:
        device = str(step.batch.images.device.type)
        return {"config": dict(self.config), "num_classes": self.num_classes, "device": device}


def read_step(path: str | Path) -> RecordedStep:
    """A step that :class:`StepRecorder` wrote, on the CPU; nothing in the file is executed.

    Raises:
        FileNotFoundError: There is no such file.
        StepFileError: It is damaged, or of another program or version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a step_N_rank_R.pt of a run's folder non_finite")
    try:
        check_archive(path)
        plain = torch.load(path, map_location="cpu", weights_only=True)
    # Bytes that are no pickle of torch's raise whatever the instructions that they happen to be lead to.
    except Exception as error:
        reason = str(error).splitlines()[0][:300] if str(error) else "it is empty"
        raise StepFileError(f"{path}: no complete file of a step ({reason})") from error
    if not isinstance(plain, Mapping) or plain.get("format") != FORMAT_VERSION:
        raise StepFileError(f"{path}: no file of a step that this version of anydepth reads")
    try:
        return _from_plain(plain)
    except (KeyError, TypeError, ValueError) as error:
        raise StepFileError(f"{path}: a damaged file of a step ({error!r})") from error


def whole_step(path: str | Path) -> tuple[RecordedStep, tuple[int, ...]]:
    """A step with the images of all processes, as far as their files lie beside that of one of them.

    One process with all images takes the step that several took together.

    Returns:
        The step, and the processes whose files are missing.

    Raises:
        FileNotFoundError: There is no such file.
        StepFileError: See :func:`read_step`.
    """
    path = Path(path)
    given = read_step(path)
    parts: list[RecordedStep] = []
    missing: list[int] = []
    for rank in range(given.processes):
        other = path.with_name(f"step_{given.place.step}_rank_{rank}.pt")
        if rank == given.rank:
            parts.append(given)
        elif other.is_file():
            parts.append(read_step(other))
        else:
            missing.append(rank)
    batch = Batch(
        images=torch.cat([part.batch.images for part in parts]),
        targets=tuple(target for part in parts for target in part.batch.targets),
        image_ids=tuple(image for part in parts for image in part.batch.image_ids),
        original_sizes=tuple(size for part in parts for size in part.batch.original_sizes),
    )
    return replace(given, batch=batch, terms=_mean_terms(parts)), tuple(missing)


def _mean_terms(parts: Sequence[RecordedStep]) -> dict[str, dict[str, float]]:
    """The losses of the whole batch: the mean over processes, each of which divides by its share of it."""
    return {
        path: {name: sum(part.terms[path][name] for part in parts) / len(parts) for name in terms}
        for path, terms in parts[0].terms.items()
    }


def weights_beside(path: str | Path, step: RecordedStep) -> Path:
    """Where the weights that a step began with lie, if they were written."""
    return Path(path).with_name(f"step_{step.place.step}_weights.pt")


def _as_plain(step: RecordedStep) -> dict[str, Any]:
    """Tensors in host memory and plain values, which ``weights_only`` reads."""
    batch = step.batch.to("cpu")
    place = step.place
    return {
        "format": FORMAT_VERSION,
        "images": batch.images,
        "boxes_cxcywh": [target.boxes_cxcywh for target in batch.targets],
        "labels": [target.labels for target in batch.targets],
        "image_ids": list(batch.image_ids),
        "original_sizes": [list(size) for size in batch.original_sizes],
        "seed": place.seed,
        "epoch": place.epoch,
        "batch_idx": place.batch_idx,
        "step": place.step,
        "plan": [dict(path) for path in step.plan],
        "terms": {name: dict(terms) for name, terms in step.terms.items()},
        "message": step.message,
        "rank": step.rank,
        "processes": step.processes,
    }


def plain_pass(path: PlannedPass) -> dict[str, Any]:
    """A path of a plan as plain values."""
    return {
        "name": path.name,
        "depth": str(path.depth),
        "teacher": path.teacher,
        "weight": path.weight,
    }


def _from_plain(plain: Mapping[str, Any]) -> RecordedStep:
    targets = [Targets(*pair) for pair in zip(plain["boxes_cxcywh"], plain["labels"], strict=True)]
    sizes = tuple((int(height), int(width)) for height, width in plain["original_sizes"])
    places = {name: int(plain[name]) for name in ("seed", "epoch", "batch_idx", "step")}
    return RecordedStep(
        batch=Batch(plain["images"], tuple(targets), tuple(plain["image_ids"]), sizes),
        place=StepPlace(**places),
        plan=tuple(plain["plan"]),
        terms=plain["terms"],
        message=str(plain["message"]),
        rank=int(plain["rank"]),
        processes=int(plain["processes"]),
        run=plain["run"],
    )


def _on_host(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in state.items()}

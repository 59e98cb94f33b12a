"""Files of single training steps, which ``anydepth-replay`` runs again."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anydepth.depth import DepthSpace
from anydepth.detector import Teaching
from anydepth.structures import Batch, Targets
from anydepth.training.depth_schedule import PlannedPass
from anydepth.training.step_context import StepPlace
from anydepth.utils.files import atomic_path
from anydepth.weights.files import check_archive

FORMAT_VERSION = 1


class StepFileError(ValueError):
    """A step file that cannot be used; the message names it and says why."""


@dataclass(frozen=True, kw_only=True)
class RecordedStep:
    """Everything that one process needs to run a step again, except the weights.

    Attributes:
        batch: Images and boxes of this process.
        place: Position of the step in the run.
        plan: Passes that ran: ``name``, ``depth`` as text, ``teacher``, ``weight`` and ``teaching`` of each.
        terms: Losses by pass and name, as computed in training.
        message: Description of what was wrong.
        rank: Rank of the process, from 0.
        processes: Number of processes that trained together; the others have files of their own.
        run: Description of the run: ``config``, ``num_classes`` and ``device``.
    """

    batch: Batch
    place: StepPlace
    plan: tuple[Mapping[str, Any], ...]
    terms: Mapping[str, Mapping[str, float]]
    message: str
    rank: int = 0
    processes: int = 1
    run: Mapping[str, Any] = field(default_factory=dict)

    def planned_passes(self, space: DepthSpace) -> tuple[PlannedPass, ...]:
        """Return the plan for a detector with these depths.

        Raises:
            DepthError: A depth that the detector does not have.
        """
        return tuple(
            PlannedPass(
                str(one["name"]),
                space.parse(one["depth"]),
                one["teacher"],
                float(one["weight"]),
                # Files of earlier versions have none.
                Teaching(**one.get("teaching", {})),
            )
            for one in self.plan
        )


class StepRecorder:
    """Writes steps: each process its own part, and the first process also the weights before the step.

    Files are ``step_N_rank_R.pt``, of about the size of the images, and ``step_N_weights.pt``, of about the
    size of the weights.

    Args:
        folder: Folder of the files; created with the first one.
        module: Module whose weights are written.
        config: Configuration of the run, plain values.
        num_classes: Number of classes of the detector.
        limit: Most steps to write; 0: none.
        weights: Whether the weights are written too.

    Attributes:
        recorded: Steps written so far, including those before a resume.

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
        """Write a step unless the limit is reached; a failing disk raises nothing, the message reports it.

        Returns:
            A line to append to the error message: where the step was written, or ``""``.
        """
        if self.recorded >= self.limit:
            return ""
        self.recorded += 1
        name = f"step_{step.place.step}"
        path = self.folder / f"{name}_rank_{step.rank}.pt"
        try:
            with atomic_path(path) as partial:
                torch.save(_to_plain(step) | {"run": self._describe_run(step)}, partial)
            if self.weights and step.rank == 0:
                with atomic_path(self.folder / f"{name}_weights.pt") as partial:
                    torch.save(_to_host(self._module.state_dict()), partial)
        except (OSError, RuntimeError) as error:
            # torch.save reports a full disk as a RuntimeError.
            return f"\nThe step could not be written to {path}: {error}"
        return f"\nRun it again with: anydepth-replay {shlex.quote(str(path))}"

    def _describe_run(self, step: RecordedStep) -> dict[str, Any]:
        device = str(step.batch.images.device.type)
        return {"config": dict(self.config), "num_classes": self.num_classes, "device": device}


def read_step(path: str | Path) -> RecordedStep:
    """Read a step that :class:`StepRecorder` wrote, on the CPU; nothing in the file is executed.

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
    # Arbitrary bytes may raise any exception: torch interprets them as pickle instructions.
    except Exception as error:
        reason = str(error).splitlines()[0][:300] if str(error) else "it is empty"
        raise StepFileError(f"{path}: not a complete step file ({reason})") from error
    if not isinstance(plain, Mapping) or plain.get("format") != FORMAT_VERSION:
        raise StepFileError(f"{path}: not a step file that this version of anydepth reads")
    try:
        return _from_plain(plain)
    except (KeyError, TypeError, ValueError) as error:
        raise StepFileError(f"{path}: damaged step file ({error!r})") from error


def read_whole_step(path: str | Path) -> tuple[RecordedStep, tuple[int, ...]]:
    """Read a step with the images of all processes whose files lie in the same folder.

    One process with all images repeats the step that several processes took together.

    Returns:
        The step, and the ranks of processes whose files are missing.

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
    """Return the losses of the whole batch: the mean over processes, each of which divides by its share."""
    return {
        planned: {name: sum(part.terms[planned][name] for part in parts) / len(parts) for name in terms}
        for planned, terms in parts[0].terms.items()
    }


def weights_file(path: str | Path, step: RecordedStep) -> Path:
    """Return the file of the weights before a step, which exists only if they were written."""
    return Path(path).with_name(f"step_{step.place.step}_weights.pt")


def _to_plain(step: RecordedStep) -> dict[str, Any]:
    """Return tensors in host memory and plain values, which ``weights_only`` reads."""
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
        "plan": [dict(planned) for planned in step.plan],
        "terms": {name: dict(terms) for name, terms in step.terms.items()},
        "message": step.message,
        "rank": step.rank,
        "processes": step.processes,
    }


def pass_to_plain(planned: PlannedPass) -> dict[str, Any]:
    """Convert a planned pass to plain values."""
    return {
        "name": planned.name,
        "depth": str(planned.depth),
        "teacher": planned.teacher,
        "weight": planned.weight,
        "teaching": {
            "strength": planned.teaching.strength,
            "factors": dict(planned.teaching.factors),
            "compares": planned.teaching.compares,
        },
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


def _to_host(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in state.items()}

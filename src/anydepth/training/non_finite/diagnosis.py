"""Diagnosis of NaN and infinity: which pass, loss term, parameters and images a bad step comes from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anydepth.detector import NonFiniteError
from anydepth.layers.precision import disable_autocast
from anydepth.structures import Batch
from anydepth.training.depth_schedule import PlannedPass
from anydepth.training.passes import PassGraph
from anydepth.training.step_context import StepPlace

# Parameters that a message names: a NaN usually spreads to most of them, and the first ones tell where.
_MAX_NAMES = 3


@dataclass(frozen=True)
class PassRecord:
    """Losses of one pass.

    Attributes:
        planned: Entry of the plan.
        terms: Detached loss terms by name.
        fault: NaN or infinity that the losses found in their inputs.
    """

    planned: PlannedPass
    terms: Mapping[str, Tensor]
    fault: NonFiniteError | None

    def describe_fault(self, image_ids: Sequence[int]) -> str | None:
        """Return what is not finite as text, or None if everything is finite."""
        bad = [f"{name} is {float(value)}" for name, value in self.terms.items() if not value.isfinite()]
        if not bad and not torch.stack(list(self.terms.values())).sum().isfinite():
            bad = ["the sum of all terms is infinite"]
        if self.fault is None and not bad:
            return None
        ids = list(image_ids if self.fault is None else (image_ids[i] for i in self.fault.images))
        terms = f"loss {', '.join(bad)}; " if bad else ""
        reason = f"; {self.fault}" if self.fault else ""
        return f"pass {self.planned.name!r}: {terms}image ids {ids}{reason}"


@dataclass(frozen=True)
class BatchRecord:
    """A batch of the current step and the passes that ran on it."""

    batch: Batch
    place: StepPlace
    passes: tuple[PassRecord, ...]


@dataclass
class Diagnosis:
    """Findings of one process about a bad step.

    Attributes:
        lines: Descriptions of what is wrong; empty: nothing in this process.
        batch: Position of the first faulty batch among those of the step; None: none in this process.
    """

    lines: list[str]
    batch: int | None = None


def diagnose_loss(records: Sequence[BatchRecord]) -> Diagnosis:
    """Find the passes whose losses are not finite, with their terms and images."""
    diagnosis = Diagnosis([])
    for position, record in enumerate(records):
        faults = [one.describe_fault(record.batch.image_ids) for one in record.passes]
        found = [fault for fault in faults if fault is not None]
        if found and diagnosis.batch is None:
            diagnosis.batch = position
        diagnosis.lines += found
    return diagnosis


def diagnose_gradients(
    records: Sequence[BatchRecord],
    parameters: Mapping[str, nn.Parameter],
    replay: Callable[[BatchRecord], Iterator[PassGraph]],
) -> Diagnosis:
    """Find the passes whose gradients are not finite, by running the batches of the step again.

    In distributed training every process must call this.

    Args:
        records: Batches of the step.
        parameters: Trainable parameters by name, with the gradients of the step.
        replay: Function that runs the passes of a batch again.
    """
    diagnosis = Diagnosis([])
    for position, record in enumerate(records):
        with torch.enable_grad():
            for graph in replay(record):
                with disable_autocast(graph.total.device):
                    gradients = graph.gradients(list(parameters.values()), keep=False)
                bad = names_of_non_finite(dict(zip(parameters, gradients, strict=True)))
                if bad:
                    diagnosis.batch = position if diagnosis.batch is None else diagnosis.batch
                    ids = list(record.batch.image_ids)
                    diagnosis.lines.append(f"pass {graph.planned.name!r}: gradient of {bad}; image ids {ids}")
    return diagnosis


def diagnose_sum(records: Sequence[BatchRecord], parameters: Mapping[str, nn.Parameter]) -> str:
    """Describe gradients that overflow only in their sum over passes, batches and processes."""
    bad = names_of_non_finite({name: parameter.grad for name, parameter in parameters.items()})
    ids = [image for record in records for image in record.batch.image_ids]
    what = bad or "all parameters together"
    return f"gradient of {what}, although that of each pass alone is finite; image ids {ids}"


def names_of_non_finite(gradients: Mapping[str, Tensor | None]) -> str:
    """Return the names of the first parameters with non-finite gradients, or "" if all are finite."""
    present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    if not present:
        return ""
    finite = torch.stack([gradient.isfinite().all() for gradient in present.values()]).tolist()
    bad = [name for name, good in zip(present, finite, strict=True) if not good]
    hidden = len(bad) - _MAX_NAMES
    more = f" and {hidden} more of {len(present)} parameters" if hidden > 0 else ""
    return ", ".join(bad[:_MAX_NAMES]) + more

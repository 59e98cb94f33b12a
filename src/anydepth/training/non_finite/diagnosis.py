"""What is to blame for a step whose losses or gradients are NaN or infinite."""

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

# Parameters that a message names.
_NAMED = 3


@dataclass(frozen=True)
class SeenPass:
    """The losses of a path: what was planned, its detached terms, and what the losses found wrong."""

    path: PlannedPass
    terms: Mapping[str, Tensor]
    fault: NonFiniteError | None

    def complaint(self, image_ids: Sequence[int]) -> str | None:
        """What is not finite, in words; None: all is."""
        bad = [f"{name} is {float(value)}" for name, value in self.terms.items() if not value.isfinite()]
        if not bad and not torch.stack(list(self.terms.values())).sum().isfinite():
            bad = ["the sum of all terms is infinite"]
        if self.fault is None and not bad:
            return None
        ids = list(image_ids if self.fault is None else (image_ids[i] for i in self.fault.images))
        terms = f"loss {', '.join(bad)}; " if bad else ""
        reason = f"; {self.fault}" if self.fault else ""
        return f"path {self.path.name!r}: {terms}image ids {ids}{reason}"


@dataclass(frozen=True)
class SeenBatch:
    """A batch of the running step and the paths that ran on it."""

    batch: Batch
    place: StepPlace
    paths: tuple[SeenPass, ...]


@dataclass
class Finding:
    """What a process found out about a bad step.

    Attributes:
        lines: What is wrong, for people; none: nothing here.
        batch: Position of the batch to blame among those of the step; None: none here.
    """

    lines: list[str]
    batch: int | None = None


def loss_finding(seen: Sequence[SeenBatch]) -> Finding:
    """The paths whose losses are not finite, with terms and images."""
    finding = Finding([])
    for position, one in enumerate(seen):
        complaints = [path.complaint(one.batch.image_ids) for path in one.paths]
        found = [complaint for complaint in complaints if complaint is not None]
        if found and finding.batch is None:
            finding.batch = position
        finding.lines += found
    return finding


def gradient_finding(
    seen: Sequence[SeenBatch],
    parameters: Mapping[str, nn.Parameter],
    replay: Callable[[SeenBatch], Iterator[PassGraph]],
) -> Finding:
    """The paths whose gradients are not finite, found by running the batches of the step again.

    In distributed training every process must call this.

    Args:
        seen: The batches of the step.
        parameters: In training, by name, with the gradients of the step.
        replay: Runs the paths of a batch again.
    """
    finding = Finding([])
    for position, one in enumerate(seen):
        with torch.enable_grad():
            for graph in replay(one):
                with disable_autocast(graph.total.device):
                    gradients = graph.gradients(list(parameters.values()), keep=False)
                bad = names_of_non_finite(dict(zip(parameters, gradients, strict=True)))
                if bad:
                    finding.batch = position if finding.batch is None else finding.batch
                    ids = list(one.batch.image_ids)
                    finding.lines.append(f"path {graph.path.name!r}: gradient of {bad}; image ids {ids}")
    return finding


def sum_finding(seen: Sequence[SeenBatch], parameters: Mapping[str, nn.Parameter]) -> str:
    """What is known of gradients that overflow only where they are summed, over paths, batches, processes."""
    bad = names_of_non_finite({name: parameter.grad for name, parameter in parameters.items()})
    ids = [image for one in seen for image in one.batch.image_ids]
    what = bad or "all parameters together"
    return f"gradient of {what}, though that of each path alone is finite; image ids {ids}"


def names_of_non_finite(gradients: Mapping[str, Tensor | None]) -> str:
    """The parameters whose gradients are not finite, the first ones by name; empty where there are none."""
    present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    if not present:
        return ""
    finite = torch.stack([gradient.isfinite().all() for gradient in present.values()]).tolist()
    bad = [name for name, good in zip(present, finite, strict=True) if not good]
    more = f" and {len(bad) - _NAMED} more of {len(present)} parameters" if len(bad) > _NAMED else ""
    return ", ".join(bad[:_NAMED]) + more

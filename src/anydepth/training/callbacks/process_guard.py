"""Check before training that all processes of a run use the same settings, data and weights."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from anydepth import distributed

# Differences that a message lists: enough to see a pattern, of possibly thousands of parameters.
_MAX_LISTED = 5

PARAMETERS = "parameter"


class ProcessMismatchError(RuntimeError):
    """Processes of one run do not train the same thing; the message says what differs."""


class ProcessGuard(pl.Callback):
    """Stops a run whose processes differ in their settings, their data or their weights, before it trains.

    A stateful sweeper draws again in every process that a strategy starts, a machine may hold another version
    of the data, a weights file may have changed in between: the run would end without any error after
    training a mixture. The initial weights, which training would overwrite with those of the first process,
    are compared as well.

    Args:
        facts: Function that returns what has to be equal: values by name, grouped by kind, e.g.
            ``{"setting": {"recipe.lr": "0.1"}}``. Called only if there are several processes.
        remedies: Advice for a difference, by kind.
    """

    def __init__(
        self,
        *,
        facts: Callable[[], Mapping[str, Mapping[str, str]]],
        remedies: Mapping[str, str] | None = None,
    ) -> None:
        self.facts = facts
        self.remedies = remedies or {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare the facts of all processes.

        Raises:
            ProcessMismatchError: They differ; raised in every process.
        """
        if distributed.world_size() == 1:
            return
        own = {**self.facts(), PARAMETERS: _checksums(pl_module)}
        found: list[Mapping[str, Mapping[str, str]]] = [{}] * distributed.world_size()
        dist.all_gather_object(found, own)
        different = [kind for kind in own if any(other[kind] != found[0][kind] for other in found)]
        if different:
            lines = [line for kind in different for line in self._lines(kind, found)]
            raise ProcessMismatchError("the processes of this run differ.\n" + "\n".join(lines))

    def _lines(self, kind: str, found: list[Mapping[str, Mapping[str, str]]]) -> Iterator[str]:
        differences = [
            f"{kind} {name}: {other[kind].get(name, 'none')} in process {rank}, "
            f"{found[0][kind].get(name, 'none')} in process 0"
            for rank, other in enumerate(found)
            for name in sorted(other[kind].keys() | found[0][kind].keys())
            if other[kind].get(name) != found[0][kind].get(name)
        ]
        yield from islice(differences, _MAX_LISTED)
        if len(differences) > _MAX_LISTED:
            yield f"and {len(differences) - _MAX_LISTED} more"
        if kind in self.remedies:
            yield self.remedies[kind]


def _checksums(module: nn.Module) -> dict[str, str]:
    """Return shape, type and checksum of every parameter and persistent buffer, by name."""
    return {
        name: f"{list(value.shape)} {value.dtype} {_checksum(value.detach().cpu().contiguous())}"
        for name, value in module.state_dict().items()
    }


def _checksum(value: Tensor) -> str:
    return hashlib.sha256(value.flatten().view(torch.uint8).numpy().data).hexdigest()[:8]

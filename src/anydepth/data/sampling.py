"""The order of an epoch: which process sees which image when, and which others it may be mixed with.

Everything is a function of (seed, epoch) and of how many processes and images per step there are, computed
in the process that trains: worker processes are told by the keys they get. A run that is resumed in the
middle of an epoch therefore goes on with the first image that it had not seen.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from anydepth.data.source import SampleSource

SHARDS_IN_WINDOW = 8
"""Shards that each process draws from at a time; more mix better and need more of the cache."""

LANES = 8
"""Batches whose numbers are equal modulo this share their partners: where the number of workers divides it,
one worker makes all batches of a lane, and finds partners among the images that it has decoded already."""


class SampleKey(NamedTuple):
    """Which image in which epoch; a sample is a function of this and the seed alone.

    The epoch and the partners travel with the row because worker processes that outlive an epoch are told
    nothing else.

    Attributes:
        epoch: From 0.
        row: Of the image.
        partners: Rows of other images that the augmentation may mix in; none where it must not.
    """

    epoch: int
    row: int
    partners: tuple[int, ...] = ()


class EpochSampler(DistributedSampler[SampleKey]):
    """Shuffles by (seed, epoch) and shares the images out among processes.

    Lightning sets the epoch and leaves samplers of this kind in place. What does not fill a batch in every
    process is left out; which images these are is drawn anew in each epoch, alike for files and shards.

    Args:
        source: What to draw from.
        seed: Seed of the order.
        batch_size: Images per step and process.
        num_replicas: Number of processes.
        rank: Which of them this is.
        partners: How many other images each key names.
        partner_pool: Images that these are drawn from: the last ones of the same lane (see :data:`LANES`).
        mixed_epochs: Epochs from this one on name no partners; None: all epochs do.
    """

    def __init__(
        self,
        *,
        source: SampleSource,
        seed: int,
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        partners: int = 0,
        partner_pool: int = 64,
        mixed_epochs: int | None = None,
    ) -> None:
        super().__init__(
            source,  # type: ignore[arg-type]
            num_replicas=num_replicas,
            rank=rank,
            shuffle=True,
            seed=seed,
            drop_last=True,
        )
        self.batch_size = batch_size
        self.partners = partners
        self.partner_pool = partner_pool
        self.mixed_epochs = mixed_epochs
        self.num_samples = len(source) // (num_replicas * batch_size) * batch_size
        self.total_size = self.num_samples * num_replicas
        self._shard_starts = source.shard_starts
        self._count = len(source)
        self._done = (0, 0)

    def resume(self, epoch: int, batches: int) -> None:
        """Begin this epoch, which was interrupted, after so many batches; its length stays that of all."""
        self.set_epoch(epoch)
        self._done = (epoch, batches)

    def __iter__(self) -> Iterator[SampleKey]:
        epoch, batches = self._done
        start = batches * self.batch_size if epoch == self.epoch else 0
        rows = epoch_order(
            self._count,
            seed=self.seed,
            epoch=self.epoch,
            processes=self.num_replicas,
            batch_size=self.batch_size,
            shard_starts=self._shard_starts,
        )[self.rank]
        partners = self._partners(rows)
        for position in range(start, len(rows)):
            yield SampleKey(self.epoch, int(rows[position]), tuple(partners[position].tolist()))

    def _partners(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Partners [share, partners] of a process's rows [share]."""
        if not self.partners or (self.mixed_epochs is not None and self.epoch >= self.mixed_epochs):
            return np.empty((len(rows), 0), dtype=np.int64)
        random = np.random.default_rng((self.seed, self.epoch, self.rank, 1))
        batches = rows.reshape(-1, self.batch_size)
        lanes = LANES if len(rows) >= LANES * self.partner_pool else 1
        drawn = np.empty((*batches.shape, self.partners), dtype=np.int64)
        for lane in range(lanes):
            drawn[lane::lanes] = _draw_recent(batches[lane::lanes], self.partners, self.partner_pool, random)
        return drawn.reshape(len(rows), self.partners)


def epoch_order(
    count: int,
    *,
    seed: int,
    epoch: int,
    processes: int,
    batch_size: int,
    shard_starts: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Rows [processes, share] in the order of an epoch; no row comes twice.

    Args:
        count: Rows there are.
        seed: From 0.
        epoch: From 0.
        processes: That train together.
        batch_size: Images per step and process; ``share`` is a multiple of it.
        shard_starts: [S + 1] first row of each shard. Rows are then drawn from a few shards at a time, each
            of which one process reads alone, up to those at the ends of its share.
    """
    random = np.random.default_rng((seed, epoch))
    kept = count // (processes * batch_size) * processes * batch_size
    order: NDArray[np.int64] = random.permutation(count)
    if shard_starts is None:
        return order[:kept].reshape(-1, processes, batch_size).swapaxes(0, 1).reshape(processes, -1)
    left_out = np.zeros(count, dtype=bool)
    left_out[order[kept:]] = True
    shards = random.permutation(len(shard_starts) - 1)
    rows = np.concatenate([np.arange(shard_starts[shard], shard_starts[shard + 1]) for shard in shards])
    shares: NDArray[np.int64] = rows[~left_out[rows]].reshape(processes, -1)
    window = max(1, round(SHARDS_IN_WINDOW * count / len(shards)))
    for start in range(0, shares.shape[1], window):
        random.permuted(shares[:, start : start + window], axis=1, out=shares[:, start : start + window])
    return shares


def _draw_recent(
    batches: NDArray[np.int64], partners: int, pool: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Partners [n, B, partners] of batches [n, B], from the last ``pool`` rows up to the end of each batch.

    The first batches draw from as many rows, some of which follow them.
    """
    rows = batches.reshape(-1)
    window = min(pool, len(rows))
    ends = batches.shape[1] * np.arange(1, len(batches) + 1)
    first = np.maximum(ends - window, 0)
    drawn: NDArray[np.int64] = random.integers(0, window, (*batches.shape, partners))
    picked: NDArray[np.int64] = rows[first[:, None, None] + drawn]
    return picked

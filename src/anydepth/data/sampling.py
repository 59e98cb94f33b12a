"""Sampling: the order of the images of an epoch, their processes, and the partners to mix them with.

Everything is a function of (seed, epoch), the number of processes and the images per step, computed in the
training process: worker processes receive it with the keys of their samples. A run that is resumed in the
middle of an epoch therefore continues with the first image that it had not seen.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from anydepth.data.source import SampleSource

SHARDS_IN_WINDOW = 8
"""Shards that each process draws from at a time: more shuffle better, but occupy more of the cache."""

LANES = 8
"""Number of lanes: batches whose numbers are equal modulo this draw partners from each other. If the number
of workers divides it, one worker makes all batches of a lane, and finds the partners in its own cache of
decoded images. 8 suits 1, 2, 4 and 8 workers; more lanes need more images before each lane has a full
pool."""


class SampleKey(NamedTuple):
    """Key of a sample, which is a function of the key and the seed alone.

    The epoch and the partners travel with the row because persistent workers receive nothing else.

    Attributes:
        epoch: Epoch, from 0.
        row: Row of the image.
        partners: Rows of the images that the augmentation may mix in; empty without mixing.
    """

    epoch: int
    row: int
    partners: tuple[int, ...] = ()


class EpochSampler(DistributedSampler[SampleKey]):
    """Distributed sampler that shuffles by (seed, epoch) and splits the images among processes.

    Lightning sets its epoch and does not replace it, because it is a ``DistributedSampler``. Images that do
    not fill a batch in every process are dropped; they are drawn again in each epoch, equally for files and
    shards.

    Args:
        source: Source of the images.
        seed: Seed of the order.
        batch_size: Images per step and process.
        num_replicas: Number of processes.
        rank: Rank of this process.
        partners: Number of partners per key.
        partner_pool: Number of images that partners are drawn from: the last ones of the same lane (see
            :data:`LANES`).
        mixed_epochs: Number of epochs with partners, from the first; None means all epochs.
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
        self._resume_point = (0, 0)

    def resume(self, epoch: int, batches: int) -> None:
        """Resume an interrupted epoch after this many batches; its length remains that of the whole epoch."""
        self.set_epoch(epoch)
        self._resume_point = (epoch, batches)

    def __iter__(self) -> Iterator[SampleKey]:
        epoch, batches = self._resume_point
        start = batches * self.batch_size if epoch == self.epoch else 0
        rows = epoch_order(
            self._count,
            seed=self.seed,
            epoch=self.epoch,
            processes=self.num_replicas,
            batch_size=self.batch_size,
            shard_starts=self._shard_starts,
        )[self.rank]
        partners = self._draw_partners(rows)
        for position in range(start, len(rows)):
            yield SampleKey(self.epoch, int(rows[position]), tuple(partners[position].tolist()))

    def _draw_partners(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Draw the partners [share, partners] of the rows of this process [share]."""
        if not self.partners or (self.mixed_epochs is not None and self.epoch >= self.mixed_epochs):
            return np.empty((len(rows), 0), dtype=np.int64)
        # The 1 keeps this stream of random numbers apart from that of `epoch_order`.
        rng = np.random.default_rng((self.seed, self.epoch, self.rank, 1))
        batches = rows.reshape(-1, self.batch_size)  # [n, B]
        # In a small data set, lanes would be too short to fill their pools.
        lanes = LANES if len(rows) >= LANES * self.partner_pool else 1
        partners = np.empty((*batches.shape, self.partners), dtype=np.int64)  # [n, B, partners]
        for lane in range(lanes):
            partners[lane::lanes] = _draw_recent(batches[lane::lanes], self.partners, self.partner_pool, rng)
        return partners.reshape(len(rows), self.partners)


def epoch_order(
    count: int,
    *,
    seed: int,
    epoch: int,
    processes: int,
    batch_size: int,
    shard_starts: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return the rows [processes, share] of an epoch in order; no row comes twice.

    Args:
        count: Number of rows.
        seed: Seed of the order, from 0.
        epoch: Epoch, from 0.
        processes: Number of training processes.
        batch_size: Images per step and process; ``share`` is a multiple of it.
        shard_starts: First row of each shard and, last, ``count`` [S + 1]. Rows are then drawn from a few
            shards at a time, and a shard belongs to one process, except those at the ends of its share.
    """
    rng = np.random.default_rng((seed, epoch))
    kept = count // (processes * batch_size) * processes * batch_size
    order: NDArray[np.int64] = rng.permutation(count)  # [count]
    if shard_starts is None:
        # Batches are dealt to the processes in turn.
        return order[:kept].reshape(-1, processes, batch_size).swapaxes(0, 1).reshape(processes, -1)
    dropped = np.zeros(count, dtype=bool)
    dropped[order[kept:]] = True  # The same rows as for files.
    shards = rng.permutation(len(shard_starts) - 1)  # [S]
    rows = np.concatenate([np.arange(shard_starts[shard], shard_starts[shard + 1]) for shard in shards])
    shares: NDArray[np.int64] = rows[~dropped[rows]].reshape(processes, -1)  # [processes, share]
    window = max(1, round(SHARDS_IN_WINDOW * count / len(shards)))  # Rows of as many shards, on average.
    for start in range(0, shares.shape[1], window):
        rng.permuted(shares[:, start : start + window], axis=1, out=shares[:, start : start + window])
    return shares


def _draw_recent(
    batches: NDArray[np.int64], partners: int, pool: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw partners [n, B, partners] for batches [n, B] from the last ``pool`` rows up to each batch's end.

    The first batches draw from the first ``pool`` rows, some of which follow them.
    """
    rows = batches.reshape(-1)  # [n * B]
    window = min(pool, len(rows))
    ends = batches.shape[1] * np.arange(1, len(batches) + 1)  # [n]
    first = np.maximum(ends - window, 0)  # [n]
    offsets: NDArray[np.int64] = rng.integers(0, window, (*batches.shape, partners))  # [n, B, partners]
    picked: NDArray[np.int64] = rows[first[:, None, None] + offsets]  # [n, B, partners]
    return picked

"""The order of an epoch: shares, shuffling, shards, partners, and resuming in the middle."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from anydepth.data.sampling import LANES, SHARDS_IN_WINDOW, EpochSampler, epoch_order
from anydepth.data.source import AnnotatedImage


@dataclass
class Rows:
    """A source of nothing but rows."""

    count: int
    shard_starts: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self.count

    def read(self, row: int) -> AnnotatedImage:
        raise NotImplementedError


def starts(count: int, shards: int) -> NDArray[np.int64]:
    return np.linspace(0, count, shards + 1).astype(np.int64)


@given(
    count=st.integers(1, 400),
    processes=st.integers(1, 4),
    batch_size=st.integers(1, 9),
    shards=st.integers(1, 30),
    epoch=st.integers(0, 99),
)
def test_files_and_shards_give_the_same_images_each_once(
    count: int, processes: int, batch_size: int, shards: int, epoch: int
) -> None:
    settings = {"seed": 7, "epoch": epoch, "processes": processes, "batch_size": batch_size}
    files = epoch_order(count, **settings)
    streamed = epoch_order(count, **settings, shard_starts=starts(count, min(shards, count)))
    share = count // (processes * batch_size) * batch_size
    assert files.shape == streamed.shape == (processes, share)
    assert len(np.unique(files)) == processes * share
    assert set(files.ravel().tolist()) == set(streamed.ravel().tolist())


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    for shard_starts in (None, starts(100, 10)):
        source = Rows(100, shard_starts)
        sampler = EpochSampler(source=source, seed=3, batch_size=4)
        first = list(sampler)
        assert first == list(EpochSampler(source=source, seed=3, batch_size=4))
        assert first != list(EpochSampler(source=source, seed=4, batch_size=4))
        assert sorted(key.row for key in first) == list(range(100))
        sampler.set_epoch(1)
        assert [key.row for key in sampler] != [key.row for key in first]
        assert {key.epoch for key in sampler} == {1}


def test_what_does_not_fill_a_batch_in_every_process_changes_with_the_epoch() -> None:
    left_out: set[int] = set()
    for epoch in range(12):
        order = epoch_order(9, seed=3, epoch=epoch, processes=2, batch_size=2)
        assert order.shape == (2, 4)
        left_out |= set(range(9)) - set(order.ravel().tolist())
    assert len(left_out) > 2


def test_a_process_reads_a_few_shards_at_a_time() -> None:
    count, shards, processes = 12_800, 128, 2
    order = epoch_order(
        count, seed=0, epoch=5, processes=processes, batch_size=16, shard_starts=starts(count, shards)
    )
    shard_of = order // (count // shards)
    # No shard is read by both, up to the one at the border.
    assert len(set(shard_of[0]) & set(shard_of[1])) <= 1
    window = SHARDS_IN_WINDOW * count // shards
    for share in shard_of:
        for start in range(0, len(share), window):
            assert len(set(share[start : start + window])) <= SHARDS_IN_WINDOW + 1
    # Within a window the images are mixed well: neighbours rarely come from one shard.
    assert np.mean(shard_of[:, 1:] == shard_of[:, :-1]) < 2 / SHARDS_IN_WINDOW


@pytest.mark.parametrize("shard_starts", [None, starts(50, 7)])
def test_an_interrupted_epoch_resumes_with_the_next_unseen_sample(
    shard_starts: NDArray[np.int64] | None,
) -> None:
    source = Rows(50, shard_starts)
    for rank in range(2):
        settings = {"seed": 1, "batch_size": 4, "num_replicas": 2, "rank": rank, "partners": 3}
        whole = list(EpochSampler(source=source, **settings))
        resumed = EpochSampler(source=source, **settings)
        resumed.resume(0, 2)
        assert len(resumed) == len(whole)
        # Lightning starts some passes twice.
        assert list(resumed) == list(resumed) == whole[8:]
        # The epoch after it is whole again.
        resumed.set_epoch(1)
        assert len(list(resumed)) == len(whole)


@pytest.mark.parametrize("count", [9, 130, 5000])
def test_partners_come_from_recent_batches_of_the_same_lane(count: int) -> None:
    batch_size, pool = 4, 32
    sampler = EpochSampler(source=Rows(count), seed=0, batch_size=batch_size, partners=3, partner_pool=pool)
    keys = list(sampler)
    assert len(keys) == count // batch_size * batch_size
    lanes = LANES if len(keys) >= LANES * pool else 1
    position = {key.row: number for number, key in enumerate(keys)}
    for number, key in enumerate(keys):
        batch = number // batch_size
        assert len(key.partners) == 3
        for partner in key.partners:
            other = position[partner] // batch_size
            assert other % lanes == batch % lanes
            # At the start of an epoch the pool reaches ahead, so that it is never smaller.
            assert other <= max(batch, lanes * -(-pool // batch_size))
            assert other > batch - lanes * (pool // batch_size + 1)
    drawn = np.array([key.partners for key in keys])
    if count > pool:
        assert len(np.unique(drawn)) > 0.8 * len(keys)


def test_workers_that_divide_the_lanes_find_partners_among_what_they_decoded() -> None:
    """The purpose of a worker's cache: after the start it decodes hardly more than one image per sample."""
    batch_size, pool, workers = 4, 32, 2
    keys = list(EpochSampler(source=Rows(4000), seed=0, batch_size=batch_size, partners=3, partner_pool=pool))
    decoded = 0
    for worker in range(workers):
        seen: set[int] = set()
        for number, key in enumerate(keys):
            if number // batch_size % workers == worker:
                new = {key.row, *key.partners} - seen
                decoded += len(new)
                seen |= new
    assert decoded == len(keys)


def test_the_last_epochs_name_no_partners() -> None:
    sampler = EpochSampler(source=Rows(20), seed=0, batch_size=2, partners=3, mixed_epochs=4)
    for epoch, expected in ((0, 3), (3, 3), (4, 0), (9, 0)):
        sampler.set_epoch(epoch)
        assert {len(key.partners) for key in sampler} == {expected}


def test_windows_of_shards_follow_each_other_without_gaps() -> None:
    order = epoch_order(64, seed=0, epoch=0, processes=1, batch_size=1, shard_starts=starts(64, 32))[0]
    runs = [set((order[start : start + 16] // 2).tolist()) for start in range(0, 64, 16)]
    assert all(len(run) == SHARDS_IN_WINDOW for run in runs)
    assert all(not first & second for first, second in pairwise(runs))

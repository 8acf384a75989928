"""Which rows make up a step, and how they are laid end to end."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_train_parallel.data.batches import (
    Rows,
    batches_by_length,
    first_samples,
    global_batch,
    make_batch,
    steps_per_epoch,
    take,
    weighted,
)


def make_rows(lengths: list[int], samples: list[int] | None = None, segments_at: list[int] | None = None) -> Rows:
    """Rows whose tokens are 100 x row number + place, to be recognised."""
    return Rows(
        tokens=np.array([100 * row + place for row, length in enumerate(lengths) for place in range(length)], dtype=np.uint16),
        offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        segments_at=np.array(segments_at or lengths, dtype=np.int32),
        sample=np.array(samples if samples is not None else range(len(lengths)), dtype=np.int64),
        targets=np.arange(len(lengths))[:, None] % 2,
        weights=np.ones(len(lengths)),
    )


@given(
    n_rows=st.integers(1, 300), batch_size=st.integers(1, 70), seed=st.integers(0, 2**63), epoch=st.integers(0, 50), by_length=st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_every_row_comes_once_in_an_epoch(n_rows: int, batch_size: int, seed: int, epoch: int, by_length: bool) -> None:
    lengths = np.random.default_rng(seed).integers(3, 90, n_rows) if by_length else None
    steps = [global_batch(n_rows, batch_size, seed, epoch, step, lengths) for step in range(steps_per_epoch(n_rows, batch_size))]
    assert sorted(np.concatenate(steps).tolist()) == list(range(n_rows))
    assert sorted(map(len, steps))[1:] == [batch_size] * (len(steps) - 1)


def test_a_step_is_the_same_whoever_asks_and_another_in_another_epoch_or_for_another_seed() -> None:
    asked = {(seed, epoch): tuple(global_batch(1000, 32, seed, epoch, 5)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(asked.values())) == 4
    assert all(tuple(global_batch(1000, 32, seed, epoch, 5)) == rows for (seed, epoch), rows in asked.items())


def test_the_rows_of_a_step_are_what_they_were_in_earlier_versions() -> None:
    # a run that goes on under a new version must see each row once
    assert global_batch(1000, 8, 0, 0, 0).tolist() == [354, 895, 197, 174, 663, 30, 718, 973]


def test_every_order_of_a_few_rows_is_equally_likely() -> None:
    counts = Counter(tuple(global_batch(4, 4, seed, 0, 0)) for seed in range(12_000))
    chi_squared = sum((count - 500) ** 2 / 500 for count in counts.values())
    assert len(counts) == 24
    assert chi_squared < 50  # 23 degrees of freedom: above it once in a thousand


def test_a_step_of_ten_million_rows_needs_no_list_of_them() -> None:
    began = time.perf_counter()
    for step in range(100):
        global_batch(10_000_000, 256, 0, 0, step)
    assert time.perf_counter() - began < 10  # a permutation of all rows takes 0.3 s each time


def test_batches_by_length_hold_rows_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, 5000)
    spread = [np.ptp(lengths[global_batch(5000, 50, 0, 0, step, lengths)]) for step in range(100)]
    mixed = [np.ptp(lengths[global_batch(5000, 50, 0, 0, step)]) for step in range(100)]
    assert np.mean(spread) < 5 < 100 < np.mean(mixed)


def test_a_batch_holds_its_rows_end_to_end_in_the_order_asked_for() -> None:
    rows = make_rows([3, 2, 4], segments_at=[3, 1, 2])
    batch = make_batch(rows, np.array([2, 0]), total_weight=7.0)
    assert batch.tokens.tolist() == [200, 201, 202, 203, 0, 1, 2]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.segments.tolist() == [0, 0, 1, 1, 0, 0, 0]
    assert batch.starts.tolist() == [0, 4, 7]
    assert batch.targets.tolist() == [[0], [0]]
    assert batch.total_weight == 7.0


def test_an_empty_share_is_a_batch() -> None:
    batch = make_batch(make_rows([3, 2]), np.zeros(0, dtype=np.int64), 1.0)
    assert (len(batch), len(batch.tokens), batch.starts.tolist(), batch.targets.shape) == (0, 0, [0], (0, 1))


def test_rows_that_were_taken_are_rows_again() -> None:
    rows = make_rows([3, 2, 4], segments_at=[3, 1, 2])
    taken = take(rows, np.array([2, 1]))
    again, before = make_batch(taken, np.array([0, 1]), 1.0), make_batch(rows, np.array([2, 1]), 1.0)
    assert again.tokens.tolist() == before.tokens.tolist()
    assert again.segments.tolist() == before.segments.tolist()
    assert taken.sample.tolist() == [2, 1]


@pytest.mark.parametrize("seed", [None, 3])
def test_a_smaller_cap_keeps_a_part_of_what_a_larger_one_keeps_with_all_rows_of_a_sample(seed: int | None) -> None:
    rows = make_rows([3] * 60, samples=sorted([*range(40), *range(0, 40, 2)]))
    kept = {cap: first_samples(rows, cap, seed).sample.tolist() for cap in (1, 5, 20, 40, 99)}
    assert [len(set(samples)) for samples in kept.values()] == [1, 5, 20, 40, 40]
    assert set(kept[1]) < set(kept[5]) < set(kept[20]) < set(kept[40]) == set(range(40))
    assert all(samples == sorted(samples) for samples in kept.values())
    assert all(samples.count(sample) == 2 - sample % 2 for samples in kept.values() for sample in set(samples))
    assert (set(kept[5]) == set(range(5))) == (seed is None)


def test_weights_are_multiplied_row_by_row() -> None:
    assert weighted(weighted(make_rows([3, 3]), np.array([2.0, 1.0])), np.array([0.5, 3.0])).weights.tolist() == [1.0, 3.0]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_batches_for_evaluation_hold_every_row_once_and_no_more_tokens_than_asked(lengths: list[int], most: int) -> None:
    batches = batches_by_length(np.array(lengths, dtype=np.int64), most)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in batch) <= most or len(batch) == 1 for batch in batches)

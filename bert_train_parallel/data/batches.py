"""Rows of tokens without padding, and which of them make up a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.floating]

_ROUNDS = 8  # of the Feistel network; four make it a pseudorandom permutation (Luby and Rackoff 1988), small sides like more
_POOL = 50  # batches whose rows are sorted together when batches are to hold rows of like length


@dataclass(frozen=True, slots=True)
class Rows:
    """The folded rows of one split, one after the other, with [CLS] and [SEP]; N rows of T tokens in all.

    Row i is `tokens[offsets[i]:offsets[i + 1]]`. For a sentence pair the tokens from `segments_at[i]` on
    (counted within the row) belong to the second text; for a single text it is the row's length.
    """

    tokens: IntArray  # (T,) uint16 or uint32, may be a memory map
    offsets: IntArray  # (N + 1,) int64, from 0 to T
    segments_at: IntArray  # (N,) int32
    sample: IntArray  # (N,) int64, number of the sample in the store; ascending
    targets: npt.NDArray[np.generic]  # (N, k): class codes int64, or float64 for regression; k = 1 for one label
    weights: FloatArray  # (N,) float64, 1 unless the settings say otherwise

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """(N,) tokens of each row."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one share, b of them with T tokens in all, ready for packed attention; b = 0 is legal."""

    tokens: IntArray  # (T,) int64
    positions: IntArray  # (T,) int64, from 0 in each row
    segments: IntArray  # (T,) int64, 0 or 1
    starts: IntArray  # (b + 1,) int64, where each row begins, and T
    targets: npt.NDArray[np.generic]  # (b, k)
    weights: FloatArray  # (b,)
    rows: IntArray  # (b,) row numbers in the split
    total_weight: float  # sum of the weights of the valid targets of the GLOBAL batch

    def __len__(self) -> int:
        return len(self.rows)


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Optimizer steps in which every row is seen once; the last may be a smaller one."""
    return -(-n_rows // batch_size)


def global_batch(n_rows: int, batch_size: int, seed: int, epoch: int, step: int, lengths: IntArray | None = None) -> IntArray:
    """The row numbers of one step over the whole world, from (seed, epoch, step) alone: no state, nothing stored.

    Every row comes once in an epoch. The order is a permutation that is computed place by place, so a step
    costs the same for a hundred rows as for ten million, in any version of numpy.

    Args:
        epoch, step: counted from 0; the step within the epoch.
        lengths: (n_rows,) to have rows of like length together: rows of 50 batches are sorted by length at a time.
    Returns:
        (B,) int64, B = batch_size but for the last step of an epoch.

    >>> sorted(row for step in range(3) for row in global_batch(10, 4, seed=7, epoch=0, step=step).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if lengths is None:
        return _permuted(np.arange(step * batch_size, min(n_rows, (step + 1) * batch_size)), n_rows, (seed, epoch))
    pool, place = divmod(step, _POOL)
    rows = _permuted(np.arange(pool * _POOL * batch_size, min(n_rows, (pool + 1) * _POOL * batch_size)), n_rows, (seed, epoch))
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    batches = steps_per_epoch(len(rows), batch_size)
    chosen = int(_permuted(np.array([place]), batches, (seed, epoch, pool))[0])
    return rows[chosen * batch_size : (chosen + 1) * batch_size]


def mix(*values: int) -> int:
    """One 64-bit number from several: equal values give equal ones, others unlike ones (SplitMix64, Steele et al. 2014).

    >>> mix(1, 2) == mix(1, 2), mix(1, 2) == mix(2, 1)
    (True, False)
    """
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state


def _permuted(places: IntArray, n: int, key: tuple[int, ...]) -> IntArray:
    """Where a random permutation of 0..n-1 sends these places: a Feistel network over a square of at least n cells.

    What lands outside of n is sent on until it lands inside (cycle walking), which keeps it a permutation.
    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002.
    """
    side = np.uint64(math.isqrt(max(n - 1, 0)) + 1)
    round_keys = [np.uint64(mix(*key, n, number)) for number in range(_ROUNDS)]
    found = places.astype(np.uint64)
    walking = np.arange(len(found))
    while len(walking):
        left, right = np.divmod(found[walking], side)
        for round_key in round_keys:
            left, right = right, (left + _scrambled(right ^ round_key)) % side
        found[walking] = left * side + right
        walking = walking[found[walking] >= n]
    return found.astype(np.int64)


def _scrambled(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def make_batch(rows: Rows, numbers: IntArray, total_weight: float) -> Batch:
    """The rows of these numbers, end to end in their order; `total_weight` is that of the global batch."""
    numbers = np.asarray(numbers, dtype=np.int64)
    picked, starts = _positions(rows, numbers)
    lengths = np.diff(starts)
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return Batch(
        tokens=rows.tokens[picked].astype(np.int64),
        positions=positions,
        segments=(positions >= np.repeat(rows.segments_at[numbers], lengths)).astype(np.int64),
        starts=starts,
        targets=np.asarray(rows.targets)[numbers],
        weights=np.asarray(rows.weights)[numbers],
        rows=numbers,
        total_weight=total_weight,
    )


def take(rows: Rows, numbers: IntArray) -> Rows:
    """The rows of these numbers, in their order, as rows of their own."""
    picked, offsets = _positions(rows, numbers)
    return Rows(
        tokens=rows.tokens[picked],
        offsets=offsets,
        segments_at=rows.segments_at[numbers],
        sample=rows.sample[numbers],
        targets=rows.targets[numbers],
        weights=rows.weights[numbers],
    )


def first_samples(rows: Rows, cap: int, seed: int | None = None) -> Rows:
    """The rows of at most `cap` samples: the first of the file, or with a seed the first of a random order.

    The rows stay in their order. A smaller cap gives a part of what a larger one gives.
    """
    samples = np.unique(np.asarray(rows.sample))
    if cap >= len(samples):
        return rows
    return take(rows, np.flatnonzero(np.isin(rows.sample, samples[first_places(len(samples), cap, seed)])))


def first_places(n: int, cap: int | None, seed: int | None = None) -> IntArray:
    """Which of n samples a cap keeps, by their places from 0: the first, or with a seed the first of a random order.

    >>> first_places(9, 3).tolist(), len(first_places(9, None))
    ([0, 1, 2], 9)
    """
    places = np.arange(n if cap is None else min(cap, n))
    return places if seed is None or len(places) == n else np.sort(_permuted(places, n, (seed,)))


def weighted(rows: Rows, weights: FloatArray) -> Rows:
    """The same rows, each with its weight multiplied by one of `weights` (N,)."""
    return replace(rows, weights=rows.weights * weights)


def batches_by_length(lengths: IntArray, max_tokens: int) -> list[IntArray]:
    """Row numbers in batches of like length, the longest first, each of at most `max_tokens` tokens or of one row.

    >>> [batch.tolist() for batch in batches_by_length(np.array([3, 9, 2, 3]), max_tokens=8)]
    [[1], [0, 3, 2]]
    """
    batches: list[IntArray] = []
    order = np.argsort(-np.asarray(lengths), kind="stable")
    ends = np.cumsum(np.asarray(lengths)[order])
    first = 0
    while first < len(order):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + max_tokens, side="right")))
        batches.append(order[first:last])
        first = last
    return batches


def _positions(rows: Rows, numbers: IntArray) -> tuple[IntArray, IntArray]:
    """Where the tokens of these rows stand in `rows.tokens` (T,), and where each row begins among them (b + 1,)."""
    begins = rows.offsets[numbers].astype(np.int64)
    lengths = rows.offsets[np.asarray(numbers) + 1].astype(np.int64) - begins
    starts = np.concatenate(([0], np.cumsum(lengths)))
    return np.arange(starts[-1]) + np.repeat(begins - starts[:-1], lengths), starts

"""Which samples train, validate and test: stratified, duplicates together, the same in every process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bert_train_parallel.data.batches import FloatArray, IntArray, mix

SPLITS = ("train", "validate", "test")
TRAIN, VALIDATE, TEST = range(3)


def split_samples(keys: npt.NDArray[np.uint64], strata: IntArray, shares: Sequence[float], seed: int) -> npt.NDArray[np.uint8]:
    """The split of each sample, as a number of SPLITS.

    Samples of one key (the same text) stay together, whatever their labels; such a group counts for the
    stratum of its first sample. What rounding takes from a split in one stratum it gets in the next, so
    that many small classes still give the shares asked for. Every stratum has a sample in train.

    Args:
        keys: (n,) hash of each sample's text.
        strata: (n,) class codes from 0, or zeros.
        shares: of train, validate and test; their sum is 1, and the first is above 0.
    """
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    sizes = np.diff(np.append(starts, len(keys)))
    stratum = strata[order[starts]]
    draws = _scrambled(keys[order[starts]], seed)
    groups = np.lexsort((draws, stratum))
    chosen = np.full(len(starts), TRAIN, np.uint8)
    carried = np.zeros(3)
    bounds = np.searchsorted(stratum[groups], np.unique(stratum), side="left")
    for begin, end in zip(bounds, [*bounds[1:], len(groups)], strict=True):
        members = groups[begin:end]
        chosen[members] = _divide(sizes[members], np.asarray(shares), carried)
        carried += sizes[members].sum() * np.asarray(shares) - _counts(chosen[members], sizes[members])
    _fill_empty(chosen, groups, stratum, shares)
    found = np.empty(len(keys), np.uint8)
    found[order] = np.repeat(chosen, sizes)
    return found


def _divide(sizes: IntArray, shares: FloatArray, carried: FloatArray) -> npt.NDArray[np.uint8]:
    """The split of each group of one stratum: test first, then validate, the rest train."""
    wanted = np.maximum(sizes.sum() * shares + carried, 0) * (shares > 0)
    quotas = np.floor(wanted)
    for split in np.argsort(-(wanted - quotas), kind="stable")[: max(0, int(sizes.sum() - quotas.sum()))]:
        quotas[split] += 1
    middles = np.cumsum(sizes) - sizes / 2
    found = np.where(middles < quotas[TEST], TEST, np.where(middles < quotas[TEST] + quotas[VALIDATE], VALIDATE, TRAIN))
    found[-1] = TRAIN
    return found.astype(np.uint8)


def _counts(splits: npt.NDArray[np.uint8], sizes: IntArray) -> FloatArray:
    return np.bincount(splits, weights=sizes, minlength=len(SPLITS)).astype(np.float64)


def _fill_empty(chosen: npt.NDArray[np.uint8], groups: IntArray, stratum: IntArray, shares: Sequence[float]) -> None:
    """Give a split that was asked for and got nothing one group of the largest stratum that can spare it."""
    for split in (TEST, VALIDATE):
        if shares[split] > 0 and not (chosen == split).any():
            training = groups[chosen[groups] == TRAIN]
            counts = np.bincount(stratum[training])
            if counts.max(initial=0) > 1:
                chosen[training[stratum[training] == counts.argmax()][0]] = split


def _scrambled(keys: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """A random order of the groups that depends on texts and seed alone, not on where they stand in the file."""
    values = keys ^ np.uint64(mix(seed))
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

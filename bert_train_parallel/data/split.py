"""Which samples train, validate and test: by sample, before folding, each label in proportion, equal texts together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bert_train_parallel.data.batches import FloatArray, IntArray, mix

SPLITS = ("train", "validate", "test")  # a split's code is its place here
ANY = -1  # of a sample that may go to any split


def split_samples(keys: IntArray, labels: IntArray, shares: Sequence[float], seed: int) -> IntArray:
    """The split of each sample.

    Samples with one key (equal texts) go together, by the label of the first of them. Within each label the order
    is drawn from (key, seed) alone, so that it does not depend on the order of the file.

    Args:
        keys: (n,) uint64, hashes of the texts.
        labels: (n,) codes; all 0 for a regression.
        shares: of train, validate and test, with the sum 1.
    Returns:
        (n,) int8 codes of SPLITS. No split with a share stays empty while another has samples to give.

    >>> split = split_samples(np.arange(10, dtype=np.uint64), np.zeros(10, int), (0.8, 0.1, 0.1), seed=0)
    >>> np.bincount(split).tolist()
    [8, 1, 1]
    """
    _, first, group, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    drawn = _scrambled(keys[first], seed)
    of_group = labels[first]
    order = np.lexsort((drawn, of_group))
    places = _places(of_group[order], sizes[order], seed)
    edges = np.cumsum(shares)[:2]
    codes = np.empty(len(first), dtype=np.int8)
    codes[order] = np.searchsorted(edges, places + 1e-12, side="right")
    _fill_empty(codes, drawn, shares)
    found: IntArray = codes[group]
    return found


def _places(labels: IntArray, sizes: IntArray, seed: int) -> FloatArray:
    """Where in 0..1 each group stands among those of its label; groups come sorted by label.

    A start drawn for each label (systematic sampling) keeps the shares right over many small labels too.
    """
    begins = np.flatnonzero(np.concatenate(([True], labels[1:] != labels[:-1]))) if len(labels) else np.zeros(0, int)
    before = np.cumsum(sizes) - sizes
    of_label = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(labels))))
    totals = np.add.reduceat(sizes, begins) if len(begins) else sizes
    starts = np.array([mix(seed, int(labels[begin])) / 2**64 for begin in begins])
    places: FloatArray = (before - before[begins][of_label] + starts[of_label] * sizes) / totals[of_label]
    return places


def _fill_empty(codes: IntArray, drawn: IntArray, shares: Sequence[float]) -> None:
    """Give a split that has a share and no group one group of the largest split, in place."""
    for code, share in enumerate(shares):
        counts = np.bincount(codes, minlength=len(SPLITS))
        giver = int(counts.argmax())
        if share > 0 and not counts[code] and counts[giver] > 1:
            candidates = np.flatnonzero(codes == giver)
            codes[candidates[drawn[candidates].argmin()]] = code


def _scrambled(keys: IntArray, seed: int) -> IntArray:
    """(n,) uint64 that look random, from the keys and the seed alone."""
    values = keys.astype(np.uint64) ^ np.uint64(mix(seed))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))

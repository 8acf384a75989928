"""Which samples train, validate and test."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_train_parallel.data.split import TEST, TRAIN, VALIDATE, split_samples

SHARES = (0.8, 0.1, 0.1)


def keys_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, n).astype(np.uint64)


def test_shares_are_met_in_all_and_in_each_class() -> None:
    labels = np.random.default_rng(1).choice(3, 5_000, p=[0.7, 0.25, 0.05])
    splits = split_samples(keys_of(5_000), labels, SHARES, seed=0)
    assert np.abs(np.bincount(splits) - [4_000, 500, 500]).max() <= 1
    for label in range(3):
        counts = np.bincount(splits[labels == label], minlength=3)
        assert np.abs(counts - counts.sum() * np.array(SHARES)).max() <= 2


def test_many_small_classes_still_give_the_shares_and_each_class_trains() -> None:
    labels = np.repeat(np.arange(1_000), 3)
    splits = split_samples(keys_of(3_000), labels, SHARES, seed=3)
    assert np.abs(np.bincount(splits) - [2_400, 300, 300]).max() <= 2
    assert len(np.unique(labels[splits == TRAIN])) == 1_000


def test_equal_texts_stay_together_even_with_different_labels() -> None:
    keys = np.repeat(keys_of(300), 3)
    labels = np.random.default_rng(2).integers(0, 4, 900)
    splits = split_samples(keys, labels, SHARES, seed=0)
    assert all(len(np.unique(splits[keys == key])) == 1 for key in np.unique(keys))
    assert np.abs(np.bincount(splits) - [720, 90, 90]).max() <= 9


@pytest.mark.parametrize("n", [3, 4, 5, 7, 10])
def test_no_split_is_empty_when_there_are_three_texts(n: int) -> None:
    splits = split_samples(keys_of(n), np.zeros(n, int), SHARES, seed=0)
    assert (np.bincount(splits, minlength=3) > 0).all()


def test_two_samples_of_each_of_two_classes_are_enough_for_three_splits() -> None:
    splits = split_samples(keys_of(4), np.array([0, 0, 1, 1]), SHARES, seed=0)
    assert np.bincount(splits, minlength=3).tolist() == [2, 1, 1]


def test_a_split_without_a_share_stays_empty() -> None:
    assert set(split_samples(keys_of(100), np.zeros(100, int), (0.9, 0.1, 0.0), seed=0)) == {TRAIN, VALIDATE}
    assert set(split_samples(keys_of(100), np.zeros(100, int), (0.5, 0.0, 0.5), seed=0)) == {TRAIN, TEST}


def test_another_seed_is_another_split_of_the_same_sizes() -> None:
    keys, labels = keys_of(1_000), np.zeros(1_000, int)
    first, second = (split_samples(keys, labels, SHARES, seed) for seed in (0, 1))
    assert (first != second).any()
    assert np.bincount(first).tolist() == np.bincount(second).tolist()


def test_the_split_of_a_text_does_not_depend_on_the_order_of_the_file() -> None:
    keys, labels = keys_of(1_000), np.zeros(1_000, int)
    shuffled = np.random.default_rng(5).permutation(1_000)
    assert (split_samples(keys, labels, SHARES, 0)[shuffled] == split_samples(keys[shuffled], labels, SHARES, 0)).all()


def test_the_split_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = (
        "import numpy as np; from bert_train_parallel.data.split import split_samples;"
        "keys = np.random.default_rng(0).integers(0, 2**63, 500).astype(np.uint64);"
        "print(split_samples(keys, np.arange(500) % 3, (0.8, 0.1, 0.1), 7).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "99"}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(split_samples(keys_of(500), np.arange(500) % 3, SHARES, 7).tolist())


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), min_size=1, max_size=80),
    st.sampled_from([SHARES, (1.0, 0.0, 0.0), (0.2, 0.4, 0.4), (0.9, 0.0, 0.1)]),
    st.integers(0, 3),
)
def test_any_samples_are_split_whole_with_equal_texts_together(
    samples: list[tuple[int, int]], shares: tuple[float, ...], seed: int
) -> None:
    keys = np.array([key for key, _ in samples], np.uint64)
    splits = split_samples(keys, np.array([label for _, label in samples]), shares, seed)
    assert len(splits) == len(samples)
    assert all(len(np.unique(splits[keys == key])) == 1 for key in np.unique(keys))
    assert all(shares[split] > 0 for split in np.unique(splits))
    assert (splits == TRAIN).any()

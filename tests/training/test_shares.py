"""How a batch is cut over ranks."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_train_parallel.errors import BadSetting
from bert_train_parallel.training.shares import Shares, micro_batches, words_on_those_left

lengths = st.lists(st.integers(1, 512), max_size=60)
parts = st.lists(st.floats(0, 9), min_size=1, max_size=9).filter(lambda numbers: sum(numbers) > 0.01)


def shares_of(numbers: list[float]) -> Shares:
    return Shares(tuple(number / sum(numbers) for number in numbers))


@given(lengths, parts)
@settings(deadline=None)
def test_every_row_has_one_rank_and_no_rank_is_further_from_its_part_than_a_row(rows: list[int], numbers: list[float]) -> None:
    shares = shares_of(numbers)
    slices = shares.cut(rows)
    assert [row for part in slices for row in range(len(rows))[part]] == list(range(len(rows)))
    assert len(slices) == len(numbers)
    for part, wanted in zip(slices, shares.parts, strict=True):
        assert abs(sum(rows[part]) - wanted * sum(rows)) <= max(rows, default=0) + 1e-6


def test_a_rank_that_is_to_compute_nothing_gets_nothing() -> None:
    assert [len(range(100)[part]) for part in shares_of([1, 0, 1]).cut([7] * 100)] == [50, 0, 50]


def test_shares_follow_speeds_measured_while_they_are_used() -> None:
    """Ranks with a fixed cost per step besides: the shares settle where all are ready at the same time."""
    shares = Shares.equal(3)
    for _ in range(30):
        tokens = [part * 10_000 for part in shares.parts]
        seconds = [0.1 + count / speed for count, speed in zip(tokens, (9000, 3000, 3000), strict=True)]
        shares = shares.after(seconds, tokens)
    times = [0.1 + part * 10_000 / speed for part, speed in zip(shares.parts, (9000, 3000, 3000), strict=True)]
    assert max(times) / min(times) < 1.2
    assert sum(shares.parts) == pytest.approx(1)


def test_noise_leaves_shares_equal() -> None:
    rng = random.Random(0)
    shares = Shares.equal(4)
    for _ in range(500):
        shares = shares.after([rng.gauss(1.0, 0.05) for _ in range(4)], [1000] * 4)
    assert shares.parts == Shares.equal(4).parts


def test_one_slow_measurement_of_a_like_rank_changes_nothing_and_two_do() -> None:
    once = Shares.equal(2).after([1.0, 1.0], [900, 900]).after([1.0, 2.5], [900, 900])
    assert once.parts == (0.5, 0.5)
    twice = once.after([1.0, 2.5], [900, 900])
    assert twice.parts[0] > 0.55


def test_a_much_slower_rank_is_taken_at_its_word_at_once() -> None:
    assert Shares.equal(2).after([1.0, 3.0], [900, 900]).parts == pytest.approx((0.75, 0.25))


def test_a_rank_without_tokens_keeps_the_speed_that_was_known() -> None:
    shares = Shares.equal(2).after([1.0, 1.0], [1000, 1000]).after([1.0, 0.0], [1000, 0])
    assert shares.speeds == (1000.0, 1000.0)


def test_shares_that_a_user_has_set_stay() -> None:
    for setting in ("equal", "1,1"):
        shares = Shares.of_setting(setting, 2)
        assert shares.after([1.0, 9.0], [900, 900]).parts == shares.parts == (0.5, 0.5)


def test_as_many_shares_as_ranks_are_expected() -> None:
    with pytest.raises(BadSetting, match="3 numbers, and the world has 2 ranks"):
        Shares.of_setting("3,1,1", 2)


@pytest.mark.parametrize(
    ("left", "parts", "fixed", "words"),
    [
        ("0,2", (0.75, 0.25), True, "keep their numbers, 3,1"),
        ("1,2", (0.5, 0.5), True, "keep their numbers, 1,1"),
        ("", (0.5, 0.5), False, "not known; shares follow measured speeds"),
        ("0,7", (0.5, 0.5), False, "not known; shares follow measured speeds"),
    ],
)
def test_ranks_that_are_left_of_a_world_keep_their_shares(
    monkeypatch: pytest.MonkeyPatch, left: str, parts: tuple[float, ...], fixed: bool, words: str
) -> None:
    monkeypatch.setenv("BERT_TRAIN_RANKS_LEFT", left)
    shares = Shares.of_setting("3,1,1", 2)
    assert (shares.parts, shares.fixed) == (parts, fixed)
    assert words in words_on_those_left("3,1,1", 2, os.environ)


def test_ranks_that_had_nothing_follow_their_speeds_when_they_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERT_TRAIN_RANKS_LEFT", "1")
    assert Shares.of_setting("1,0", 1) == Shares.equal(1)
    assert "had none of it" in words_on_those_left("1,0", 1, os.environ)


def test_the_busiest_rank_is_used_fully() -> None:
    shares = Shares((0.5, 0.5), (9000.0, 3000.0))
    assert shares.utilisation == pytest.approx((1 / 3, 1))
    assert Shares.equal(2).utilisation == ()


@given(lengths, st.one_of(st.none(), st.integers(1, 9)), st.one_of(st.none(), st.integers(1, 900)))
@settings(deadline=None)
def test_micro_batches_hold_all_rows_in_order_and_no_more_than_fits(rows: list[int], max_rows: int | None, max_tokens: int | None) -> None:
    found = micro_batches(np.array(rows, dtype=np.int64), max_rows, max_tokens)
    assert [row for part in found for row in range(len(rows))[part]] == list(range(len(rows)))
    for part in found:
        assert len(rows[part]) == 1 or not rows or (len(rows[part]) <= (max_rows or 99) and sum(rows[part]) <= (max_tokens or 99_999))
    assert all(rows[part] for part in found) or found == [slice(0, 0)]

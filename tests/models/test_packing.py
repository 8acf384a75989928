"""Which rows share an attention call."""

from __future__ import annotations

import random

import pytest

from bert_train_parallel.models.packing import group_lengths


@pytest.mark.parametrize("seed", range(20))
def test_groups_hold_each_row_once_and_pad_little(seed: int) -> None:
    draw = random.Random(seed)
    lengths = sorted(draw.randint(1, draw.choice([4, 40, 512])) for _ in range(draw.randint(1, 60)))
    groups = group_lengths(lengths)
    assert [row for rows in groups for row in rows] == list(range(len(lengths)))
    for rows in groups:
        area = sum(lengths[row] ** 2 for row in rows)
        assert lengths[rows[-1]] <= 2 * lengths[rows[0]] or len(rows) * lengths[rows[-1]] ** 2 <= 1.15 * area

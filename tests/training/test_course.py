"""Steps, epochs and learning rates of a run."""

from __future__ import annotations

import numpy as np
import pytest
from data.test_batches import make_rows

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.training.course import Course, learning_rate


def test_an_epoch_ends_where_all_its_rows_were_seen_and_the_run_where_it_was_asked_to() -> None:
    course = Course(make_rows([3] * 10), TrainConfig(batch_size=4, epochs=3, max_steps=7))
    assert (course.steps_per_epoch, course.steps, course.epochs) == (3, 7, 3)
    assert [course.end_of(epoch) for epoch in range(3)] == [3, 6, 7]
    assert sorted(np.concatenate([course.batch(step) for step in range(3, 6)])) == list(range(10))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_rises_to_its_peak_and_falls_as_asked(schedule: str) -> None:
    rates = [learning_rate(step, 100, 2.0, 0.1, schedule) for step in range(100)]
    assert 0 < rates[0] < rates[9] < rates[10] == max(rates) == 2.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[99] == 2.0 if schedule == "constant" else 0 < rates[99] < 0.03


def test_no_warm_up_begins_at_the_peak() -> None:
    assert learning_rate(0, 10, 2.0, 0.0, "linear") == 2.0

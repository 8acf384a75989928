"""Rows of a sample become one prediction; every way of combining worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_train_parallel.data.batches import Rows
from bert_train_parallel.errors import BadSetting, LossIsNaN
from bert_train_parallel.tasks import classification, regression, task_of


def rows_of(samples: list[int], targets: list[float], kind: type = np.int64) -> Rows:
    """Rows of two tokens each, of these samples and with these targets."""
    n = len(samples)
    return Rows(
        tokens=np.zeros(2 * n, dtype=np.uint16),
        offsets=np.arange(0, 2 * n + 1, 2),
        segments_at=np.full(n, 2, dtype=np.int32),
        sample=np.array(samples, dtype=np.int64),
        targets=np.array(targets, dtype=kind).reshape(n, 1),
        weights=np.ones(n),
    )


def softmax(*logits: float) -> list[float]:
    powers = [math.exp(logit) for logit in logits]
    return [power / sum(powers) for power in powers]


# sample 7: three rows, two for class 0 by a little, one for class 1 by a lot; sample 9: one row
ROWS = rows_of([7, 7, 7, 9], [1, 1, 1, 0])
LOGITS = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 5.0], [2.0, 0.0]])


def test_mean_of_logits_counts_how_sure_a_row_is() -> None:
    found = classification.combine(LOGITS, ROWS, "mean")
    assert found.samples.tolist() == [7, 9]
    assert found.truth.tolist() == [1, 0]
    assert found.predicted.tolist() == [1, 0]
    assert found.probabilities is not None
    assert found.probabilities[0].tolist() == pytest.approx(softmax(2 / 3, 5 / 3))
    assert found.probabilities[1].tolist() == pytest.approx(softmax(2, 0))


def test_vote_counts_rows_and_leaves_probabilities_to_the_mean() -> None:
    found = classification.combine(LOGITS, ROWS, "vote")
    assert found.predicted.tolist() == [0, 0]
    assert found.probabilities is not None
    assert found.probabilities[0].tolist() == pytest.approx(softmax(2 / 3, 5 / 3))


def test_equal_votes_go_to_the_class_with_the_greater_mean_logit_among_those_that_lead() -> None:
    # classes 0 and 1 have a vote each; class 2 has the greatest mean but no vote
    tied = np.array([[3.0, -9.0, 2.9], [-9.0, 4.0, 3.9]])
    assert classification.combine(tied, rows_of([0, 0], [0, 0]), "vote").predicted.tolist() == [1]


def test_max_takes_each_class_at_its_surest_row_wherever_that_rows_logits_begin() -> None:
    found = classification.combine(LOGITS, ROWS, "max")
    best = [softmax(1, 0)[0], softmax(0, 5)[1]]
    assert found.probabilities is not None
    assert found.probabilities[0].tolist() == pytest.approx([best[0] / sum(best), best[1] / sum(best)])
    shifted = LOGITS + np.array([[100.0], [0.0], [0.0], [-3.0]])
    assert classification.combine(shifted, ROWS, "max").probabilities == pytest.approx(found.probabilities)


@pytest.mark.parametrize("how", ["mean", "vote", "max"])
def test_one_row_per_sample_is_the_same_however_rows_are_combined(how: str) -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4))
    found = classification.combine(logits, rows_of(list(range(50)), [0] * 50), how)
    assert found.predicted.tolist() == logits.argmax(axis=1).tolist()
    assert found.probabilities is not None
    assert found.probabilities[3].tolist() == pytest.approx(softmax(*logits[3]))


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.sampled_from(["mean", "vote", "max"]), st.integers(0, 99))
def test_a_sample_is_combined_from_its_own_rows_alone(pieces: list[int], how: str, seed: int) -> None:
    samples = np.repeat(np.arange(len(pieces)) * 3, pieces).tolist()
    logits = np.random.default_rng(seed).normal(size=(len(samples), 3))
    together = classification.combine(logits, rows_of(samples, [0] * len(samples)), how)
    assert together.probabilities is not None
    assert together.probabilities.sum(axis=1) == pytest.approx(1)
    for number, sample in enumerate(together.samples.tolist()):
        own = [row for row, of in enumerate(samples) if of == sample]
        alone = classification.combine(logits[own], rows_of([sample] * len(own), [0] * len(own)), how)
        assert alone.predicted[0] == together.predicted[number]
        assert alone.probabilities == pytest.approx(together.probabilities[number : number + 1])


def test_figures_are_of_samples_with_the_accuracy_of_rows_beside_them() -> None:
    found = classification.figures(classification.combine(LOGITS, ROWS), ["ham", "spam"])
    assert found["samples"] == 2
    assert found["rows"] == 4
    assert found["accuracy"] == 1.0
    assert found["row_accuracy"] == 2 / 4
    assert found["loss"] == pytest.approx(-(math.log(softmax(2 / 3, 5 / 3)[1]) + math.log(softmax(2, 0)[0])) / 2)
    json.dumps(found, allow_nan=False)


def test_figures_of_nothing_are_counts_alone() -> None:
    nothing = classification.combine(np.zeros((0, 2)), rows_of([], []))
    assert classification.figures(nothing, ["ham", "spam"]) == {"samples": 0, "rows": 0}
    assert regression.figures(regression.combine(np.zeros((0, 1)), rows_of([], [], float))) == {"samples": 0, "rows": 0}


def test_an_impossible_truth_costs_a_finite_loss() -> None:
    sure_and_wrong = classification.combine(np.array([[9999.0, -9999.0]]), rows_of([0], [1]))
    assert classification.figures(sure_and_wrong, ["a", "b"])["loss"] == pytest.approx(-math.log(np.finfo(float).tiny))


@pytest.mark.parametrize("how, expected", [("mean", [2.0, 7.0]), ("max", [5.0, 7.0]), ("vote", [1.0, 7.0])])
def test_numbers_are_combined_by_mean_greatest_or_median(how: str, expected: list[float]) -> None:
    rows = rows_of([4, 4, 4, 5], [2.5, 2.5, 2.5, 6.5], float)
    found = regression.combine(np.array([[0.0], [1.0], [5.0], [7.0]]), rows, how)
    assert found.samples.tolist() == [4, 5]
    assert found.truth.tolist() == [2.5, 6.5]
    assert found.predicted.tolist() == expected


def test_figures_of_numbers_have_no_nan_for_constant_predictions_and_for_one_sample() -> None:
    constant = regression.combine(np.ones((3, 1)), rows_of([0, 1, 2], [0.0, 1.0, 2.0], float))
    found = regression.figures(constant)
    assert (found["pearson"], found["spearman"], found["mse"], found["mae"], found["r2"]) == (0, 0, 2 / 3, 2 / 3, 0)
    one = regression.figures(regression.combine(np.ones((1, 1)), rows_of([0], [3.0], float)))
    assert (one["pearson"], one["mse"], one["r2"], one["loss"]) == (0, 4, 0, 4)
    json.dumps([found, one], allow_nan=False)


@pytest.mark.parametrize("task", [classification, regression])
def test_outputs_that_are_not_numbers_stop_with_a_sentence(task: object) -> None:
    with pytest.raises(LossIsNaN, match="learning_rate"):
        task.combine(np.array([[float("nan")]]), rows_of([0], [0]))  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", [classification, regression])
def test_an_unknown_way_of_combining_is_named(task: object) -> None:
    with pytest.raises(BadSetting, match=r"'median'.*mean, vote or max"):
        task.combine(np.zeros((1, 1)), rows_of([0], [0]), "median")  # type: ignore[attr-defined]


def test_a_task_is_found_by_the_name_in_the_store() -> None:
    assert task_of("regression").name == "regression"
    with pytest.raises(BadSetting, match="'ranking'"):
        task_of("ranking")

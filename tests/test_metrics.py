"""Figures against numbers worked out by hand, and against scikit-learn and scipy where they are installed."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bert_train_parallel import metrics

# truth: 4 x a, 3 x b, 1 x c; class d never occurs
TRUTH = np.array([0, 0, 0, 0, 1, 1, 1, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 1, 0, 1])
COUNTS = np.array([[3, 1, 0, 0], [1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])


def test_rows_of_a_confusion_matrix_are_the_truth() -> None:
    assert metrics.confusion_counts(TRUTH, PREDICTED, 4).tolist() == COUNTS.tolist()
    assert metrics.normalised_by_truth(COUNTS)[1].tolist() == [1 / 3, 2 / 3, 0, 0]
    assert metrics.normalised_by_truth(COUNTS)[3].tolist() == [0, 0, 0, 0]


def test_figures_of_each_class_are_those_worked_out_by_hand() -> None:
    found = metrics.class_figures(COUNTS)
    assert found.precision.tolist() == [3 / 4, 2 / 4, 0, 0]
    assert found.recall.tolist() == [3 / 4, 2 / 3, 0, 0]
    assert found.f1.tolist() == pytest.approx([3 / 4, 4 / 7, 0, 0])
    assert found.support.tolist() == [4, 3, 1, 0]
    assert found.predicted.tolist() == [4, 4, 0, 0]


def test_figures_of_all_classes_are_those_worked_out_by_hand() -> None:
    assert metrics.accuracy(COUNTS) == 5 / 8
    assert metrics.macro_f1(COUNTS) == pytest.approx((3 / 4 + 4 / 7 + 0) / 3), "class d, never seen, is no part of the mean"
    assert metrics.weighted_f1(COUNTS) == pytest.approx((4 * 3 / 4 + 3 * 4 / 7) / 8)
    by_chance = (4 * 4 + 3 * 4 + 1 * 0) / 64
    assert metrics.cohens_kappa(COUNTS) == pytest.approx((5 / 8 - by_chance) / (1 - by_chance))
    covariance, truth_spread, predicted_spread = 5 * 8 - 28, 64 - 26, 64 - 32
    assert metrics.matthews_correlation(COUNTS) == pytest.approx(covariance / math.sqrt(truth_spread * predicted_spread))


@pytest.mark.parametrize("truth, predicted", [([0, 1, 1], [1, 1, 1]), ([1, 1], [1, 1]), ([0], [1]), ([1], [1]), ([], [])])
def test_constant_answers_and_few_samples_give_numbers_not_nan(truth: list[int], predicted: list[int]) -> None:
    counts = metrics.confusion_counts(np.array(truth, dtype=int), np.array(predicted, dtype=int), 3)
    figures = [metrics.accuracy, metrics.macro_f1, metrics.weighted_f1, metrics.matthews_correlation, metrics.cohens_kappa]
    assert all(math.isfinite(figure(counts)) for figure in figures)
    assert metrics.matthews_correlation(counts) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.data())
def test_class_figures_are_those_of_scikit_learn(classes: int, data: st.DataObject) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    size = data.draw(st.integers(1, 40))
    codes = st.lists(st.integers(0, classes - 1), min_size=size, max_size=size).map(np.array)
    truth, predicted = data.draw(codes), data.draw(codes)
    counts = metrics.confusion_counts(truth, predicted, classes)
    labels = list(range(classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where a ratio has no denominator
        assert counts.tolist() == sklearn.confusion_matrix(truth, predicted, labels=labels).tolist()
        parts = sklearn.precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
        kappa = sklearn.cohen_kappa_score(truth, predicted)
        expected = [
            sklearn.accuracy_score(truth, predicted),
            sklearn.f1_score(truth, predicted, average="macro", zero_division=0),
            sklearn.f1_score(truth, predicted, average="weighted", zero_division=0),
            sklearn.matthews_corrcoef(truth, predicted),
            0.0 if math.isnan(kappa) else kappa,
        ]
    found = metrics.class_figures(counts)
    for ours, theirs in zip((found.precision, found.recall, found.f1, found.support), parts, strict=True):
        assert ours == pytest.approx(theirs)
    ours = [metrics.accuracy, metrics.macro_f1, metrics.weighted_f1, metrics.matthews_correlation, metrics.cohens_kappa]
    assert [figure(counts) for figure in ours] == pytest.approx(expected, abs=1e-12)


NUMBERS = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(float, st.tuples(st.just(2), st.integers(2, 30)), elements=NUMBERS))
def test_correlations_and_errors_are_those_of_scipy_and_scikit_learn(pair: np.ndarray) -> None:
    stats, sklearn = pytest.importorskip("scipy.stats"), pytest.importorskip("sklearn.metrics")
    truth, predicted = pair
    if np.ptp(truth) and np.ptp(predicted):
        assert metrics.pearson(truth, predicted) == pytest.approx(stats.pearsonr(truth, predicted).statistic, abs=1e-7)
        assert metrics.spearman(truth, predicted) == pytest.approx(stats.spearmanr(truth, predicted).statistic, abs=1e-9)
    else:
        assert metrics.pearson(truth, predicted) == metrics.spearman(truth, predicted) == 0
    assert metrics.mean_squared_error(truth, predicted) == pytest.approx(sklearn.mean_squared_error(truth, predicted))
    assert metrics.mean_absolute_error(truth, predicted) == pytest.approx(sklearn.mean_absolute_error(truth, predicted))
    assert metrics.r_squared(truth, predicted) == pytest.approx(sklearn.r2_score(truth, predicted), rel=1e-9)


def test_correlations_survive_very_large_and_very_small_values() -> None:
    values = np.array([1.0, 2.0, 4.0])
    assert metrics.pearson(values * 1e200, values * 1e-200) == pytest.approx(1)


def test_wilson_intervals_are_those_of_the_literature() -> None:
    # R. G. Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I (method 3)
    for hits, total, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]:
        assert metrics.wilson_interval(hits, total) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_intervals_hold_the_share_and_stay_inside_0_and_1(hits: int, misses: int) -> None:
    low, high = metrics.wilson_interval(hits, hits + misses)
    assert 0 <= low <= (hits / (hits + misses) if hits + misses else 0.5) <= high <= 1

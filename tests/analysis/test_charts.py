"""The numbers behind the charts."""

from __future__ import annotations

import numpy as np
import pytest

from bert_train_parallel import metrics
from bert_train_parallel.analysis import charts


def test_reliability_compares_how_sure_with_how_often_right() -> None:
    probabilities = np.array([[0.95, 0.05], [0.91, 0.09], [0.4, 0.6], [1.0, 0.0]])
    found = charts.reliability(np.array([0, 1, 1, 0]), np.array([0, 0, 1, 0]), probabilities)
    assert found.samples.tolist() == [1, 3]
    assert found.sure.tolist() == pytest.approx([0.6, (0.95 + 0.91 + 1) / 3])
    assert found.right.tolist() == pytest.approx([1, 2 / 3])
    assert found.error == pytest.approx((0.4 + 3 * abs(2 / 3 - 2.86 / 3)) / 4)
    assert (found.low <= found.right).all()
    assert (found.right <= found.high).all()


def test_errors_by_length_count_every_sample_once() -> None:
    rng = np.random.default_rng(0)
    lengths, errors = rng.integers(3, 90, size=500), rng.integers(0, 2, size=500).astype(float)
    found = charts.errors_by_length(lengths, errors)
    assert found.samples.sum() == 500
    assert found.error @ found.samples == pytest.approx(errors.sum())
    assert 5 <= len(found.tokens) <= 8


@pytest.mark.parametrize("lengths", [[7], [7, 7, 7], [7, 8]])
def test_errors_by_length_stand_few_and_equal_lengths(lengths: list[int]) -> None:
    found = charts.errors_by_length(np.array(lengths), np.zeros(len(lengths)))
    assert found.samples.sum() == len(lengths)
    assert found.tokens[0] in ("7", "7-8")


def test_curves_are_the_figures_that_epochs_have_of_both_splits() -> None:
    epochs = [{"epoch": 1, "Training Loss": 0.5, "Validation Loss": 0.6, "Validation Accuracy": 0.9, "seconds": 3.0}]
    loss, accuracy = charts.curves([*epochs, {"epoch": 2, "Training Loss": 0.4, "Validation Loss": None}])
    assert (loss.name, loss.epochs.tolist(), loss.training.tolist()) == ("Loss", [1, 2], [0.5, 0.4])
    assert np.isnan(loss.validation[1])
    assert accuracy.validation[0] == 0.9
    assert charts.curves([{"epoch": 1}]) == []


def test_a_smoothed_loss_is_a_mean_of_its_neighbours() -> None:
    steps = np.stack([np.arange(1, 6), np.array([1.0, 4.0, 1.0, 4.0, 1.0])], axis=1)
    assert charts.smoothed(steps)[:, 1].tolist() == pytest.approx([2.5, 2.0, 3.0, 2.0, 2.5])


def test_of_very_many_classes_the_worst_are_drawn_and_absent_ones_are_not() -> None:
    counts = np.diag(np.r_[0, np.full(99, 5)])
    counts[5, 6] = 5
    codes = charts.classes_by_f1(metrics.class_figures(counts))
    assert len(codes) == charts.MOST_BARS
    assert codes[-2:].tolist() == [6, 5]
    assert 0 not in codes


def test_of_classes_that_are_equally_bad_those_with_most_samples_are_drawn() -> None:
    counts = np.zeros((100, 100), dtype=np.int64)
    counts[np.arange(100), (np.arange(100) + 1) % 100] = np.arange(100, 0, -1)  # all taken for another one
    codes = charts.classes_by_f1(metrics.class_figures(counts))
    assert sorted(codes.tolist()) == list(range(charts.MOST_BARS))


@pytest.mark.parametrize("classes", [40, 500])
def test_a_single_sample_of_many_classes_is_seen_on_white(classes: int) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    counts = np.diag(np.r_[1, 0, np.full(classes - 2, 1000)])
    ax = charts.draw_confusion(counts, [str(code) for code in range(classes)], figure.subplots(), normalised=False)
    cells = (ax.images or ax.collections)[0]
    red, _, _, opaque = cells.cmap(cells.norm(1))
    assert (red < 0.8, opaque) == (True, 1.0)
    shown = np.ma.asarray(cells.get_array())
    assert shown.count() == classes - 1  # what is 0 is not drawn


def test_a_loss_that_hardly_falls_stays_below_the_upper_edge() -> None:
    ax = pytest.importorskip("matplotlib.figure").Figure().subplots()
    charts.draw_steps(np.array([[1, 0.71], [2, 0.709]]), ax)
    assert ax.get_ylim()[1] > 0.75


def test_large_numbers_have_no_factor_in_the_corner() -> None:
    ax = pytest.importorskip("matplotlib.figure").Figure().subplots()
    charts.draw_residuals(np.zeros(5), np.array([1e5, 2e5, 3e5, 4e5, 5e5]), ax)
    ax.figure.draw_without_rendering()
    assert ax.xaxis.get_offset_text().get_text() == ""
    assert "200,000" in [label.get_text() for label in ax.get_xticklabels()]

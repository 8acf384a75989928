"""Paired differences, checked against direct resampling, scipy, and cases whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_train_parallel import metrics
from bert_train_parallel.analysis.compare import class_differences, compare, mcnemar_exact, tables_of_comparison
from bert_train_parallel.analysis.report import Analysis
from bert_train_parallel.errors import BadRun
from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.tasks import Predictions, task_of

TRUTH = np.random.default_rng(0).integers(3, size=300)


def run(
    name: str,
    predicted: np.ndarray,
    samples: np.ndarray | None = None,
    store: str = "one",
    kind: str = "classification",
    first_line: int = 2,
) -> Analysis:
    """An analysis of predictions of the samples 0, 1, 2, ..., or of these."""
    samples = np.arange(len(predicted)) if samples is None else samples
    truth = TRUTH[samples] if kind == "classification" else TRUTH[samples].astype(float)
    predictions = Predictions(samples, truth, predicted, None, len(samples))
    names = ("a", "b", "c") if kind == "classification" else ()
    return Analysis(
        files=RunFiles(Path("runs"), name),
        task_type=kind,
        label_names=names,
        settings={"seed": 0, "learning_rate": 5e-5 if name == "first" else 2e-5},
        result={"fingerprints": {"data": store}},
        figures={"test": task_of(kind).figures(predictions, names)},
        predictions=predictions,
        has_samples=True,
        lines=samples + first_line,
    )


def with_mistakes(share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(TRUTH)) < share, (TRUTH + rng.integers(1, 3, size=len(TRUTH))) % 3, TRUTH)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_test_is_the_exact_binomial_one(only_a: int, only_b: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar_exact(only_a, only_b) == pytest.approx(expected)


def test_mcnemars_test_stands_many_samples() -> None:
    assert mcnemar_exact(50_000, 50_000) == pytest.approx(1.0, abs=1e-9)
    assert 0 <= mcnemar_exact(60_000, 40_000) < 1e-300


def test_intervals_are_those_of_drawing_the_samples_one_by_one() -> None:
    a, b = with_mistakes(0.3, 1), with_mistakes(0.2, 2)
    found = {difference.figure: difference for difference in class_differences(TRUTH, a, b, 3, np.random.default_rng(0))}
    rng = np.random.default_rng(5)
    draws = [rng.integers(len(TRUTH), size=len(TRUTH)) for _ in range(2000)]

    def macro_f1(predicted: np.ndarray, draw: np.ndarray) -> float:
        return metrics.macro_f1(metrics.confusion_counts(TRUTH[draw], predicted[draw], 3))

    everything = np.arange(len(TRUTH))
    for figure, measure in (("accuracy", lambda predicted, draw: (predicted == TRUTH)[draw].mean()), ("macro_f1", macro_f1)):
        low, high = np.percentile([measure(b, draw) - measure(a, draw) for draw in draws], [2.5, 97.5])
        assert found[figure].value == pytest.approx(measure(b, everything) - measure(a, everything))
        assert (found[figure].low, found[figure].high) == pytest.approx((low, high), abs=0.01)


def test_the_better_run_has_an_interval_above_zero_and_counts_of_what_only_it_has_right() -> None:
    comparison = compare([run("first", with_mistakes(0.4, 1)), run("second", TRUTH.copy())])
    pair = comparison.pairs[0]
    assert (pair.samples, pair.only_first) == (300, 0)
    assert pair.only_this == (with_mistakes(0.4, 1) != TRUTH).sum()
    assert pair.p_value is not None
    assert pair.p_value < 1e-20
    assert all(difference.low > 0 for difference in pair.differences)


def test_the_same_predictions_differ_by_nothing() -> None:
    pair = compare([run("first", with_mistakes(0.4, 1)), run("second", with_mistakes(0.4, 1))]).pairs[0]
    assert [(d.value, d.low, d.high) for d in pair.differences] == [(0, 0, 0), (0, 0, 0)]
    assert pair.p_value == 1.0


def test_the_same_seed_gives_the_same_intervals_and_another_one_others() -> None:
    runs = [run("first", with_mistakes(0.4, 1)), run("second", with_mistakes(0.3, 2))]
    assert compare(runs, seed=3).pairs == compare(runs, seed=3).pairs
    assert compare(runs, seed=3).pairs != compare(runs, seed=4).pairs


def test_only_samples_that_both_runs_predicted_are_compared() -> None:
    some = np.arange(100, 300)
    pair = compare([run("first", with_mistakes(0.4, 1)), run("second", TRUTH[some], some)]).pairs[0]
    assert pair.samples == 200
    assert pair.only_this == (with_mistakes(0.4, 1)[some] != TRUTH[some]).sum()


def test_a_store_that_folds_the_same_texts_otherwise_has_the_same_samples() -> None:
    pair = compare([run("first", with_mistakes(0.4, 1)), run("second", TRUTH, store="two")]).pairs[0]
    assert pair.samples == 300
    assert pair.differences[0].low > 0


def test_runs_of_different_data_stand_side_by_side_without_a_difference() -> None:
    comparison = compare([run("first", TRUTH), run("second", TRUTH, store="two", first_line=3)])
    assert comparison.pairs[0].differences == ()
    figures, settings_that_differ, differences = tables_of_comparison(comparison)
    assert [row[0] for row in figures.rows] == ["first", "second"]
    assert settings_that_differ.rows == (("learning_rate", "5e-05", "2e-05"),)
    assert "of different data" in differences.rows[0][1]


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    ways = [
        replace(run("ads", with_mistakes(0.4, seed)), files=RunFiles(Path(folder), "ads")) for seed, folder in enumerate(("lr/a", "lr/b"))
    ]
    comparison = compare([*ways, run("spam", TRUTH)])
    figures, differences = tables_of_comparison(comparison)
    assert [row[0] for row in figures.rows] == ["a/ads", "b/ads", "spam"]
    assert differences.title == "Differences to a/ads"


def test_settings_are_compared_as_far_as_runs_tell_them() -> None:
    first, second = run("first", TRUTH), run("second", TRUTH)
    unfinished, silent = replace(run("third", TRUTH), settings={"seed": 1}), replace(run("fourth", TRUTH), settings={})
    table = tables_of_comparison(compare([first, second, unfinished, silent]))[1]
    assert table.columns == ("", "first", "second", "third")
    assert table.rows == (("seed", "0", "0", "1"), ("learning_rate", "5e-05", "2e-05", ""))
    assert table.note == "Without fourth: what was asked there is not known."


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_numbers_are_compared_by_their_errors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noisy, exact = TRUTH + rng.normal(size=300), TRUTH + rng.normal(size=300) * 0.01
    pair = compare([run("first", noisy, kind="regression"), run("second", exact, kind="regression")]).pairs[0]
    mse, pearson = pair.differences
    assert mse.figure == "mse"
    assert mse.high < 0
    assert pearson.low > 0
    assert pair.p_value is None


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(BadRun, match="no second run"):
        compare([run("first", TRUTH)])
    with pytest.raises(BadRun, match="second is regression"):
        compare([run("first", TRUTH), run("second", TRUTH * 1.0, kind="regression")])

"""Runs side by side, and their differences on the test samples that they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bert_train_parallel import metrics
from bert_train_parallel.analysis.contents import FIGURES
from bert_train_parallel.analysis.report import Analysis
from bert_train_parallel.analysis.results import names_apart
from bert_train_parallel.analysis.tables import Table
from bert_train_parallel.data.batches import FloatArray, IntArray
from bert_train_parallel.errors import BadRun

RESAMPLES = 2000
SHOWN = ("accuracy", "macro_f1", "mcc", "pearson", "spearman", "mse", "loss")


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better a run is than the first one on the samples of both; above 0 its figure is greater."""

    figure: str  # accuracy, macro_f1 | mse, pearson
    value: float
    low: float  # 95 % bootstrap interval, samples drawn in pairs
    high: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A run against the first one, on the test samples that both predicted."""

    run: str
    samples: int
    differences: tuple[Difference, ...] = ()
    only_first: int = 0  # samples that only the first run has right
    only_this: int = 0
    p_value: float | None = None  # McNemar's exact test, two sides; None for regression
    reason: str = ""  # why there is nothing to compare


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs in the order given; each but the first has its pair."""

    runs: tuple[Analysis, ...]
    pairs: tuple[Pair, ...]


def compare(runs: Sequence[Analysis], seed: int = 0) -> Comparison:
    """Runs side by side, each under a name that no other has; the same seed gives the same intervals.

    Raises:
        BadRun: fewer than two, or of different tasks.
    """
    if len(runs) < 2:
        raise BadRun(
            f"{runs[0].name if runs else 'nothing'}: there is no second run to compare with. "
            "Name two result files, or a store with several runs."
        )
    runs = [replace(run, called=name) for run, name in zip(runs, names_apart([run.files for run in runs]), strict=True)]
    kinds = {run.task_type for run in runs}
    if len(kinds) > 1:
        raise BadRun(f"{', '.join(f'{run.name} is {run.task_type}' for run in runs)}: runs of one task can be compared.")
    return Comparison(tuple(runs), tuple(_pair(runs[0], run, seed) for run in runs[1:]))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p value that two classifiers are equally good, from the samples that only one of them has right.

    >>> round(mcnemar_exact(1, 9), 6), mcnemar_exact(0, 0)
    (0.021484, 1.0)

    Source: Q. McNemar, 1947, with the binomial in place of its approximation.
    """
    total, fewer = only_a + only_b, min(only_a, only_b)
    log_half = total * math.log(2)
    chances = (math.exp(_log_choose(total, k) - log_half) for k in range(fewer + 1))
    return min(1.0, 2 * math.fsum(chances))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _pair(first: Analysis, other: Analysis, seed: int) -> Pair:
    shared = shared_samples(first, other)
    if isinstance(shared, str):
        return Pair(other.name, 0, reason=shared)
    at_first, at_other = shared
    assert first.predictions is not None
    assert other.predictions is not None
    truth = first.predictions.truth[at_first]
    a, b = first.predictions.predicted[at_first], other.predictions.predicted[at_other]
    rng = np.random.default_rng(seed)
    if first.task_type == "regression":
        return Pair(other.name, len(truth), tuple(_number_differences(truth, a, b, rng)))
    only_first, only_this = int(((a == truth) & (b != truth)).sum()), int(((a != truth) & (b == truth)).sum())
    differences = tuple(class_differences(truth, a, b, len(first.label_names), rng))
    return Pair(other.name, len(truth), differences, only_first, only_this, mcnemar_exact(only_first, only_this))


def shared_samples(first: Analysis, other: Analysis) -> tuple[IntArray, IntArray] | str:
    """Positions of the same test samples in both runs; or why there are none, as a sentence.

    Samples are the same by their number in one store. A store that folds the same texts otherwise has another
    fingerprint; its samples are the same when every shared number has the same line and the same label.
    """
    for run in (first, other):
        if run.predictions is None or not run.has_samples:
            return f"{run.name} has no numbers of its test samples"
    assert first.predictions is not None
    assert other.predictions is not None
    _, at_first, at_other = np.intersect1d(first.predictions.samples, other.predictions.samples, True, return_indices=True)
    if not len(at_first):
        return f"{first.name} and {other.name} have no test sample in common"
    prints = [run.result.get("fingerprints", {}).get("data") for run in (first, other)]
    if None not in prints and prints[0] == prints[1]:
        return at_first, at_other
    if first.lines is None or other.lines is None or first.label_names != other.label_names:
        return f"{first.name} and {other.name} are of different data"
    same_lines = np.array_equal(first.lines[at_first], other.lines[at_other])
    if same_lines and np.array_equal(first.predictions.truth[at_first], other.predictions.truth[at_other]):
        return at_first, at_other
    return f"{first.name} and {other.name} are of different data"


def class_differences(truth: IntArray, a: IntArray, b: IntArray, classes: int, rng: np.random.Generator) -> Iterator[Difference]:
    """Differences b - a of accuracy and macro F1, with bootstrap intervals over samples (n,).

    To draw n samples with replacement is to draw how often each kind of sample (truth, a, b) comes, so the
    cost depends on the kinds, not on n.
    """
    kinds, counts = np.unique(np.stack([truth, a, b], axis=1), axis=0, return_counts=True)
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)  # (resamples, kinds)
    gain = (kinds[:, 2] == kinds[:, 0]).astype(np.int64) - (kinds[:, 1] == kinds[:, 0])
    yield _difference("accuracy", float(gain @ counts / counts.sum()), drawn @ gain / counts.sum())

    macro = [_macro_f1(np.vstack([counts, drawn]), kinds[:, 0], kinds[:, column], classes) for column in (1, 2)]
    gained = macro[1] - macro[0]
    yield _difference("macro_f1", float(gained[0]), gained[1:])


def _macro_f1(drawn: IntArray, truth: IntArray, predicted: IntArray, classes: int) -> FloatArray:
    """(r,) macro F1 of each draw of kinds (r, k), whose truth and prediction are (k,): metrics.macro_f1 for many at once."""
    of_class = np.eye(classes)
    hits = drawn @ (of_class[truth] * (truth == predicted)[:, None])  # (r, C)
    total = drawn @ (of_class[truth] + of_class[predicted])  # support and predicted together
    f1 = np.divide(2 * hits, total, out=np.zeros(total.shape), where=total > 0)
    means: FloatArray = f1.sum(axis=1) / (total > 0).sum(axis=1)
    return means


def _number_differences(truth: FloatArray, a: FloatArray, b: FloatArray, rng: np.random.Generator) -> Iterator[Difference]:
    """Differences b - a of mean squared error and Pearson's r, with bootstrap intervals over samples (n,)."""
    measures: dict[str, Callable[[FloatArray, FloatArray], float]] = {"mse": metrics.mean_squared_error, "pearson": metrics.pearson}

    def gains(draw: IntArray | slice) -> list[float]:
        return [measure(truth[draw], b[draw]) - measure(truth[draw], a[draw]) for measure in measures.values()]

    resampled = np.array([gains(rng.integers(len(truth), size=len(truth))) for _ in range(RESAMPLES)])
    for number, (name, value) in enumerate(zip(measures, gains(slice(None)), strict=True)):
        yield _difference(name, value, resampled[:, number])


def _difference(figure: str, value: float, resampled: FloatArray) -> Difference:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Difference(figure, value, float(low), float(high))


def tables_of_comparison(comparison: Comparison) -> list[Table]:
    """The runs' figures, the settings in which they differ, and the differences to the first run."""
    return [table for table in (_figures(comparison), _settings(comparison), _differences(comparison)) if table.rows]


def _figures(comparison: Comparison) -> Table:
    test = [run.figures.get("test", {}) for run in comparison.runs]
    names = [name for name in SHOWN if any(name in figures for figures in test)]
    rows = []
    for run, figures in zip(comparison.runs, test, strict=True):
        bounds = figures.get("accuracy_interval")
        interval = f"{bounds[0]:.4f}-{bounds[1]:.4f}" if bounds else ""
        seconds = run.result.get("seconds")
        rows.append(
            (
                run.name,
                f"{figures.get('samples', 0):,}",
                *(metrics.figure_words(figures[name]) if name in figures else "" for name in names),
                *([interval] if "accuracy" in names else []),
                f"{seconds:,.0f} s" if isinstance(seconds, int | float) else "",
            )
        )
    heads = [FIGURES[name].split(" (")[0].split(",")[0] for name in names]
    if "accuracy" in names:
        heads.append("95 %, accuracy")
    return Table("Runs, over their test samples", ("run", "samples", *heads, "took"), tuple(rows))


def _settings(comparison: Comparison) -> Table:
    """Settings with different values; names of places are left out, since every run has its own, and runs that tell no settings."""
    runs = [run for run in comparison.runs if run.settings]
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in ("run", "output_dir", "logfile"))
    rows = []
    for name in names:
        known: list[Any] = [run.settings[name] for run in runs if name in run.settings]  # an unfinished run does not tell all
        if any(value != known[0] for value in known):
            rows.append((name, *(str(run.settings.get(name, "")) for run in runs)))
    untold = ", ".join(run.name for run in comparison.runs if not run.settings)
    note = f"Without {untold}: what was asked there is not known." if untold else ""
    return Table("Settings that differ", ("", *(run.name for run in runs)), tuple(rows), note)


def _signed(difference: float) -> str:
    return f"{difference:+.4f}" if abs(difference) < 1000 else f"{difference:+,.0f}"


def _differences(comparison: Comparison) -> Table:
    first = comparison.runs[0].name
    rows: list[tuple[str, ...]] = []
    for pair in comparison.pairs:
        if pair.reason:
            rows.append((pair.run, pair.reason, "", "", "", "", "", ""))
        for difference in pair.differences:
            found = _signed(difference.value), f"{_signed(difference.low)} to {_signed(difference.high)}", f"{pair.samples:,}"
            tested = difference.figure == "accuracy" and pair.p_value is not None
            test = (f"{pair.only_first:,}", f"{pair.only_this:,}", f"{pair.p_value:.3g}") if tested else ("", "", "")
            rows.append((pair.run, FIGURES[difference.figure], *found, *test))
    columns = ("run", "figure", "difference", "95 % interval", "samples", "only first", "only this", "p")
    note = (
        f"Paired over the test samples of both: {RESAMPLES:,} bootstrap resamples; samples that only the first run or only this one "
        "has right, and p by McNemar's exact test, two-sided."
    )
    return Table(f"Differences to {first}", columns, tuple(rows), note, frozenset({1}))

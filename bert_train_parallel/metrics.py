"""Predictions to figures, in numpy alone.

Conventions, those of scikit-learn: rows of a confusion matrix are the truth; a ratio without a
denominator is 0, never NaN; the macro average is over classes that occur in the truth or the predictions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]

Z_95 = 1.959963984540054  # two-sided 95 % of the normal distribution


def figure_words(value: float) -> str:
    """A figure as a person reads it: four decimals, of a large one its thousands apart; what is very large or small as a power of ten.

    >>> figure_words(0.91667), figure_words(1234.56), figure_words(-262154086291.1264), figure_words(2.5e-7), figure_words(0.0)
    ('0.9167', '1,234.6', '-262,154,086,291', '2.500e-07', '0.0000')
    """
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-3:
        return f"{value:.3e}"
    return f"{value:.4f}" if size < 1000 else f"{value:,.1f}" if size < 1e5 else f"{value:,.0f}"


def confusion_counts(truth: Ints, predicted: Ints, classes: int) -> Ints:
    """How often each class was taken for each: (C, C), rows the truth, columns the prediction.

    >>> confusion_counts(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    cells = np.asarray(truth, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def normalised_by_truth(counts: Ints) -> Floats:
    """(C, C) shares of each true class that sum to 1 per row; a row of zeros where a class never occurs."""
    return _ratio(counts, counts.sum(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Figures of each class, all (C,)."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Ints  # samples whose truth it is
    predicted: Ints  # samples for which it was predicted


def class_figures(counts: Ints) -> ClassFigures:
    """Precision, recall and F1 per class from a (C, C) confusion matrix."""
    hits, support, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    return ClassFigures(
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, support),
        f1=_ratio(2 * hits, support + predicted),
        support=support,
        predicted=predicted,
    )


def accuracy(counts: Ints) -> float:
    """Share of samples on the diagonal of a confusion matrix."""
    return float(np.trace(counts) / max(counts.sum(), 1))


def wilson_interval(hits: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """The interval of a proportion that stays inside 0..1 and is honest for few samples; (0, 1) for none.

    >>> tuple(round(bound, 4) for bound in wilson_interval(9, 10))
    (0.5958, 0.9821)

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    if total == 0:
        return 0.0, 1.0
    share = hits / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # rounding must not leave the point estimate outside at 0 and at 1
    return max(0.0, min(share, (centre - spread) / scale)), min(1.0, max(share, (centre + spread) / scale))


def macro_f1(counts: Ints) -> float:
    """Mean F1 of the classes that occur in the truth or the predictions, each counting the same."""
    figures = class_figures(counts)
    occurring = (figures.support + figures.predicted) > 0
    return float(figures.f1[occurring].mean()) if occurring.any() else 0.0


def weighted_f1(counts: Ints) -> float:
    """Mean F1 of the classes, each counting by its samples."""
    figures = class_figures(counts)
    return float((figures.f1 * figures.support).sum() / max(figures.support.sum(), 1))


def matthews_correlation(counts: Ints) -> float:
    """Matthews' correlation for any number of classes, -1..1; 0 where truth or predictions are constant.

    Source: J. Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004.
    """
    truth, predicted, total = counts.sum(axis=1).astype(float), counts.sum(axis=0).astype(float), float(counts.sum())
    covariance = float(np.trace(counts)) * total - float(truth @ predicted)
    spread = (total**2 - float(truth @ truth)) * (total**2 - float(predicted @ predicted))
    return covariance / math.sqrt(spread) if spread > 0 else 0.0


def cohens_kappa(counts: Ints) -> float:
    """Agreement beyond chance, 1 at best; 0 where chance alone already explains everything.

    Source: J. Cohen, A coefficient of agreement for nominal scales, 1960.
    """
    total = float(counts.sum())
    if total == 0:
        return 0.0
    by_chance = float(counts.sum(axis=1).astype(float) @ counts.sum(axis=0).astype(float)) / total**2
    return (accuracy(counts) - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0


def pearson(a: Floats, b: Floats) -> float:
    """Linear correlation, -1..1; 0 where either is constant.

    >>> round(pearson(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0])), 6)
    0.327327
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    # scaled first: squares of very large or very small values would leave the range of float64
    a, b = (a - a.mean()) / np.ptp(a), (b - b.mean()) / np.ptp(b)
    return float(np.clip(a @ b / math.sqrt(float(a @ a) * float(b @ b)), -1, 1))


def spearman(a: Floats, b: Floats) -> float:
    """Pearson's correlation of the ranks; equal values share the mean of their ranks."""
    return pearson(_ranks(a), _ranks(b))


def mean_squared_error(truth: Floats, predicted: Floats) -> float:
    """Mean squared difference, in the label's unit squared."""
    return float(np.mean((np.asarray(truth, dtype=np.float64) - predicted) ** 2))


def mean_absolute_error(truth: Floats, predicted: Floats) -> float:
    """Mean absolute difference, in the label's unit."""
    return float(np.mean(np.abs(np.asarray(truth, dtype=np.float64) - predicted)))


def r_squared(truth: Floats, predicted: Floats) -> float:
    """The coefficient of determination, R2; where the truth is constant, 1 if it is met exactly, else 0."""
    truth = np.asarray(truth, dtype=np.float64)
    rest, whole = float(((truth - predicted) ** 2).sum()), float(((truth - truth.mean()) ** 2).sum())
    if whole == 0:
        return float(rest == 0)
    return 1 - rest / whole


def _ratio(above: npt.ArrayLike, below: npt.ArrayLike) -> Floats:
    """above / below, 0 where below is 0."""
    above, below = np.broadcast_arrays(np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64))
    ratio: Floats = np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
    return ratio


def _ranks(values: Floats) -> Floats:
    """Ranks from 1, ties at the mean of theirs.

    >>> _ranks(np.array([10.0, 30.0, 10.0])).tolist()
    [1.5, 3.0, 1.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = np.asarray(last - (counts - 1) / 2)[inverse]
    return ranks

"""Charts of a run: one function gathers the numbers of each, one draws them on the axes it is given.

Importing this loads no matplotlib: who has axes has loaded it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_train_parallel import metrics
from bert_train_parallel.data.batches import FloatArray, IntArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, GREY, RED = "#2b6cb0", "#dd6b20", "#2f855a", "#a0aec0", "#c53030"
MARK = 20  # square points of a mark where a cell of the matrix itself would be hardly seen
MOST_ANNOTATED = 20  # classes of a matrix whose cells still hold a readable number
MOST_NAMED = 120  # classes whose names still have room beside a matrix
MOST_BARS = 60  # classes in one chart of bars


def draw_confusion(counts: IntArray, names: Sequence[str], ax: Axes, normalised: bool) -> Axes:
    """A (C, C) confusion matrix, rows the truth, as counts or as shares of the truth.

    Colours follow the root of counts, and of the shares of many classes: a straight scale would show the diagonal alone.
    """
    from matplotlib.colors import PowerNorm

    classes = len(names)
    values = metrics.normalised_by_truth(counts) if normalised else counts.astype(np.float64)
    if classes <= MOST_ANNOTATED:
        norm = PowerNorm(1 if normalised else 0.5, 0, 1 if normalised else max(values.max(), 1))
        ax.imshow(values, cmap="Blues", norm=norm, interpolation="nearest")
        for row, column in np.ndindex(counts.shape):
            words = f"{values[row, column]:.2f}" if normalised else f"{counts[row, column]:,}"
            colour = "white" if norm(values[row, column]) > 0.55 else ("#1a202c" if counts[row, column] else GREY)
            size = 10 if classes <= 10 and len(words) < 6 else 7
            ax.text(column, row, words, ha="center", va="center", color=colour, fontsize=size)
    else:
        _draw_many_cells(values, ax, normalised)
    size = 10 if classes <= 12 else 8 if classes <= 40 else 6
    if classes <= MOST_NAMED:
        ax.set_xticks(range(classes), names, fontsize=size, rotation=90 if max(map(len, names)) > 3 else 0)
        ax.set_yticks(range(classes), names, fontsize=size)
    ax.set_xlabel("predicted")
    ax.set_ylabel("truth")
    ax.tick_params(length=0)
    return ax


def _draw_many_cells(values: FloatArray, ax: Axes, normalised: bool) -> None:
    """The cells of a (C, C) matrix that are not 0, each of which is seen on white, however small or few it is; and the scale of colours."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, PowerNorm
    from matplotlib.ticker import MaxNLocator

    colours: Any = {"cmap": ListedColormap(colormaps["Blues"](np.linspace(0.3, 1, 256)))}
    colours["norm"] = PowerNorm(0.5, 0, 1) if normalised else PowerNorm(0.5, 1, max(values.max(), 2))
    classes = len(values)
    if classes <= MOST_NAMED:
        cells: Any = ax.imshow(np.ma.masked_equal(values, 0), interpolation="nearest", **colours)
    else:  # a cell is too small to be seen, two points of 500 classes
        rows, columns = np.nonzero(values)
        order = np.argsort(values[rows, columns], kind="stable")  # the greatest on top
        rows, columns = rows[order], columns[order]
        cells = ax.scatter(columns, rows, c=values[rows, columns], s=MARK, marker="s", linewidths=0, rasterized=True, **colours)
        ax.set_xlim(-0.5, classes - 0.5)
        ax.set_ylim(classes - 0.5, -0.5)
        ax.set_aspect("equal")
    ticks = None if normalised else MaxNLocator(integer=True)
    ax.figure.colorbar(cells, ax=ax, shrink=0.5, label="share of the truth" if normalised else "samples", ticks=ticks)


def _plain_numbers(axis: Any) -> None:
    """Numbers with their thousands apart; matplotlib would put a factor such as 1e6 into the corner, where the legend is."""

    def words(value: float, place: int) -> str:
        if 1e-3 < np.abs(axis.get_view_interval()).max() < 1e7:
            apart = np.diff(axis.get_majorticklocs()[:2]).sum()  # which tells the decimals of all
            return f"{value:,.{len(f'{apart:.10f}'.rstrip('0').partition('.')[2])}f}"
        return "0" if value == 0 else np.format_float_scientific(value, precision=3, trim="-", exp_digits=1)

    axis.set_major_formatter(words)


def _legend_above(ax: Axes) -> None:
    """A legend that no curve runs through."""
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)


def _epochs_below(ax: Axes, epochs: IntArray) -> None:
    """Whole epochs on the x axis, also where there is only one."""
    ax.set_xlabel("epoch")
    ax.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    ax.set_xticks(epochs[:: max(1, len(epochs) // 12)])
    ax.grid(axis="y", alpha=0.3)


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure of training and validation samples over the epochs (E,); NaN where an epoch has none."""

    name: str
    epochs: IntArray
    training: FloatArray
    validation: FloatArray


def curves(epochs: Sequence[dict[str, Any]]) -> list[Curve]:
    """A curve for each figure that the stats have of training or validation samples, such as Loss and Accuracy."""
    names = list(dict.fromkeys(key.split(" ", 1)[1] for epoch in epochs for key in epoch if key.startswith(("Training ", "Validation "))))
    numbers = np.arange(1, len(epochs) + 1)
    found = [Curve(name, numbers, _column(epochs, f"Training {name}"), _column(epochs, f"Validation {name}")) for name in names]
    return [curve for curve in found if np.isfinite(curve.training).any() or np.isfinite(curve.validation).any()]


def _column(epochs: Sequence[dict[str, Any]], key: str) -> FloatArray:
    values = [epoch.get(key) for epoch in epochs]
    return np.array([value if isinstance(value, int | float) else np.nan for value in values], dtype=np.float64)


def draw_curve(curve: Curve, ax: Axes) -> Axes:
    """Training and validation over the epochs, with a mark at each, so that a single epoch is seen as well."""
    for values, label, colour in ((curve.training, "training", GREY), (curve.validation, "validation", BLUE)):
        if np.isfinite(values).any():
            ax.plot(curve.epochs, values, marker="o", color=colour, label=label)
    ax.set_ylabel(curve.name.lower())
    _plain_numbers(ax.yaxis)
    if curve.name.lower() == "loss":
        ax.set_ylim(0, 1.08 * np.nanmax([curve.training, curve.validation]) or 1)
    _epochs_below(ax, curve.epochs)
    _legend_above(ax)
    return ax


def smoothed(steps: FloatArray) -> FloatArray:
    """(S, 2) steps with the mean loss of a window around each of about a fiftieth of all; the window is narrower at both ends."""
    half = max(len(steps) // 100, 1)
    sums = np.concatenate([[0.0], np.cumsum(steps[:, 1])])
    at = np.arange(len(steps))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(steps))
    return np.stack([steps[:, 0], (sums[high] - sums[low]) / (high - low)], axis=1)


def draw_steps(steps: FloatArray, ax: Axes) -> Axes:
    """Training loss (S, 2) of each step, and its course."""
    from matplotlib.ticker import MaxNLocator

    ax.plot(steps[:, 0], steps[:, 1], color=GREY, linewidth=0.8, alpha=0.7, label="step", marker="o" if len(steps) < 3 else "")
    if len(steps) > 10:
        course = smoothed(steps)
        ax.plot(course[:, 0], course[:, 1], color=BLUE, label="mean of the steps around")
        _legend_above(ax)
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel("training loss")
    ax.set_ylim(0, 1.08 * steps[:, 1].max() or 1)  # a course that hardly falls is not cut by the edge
    _plain_numbers(ax.yaxis)
    ax.grid(axis="y", alpha=0.3)
    return ax


def classes_by_f1(found: metrics.ClassFigures) -> IntArray:
    """Codes of the classes to draw: those that occur, by falling F1; of very many the worst, and of equal ones those with most samples."""
    occurring = np.flatnonzero(found.support + found.predicted)
    return occurring[np.lexsort((found.support[occurring], -found.f1[occurring]))][-MOST_BARS:]


def draw_f1_of_all(found: metrics.ClassFigures, ax: Axes) -> Axes:
    """How many of the classes that occur have which F1."""
    ax.hist(found.f1[found.support + found.predicted > 0], bins=20, range=(0, 1), color=BLUE, alpha=0.5)
    ax.set_xlim(0, 1)
    ax.set_xlabel("F1")
    ax.set_ylabel("classes")
    ax.grid(axis="y", alpha=0.3)
    return ax


def draw_classes(found: metrics.ClassFigures, codes: IntArray, names: Sequence[str], ax: Axes) -> Axes:
    """F1 of these classes as bars, the best on top, with marks for precision and recall."""
    places = np.arange(len(codes))[::-1]
    ax.barh(places, found.f1[codes], color=BLUE, alpha=0.35, height=0.7, label="F1")
    ax.scatter(found.precision[codes], places, marker="|", s=90, color=ORANGE, label="precision", zorder=3, linewidths=2)
    ax.scatter(found.recall[codes], places, marker="x", s=30, color=GREEN, label="recall", zorder=3)
    labels = [f"{names[code]}  ({found.support[code]:,})" for code in codes]
    ax.set_yticks(places, labels, fontsize=10 if len(codes) <= 25 else 8)
    ax.set_ylim(-0.6, len(codes) - 0.4)
    ax.set_xlim(-0.01, 1.02)
    ax.set_xlabel("F1, precision, recall; in brackets the test samples of the class")
    ax.grid(axis="x", alpha=0.3)
    _legend_above(ax)
    return ax


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often the model is right when it is so sure; all (bins,), bins without samples left out."""

    sure: FloatArray  # mean probability of the predicted class
    right: FloatArray  # share of samples that are right
    low: FloatArray  # 95 % interval of it
    high: FloatArray
    samples: IntArray
    error: float  # expected calibration error: mean |right - sure| over samples


def reliability(truth: IntArray, predicted: IntArray, probabilities: FloatArray, bins: int = 10) -> Reliability:
    """Reliability of the predicted class's probability, in bins of equal width.

    Source: C. Guo et al., On calibration of modern neural networks, 2017.
    """
    sure = probabilities[np.arange(len(predicted)), predicted]
    right = predicted == truth
    bin_of = np.minimum((sure * bins).astype(np.int64), bins - 1)
    used, place, samples = np.unique(bin_of, return_inverse=True, return_counts=True)
    mean_sure = np.bincount(place, weights=sure) / samples
    hits = np.bincount(place, weights=right).astype(np.int64)
    bounds = np.array([metrics.wilson_interval(int(hit), int(total)) for hit, total in zip(hits, samples, strict=True)])
    assert len(used) == len(samples)
    error = float(np.abs(hits / samples - mean_sure) @ samples / samples.sum())
    return Reliability(mean_sure, hits / samples, bounds[:, 0], bounds[:, 1], samples, error)


def draw_reliability(found: Reliability, ax: Axes) -> Axes:
    """Share right against how sure; on the diagonal the probabilities mean what they say."""
    ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    spread = np.stack([found.right - found.low, found.high - found.right])
    ax.errorbar(found.sure, found.right, yerr=spread, marker="o", color=BLUE, capsize=3, label="share right, 95 % interval")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    ax.set_ylabel("share of samples that are right")
    ax.grid(alpha=0.3)
    _legend_above(ax)
    return ax


def draw_sureness(found: Reliability, ax: Axes) -> Axes:
    """How many samples each bin of the reliability has."""
    ax.bar(found.sure, found.samples, width=0.06, color=BLUE, alpha=0.5)
    ax.set_xlabel("probability of the predicted class")
    ax.set_ylabel("samples")
    return ax


@dataclass(frozen=True, slots=True)
class ByLength:
    """Errors of samples by their length, in groups of about equal size; all (groups,)."""

    tokens: list[str]  # such as 12-20
    error: FloatArray  # share wrong, or mean absolute error
    low: FloatArray  # 95 % interval of it
    high: FloatArray
    samples: IntArray


def errors_by_length(lengths: IntArray, errors: FloatArray, groups: int = 8) -> ByLength:
    """Mean error by length; `errors` (n,) are 0 or 1, or absolute errors, whose interval is the normal one."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, groups + 1), method="nearest"))
    group = np.searchsorted(edges[1:-1], lengths, side="right") if len(edges) > 2 else np.zeros(len(lengths), dtype=np.int64)
    is_share = bool(np.isin(errors, (0.0, 1.0)).all())
    means, bounds, words, samples = [], [], [], []
    for number in np.unique(group):
        of_group, sizes = errors[group == number], lengths[group == number]
        mean = float(of_group.mean())
        spread = metrics.Z_95 * float(of_group.std()) / np.sqrt(len(of_group))
        bounds.append(metrics.wilson_interval(int(of_group.sum()), len(of_group)) if is_share else (mean - spread, mean + spread))
        means.append(mean)
        samples.append(len(of_group))
        words.append(f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()}-{sizes.max()}")
    low, high = np.array(bounds).T
    return ByLength(words, np.array(means), low, high, np.array(samples))


def draw_errors_by_length(found: ByLength, ax: Axes, label: str) -> Axes:
    """Mean error of each group of lengths, with its interval."""
    places = np.arange(len(found.tokens))
    spread = np.maximum(np.stack([found.error - found.low, found.high - found.error]), 0)
    ax.bar(places, found.error, color=BLUE, alpha=0.35)
    ax.errorbar(places, found.error, yerr=spread, linestyle="", color=BLUE, capsize=4)
    ax.set_xticks(places, [f"{tokens}\n{count:,}" for tokens, count in zip(found.tokens, found.samples, strict=True)])
    ax.set_xlabel("tokens of a text, over its rows; below them the samples")
    ax.set_ylabel(label)
    ax.set_ylim(bottom=0)
    _plain_numbers(ax.yaxis)
    ax.grid(axis="y", alpha=0.3)
    return ax


def draw_scatter(truth: FloatArray, predicted: FloatArray, ax: Axes) -> Axes:
    """Predicted against true numbers (n,); very many as a density."""
    low, high = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color=GREY, linestyle="--", linewidth=1)
    if len(truth) > 5000:
        ax.hexbin(truth, predicted, gridsize=60, cmap="Blues", bins="log", mincnt=1, extent=(*limits, *limits))
    else:
        ax.scatter(truth, predicted, s=14, color=BLUE, alpha=0.5, edgecolors="none")
    ax.set_xlim(limits)
    ax.set_ylim(limits)
    ax.set_aspect("equal")
    ax.set_xlabel("truth")
    ax.set_ylabel("predicted")
    ax.grid(alpha=0.3)
    for axis in (ax.xaxis, ax.yaxis):
        _plain_numbers(axis)
    return ax


def draw_residuals(truth: FloatArray, predicted: FloatArray, ax: Axes) -> Axes:
    """How far off the predictions are, as a histogram."""
    ax.hist(predicted - truth, bins=min(40, max(5, len(truth) // 5)), color=BLUE, alpha=0.5)
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    ax.set_xlabel("predicted - truth")
    _plain_numbers(ax.xaxis)
    ax.set_ylabel("samples")
    return ax


def draw_differences(names: Sequence[str], values: FloatArray, lows: FloatArray, highs: FloatArray, ax: Axes, label: str) -> Axes:
    """Differences of runs to the first one with their 95 % intervals; the line at 0 is the first run."""
    places = np.arange(len(names))[::-1]
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    ax.errorbar(
        values, places, xerr=np.maximum(np.stack([values - lows, highs - values]), 0), linestyle="", marker="o", color=BLUE, capsize=4
    )
    ax.set_yticks(places, names)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.set_xlabel(label)
    _plain_numbers(ax.xaxis)
    ax.grid(axis="x", alpha=0.3)
    return ax


def draw_courses(runs: Sequence[tuple[str, Curve]], ax: Axes) -> Axes:
    """The same validation figure of several runs over the epochs."""
    for name, curve in runs:
        ax.plot(curve.epochs, curve.validation, marker="o", label=name)
    ax.set_ylabel(f"validation {runs[0][1].name.lower()}")
    _plain_numbers(ax.yaxis)
    _epochs_below(ax, max((curve.epochs for _, curve in runs), key=len))
    _legend_above(ax)
    return ax

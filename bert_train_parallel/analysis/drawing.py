"""Draws the charts of a run with matplotlib, which is loaded here and nowhere else."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_train_parallel.analysis import charts
from bert_train_parallel.analysis.compare import Comparison
from bert_train_parallel.analysis.contents import FIGURES, class_name
from bert_train_parallel.analysis.report import Analysis
from bert_train_parallel.analysis.tables import shorten, visible
from bert_train_parallel.errors import MissingPackage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_NAME = 28  # characters of a class name beside a chart
_SETTINGS: Any = {
    "text.parse_math": False,  # a name such as "$5 off $9" is text, not mathematics
    "svg.hashsalt": "report",  # with this, and no date, the same run gives the same files
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart; `name` is that of its files."""

    name: str
    title: str
    width: float  # inches
    png: bytes
    svg: bytes


def draw_charts(analysis: Analysis) -> list[Chart]:
    """All charts that the run has numbers for.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    names = [class_name(code, name) for code, name in enumerate(analysis.label_names)]
    return drawn(names, lambda drawable: _figures(analysis, drawable))


def draw_comparison(comparison: Comparison) -> list[Chart]:
    """Differences to the first run, and validation figures over the epochs; raises as `draw_charts` does."""
    return drawn([run.name for run in comparison.runs], lambda drawable: _figures_of_comparison(comparison, drawable))


def drawn(names: Sequence[str], figures: Callable[[list[str]], Iterator[tuple[str, str, Figure]]]) -> list[Chart]:
    """Charts whose labels are these names, in a form that can be drawn here."""
    try:
        import matplotlib
    except ImportError:
        raise MissingPackage("Charts are drawn with matplotlib, which is not installed: pip install matplotlib") from None
    drawable, families = _drawable([shorten(visible(name), LONGEST_NAME) for name in names])
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own settings, such as LaTeX for all text, are for the user's own charts
        matplotlib.rcParams.update(_SETTINGS | {"font.family": families})
        return [
            Chart(name, title, figure.get_figwidth(), _saved(figure, "png"), _saved(figure, "svg"))
            for name, title, figure in map(_laid_out, figures(drawable))
        ]


def _figures(analysis: Analysis, names: Sequence[str]) -> Iterator[tuple[str, str, Figure]]:
    if analysis.counts is not None and analysis.classes is not None:
        yield "confusion_counts", "Confusion matrix", _confusion(analysis, names, normalised=False)
        yield "confusion_normalised", "Confusion matrix, normalised by truth", _confusion(analysis, names, normalised=True)
        codes = charts.classes_by_f1(analysis.classes)
        figure, ax = _axes(8, 1.2 + 0.27 * max(len(codes), 3))
        charts.draw_classes(analysis.classes, codes, names, ax)
        occurring = int((analysis.classes.support + analysis.classes.predicted > 0).sum())
        if len(codes) == occurring:
            yield "classes", "Classes", figure
        else:
            yield "classes", f"The {len(codes)} of {occurring} classes with the lowest F1; of equal ones those with most samples", figure
            figure, ax = _axes(7, 3.5)
            charts.draw_f1_of_all(analysis.classes, ax)
            yield "classes_f1", f"F1 of all {occurring} classes", figure
    found = analysis.predictions
    if found is not None and analysis.task_type == "regression":
        figure, ax = _axes(6, 6)
        charts.draw_scatter(found.truth, found.predicted, ax)
        yield "scatter", "Predicted and true numbers", figure
        figure, ax = _axes(7, 3.5)
        charts.draw_residuals(found.truth, found.predicted, ax)
        yield "residuals", "Errors", figure
    yield from _courses(analysis)
    if found is not None and found.probabilities is not None:
        yield "calibration", *_calibration(charts.reliability(found.truth, found.predicted, found.probabilities))
    if found is not None and analysis.lengths is not None:
        is_regression = analysis.task_type == "regression"
        errors = np.abs(found.predicted - found.truth) if is_regression else (found.predicted != found.truth).astype(np.float64)
        figure, ax = _axes(8, 3.8)
        charts.draw_errors_by_length(
            charts.errors_by_length(analysis.lengths, errors), ax, "mean error" if is_regression else "share wrong"
        )
        yield "lengths", "Errors by length of the text", figure


def _courses(analysis: Analysis) -> Iterator[tuple[str, str, Figure]]:
    """What happened over epochs and steps."""
    curves = charts.curves(analysis.epochs)
    if curves:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.8 * len(curves), 3.8), layout="constrained")
        for curve, ax in zip(curves, figure.subplots(1, len(curves), squeeze=False)[0], strict=True):
            charts.draw_curve(curve, ax)
        yield "epochs", "Epochs", figure
    if len(analysis.steps):
        figure, ax = _axes(8, 3.8)
        charts.draw_steps(analysis.steps, ax)
        yield "steps", "Training loss of each step", figure


def _figures_of_comparison(comparison: Comparison, names: Sequence[str]) -> Iterator[tuple[str, str, Figure]]:
    known = [(name, pair) for name, pair in zip(names[1:], comparison.pairs, strict=True) if pair.differences]
    if known:
        from matplotlib.figure import Figure

        figures = known[0][1].differences
        figure = Figure(figsize=(5 * len(figures), 1.4 + 0.4 * len(known)), layout="constrained")
        for number, ax in enumerate(figure.subplots(1, len(figures), sharey=True, squeeze=False)[0]):
            found = [pair.differences[number] for _, pair in known]
            values, lows, highs = (np.array([getattr(one, part) for one in found]) for part in ("value", "low", "high"))
            label = f"{FIGURES[figures[number].figure]}, difference to {names[0]}"
            charts.draw_differences([name for name, _ in known], values, lows, highs, ax, label)
        yield "differences", "Differences, with 95 % intervals", figure
    curves = [(name, curve) for name, run in zip(names, comparison.runs, strict=True) for curve in charts.curves(run.epochs)]
    for measure in dict.fromkeys(curve.name for _, curve in curves):
        of_measure = [(name, curve) for name, curve in curves if curve.name == measure and np.isfinite(curve.validation).any()]
        if of_measure:
            figure, ax = _axes(7, 4)
            charts.draw_courses(of_measure, ax)
            yield f"validation_{measure.lower().replace(' ', '_')}", f"Validation {measure.lower()}", figure


def _confusion(analysis: Analysis, names: Sequence[str], normalised: bool) -> Figure:
    assert analysis.counts is not None
    side = 1.8 + min(max(0.42 * len(names), 2.5), 14) + 0.07 * max(len(name) for name in names)
    width = side + (1.4 if len(names) > charts.MOST_ANNOTATED else 0)  # room for the scale of colours
    figure, ax = _axes(width, side)
    # this layout knows that the matrix stays square: else words run over the edge. Small letters come out wider in PNG than it measures
    figure.set_layout_engine("compressed", w_pad=0.12, h_pad=0.12)
    charts.draw_confusion(analysis.counts, names, ax, normalised)
    return figure


def _calibration(found: charts.Reliability) -> tuple[str, Figure]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    charts.draw_reliability(found, upper)
    charts.draw_sureness(found, lower)
    return f"How far probabilities can be trusted: expected calibration error {found.error:.3f}", figure


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _laid_out(named: tuple[str, str, Figure]) -> tuple[str, str, Figure]:
    """A figure whose parts have found their places, once for both files: laid out anew for SVG, names run over the edge."""
    figure = named[2]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return named


def _saved(figure: Figure, kind: str) -> bytes:
    """The file of a figure that is laid out: by its canvas, since savefig would lay it out once more for each file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.BytesIO()
    canvas: Any  # matplotlib's methods have no types
    if kind == "svg":
        canvas = FigureCanvasSVG(figure)
        canvas.print_svg(file, metadata={"Date": None})
    else:
        figure.dpi = 130
        canvas = FigureCanvasAgg(figure)
        canvas.print_png(file, metadata={"Software": None})
    return file.getvalue()


def _drawable(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names with a box for what no font here can draw, and the font families to draw them with."""
    families = ["DejaVu Sans"]
    lacking = {ord(mark) for name in names for mark in name} - _marks_of(_path_of(families[0]))
    if lacking:
        from matplotlib.font_manager import fontManager

        for font in sorted(fontManager.ttflist, key=lambda font: (font.name, font.fname)):
            # fonts of coloured pictures have no outlines that matplotlib could draw
            # and the font of last resort has boxes only
            if (
                not lacking
                or any(word in font.name.lower() for word in ("color", "last resort"))
                or font.style != "normal"
                or font.name in families
            ):
                continue
            covered = lacking & _marks_of(font.fname)
            if covered:
                families.append(font.name)
                lacking -= covered
    return ["".join("□" if ord(mark) in lacking else mark for mark in name) for name in names], families


def _path_of(family: str) -> str:
    from matplotlib.font_manager import findfont

    return str(findfont(family))


@cache
def _marks_of(path: str) -> frozenset[int]:
    """Code points that a font file has pictures for; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()

"""What came out of a run: all figures of its report, gathered from its files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_train_parallel import metrics
from bert_train_parallel.analysis.predictions_file import PredictionsFile
from bert_train_parallel.analysis.results import RunResults, choose_run, find_runs, numbers_of, read_run
from bert_train_parallel.data.batches import FloatArray, IntArray, Rows
from bert_train_parallel.data.store import Store
from bert_train_parallel.errors import BadRun, BadSetting, BadStore
from bert_train_parallel.progress import Event
from bert_train_parallel.run_files import RunFiles, name_given
from bert_train_parallel.tasks import Predictions, task_of

SPLITS = ("train", "validate", "test")


@dataclass(frozen=True, slots=True)
class Mistake:
    """A test sample that the model got wrong."""

    sample: int
    line: int | None  # of the source
    truth: str
    predicted: str
    size: float  # probability of the predicted class; for regression the absolute error
    texts: tuple[str, ...] = ()  # one or two; none without the store


@dataclass(frozen=True, slots=True)
class Analysis:
    """The figures of a run; parts whose files are missing are empty or None, and `missing` says which."""

    files: RunFiles
    task_type: str  # classification | regression
    label_names: tuple[str, ...] = ()
    finished: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)  # RESULT as it is: world, seconds, versions, fingerprints
    labels: dict[str, npt.NDArray[Any]] = field(default_factory=dict)  # split -> (n,) class codes, or numbers
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)  # "test", "validate" -> name -> value
    predictions: Predictions | None = None  # of the test samples
    has_samples: bool = False  # whether predictions know the numbers of their samples
    lines: IntArray | None = None  # (n,) of the test samples in the source
    counts: IntArray | None = None  # (C, C) rows the truth
    classes: metrics.ClassFigures | None = None
    lengths: IntArray | None = None  # (n,) tokens of each test sample, over its rows
    epochs: tuple[dict[str, Any], ...] = ()  # as in the stats file
    steps: FloatArray = field(default_factory=lambda: np.zeros((0, 2)))  # (S, 2) step, training loss
    mistakes: tuple[Mistake, ...] = ()  # the surest ones first
    missing: tuple[str, ...] = ()
    report: Path | None = None  # the page, where charts were asked for
    called: str = ""  # beside runs of the same name in other folders

    @property
    def name(self) -> str:
        return self.called or self.files.stem


def analyse(path: str | Path, charts: bool = False, run: str | None = None, errors: int = 5) -> Analysis:
    """The figures of a run from any one of its files, of the newest where several are meant; prints nothing.

    Args:
        path: a result file, the store, the source, or a folder of runs.
        charts: also draw them, and write a page, into the run's report folder.
        run: name or number of another run than the newest.
        errors: how many of the surest mistakes to look up.
    Raises:
        BadRun: files that are missing, damaged or of different runs.
        BadSetting: a number of mistakes that cannot be.
        MissingPackage: charts without matplotlib.
    """
    name = name_given(path, "run", "any file of it, or a folder of runs, such as 'leanings.csv',", BadRun)
    if not isinstance(errors, int) or errors < 0:
        raise BadSetting(f"errors {errors!r}: a whole number from 0 up is expected.")
    found = analyse_run(choose_run(find_runs(Path(name)), None if run is None else str(run)), errors)
    if not charts:
        return found
    from bert_train_parallel.analysis.page import write_report  # matplotlib takes as long as all else together

    return write_report(found)


def analyse_run(files: RunFiles, errors: int = 5) -> Analysis:
    """The figures of one run, without charts."""
    run = read_run(files)
    predictions, names = _predictions(run)
    counts = None
    if predictions is not None and run.task_type == "classification":
        counts = metrics.confusion_counts(predictions.truth, predictions.predicted, len(names))
    worst = _worst(predictions, errors) if predictions is not None else np.zeros(0, dtype=np.int64)
    stored = _from_store(run, worst)
    return Analysis(
        files=files,
        task_type=run.task_type,
        label_names=names,
        finished=bool(run.result) or not run.events,
        settings=run.settings,
        result=run.result,
        labels=stored.labels,
        figures=_figures(run, predictions, names),
        predictions=predictions,
        has_samples=run.predictions is not None and run.predictions.has_samples,
        lines=run.predictions.lines if run.predictions else None,
        counts=counts,
        classes=None if counts is None else metrics.class_figures(counts),
        lengths=stored.lengths,
        epochs=tuple(_epochs(run)),
        steps=_steps(run.events),
        mistakes=tuple(_mistakes(run, predictions, names, worst, stored.texts)),
        missing=(*run.missing, *stored.missing),
    )


def largest_confusions(counts: IntArray, most: int) -> list[tuple[int, int, int]]:
    """(truth, predicted, samples) of the mistakes that were made most often.

    >>> largest_confusions(np.array([[5, 1], [3, 9]]), 10)
    [(1, 0, 3), (0, 1, 1)]
    """
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    cells = [(*divmod(int(cell), len(counts)), int(wrong.flat[cell])) for cell in order]
    return [cell for cell in cells if cell[2] > 0]


def _predictions(run: RunResults) -> tuple[Predictions | None, tuple[str, ...]]:
    """The predictions, and the names of the classes; without any, the codes that occur in them."""
    if run.predictions is None:
        return None, run.label_names
    found, names = run.predictions.predictions, run.predictions.label_names or run.label_names
    if run.task_type == "regression":
        return Predictions(found.samples, found.truth.astype(np.float64), found.predicted.astype(np.float64), None, found.rows), ()
    if names:
        return found, names
    codes, dense = np.unique(np.concatenate([found.truth, found.predicted]), return_inverse=True)
    coded = Predictions(found.samples, dense[: len(found)], dense[len(found) :], None, found.rows)
    return coded, tuple(str(code) for code in codes)


def _figures(run: RunResults, predictions: Predictions | None, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Figures of each split as RESULT has them; of the test samples else from the predictions, else from the stats."""
    told = {split: numbers_of(found) for split, found in run.result.get("figures", {}).items()}
    if predictions is None:
        if not told and "Testing" in run.stats:
            tested = run.stats["Testing"]
            old = {"loss": tested.get("Testing Loss"), "accuracy": tested.get("Testing Accuracy")}
            told["test"] = numbers_of(tested.get("Test") or old)
        return told
    computed = task_of(run.task_type).figures(predictions, names)
    del computed["rows"]  # the file of predictions knows nothing of the rows that its samples were made of
    return told | {"test": computed | told.get("test", {})}


@dataclass(frozen=True, slots=True)
class _FromStore:
    """What only the store knows of a run."""

    labels: dict[str, npt.NDArray[Any]]  # of each split
    lengths: IntArray | None = None  # (n,) tokens of each test sample
    texts: dict[int, tuple[str, ...]] = field(default_factory=dict)  # of the mistakes to show, by sample
    missing: tuple[str, ...] = ()


def _from_store(run: RunResults, worst: IntArray) -> _FromStore:
    """What the store says; less where there is none, or a damaged one beside results that are whole."""
    known = run.predictions if run.predictions is not None and run.predictions.has_samples else None
    without = _FromStore({} if run.predictions is None else {"test": run.predictions.predictions.truth})
    if run.store is None:
        return without
    try:
        with Store.open(run.store) as store:
            labels = {split: np.asarray(store.samples(split).labels) for split in SPLITS}
            if known is None:
                return _FromStore(labels)
            _check_samples(run, store, known)
            samples = known.predictions.samples
            wanted = samples[worst].tolist()
            return _FromStore(labels, tokens_of_samples(store.rows("test"), samples), dict(zip(wanted, store.texts(wanted), strict=True)))
    except BadStore:
        if not run.result and run.predictions is None:
            raise
        return replace(without, missing=(f"{run.store.name}: label distribution and texts (it is damaged)",))


def tokens_of_samples(rows: Rows, samples: IntArray) -> IntArray:
    """(n,) tokens of each of these samples (n,), over all of its rows."""
    order = np.argsort(samples)
    wanted = np.isin(rows.sample, samples)
    at = order[np.searchsorted(samples, np.asarray(rows.sample)[wanted], sorter=order)]
    return np.bincount(at, weights=rows.lengths[wanted], minlength=len(samples)).astype(np.int64)


def _check_samples(run: RunResults, store: Store, known: PredictionsFile) -> None:
    """Raises BadRun where the store's test samples are not those of the predictions."""
    samples = store.samples("test")
    label_of = dict(zip(np.asarray(samples.ids).tolist(), np.asarray(samples.labels).tolist(), strict=True))
    for sample, truth in zip(known.predictions.samples.tolist(), known.predictions.truth.tolist(), strict=True):
        if label_of.get(sample) != truth:
            raise BadRun(
                f"{run.files.predictions.name} has sample {sample} with the label {truth}, the test samples of {store.path.name} "
                f"{'do not hold it' if sample not in label_of else f'have it with {label_of[sample]}'}: they do not belong together. "
                f"Move the store away to see the run without its texts, or name another run."
            )


def _worst(predictions: Predictions, most: int) -> IntArray:
    """Positions of the mistakes that the model was surest of; for regression of the greatest errors."""
    if predictions.predicted.dtype.kind == "f":
        errors = np.abs(predictions.predicted.astype(np.float64) - predictions.truth)
        return np.argsort(-errors, kind="stable")[:most]
    wrong = np.flatnonzero(predictions.predicted != predictions.truth)
    if predictions.probabilities is None:
        return wrong[:most]
    sure = predictions.probabilities[wrong, predictions.predicted[wrong].astype(np.int64)]
    return wrong[np.argsort(-sure, kind="stable")][:most]


def _mistakes(
    run: RunResults, predictions: Predictions | None, names: tuple[str, ...], worst: IntArray, texts: dict[int, tuple[str, ...]]
) -> Iterable[Mistake]:
    """The mistakes at these positions; none where the samples have no numbers, since nothing could be looked up."""
    known = run.predictions
    if predictions is None or known is None or not known.has_samples:
        return
    for at in worst.tolist():
        truth, predicted, sample = predictions.truth[at], predictions.predicted[at], int(predictions.samples[at])
        line = None if known.lines is None else int(known.lines[at])
        if predictions.probabilities is None:
            size = abs(float(predicted) - float(truth))
            yield Mistake(sample, line, _plain(truth), _plain(predicted), size, texts.get(sample, ()))
        else:
            size = float(predictions.probabilities[at, predicted])
            yield Mistake(sample, line, names[truth], names[predicted], size, texts.get(sample, ()))


def _plain(number: float) -> str:
    """A label that is a number; large ones with their thousands apart."""
    return f"{number:g}" if abs(number) < 1000 else metrics.figure_words(float(number))


def _epochs(run: RunResults) -> Iterable[dict[str, Any]]:
    """The figures of each epoch; of an unfinished run, from its events."""
    if "Training" in run.stats:
        yield from (epoch for epoch in run.stats["Training"] if isinstance(epoch, dict))
        return
    of_epoch = {
        event.epoch: event.figures | {"epoch": event.epoch}
        for event in run.events
        if event.kind == "epoch" and isinstance(event.epoch, int)
    }
    yield from (of_epoch[epoch] for epoch in sorted(of_epoch))


def _steps(events: tuple[Event, ...]) -> FloatArray:
    """(S, 2) step and training loss; a step that was done again after a resume counts with its last loss."""
    losses = {event.step: event.figures.get("loss") for event in events if event.kind == "step"}
    there = [(step, loss) for step, loss in sorted(losses.items()) if isinstance(loss, int | float) and np.isfinite(loss)]
    return np.array(there, dtype=np.float64).reshape(len(there), 2)

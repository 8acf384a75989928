"""Reads `<stem>_testset_predictions.csv`: ours, and that of the 2020 tool with its two columns."""

from __future__ import annotations

import csv
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_train_parallel.data.batches import FloatArray, IntArray
from bert_train_parallel.errors import BadRun
from bert_train_parallel.tasks import Predictions
from bert_train_parallel.tasks.classification import COLUMNS, NAME_COLUMNS, PROBABILITY

_EXPECTED = "Expected is the _testset_predictions.csv of a run, which begins with the columns prediction,true_label."

_NUMBERS = set(COLUMNS) - set(NAME_COLUMNS)
_MOST = 2.0**53  # up to here float64 has every whole number
MOST_CLASSES = 2000  # a confusion matrix has the square of it


@dataclass(frozen=True, slots=True)
class PredictionsFile:
    """What the file says, and which of its parts are there."""

    predictions: Predictions  # samples are 0, 1, 2, ... where the file has no numbers for them
    label_names: tuple[str, ...] | None  # from the probability columns; None in a file of the 2020 tool, () for regression
    has_samples: bool
    lines: IntArray | None  # (n,) of the source

    @property
    def task_type(self) -> str:
        return "regression" if self.predictions.predicted.dtype.kind == "f" else "classification"


def read_predictions(path: Path) -> PredictionsFile:
    """The predictions of a run.

    In a file of two columns, whole numbers are class codes; our files say by their columns what they hold.

    Raises:
        BadRun: the file is missing, damaged or something else.
    """
    columns, values = _read_numbers(path)
    chances = [number for number, column in enumerate(columns) if column.startswith(PROBABILITY)]
    is_ours = "sample" in columns
    answers: npt.NDArray[Any] = values[:, :2]
    if chances or (not is_ours and _are_codes(answers)):
        answers = _whole(path, answers, len(chances) or _MOST, "a class code")
    samples = _whole(path, values[:, columns.index("sample")], _MOST, "the number of a sample") if is_ours else np.arange(len(values))
    if len(np.unique(samples)) != len(samples):
        raise BadRun(f"{path}: a sample stands in it twice; the file is damaged, or two were put together.")
    return PredictionsFile(
        predictions=Predictions(
            samples, answers[:, 1], answers[:, 0], _probabilities(path, values[:, chances]) if chances else None, len(values)
        ),
        label_names=tuple(columns[number].removeprefix(PROBABILITY) for number in chances) if chances or is_ours else None,
        has_samples=is_ours,
        lines=_whole(path, values[:, columns.index("line")], _MOST, "a line") if "line" in columns else None,
    )


def _read_numbers(path: Path) -> tuple[list[str], FloatArray]:
    """The header without the columns of names, and the numbers below it (n, columns)."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "loadtxt: input contained no data")
            columns = next(csv.reader(file, strict=True), [])
            if columns[:2] != ["prediction", "true_label"]:
                raise BadRun(f"{path} begins with the columns {','.join(columns)[:80]!r}. {_EXPECTED}")
            numeric = [number for number, column in enumerate(columns) if column in _NUMBERS or column.startswith(PROBABILITY)]
            values = np.loadtxt(file, delimiter=",", quotechar='"', comments=None, usecols=numeric, ndmin=2)
    except OSError as error:
        raise BadRun(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, csv.Error) as error:
        raise BadRun(f"{path} is damaged: {' '.join(str(error).split())[:200].rstrip('.')}. {_EXPECTED}") from None
    if not len(values):
        raise BadRun(f"{path} has a header and no predictions. Train with a split that has test samples.")
    if not np.isfinite(values).all():
        raise BadRun(f"{path} is damaged: a value is not finite. {_EXPECTED}")
    return [columns[number] for number in numeric], values


def _are_codes(values: FloatArray) -> bool:
    """Whole numbers from 0 up, and not so many different ones that they must be measurements."""
    return bool((values >= 0).all() and (values == np.floor(values)).all()) and len(np.unique(values)) <= MOST_CLASSES


def _whole(path: Path, values: FloatArray, below: float, what: str) -> IntArray:
    """The values as whole numbers from 0 up."""
    wrong = values[(values != np.floor(values)) | (values < 0) | (values >= below)]
    if len(wrong):
        raise BadRun(f"{path} is damaged: {wrong[0]:g} is not {what}, a whole number from 0 to {below - 1:g}.")
    return values.astype(np.int64)


def _probabilities(path: Path, values: FloatArray) -> FloatArray:
    """(n, C) probabilities, each line from 0 up and with a sum of 1."""
    wrong = np.flatnonzero(~((values >= 0).all(axis=1) & (np.abs(values.sum(axis=1) - 1) < 1e-3)))
    if len(wrong):
        raise BadRun(f"{path} is damaged: the probabilities of prediction {wrong[0] + 1} sum to {values[wrong[0]].sum():g}, not 1.")
    return values

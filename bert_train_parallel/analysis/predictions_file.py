"""Reads `<stem>_testset_predictions.csv`: ours, and that of the 2020 tool with its two columns."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_train_parallel.data.batches import FloatArray, IntArray
from bert_train_parallel.errors import BadRun
from bert_train_parallel.tasks import Predictions
from bert_train_parallel.tasks.classification import PROBABILITY

_EXPECTED = "Expected is the _testset_predictions.csv of a run, which begins with the columns prediction,true_label."

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

    Whole numbers in the first two columns are class codes, unless the file has our columns for regression.

    Raises:
        BadRun: the file is missing, damaged or something else; the sentence names the line.
    """
    columns, rows = _read_rows(path)
    if columns[:2] != ["prediction", "true_label"]:
        raise BadRun(f"{path} begins with the columns {','.join(columns)[:80]!r}. {_EXPECTED}")
    if not rows:
        raise BadRun(f"{path} has a header and no predictions. Train with a split that has test samples.")
    chances = [number for number, column in enumerate(columns) if column.startswith(PROBABILITY)]
    is_ours = "sample" in columns
    by_column = list(zip(*rows, strict=True))
    coded = bool(chances) or (not is_ours and _are_codes(by_column[0]) and _are_codes(by_column[1]))
    kind: type = np.int64 if coded else np.float64
    predictions = Predictions(
        samples=_numbers(path, columns, by_column, "sample", np.int64) if is_ours else np.arange(len(rows)),
        truth=_numbers(path, columns, by_column, "true_label", kind),
        predicted=_numbers(path, columns, by_column, "prediction", kind),
        probabilities=_probabilities(path, [row[chances[0] : chances[-1] + 1] for row in rows]) if chances else None,
        rows=len(rows),
    )
    lines = _numbers(path, columns, by_column, "line", np.int64) if "line" in columns else None
    names = tuple(columns[number].removeprefix(PROBABILITY) for number in chances)
    _check(path, predictions, len(names) if chances else None, is_ours)
    return PredictionsFile(
        predictions=predictions,
        label_names=names if chances or is_ours else None,
        has_samples=is_ours,
        lines=lines,
    )


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the lines, each as long as the header."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            columns = next(reader, [])
            rows = []
            for row in reader:
                if len(row) != len(columns):
                    raise BadRun(
                        f"{path}, line {reader.line_num}: {len(row)} cells where the header has {len(columns)}; "
                        "the file is damaged. Train again to write it new."
                    )
                rows.append(row)
    except FileNotFoundError:
        raise BadRun(f"{path}: there is no such file.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadRun(f"{path} cannot be read as CSV: {error}. {_EXPECTED}") from None
    return columns, rows


def _are_codes(cells: Sequence[str]) -> bool:
    """Whole numbers from 0 up, and not so many different ones that they must be measurements."""
    return all(cell.isdecimal() and cell.isascii() for cell in cells) and len(set(cells)) <= MOST_CLASSES


def _numbers(path: Path, columns: list[str], by_column: list[tuple[str, ...]], name: str, kind: type) -> npt.NDArray[Any]:
    """One column as an array; `kind` is int64 or float64."""
    cells = by_column[columns.index(name)]
    convert = int if kind is np.int64 else float
    values = []
    for number, cell in enumerate(cells):
        try:
            values.append(convert(cell))
        except ValueError:
            wanted = "a whole number" if convert is int else "a number"
            raise BadRun(f"{path}, sample {number + 1}: {cell[:40]!r} in column {name} is not {wanted}. {_EXPECTED}") from None
    try:
        found: npt.NDArray[Any] = np.array(values, dtype=kind)
    except OverflowError:
        raise BadRun(f"{path}: column {name} has a number beyond 64 bits. {_EXPECTED}") from None
    if not np.isfinite(found).all():
        raise BadRun(f"{path}: column {name} has a value that is not finite. {_EXPECTED}")
    return found


def _probabilities(path: Path, cells: list[list[str]]) -> FloatArray:
    """(n, C) probabilities.

    Raises:
        BadRun: a cell is not a number, or a line's sum is not 1.
    """
    try:
        found = np.array([[float(cell) for cell in row] for row in cells], dtype=np.float64)
    except ValueError as error:
        raise BadRun(f"{path}: a probability is not a number ({error}). {_EXPECTED}") from None
    wrong = np.flatnonzero(~((found >= 0).all(axis=1) & (np.abs(found.sum(axis=1) - 1) < 1e-3)))
    if len(wrong):
        raise BadRun(f"{path}, sample {wrong[0] + 1}: its probabilities sum to {found[wrong[0]].sum():g}, not 1; the file is damaged.")
    return found


def _check(path: Path, predictions: Predictions, classes: int | None, has_samples: bool) -> None:
    """Raises BadRun where codes are outside the classes, or a sample stands twice."""
    if has_samples and len(np.unique(predictions.samples)) != len(predictions):
        raise BadRun(f"{path}: a sample stands in it twice; the file is damaged, or two were put together.")
    if classes is None:
        return
    greatest = max(int(predictions.truth.max()), int(predictions.predicted.max()))
    least = min(int(predictions.truth.min()), int(predictions.predicted.min()))
    if least < 0 or greatest >= classes:
        raise BadRun(f"{path}: class code {least if least < 0 else greatest} with {classes} classes; codes go from 0 to {classes - 1}.")

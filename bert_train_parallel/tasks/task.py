"""What every task has: the predictions it makes and the functions that training and reports call."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from bert_train_parallel.data.batches import FloatArray, IntArray, Rows
from bert_train_parallel.errors import BadSetting, LossIsNaN
from bert_train_parallel.run_files import written_aside

if TYPE_CHECKING:
    from bert_train_parallel.data.store import Store

TASKS = ("classification", "regression")


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model says of n samples, beside the truth; in ascending order of the samples' numbers."""

    samples: IntArray  # (n,) numbers of the samples in the store
    truth: npt.NDArray[Any]  # (n,) class codes int64, or float64 for regression
    predicted: npt.NDArray[Any]  # (n,) likewise
    probabilities: FloatArray | None = None  # (n, C), rows sum to 1; None for regression
    rows: int = 0  # folded rows that the samples were made of
    row_figures: dict[str, float] = field(default_factory=dict)  # the same measure over rows, to see what combining did

    def __len__(self) -> int:
        return len(self.samples)


class Task(Protocol):
    """One kind of learning; a module of this package with these names is one."""

    name: str  # as in Store.task_type

    def combine(self, outputs: FloatArray, rows: Rows, how: str = "mean") -> Predictions:
        """Outputs (N, k) of the rows of a split, in its order, to one prediction per sample."""

    def figures(self, predictions: Predictions, label_names: Sequence[str] = ()) -> dict[str, Any]:
        """The figures of a set of predictions, as JSON values."""

    def write(self, predictions: Predictions, label_names: Sequence[str], store: Store, path: Path) -> None:
        """The predictions file of the test split, complete or not at all."""


def task_of(task_type: str) -> Task:
    """The task of a store, by the name that it has there.

    >>> task_of("classification").name
    'classification'
    """
    if task_type not in TASKS:
        raise BadSetting(f"task_type {task_type!r} is not one of {', '.join(TASKS)}. Build the store again with --task_type.")
    return cast(Task, importlib.import_module(f"bert_train_parallel.tasks.{task_type}"))


def first_rows(rows: Rows) -> IntArray:
    """(n,) the first row of each sample; rows of a sample stand together."""
    sample = np.asarray(rows.sample)
    return np.flatnonzero(np.diff(sample, prepend=sample[:1] - 1))


def checked(outputs: FloatArray, rows: Rows) -> FloatArray:
    """The outputs (N, k) in float64, one line for each row.

    Raises:
        ValueError: as many outputs as rows are expected.
        LossIsNaN: an output is not a number.
    """
    outputs = np.asarray(outputs, dtype=np.float64)
    if outputs.ndim != 2 or len(outputs) != len(rows):
        raise ValueError(f"outputs of shape {outputs.shape} for {len(rows)} rows")
    if not np.isfinite(outputs).all():
        raise LossIsNaN(
            "The model's outputs are no longer numbers (NaN or infinite). Try a lower --learning_rate, "
            "or --dtype float32 if it was trained in float16."
        )
    return outputs


def csv_cell(text: str) -> str:
    """A name as one cell; the csv module leaves a lone carriage return bare on Python before 3.13, and cannot read it back.

    >>> print(csv_cell('plain'), csv_cell('with "quotes", and comma'))
    plain "with ""quotes"", and comma"
    """
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def write_csv(path: Path, columns: Sequence[str], lines: Iterable[str]) -> None:
    """A CSV file of these lines, complete or not at all."""
    with written_aside(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        file.write(",".join(map(csv_cell, columns)) + "\n")
        file.writelines(line + "\n" for line in lines)


def lines_of(predictions: Predictions, store: Store) -> IntArray:
    """(n,) the line of each sample in the source that the store was built from."""
    samples = store.samples("test")
    order = np.argsort(samples.ids)
    at = order[np.searchsorted(samples.ids, predictions.samples, sorter=order)]
    lines: IntArray = np.asarray(samples.lines)[at]
    return lines

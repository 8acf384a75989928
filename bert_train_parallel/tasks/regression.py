"""A number for each text: the rows of a text are combined, figures are of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_train_parallel import metrics
from bert_train_parallel.data.batches import FloatArray, Rows
from bert_train_parallel.errors import BadSetting
from bert_train_parallel.tasks.task import Predictions, checked, first_rows, lines_of, write_csv

if TYPE_CHECKING:
    from bert_train_parallel.data.store import Store

name = "regression"

COLUMNS = ("prediction", "true_label", "sample", "line")


def combine(outputs: FloatArray, rows: Rows, how: str = "mean") -> Predictions:
    """Outputs (N, 1) of rows to one number per sample: their mean, the greatest (max), or the middle one (vote, a median)."""
    values = checked(outputs, rows)[:, 0]
    first = first_rows(rows)
    if len(first) == 0:
        return Predictions(rows.sample[:0], np.zeros(0), np.zeros(0))
    if how == "mean":
        predicted = np.add.reduceat(values, first) / np.diff(first, append=len(rows))
    elif how == "max":
        predicted = np.maximum.reduceat(values, first)
    elif how == "vote":
        predicted = np.array([np.median(of_sample) for of_sample in np.split(values, first[1:])])
    else:
        raise BadSetting(f"--combine {how!r}: mean, vote or max is expected.")
    truth = np.asarray(rows.targets, dtype=np.float64)[:, 0]
    return Predictions(
        samples=np.asarray(rows.sample)[first],
        truth=truth[first],
        predicted=predicted,
        rows=len(rows),
        row_figures={"row_mse": metrics.mean_squared_error(truth, values)},
    )


def figures(predictions: Predictions, label_names: Sequence[str] = ()) -> dict[str, Any]:
    """Figures over samples, and `row_mse` beside them; `loss` is the mean squared error. No samples: the counts alone."""
    counted: dict[str, Any] = {"samples": len(predictions), "rows": predictions.rows}
    if not len(predictions):
        return counted
    truth, predicted = predictions.truth.astype(np.float64), predictions.predicted.astype(np.float64)
    mse = metrics.mean_squared_error(truth, predicted)
    return {
        "pearson": metrics.pearson(truth, predicted),
        "spearman": metrics.spearman(truth, predicted),
        "mse": mse,
        "mae": metrics.mean_absolute_error(truth, predicted),
        "r2": metrics.r_squared(truth, predicted),
        "loss": mse,
        **predictions.row_figures,
        **counted,
    }


def write(predictions: Predictions, label_names: Sequence[str], store: Store, path: Path) -> None:
    """The predictions file: predicted and true number, sample, line in the source."""
    lines = (
        f"{value!r},{true!r},{sample},{line}"
        for value, true, sample, line in zip(
            predictions.predicted.astype(np.float64).tolist(),
            predictions.truth.astype(np.float64).tolist(),
            predictions.samples.tolist(),
            lines_of(predictions, store).tolist(),
            strict=True,
        )
    )
    write_csv(path, COLUMNS, lines)

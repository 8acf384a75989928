"""Classes of texts: the rows of a text are combined, figures are of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_train_parallel import metrics
from bert_train_parallel.data.batches import FloatArray, IntArray, Rows
from bert_train_parallel.errors import BadSetting
from bert_train_parallel.tasks.task import Predictions, checked, csv_cell, first_rows, lines_of, write_csv

if TYPE_CHECKING:
    from bert_train_parallel.data.store import Store

name = "classification"

NAME_COLUMNS = ("prediction_name", "true_name")
COLUMNS = ("prediction", "true_label", "sample", "line", *NAME_COLUMNS)
PROBABILITY = "probability_"  # before a class name: a column of the predictions file


def combine(outputs: FloatArray, rows: Rows, how: str = "mean") -> Predictions:
    """Logits (N, C) of rows to one prediction per sample.

    mean: softmax of the mean of the rows' logits.
    max:  each class at its greatest log-probability over the rows, scaled to a sum of 1. Log-probabilities, since
          the zero of logits is arbitrary in each row: a mean does not see it, a maximum would.
    vote: the class that most rows choose; among equals, the one of them with the greatest mean logit. The
          probabilities are those of `mean`: counted votes would say 1.0 for every text of one row.
    """
    logits = checked(outputs, rows)
    first = first_rows(rows)
    pieces = np.diff(first, append=len(rows))  # (n,) rows of each sample
    if len(first) == 0:
        return Predictions(rows.sample[:0], rows.sample[:0], rows.sample[:0], np.zeros((0, logits.shape[1])))
    means = np.add.reduceat(logits, first) / pieces[:, None]
    chosen = logits.argmax(axis=1)  # (N,) by each row alone
    if how in ("mean", "vote"):
        combined = means
    elif how == "max":
        combined = np.maximum.reduceat(_log_softmax(logits), first)
    else:
        raise BadSetting(f"--combine {how!r}: mean, vote or max is expected.")
    predicted = _most_votes(chosen, first, means) if how == "vote" else combined.argmax(axis=1)
    truth = np.asarray(rows.targets)[:, 0].astype(np.int64)
    return Predictions(
        samples=np.asarray(rows.sample)[first],
        truth=truth[first],
        predicted=predicted,
        probabilities=np.exp(_log_softmax(combined)),
        rows=len(rows),
        row_figures={"row_accuracy": float((chosen == truth).mean())},
    )


def figures(predictions: Predictions, label_names: Sequence[str]) -> dict[str, Any]:
    """Figures over samples, `row_accuracy` beside them; `loss` in nats per sample, given probabilities. No samples: the counts alone."""
    counted: dict[str, Any] = {"samples": len(predictions), "rows": predictions.rows}
    if not len(predictions):
        return counted
    truth = predictions.truth.astype(np.int64)
    counts = metrics.confusion_counts(truth, predictions.predicted.astype(np.int64), len(label_names))
    found = {
        "accuracy": metrics.accuracy(counts),
        "accuracy_interval": list(metrics.wilson_interval(int(np.trace(counts)), len(truth))),
        "macro_f1": metrics.macro_f1(counts),
        "weighted_f1": metrics.weighted_f1(counts),
        "mcc": metrics.matthews_correlation(counts),
        "kappa": metrics.cohens_kappa(counts),
    }
    if predictions.probabilities is not None:
        of_truth = predictions.probabilities[np.arange(len(truth)), truth]
        # the smallest float: a probability too small for float64 costs 708 nats, not infinity
        found["loss"] = float(-np.log(np.maximum(of_truth, np.finfo(np.float64).tiny)).mean())
    return found | predictions.row_figures | counted


def write(predictions: Predictions, label_names: Sequence[str], store: Store, path: Path) -> None:
    """The predictions file: class codes first, as the 2020 tool wrote them, then sample, source line, names, probabilities."""
    assert predictions.probabilities is not None
    names = [csv_cell(label) for label in label_names]
    lines = (
        f"{code},{true},{sample},{line},{names[code]},{names[true]}," + ",".join(f"{chance:.9g}" for chance in chances)
        for code, true, sample, line, chances in zip(
            predictions.predicted.tolist(),
            predictions.truth.tolist(),
            predictions.samples.tolist(),
            lines_of(predictions, store).tolist(),
            predictions.probabilities.tolist(),
            strict=True,
        )
    )
    write_csv(path, [*COLUMNS, *(PROBABILITY + label for label in label_names)], lines)


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def _most_votes(chosen: IntArray, first: IntArray, means: FloatArray) -> IntArray:
    """(n,) the class chosen by most rows of each sample; ties go to the greater mean logit."""
    votes = np.zeros(means.shape, dtype=np.int64)
    sample_of_row = np.repeat(np.arange(len(first)), np.diff(first, append=len(chosen)))
    np.add.at(votes, (sample_of_row, chosen), 1)
    leading = votes == votes.max(axis=1, keepdims=True)
    winners: IntArray = np.where(leading, means, -np.inf).argmax(axis=1)
    return winners

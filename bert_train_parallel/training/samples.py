"""The rows that a run learns from and is measured by, with the weights that its settings give them. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.data.batches import FloatArray, IntArray, Rows, first_samples, weighted
from bert_train_parallel.data.store import Content, Store
from bert_train_parallel.errors import BadSetting

LESS_IS_BETTER = ("loss", "mse")


def check_settings(config: TrainConfig, content: Content) -> None:
    """Settings against the labels, as soon as these are known.

    Raises:
        BadSetting: a metric or class weights that this data cannot have.
    """
    misfit = config.misfit(content.task_type)
    if misfit:
        raise BadSetting(misfit)
    if isinstance(config.class_weights, dict):
        _check_names(config.class_weights, content.label_names)
        if not any(config.class_weights.get(name, 1.0) for name in content.label_names):
            raise BadSetting("--class_weights: every class has the weight 0, so nothing would be learned. Give one of them more.")


def training_rows(store: Store, config: TrainConfig) -> Rows:
    """The rows to learn from; their weights are those of their sample and class."""
    rows = _capped(store.rows("train"), config.max_train_samples, config)
    if config.row_weights == "samples":
        rows = weighted(rows, sample_shares(rows.sample))
    if config.class_weights != "none":
        codes = np.asarray(rows.targets)[:, 0].astype(np.int64)
        rows = weighted(rows, class_weights(config.class_weights, codes, store.label_names)[codes])
    return rows


def evaluation_rows(store: Store, split: str, config: TrainConfig) -> Rows:
    return _capped(store.rows(split), config.max_eval_samples, config)


def class_weights(asked: str | Mapping[str, float], codes: IntArray, label_names: Sequence[str]) -> FloatArray:
    """(C,) the weight of each class.

    balanced: all rows / (classes x rows of the class), so that every class counts the same and the mean is 1.

    >>> class_weights("balanced", np.array([0, 0, 0, 1]), ["ham", "spam"]).round(2).tolist()
    [0.67, 2.0]
    >>> class_weights({"spam": 3.0}, np.array([0, 1]), ["ham", "spam"]).tolist()
    [1.0, 3.0]
    """
    if isinstance(asked, Mapping):
        return np.array([float(asked.get(name, 1.0)) for name in label_names])
    counts = np.bincount(codes, minlength=len(label_names))
    return len(codes) / (len(label_names) * np.maximum(counts, 1))


def sample_shares(sample: IntArray) -> FloatArray:
    """(N,) one divided by the number of rows of the row's sample.

    >>> sample_shares(np.array([4, 7, 7])).tolist()
    [1.0, 0.5, 0.5]
    """
    _, place, counts = np.unique(sample, return_inverse=True, return_counts=True)
    shares: FloatArray = 1.0 / counts[place]
    return shares


def _capped(rows: Rows, cap: int | None, config: TrainConfig) -> Rows:
    return rows if cap is None else first_samples(rows, cap, config.seed if config.shuffle_before_select else None)


def _check_names(weights: Mapping[str, float], label_names: Sequence[str]) -> None:
    for name in weights:
        if name not in label_names:
            near = difflib.get_close_matches(name, label_names, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The labels are {', '.join(map(repr, label_names[:20]))}."
            raise BadSetting(f"--class_weights: there is no label {name!r}. {hint}")

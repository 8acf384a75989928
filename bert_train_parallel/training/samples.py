"""The rows that a run learns from and is measured by, with the weights that its settings give them. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.data.batches import FloatArray, IntArray, Rows, first_places, first_samples, weighted
from bert_train_parallel.data.store import Content, Store
from bert_train_parallel.errors import BadSetting

LESS_IS_BETTER = ("loss", "mse")

_CAPS = {"train": "max_train_samples", "validate": "max_eval_samples", "test": "max_eval_samples"}
# of numbers to learn: those beyond are told, since the output of a new head begins near 0 and moves little in a step
_FARTHEST_MEAN, _SPREADS = 10.0, (0.1, 10.0)


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
    """The rows to learn from; their weights are those of their sample and class.

    Raises:
        BadSetting: a cap leaves samples of one class only.
    """
    rows = _capped(store.rows("train"), "train", config)
    codes = np.asarray(rows.targets)[:, 0].astype(np.int64) if store.task_type == "classification" else np.empty(0, np.int64)
    if config.max_train_samples is not None and len(codes) and (codes == codes[0]).all():
        raise BadSetting(
            f"--max_train_samples {config.max_train_samples}: all of these samples have the label {store.label_names[codes[0]]!r}, "
            f"so there is nothing to learn. {_more_labels(config).capitalize()}."
        )
    if config.row_weights == "samples":
        rows = weighted(rows, sample_shares(rows.sample))
    if config.class_weights != "none":
        rows = weighted(rows, class_weights(config.class_weights, codes, rows.weights, store.label_names)[codes])
    return rows


def evaluation_rows(store: Store, split: str, config: TrainConfig) -> Rows:
    return _capped(store.rows(split), split, config)


def labels_used(store: Store, split: str, config: TrainConfig) -> npt.NDArray[np.generic]:
    """(n,) the labels of those samples of a split that the caps leave: class codes int64, or float64."""
    labels = store.samples(split).labels
    return labels[first_places(len(labels), getattr(config, _CAPS[split]), _drawn_by(config))]


def doubts(store: Store, config: TrainConfig) -> Iterator[str]:
    """What may make the samples of a run poor ones to learn from or to test with, a sentence each."""
    if store.task_type == "regression":
        yield from _doubts_of_numbers(labels_used(store, "train", config).astype(np.float64))
        return
    lacking = []
    for split, purpose in (("train", "train on"), ("validate", "validate"), ("test", "test")):
        capped = getattr(config, _CAPS[split]) is not None
        left_out = np.setdiff1d(store.samples(split).labels, labels_used(store, split, config)).tolist() if capped else []
        if left_out:
            names = ", ".join(repr(store.label_names[code]) for code in left_out[:3]) + ", ..." * (len(left_out) > 3)
            lacking.append(f"no sample to {purpose} has {names}")
    if lacking:
        yield f"labels are left out by --max_train_samples or --max_eval_samples: {'; '.join(lacking)}; {_more_labels(config)}"


def _doubts_of_numbers(numbers: FloatArray) -> Iterator[str]:
    """
    >>> list(_doubts_of_numbers(np.array([0.0, 2.5, 5.0])))
    []
    """
    mean, spread = (numbers.mean(), numbers.std()) if len(numbers) else (0.0, 1.0)
    if abs(mean) > _FARTHEST_MEAN or not _SPREADS[0] <= spread <= _SPREADS[1]:
        yield (
            f"the numbers to learn have the mean {mean:.4g} and the standard deviation {spread:.4g}: beyond a mean of "
            f"{_FARTHEST_MEAN:g}, or a deviation of {_SPREADS[0]:g} to {_SPREADS[1]:g}, learning takes very long or fails; change them "
            "in the file: subtract the mean, divide by the deviation, and undo both in the predictions"
        )


def class_weights(asked: str | Mapping[str, float], codes: IntArray, weights: FloatArray, label_names: Sequence[str]) -> FloatArray:
    """(C,) what the rows of each class are multiplied by.

    balanced: the weight of all rows / (classes x that of the rows of the class), so that every class counts the same, and all
    together as much as before.

    Args:
        codes, weights: (N,) of each row.

    >>> class_weights("balanced", np.array([0, 0, 0, 1]), np.ones(4), ["ham", "spam"]).round(2).tolist()
    [0.67, 2.0]
    >>> class_weights("balanced", np.array([0, 0, 0, 1]), np.array([1 / 3, 1 / 3, 1 / 3, 1]), ["ham", "spam"]).tolist()
    [1.0, 1.0]
    >>> class_weights({"spam": 3.0}, np.array([0, 1]), np.ones(2), ["ham", "spam"]).tolist()
    [1.0, 3.0]
    """
    if isinstance(asked, Mapping):
        return np.array([float(asked.get(name, 1.0)) for name in label_names])
    sums = np.bincount(codes, weights, minlength=len(label_names))
    sums[sums == 0] = 1  # no row of that class, after a cap
    return weights.sum() / (len(label_names) * sums)


def sample_shares(sample: IntArray) -> FloatArray:
    """(N,) one divided by the number of rows of the row's sample.

    >>> sample_shares(np.array([4, 7, 7])).tolist()
    [1.0, 0.5, 0.5]
    """
    _, place, counts = np.unique(sample, return_inverse=True, return_counts=True)
    shares: FloatArray = 1.0 / counts[place]
    return shares


def _capped(rows: Rows, split: str, config: TrainConfig) -> Rows:
    cap = getattr(config, _CAPS[split])
    return rows if cap is None else first_samples(rows, cap, _drawn_by(config))


def _drawn_by(config: TrainConfig) -> int | None:
    """The seed by which samples are drawn; None where they are taken from the top of the file."""
    return config.seed if config.shuffle_before_select else None


def _more_labels(config: TrainConfig) -> str:
    """What to type for samples of more labels."""
    drawn = "" if config.shuffle_before_select else "type --shuffle_before_select to draw them from the whole file, or "
    return f"{drawn}take more samples"


def _check_names(weights: Mapping[str, float], label_names: Sequence[str]) -> None:
    for name in weights:
        if name not in label_names:
            near = difflib.get_close_matches(name, label_names, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The labels are {', '.join(map(repr, label_names[:20]))}."
            raise BadSetting(f"--class_weights: there is no label {name!r}. {hint}")

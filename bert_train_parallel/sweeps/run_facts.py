"""What the files of a finished run say beside its RESULT: the size of its model, the columns that were read, what it was validated by."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from bert_train_parallel.data.store import Store
from bert_train_parallel.errors import BadStore
from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.sweeps.messages import BertEvalResult, BertFineTuneRequest

_NUMBERS = {"F64", "F32", "F16", "BF16"}  # of weights; others are positions and the like


def facts_of(request: BertFineTuneRequest, files: RunFiles, figures: dict[str, float]) -> dict[str, Any]:
    """Fields of a result, by their names; what cannot be known is left out.

    Args:
        figures: of the validation split.
    """
    try:
        with Store.open(files.folder / f"{files.stem}.sqlite") as store:
            read_as = store.about.get("read_as", {})
            measured = _measured(request, store, figures)
    except BadStore:  # it was removed
        read_as, measured = {}, None
    return {
        "num_parameters": num_parameters(files),
        "inferred_text_field": read_as.get("text"),
        "inferred_text_pair_field": read_as.get("text_pair"),
        "inferred_label_field": read_as.get("label"),
        "eval_result": measured,
    }


def _measured(request: BertFineTuneRequest, store: Store, figures: dict[str, float]) -> BertEvalResult:
    """What the run's validation says, as an evaluation; of a part of the split, the baseline is not known."""
    count, most = store.counts["validate"][0], request.config.max_eval_samples
    is_whole = most is None or count <= most
    baseline = baseline_accuracy(store.samples("validate").labels) if store.label_names and is_whole else None
    found = BertEvalResult(
        run_id=request.run_id,
        dataset_name=request.config.dataset_name,
        dataset_config_name=request.config.dataset_config_name,
        split="validation",
        num_examples=count if is_whole or most is None else most,
        accuracy=figures.get("accuracy"),
        figures=figures,
    )
    return with_baseline(found, baseline)


def baseline_accuracy(labels: np.ndarray[Any, Any]) -> float | None:
    """The accuracy of whoever always says the commonest class.

    Args:
        labels: (n,) class codes.

    >>> baseline_accuracy(np.array([0, 1, 1, 2])), baseline_accuracy(np.array([]))
    (0.5, None)
    """
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels)) if len(labels) else None


def with_baseline(found: BertEvalResult, baseline: float | None) -> BertEvalResult:
    """An evaluation that tells how good its accuracy is."""
    better = None if found.accuracy is None or baseline is None else found.accuracy - baseline
    return found.model_copy(update={"baseline_accuracy": baseline, "improvement_vs_baseline": better})


def num_parameters(files: RunFiles) -> int | None:
    """Of the run's model, from the head of its weights; None where they were removed, or not written."""
    checkpoints = sorted(files.checkpoints.glob("step_*/model.safetensors"), reverse=True)
    for path in (files.model_folder / "model.safetensors", *checkpoints):
        head = _head(path)
        if head:
            return int(sum(math.prod(one["shape"]) for name, one in head.items() if name != "__metadata__" and one["dtype"] in _NUMBERS))
    return None


def _head(path: Path) -> dict[str, Any]:
    """The names, types and shapes in a file of weights; nothing where there is none."""
    try:
        with open(path, "rb") as file:
            return dict(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
    except (OSError, ValueError, MemoryError):
        return {}

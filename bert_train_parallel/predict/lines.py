"""Predictions as lines of CSV or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from bert_train_parallel.errors import BadSetting
from bert_train_parallel.predict.texts import Entry
from bert_train_parallel.tasks.task import csv_cell

if TYPE_CHECKING:  # torch comes with it
    from bert_train_parallel.predict.predictor import Prediction

Writer: TypeAlias = "Callable[[Entry, Prediction | None], str]"


def form_of(output: Path | None) -> str:
    """csv or json, by the ending of the file; csv for the terminal.

    >>> form_of(None), form_of(Path("labels.jsonl"))
    ('csv', 'json')
    """
    if output is None or output.suffix == ".csv":
        return "csv"
    if output.suffix in (".json", ".jsonl", ".ndjson"):
        return "json"
    raise BadSetting(f"--output {output}: a name that ends with .csv or .jsonl is expected.")


def csv_header(label_names: Sequence[str], with_text: bool) -> str:
    """The names of the columns that `csv_line` fills."""
    names = ["line", "prediction", *(f"probability_{label}" for label in label_names), *(["text"] if with_text else [])]
    return ",".join(map(csv_cell, names))


def csv_line(label_names: Sequence[str], with_text: bool) -> Writer:
    """Makes a line of CSV from an entry and its prediction; cells stay empty where there was nothing to predict for."""
    cells = {name: csv_cell(name) for name in label_names}

    def line(entry: Entry, prediction: Prediction | None) -> str:
        if prediction is None:
            found = [""] * (1 + len(label_names))
        elif prediction.label is None:
            found = [repr(prediction.value)]
        else:
            found = [cells[prediction.label], *(f"{chance:.9g}" for chance in prediction.probabilities.values())]
        texts = [csv_cell(" | ".join(entry.texts or ()))] if with_text else []
        return ",".join([str(entry.line), *found, *texts])

    return line


def json_line(with_text: bool) -> Writer:
    """Makes an object of JSON from an entry and its prediction, null where there was nothing to predict for."""

    def line(entry: Entry, prediction: Prediction | None) -> str:
        found: dict[str, object] = {"line": entry.line, "prediction": None}
        if prediction is not None:
            found["prediction"] = prediction.value if prediction.label is None else prediction.label
            if prediction.probabilities:
                found["probabilities"] = prediction.probabilities
        if with_text:
            found["text"] = list(entry.texts) if entry.texts and len(entry.texts) > 1 else (entry.texts or (None,))[0]
        return json.dumps(found, ensure_ascii=False)

    return line

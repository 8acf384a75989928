"""The predictions file as training writes it: columns of the 2020 tool first, and any label name survives."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.preparation import prepare
from bert_train_parallel.data.store import Store
from bert_train_parallel.errors import NotWritable
from bert_train_parallel.tasks import classification, regression

NAMES = ["plain", 'with "quotes"', "comma, inside", "two\nlines", "carriage\rreturn", "日本語 🎉"]


def store_of(folder: Path, tokenizer: Path, labels: list[str]) -> Store:
    """A store of eight texts per label; the first line of the source is its header."""
    source = folder / "texts.csv"
    with open(source, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["text", "label"])
        writer.writerows([f"the dog helped a cat {number}", label] for number, label in enumerate(labels * 8))
    config = DataConfig(model=str(tokenizer), text="text", label="label", split=(0.5, 0.25, 0.25))
    return prepare(config, str(source), say=lambda _: None)


def test_any_label_name_comes_back_beside_its_code(tiny_tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "texts_testset_predictions.csv"
    with store_of(tmp_path, tiny_tokenizer, NAMES) as store:
        rows = store.rows("test")
        logits = np.random.default_rng(0).normal(size=(len(rows), len(NAMES)))
        predictions = classification.combine(logits, rows)
        classification.write(predictions, store.label_names, store, path)
        samples, names = store.samples("test"), store.label_names
    assert set(names) == set(NAMES)
    with open(path, newline="", encoding="utf-8") as file:
        header, *lines = list(csv.reader(file))
    assert header[:6] == ["prediction", "true_label", "sample", "line", "prediction_name", "true_name"]
    assert header[6:] == [f"probability_{name}" for name in names]
    assert [int(line[2]) for line in lines] == samples.ids.tolist()
    assert [int(line[3]) for line in lines] == samples.lines.tolist()
    assert [int(line[1]) for line in lines] == samples.labels.tolist()
    for line in lines:
        assert (line[4], line[5]) == (names[int(line[0])], names[int(line[1])])
        chances = [float(cell) for cell in line[6:]]
        assert chances[int(line[0])] == max(chances)
        assert sum(chances) == pytest.approx(1)


def test_numbers_are_written_to_the_last_digit(tiny_tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts_testset_predictions.csv"
    with store_of(tmp_path, tiny_tokenizer, ["0.1", "-2.5", "1e-7", "3"]) as store:
        assert store.task_type == "regression"
        rows = store.rows("test")
        predictions = regression.combine(rows.targets + 1 / 3, rows)
        regression.write(predictions, (), store, path)
    with open(path, newline="", encoding="utf-8") as file:
        header, *lines = list(csv.reader(file))
    assert header == ["prediction", "true_label", "sample", "line"]
    assert [float(line[0]) for line in lines] == predictions.predicted.tolist()
    assert [float(line[1]) for line in lines] == predictions.truth.tolist()


def test_a_file_that_cannot_be_written_leaves_nothing(tiny_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with store_of(tmp_path, tiny_tokenizer, ["a", "b"]) as store:
        rows = store.rows("test")
        predictions = classification.combine(np.zeros((len(rows), 2)), rows)
        before = sorted(tmp_path.iterdir())
        with pytest.raises((NotWritable, OSError)):
            classification.write(predictions, store.label_names, store, tmp_path / "file" / "predictions.csv")
    assert sorted(tmp_path.iterdir()) == before

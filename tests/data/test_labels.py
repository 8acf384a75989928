"""Labels and what they say about the task."""

from __future__ import annotations

import pytest

from bert_train_parallel.data.labels import LabelReader, Labels
from bert_train_parallel.errors import BadSource


def read(labels: list[str], task_type: str = "auto") -> Labels:
    reader = LabelReader(task_type, "x.csv")  # type: ignore[arg-type]
    for label in labels:
        reader.add(label)
    return reader.finish()


def test_names_are_coded_in_the_order_of_letters() -> None:
    found = read(["right", "left", "neutral", "left"])
    assert (found.task_type, found.names, found.values.tolist()) == ("classification", ("left", "neutral", "right"), [2, 0, 1, 0])


def test_whole_numbers_are_coded_in_numerical_order_and_keep_their_zeros() -> None:
    assert read(["10", "9", "-1"]).names == ("-1", "9", "10")
    assert read(["10", "9", "x"]).names == ("10", "9", "x")
    assert set(read(["01", "1", "2"]).names) == {"01", "1", "2"}


def test_whole_numbers_that_a_table_program_wrote_with_a_point_are_classes() -> None:
    found = read(["1.0", "0.0", "1"])
    assert (found.task_type, found.names, found.values.tolist()) == ("classification", ("0", "1"), [1, 0, 1])


def test_numbers_with_fractions_are_a_regression_unless_classes_are_asked_for() -> None:
    found = read(["0.5", "1", "2.25"])
    assert (found.task_type, found.names, found.values.tolist()) == ("regression", (), [0.5, 1.0, 2.25])
    assert read(["0.5", "1", "2.25"], "classification").names == ("0.5", "1", "2.25")


def test_one_word_among_numbers_makes_them_names() -> None:
    assert read(["0.5", "1", "unknown"]).task_type == "classification"
    assert read(["0.5", "inf"]).task_type == "classification"


def test_a_regression_that_is_asked_for_accepts_finite_numbers_only() -> None:
    reader = LabelReader("regression", "x.csv")
    assert [reader.accepts(label) for label in ("3", "2.5", "1e3", "nan", "inf", "three", "")] == [
        True,
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert read(["1", "2"], "regression").values.tolist() == [1.0, 2.0]


def test_more_different_fractions_than_classes_can_be_are_a_regression_all_the_same() -> None:
    labels = [f"{number / 7:.4f}" for number in range(25_000)]
    found = read(labels)
    assert found.task_type == "regression"
    assert found.values.tolist() == list(map(float, labels))


@pytest.mark.parametrize("task_type", ["auto", "classification"])
def test_a_column_of_names_that_never_come_again_is_taken_for_the_wrong_one(task_type: str) -> None:
    with pytest.raises(BadSource, match=r"x\.csv: the labels have more than 20000 different values"):
        read([f"id-{number}" for number in range(25_000)], task_type)

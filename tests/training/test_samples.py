"""Weights of rows, and settings that do not fit the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bert_train_parallel import config
from bert_train_parallel.data.preparation import prepare
from bert_train_parallel.data.store import Store
from bert_train_parallel.errors import BadSetting
from bert_train_parallel.training.run import read_as
from bert_train_parallel.training.samples import check_settings, class_weights, doubts, evaluation_rows, training_rows


@pytest.fixture
def store(write_csv: Callable[..., Path], tiny_tokenizer: Path) -> Store:
    source = write_csv(100, long_every=5)
    return prepare(config.TrainConfig(model=str(tiny_tokenizer), sequence_len=32), str(source), None, lambda sentence: None)


def test_balanced_classes_weigh_the_same_together() -> None:
    codes = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights("balanced", codes, np.ones(10), ["a", "b", "c"])
    assert [float(weights[code] * (codes == code).sum()) for code in range(3)] == pytest.approx([10 / 3] * 3)


def test_balanced_classes_weigh_the_same_where_one_has_the_longer_texts(tmp_path: Path, tiny_tokenizer: Path) -> None:
    source = tmp_path / "lengths.csv"
    source.write_text("text,label\n" + "".join(f"the dog {number} {'it was ' * 40 * (number % 2)},{number % 2}\n" for number in range(40)))
    store = prepare(config.TrainConfig(model=str(tiny_tokenizer), sequence_len=32), str(source), None, lambda sentence: None)
    for row_weights in ("rows", "samples"):
        rows = training_rows(store, config.TrainConfig(class_weights="balanced", row_weights=row_weights))
        short, long = np.bincount(rows.targets[:, 0].astype(int), rows.weights)
        assert short == pytest.approx(long)


def test_the_rows_of_a_sample_can_share_one_weight(store: Store) -> None:
    each = training_rows(store, config.TrainConfig())
    shared = training_rows(store, config.TrainConfig(row_weights="samples"))
    assert len(each) > len(np.unique(each.sample))
    assert each.weights.sum() == len(each)
    assert shared.weights.sum() == pytest.approx(len(np.unique(shared.sample)))


def test_class_weights_multiply_those_of_rows(store: Store) -> None:
    rows = training_rows(store, config.TrainConfig(class_weights={"good": 3.0}, row_weights="samples"))
    shared = training_rows(store, config.TrainConfig(row_weights="samples"))
    good = rows.targets[:, 0] == store.label_names.index("good")
    np.testing.assert_allclose(rows.weights[good], 3 * shared.weights[good])
    np.testing.assert_allclose(rows.weights[~good], shared.weights[~good])


def test_caps_are_of_samples(store: Store) -> None:
    settings = config.TrainConfig(max_train_samples=7, max_eval_samples=4)
    assert len(np.unique(training_rows(store, settings).sample)) == 7
    assert len(np.unique(evaluation_rows(store, "test", settings).sample)) == 4


@pytest.fixture
def sorted_store(tmp_path: Path, tiny_tokenizer: Path) -> Store:
    """40 samples each of a, b and c, in this order."""
    source = tmp_path / "sorted.csv"
    source.write_text("text,label\n" + "".join(f"the dog {number},{'abc'[number // 40]}\n" for number in range(120)))
    return prepare(config.TrainConfig(model=str(tiny_tokenizer), sequence_len=32), str(source), None, lambda sentence: None)


def test_a_cap_that_leaves_one_class_to_learn_is_an_error(sorted_store: Store) -> None:
    with pytest.raises(BadSetting, match=r"--max_train_samples 9: all .* the label 'a', .* Type --shuffle_before_select .*, or take more"):
        training_rows(sorted_store, config.TrainConfig(max_train_samples=9))
    assert len(training_rows(sorted_store, config.TrainConfig(max_train_samples=9, shuffle_before_select=True)))
    with pytest.raises(BadSetting, match=r"nothing to learn\. Take more samples\."):
        training_rows(sorted_store, config.TrainConfig(max_train_samples=1, shuffle_before_select=True))


def test_labels_that_a_cap_leaves_out_are_told_by_split(sorted_store: Store) -> None:
    (found,) = doubts(sorted_store, config.TrainConfig(max_train_samples=50, max_eval_samples=3))
    assert "no sample to train on has 'c'; no sample to validate has 'b', 'c'; no sample to test has 'b', 'c'" in found
    assert "--shuffle_before_select" in found
    assert not list(doubts(sorted_store, config.TrainConfig()))
    assert not list(doubts(sorted_store, config.TrainConfig(max_train_samples=50, max_eval_samples=10, shuffle_before_select=True)))


@pytest.mark.parametrize("mean, spread, told", [(300_000, 2_000, True), (0, 0.01, True), (3, 1.5, False), (-0.2, 0.4, False)])
def test_numbers_far_from_what_a_new_head_gives_are_told(
    mean: float, spread: float, told: bool, tmp_path: Path, tiny_tokenizer: Path
) -> None:
    source = tmp_path / "numbers.csv"
    source.write_text("text,label\n" + "".join(f"the dog {number},{mean + spread * (-1) ** number + 1e-6}\n" for number in range(40)))
    store = prepare(config.TrainConfig(model=str(tiny_tokenizer), sequence_len=32), str(source), None, lambda sentence: None)
    found = list(doubts(store, config.TrainConfig()))
    assert len(found) == told
    assert not told or "the standard deviation" in found[0]


def test_a_class_weight_for_an_unknown_label_is_an_error_with_the_nearest_name(store: Store) -> None:
    with pytest.raises(BadSetting, match=r"no label 'goood'\. Did you mean 'good'"):
        check_settings(config.TrainConfig(class_weights={"goood": 2.0}), store.content)


def test_a_metric_of_another_task_is_an_error_that_names_those_of_this_one(store: Store) -> None:
    with pytest.raises(BadSetting, match=r"pearson is not a figure of a classification.*macro_f1"):
        check_settings(config.TrainConfig(metric="pearson"), store.content)


def test_a_model_that_was_trained_on_a_store_reads_texts_as_the_store_did(tmp_path: Path, tiny_tokenizer: Path) -> None:
    source = tmp_path / "pairs.csv"
    source.write_text("one,two,label\n" + "".join(f"dog {number},cat {number},{number % 2}\n" for number in range(40)))
    columns = {"text": "one", "text_pair": "two", "max_cell_bytes": 1000}
    asked = config.TrainConfig(model=str(tiny_tokenizer), sequence_len=32, **columns)
    store = prepare(asked, str(source), None, lambda sentence: None)
    assert read_as(store, config.TrainConfig(sequence_len=32)) == columns  # a later run names the store alone
    assert read_as(store, asked) == columns

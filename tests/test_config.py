"""Settings by flags, by a JSON file and by name: what cannot be is one sentence that names the flag or the file."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bert_train_parallel.config import DataConfig, TrainConfig, add_arguments, make_settings, read_settings
from bert_train_parallel.errors import BadSetting


def typed(*words: str) -> TrainConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser, TrainConfig)
    return read_settings(TrainConfig, parser.parse_args(words))


@pytest.mark.parametrize(
    "flag, value, words",
    [
        ("--epochs", "0", "greater than or equal to 1"),
        ("--epochs", "many", "valid integer"),
        ("--batch_size", "1e3", "valid integer"),
        ("--seed", "-1", "greater than or equal to 0"),
        ("--learning_rate", "nan", "finite number"),
        ("--learning_rate", "inf", "finite number"),
        ("--weight_decay", "inf", "finite number"),
        ("--clip_norm", "nan", "finite number"),
        ("--dropout", "1", "less than 1"),
        ("--split", "80/20", "three numbers are expected"),
        ("--split", "inf/1/1", "three numbers are expected"),
        ("--split", "nan/1/1", "three numbers are expected"),
        ("--split", "1e308/1e308/1e308", "three numbers are expected"),
        ("--split", "0/50/50", "the first and one of the others above 0"),
        ("--split", "100/0/0", "the first and one of the others above 0"),
        ("--class_weights", '{"a": NaN}', "weights are numbers from 0 up"),
        ("--class_weights", '{"a":', "not JSON"),
        ("--class_weights", "[1, 2]", "'none' or 'balanced'"),
        ("--shares", "nan", "numbers from 0 up"),
        ("--shares", "inf,1", "none of them infinite"),
        ("--shares", "1e308,1e308", "none of them infinite"),
        ("--delimiter", ",,", "one character"),
        ("--max_bad_rows", "nan", "finite number"),
        ("--metric", "r2", "'loss', 'pearson'"),
    ],
)
def test_a_value_that_cannot_be_is_a_sentence_with_its_flag(flag: str, value: str, words: str) -> None:
    with pytest.raises(BadSetting, match=rf"^{flag} ") as raised:
        typed(flag, value)
    assert words in str(raised.value)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", [name for name, field in TrainConfig.model_fields.items() if "float" in str(field.annotation)])
def test_no_setting_is_infinite_or_not_a_number(name: str, value: str) -> None:
    given = {"class_weights": {"spam": value}, "split": (1.0, value, 0.0)}.get(name, value)
    with pytest.raises(BadSetting, match=rf"^--{name} ") as raised:
        make_settings(TrainConfig, None, {name: given})
    assert "\n" not in str(raised.value)


def test_the_byte_order_mark_of_editors_on_windows_is_no_part_of_a_file_of_settings(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"epochs": 5}', encoding="utf-8-sig")
    assert typed("--config", str(tmp_path / "settings.json")).epochs == 5


def test_shares_of_a_split_are_scaled_to_one() -> None:
    assert typed("--split", "50/50/100").split == (0.25, 0.25, 0.5)
    assert typed("--split", "9,1,0").split == (0.9, 0.1, 0.0)


@pytest.mark.parametrize(
    "content, words",
    [
        ("[1]", "holds a list"),
        ('{"epochs":', "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        ('{"epoch": 2}', '"epoch" is not a setting. Did you mean epochs?'),
        ('{"epochs": "many"}', "\"epochs\" 'many': should be a valid integer"),
        ('{"learning_rate": NaN}', '"learning_rate" nan: should be a finite number'),
    ],
)
def test_a_settings_file_that_cannot_be_used_is_named(content: str | bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadSetting) as raised:
        typed("--config", str(path))
    assert str(path) in str(raised.value)
    assert words in str(raised.value)


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"epochs": 7, "seed": 3}')
    config = typed("--config", str(path), "--epochs", "2")
    assert (config.epochs, config.seed) == (2, 3)


def test_settings_by_name_change_those_of_a_config() -> None:
    config = make_settings(TrainConfig, TrainConfig(epochs=7, seed=3), {"epochs": 2})
    assert (config.epochs, config.seed) == (2, 3)
    with pytest.raises(BadSetting, match=r"--epoch is not a setting. Did you mean epochs\?"):
        make_settings(TrainConfig, None, {"epoch": 2})


def test_paths_may_be_given_as_such() -> None:
    config = make_settings(TrainConfig, None, {"output_dir": Path("some") / "where", "model": Path("my_model")})
    assert (config.output_dir, config.model) == (str(Path("some/where")), "my_model")


@pytest.mark.parametrize("wrong", ["leanings.csv", {"epochs": 2}])
def test_settings_of_another_kind_are_a_sentence(wrong: object) -> None:
    with pytest.raises(BadSetting, match="a TrainConfig is expected, after the source, or settings by name"):
        make_settings(TrainConfig, wrong, {})


def test_a_config_of_data_alone_is_not_one_of_training() -> None:
    with pytest.raises(BadSetting, match="The settings are a DataConfig; a TrainConfig is expected"):
        make_settings(TrainConfig, DataConfig(), {})  # type: ignore[type-var]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (
            ["--task_type", "regression", "--metric", "mcc"],
            "--metric mcc is not a figure of a regression. Choose one of loss, mse, pearson",
        ),
        (
            ["--task_type", "regression", "--class_weights", "balanced"],
            "--class_weights: the labels are numbers, not classes. Leave it out",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(BadSetting) as raised:
        typed(*words)
    assert str(raised.value).startswith(sentence)
    assert not str(raised.value).endswith("..")

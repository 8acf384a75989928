"""The four functions of the package as a caller has them: mistakes are ours, in one sentence; what the README shows runs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert_train_parallel import analyse, load_model, prepare, train
from bert_train_parallel.errors import BadModel, BadRun, BadSetting, BadSource, BertTrainParallelError

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_readme_shows_every_function() -> None:
    shown = "\n".join(EXAMPLES)
    for function in (train, load_model, analyse):
        assert f"{function.__name__}(" in shown


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_readme_runs(
    example: str,
    tiny_model: Path,
    write_csv: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_csv(120, name="leanings.csv")
    shutil.copytree(tiny_model, tmp_path / "minilm")  # a folder wins over the model of that name
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(README), "exec"), {"__name__": "example"})
    *_, accuracy, predictions = capsys.readouterr().out.strip().splitlines()
    assert 0 <= float(accuracy) <= 1
    assert re.match(r"\[Prediction\(label='(good|bad)', probabilities=\{'bad': ", predictions)


WRONG_NAMES = [None, 3, b"leanings.csv", ["leanings.csv"], "", "  "]


@pytest.mark.parametrize("wrong", WRONG_NAMES)
@pytest.mark.parametrize(
    "function, error, what",
    [(train, BadSource, "source"), (prepare, BadSource, "source"), (load_model, BadModel, "model"), (analyse, BadRun, "run")],
)
def test_what_is_no_name_of_a_file_is_a_sentence(
    function: Callable[[Any], object],
    error: type[BertTrainParallelError],
    what: str,
    wrong: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=rf"^The {what} is (None|empty|of the type (int|bytes|list)); .* is expected\.$"):
        function(wrong)
    assert not list(tmp_path.iterdir())


def of_training(**settings: Any) -> object:
    return train("leanings.csv", **settings)


def of_preparation(**settings: Any) -> object:
    return prepare("leanings.csv", **settings)


@pytest.mark.parametrize(
    "call, settings, sentence",
    [
        (of_training, {"epochs": 0}, r"^--epochs 0: should be greater than or equal to 1\.$"),
        (of_training, {"epoch": 2}, r"^--epoch is not a setting\. Did you mean epochs\?$"),
        (of_training, {"metric": "mse", "task_type": "classification"}, r"^--metric mse is not a figure of a classification\. [^\n]*\.$"),
        (of_preparation, {"sequence_len": 2}, r"^--sequence_len 2: should be greater than or equal to 3\.$"),
        (of_preparation, {"epochs": 2}, r"^--epochs is not a setting\."),
        (of_preparation, {"output_dir": 3}, r"^The output_dir is of the type int; a folder is expected\.$"),
    ],
)
def test_a_setting_by_name_that_cannot_be_is_a_sentence(call: Callable[..., object], settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadSetting, match=sentence):
        call(**settings)


@pytest.mark.parametrize("settings", [{"batch_size": "8"}, {"batch_size": 0}, {"device": None}, {"dtype": None}])
def test_a_way_to_predict_that_cannot_be_is_told_before_the_model_is_read(settings: dict[str, Any]) -> None:
    with pytest.raises(BadSetting):
        load_model("nowhere.sav", **settings)


def test_a_number_of_mistakes_that_cannot_be_is_a_sentence() -> None:
    with pytest.raises(BadSetting, match=r"^errors -1: a whole number from 0 up is expected\.$"):
        analyse("nowhere.csv", errors=-1)


def test_importing_the_functions_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from bert_train_parallel import analyse, prepare, train; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

"""The predictions file: ours, the 2020 tool's, and damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_train_parallel.analysis.predictions_file import read_predictions
from bert_train_parallel.errors import BadRun

HEADER = "prediction,true_label,sample,line,prediction_name,true_name,probability_ham,probability_spam\n"


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "sms_testset_predictions.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_our_file_gives_codes_samples_lines_names_and_probabilities(tmp_path: Path) -> None:
    found = read_predictions(written(tmp_path, HEADER + "1,0,7,9,spam,ham,0.25,0.75\n0,0,8,10,ham,ham,0.9,0.1\n"))
    assert found.task_type == "classification"
    assert found.label_names == ("ham", "spam")
    assert found.predictions.predicted.tolist() == [1, 0]
    assert found.predictions.truth.tolist() == [0, 0]
    assert found.predictions.samples.tolist() == [7, 8]
    assert found.lines is not None
    assert found.lines.tolist() == [9, 10]
    assert found.predictions.probabilities is not None
    assert found.predictions.probabilities.tolist() == [[0.25, 0.75], [0.9, 0.1]]


def test_the_two_columns_of_the_2020_tool_are_enough(tmp_path: Path) -> None:
    found = read_predictions(written(tmp_path, "prediction,true_label\n1,0\n0,0\n"))
    assert (found.task_type, found.label_names, found.has_samples) == ("classification", None, False)
    assert found.predictions.predicted.tolist() == [1, 0]


def test_whole_numbers_of_our_regression_file_are_numbers_not_classes(tmp_path: Path) -> None:
    found = read_predictions(written(tmp_path, "prediction,true_label,sample,line\n3,4,0,2\n2,1,1,3\n"))
    assert found.task_type == "regression"
    assert found.label_names == ()


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "begins with the columns"),
        ("text,label\na,b\n", "'text,label'"),
        (HEADER, "no predictions"),
        (HEADER + "1,0,7,9,spam,ham,0.25\n", "damaged: invalid column index 7 at row 1 with 7 columns"),
        (HEADER + "1,zero,7,9,spam,ham,0.25,0.75\n", "could not convert string 'zero'"),
        (HEADER + "1,0,7,9,spam,ham,0.25,much\n", "could not convert string 'much'"),
        (HEADER + "1,0,7,9,spam,ham,0.25,0.7\n", "probabilities of prediction 1 sum to 0.95"),
        (HEADER + "1,0,7,9,spam,ham,nan,nan\n", "not finite"),
        (HEADER + "1,0,7,9,spam,ham,-0.5,1.5\n", "probabilities of prediction 1"),
        (HEADER + "2,0,7,9,spam,ham,0.25,0.75\n", "2 is not a class code, a whole number from 0 to 1"),
        (HEADER + "1,-1,7,9,spam,ham,0.25,0.75\n", "-1 is not a class code, a whole number from 0 to 1"),
        (HEADER + "0.5,1,7,9,spam,ham,0.25,0.75\n", "0.5 is not a class code, a whole number from 0 to 1"),
        (HEADER + "1,0,7,9,spam,ham,0.25,0.75\n" * 2, "twice"),
        (HEADER + "1,0,1e300,9,spam,ham,0.25,0.75\n", "1e+300 is not the number of a sample"),
        (HEADER + "1,0,7,-9,spam,ham,0.25,0.75\n", "-9 is not a line"),
        ("prediction,true_label\n1.5,inf\n", "not finite"),
        (HEADER + '1,0,7,9,"spam,ham,0.25,0.75\n', "damaged"),
        (b"prediction,true_label\n\xff,1\n", "damaged"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadRun) as caught:
        read_predictions(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(alphabet='01,."\n-en', max_size=60).map(lambda text: (HEADER + text).encode())))
def test_any_bytes_are_read_or_refused_with_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x_testset_predictions.csv"
    path.write_bytes(content)
    sentence = ""
    try:
        read_predictions(path)
    except BadRun as error:
        sentence = str(error)
    assert "\n" not in sentence

"""bert_predict as it is typed: what comes out, and one line for each mistake."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bert_train_parallel.errors import BadModel
from bert_train_parallel.models.reading import reading_of
from bert_train_parallel.predict import cli
from bert_train_parallel.predict.predictor import load_model
from bert_train_parallel.run_files import RunFiles

GOOD = 'good, or "so"'
Output = tuple[int, list[list[str]], str]


@pytest.fixture
def type_in(run: RunFiles, capsys: pytest.CaptureFixture[str]) -> Callable[..., Output]:
    """Runs the command with the model of the run: exit code, lines of CSV, and what was said."""

    def run_it(*words: str | Path, model: Path = run.folder) -> Output:
        code = cli.main([str(model), *map(str, words)])
        said = capsys.readouterr()
        return code, list(csv.reader(io.StringIO(said.out))), said.err

    return run_it


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    path.write_text('id,tweet\n1,the dog\n2,\n3,"a small cat,\nthen more"\n4,  \n', encoding="utf-8")
    return path


def test_texts_on_the_command_line_are_answered_beside_the_text(type_in: Callable[..., Output], run: RunFiles) -> None:
    code, lines, said = type_in("the dog", "a, b")
    assert code == 0
    assert lines[0] == ["line", "prediction", "probability_bad", f"probability_{GOOD}", "text"]
    expected = load_model(run.folder).predict(["the dog", "a, b"])
    assert [(line[0], line[1], line[4]) for line in lines[1:]] == [("1", expected[0].label, "the dog"), ("2", expected[1].label, "a, b")]
    assert [float(cell) for cell in lines[1][2:4]] == pytest.approx(list(expected[0].probabilities.values()), abs=1e-6)
    assert said.startswith("2 texts (")


def test_a_file_is_answered_line_by_line_with_empty_cells_where_there_is_no_text(type_in: Callable[..., Output], reviews: Path) -> None:
    code, lines, said = type_in(reviews)
    assert code == 0
    assert [line[0] for line in lines[1:]] == ["2", "3", "4", "6"]
    assert [line[1] in ("bad", GOOD) for line in lines[1:]] == [True, False, True, False]
    assert lines[2][1:] == ["", "", ""]
    assert said.splitlines()[0].endswith("reviews.csv: UTF-8, comma-separated, header; text 'tweet'")
    assert said.splitlines()[1].startswith("2 texts, and no prediction for 2 lines without text (3, 6) (")


def test_json_lines_come_out_where_the_file_is_called_so(type_in: Callable[..., Output], reviews: Path, tmp_path: Path) -> None:
    code, lines, _ = type_in(reviews, "-t", "tweet", "-o", tmp_path / "out.jsonl", "--with_text", "-q")
    assert (code, lines) == (0, [])
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["line"] for entry in found] == [2, 3, 4, 6]
    assert found[1] == {"line": 3, "prediction": None, "text": None}
    assert set(found[2]["probabilities"]) == {"bad", GOOD}
    assert found[2]["text"] == "a small cat,\nthen more"


def test_json_lines_and_a_file_of_one_column_go_in(type_in: Callable[..., Output], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "the dog"}\n{"other": 1}\n{"text": "a cat"}\n')
    (tmp_path / "in.csv").write_text("text\nthe dog\na cat\n")
    _, of_json, _ = type_in(tmp_path / "in.jsonl")
    _, of_csv, _ = type_in(tmp_path / "in.csv")
    assert of_json[2][1:] == ["", "", ""]
    assert [line[1:] for line in (of_json[1], of_json[3])] == [line[1:] for line in of_csv[1:]]


def test_parquet_goes_in(type_in: Callable[..., Output], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"text": ["the dog", None, "a cat"]})
    parquet.write_table(table, tmp_path / "in.parquet")
    code, lines, _ = type_in(tmp_path / "in.parquet")
    assert code == 0
    assert [bool(line[1]) for line in lines[1:]] == [True, False, True]


def test_standard_input_is_one_text_a_line(type_in: Callable[..., Output], monkeypatch: pytest.MonkeyPatch) -> None:
    def stdin(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    stdin("the dog\r\n\na löng film".encode())
    code, lines, _ = type_in("-")
    assert code == 0
    assert [(line[0], bool(line[1])) for line in lines[1:]] == [("1", True), ("2", False), ("3", True)]
    stdin(b"fine\n\xff\xfe\n")
    code, lines, said = type_in("-")
    assert (code, lines[1:]) == (2, [])
    assert said.startswith("bert_predict: Line 2 of standard input is not UTF-8: invalid start byte.")


def test_a_plain_file_is_one_text_a_line_unless_a_flag_says_that_it_is_a_table(type_in: Callable[..., Output], tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("text\nHello, how are you?\n\nNo, I hate this.", encoding="utf-16")
    code, lines, said = type_in(plain, "--with_text")
    assert code == 0
    assert [(line[0], line[-1]) for line in lines[1:]] == [
        ("1", "text"),
        ("2", "Hello, how are you?"),
        ("3", ""),
        ("4", "No, I hate this."),
    ]
    assert said.startswith(f"{plain}: utf-16, one text a line (")
    _, lines, _ = type_in(plain, "--with_text", "--header", "no", "--delimiter", ",", "--text", "0")
    assert [line[-1] for line in lines[1:]] == ["text", "Hello", "No"]
    code, _, said = type_in(tmp_path / "plan.txt")
    assert (code, said) == (2, f"bert_predict: {tmp_path}/plan.txt: there is no such file. Did you mean {plain}?\n")


def test_the_columns_of_training_are_those_of_prediction(
    save_run: Callable[..., RunFiles], type_in: Callable[..., Output], tmp_path: Path
) -> None:
    pairs = save_run(text="first", text_pair="second").folder
    (tmp_path / "pairs.csv").write_text("text,second,first\nnot me,a cat,the dog\nnot me,,the dog\n")
    code, lines, _ = type_in(tmp_path / "pairs.csv", "--with-text", model=pairs)
    assert code == 0
    assert [line[-1] for line in lines[1:]] == ["the dog | a cat", ""]
    code, lines, _ = type_in("the dog", "a cat", model=pairs)
    assert (code, len(lines)) == (0, 2)
    code, lines, said = type_in("the dog", model=pairs)
    assert (code, said) == (
        2,
        "bert_predict: The model was trained on pairs of texts, and 1 texts are given. Give two for each prediction.\n",
    )


def test_flags_are_taken_with_dashes_as_with_underscores() -> None:
    flags = ["text_pair", "max_cell_bytes", "batch_size"]
    typed = [[word for flag in flags for word in (f"--{flag.replace('_', mark)}", "7")] for mark in "_-"]
    first, second = (
        cli._parser().parse_args(["model", "text", "--with" + mark + "text", *words]) for mark, words in zip("_-", typed, strict=True)
    )
    assert first == second
    assert (first.text_pair, first.max_cell_bytes, first.batch_size, first.with_text) == ("7", "7", 7, True)
    assert cli._parser().parse_args(["model", "text", "--max", "7"]).max_cell_bytes == "7"


def test_a_regression_answers_with_numbers(save_run: Callable[..., RunFiles], type_in: Callable[..., Output]) -> None:
    _, lines, _ = type_in("the dog", model=save_run(task_type="regression").folder)
    assert lines[0] == ["line", "prediction", "text"]
    assert abs(float(lines[1][1])) < 100


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["the dog", " "], "Text 2 is empty. Give one with words in it."),
        (["reviews.csv", "-t", "twet"], "reviews.csv has no column 'twet' (--text). Did you mean tweet? Its columns: id, tweet."),
        (["revews.csv"], "revews.csv: there is no such file. Did you mean reviews.csv?"),
        (["reviews.csv", "more"], "reviews.csv is a file: name it alone, or give texts only."),
        (["reviews.csv", "-o", "reviews.csv"], "--output reviews.csv is the input. Name another file."),
        (["reviews.csv", "-o", "out.xlsx"], "--output out.xlsx: a name that ends with .csv or .jsonl is expected."),
        (["reviews.csv", "-o", "reviews.csv/out.csv"], "--output reviews.csv/out.csv: reviews.csv is a file, not a folder."),
        (["reviews.csv", "-o", "folder"], "--output folder is a folder. Name a file in it, such as folder/labels.csv."),
        (["reviews.csv", "--batch_size", "0"], "--batch_size 0: a whole number from 1 up is expected."),
        (["reviews.csv", "--threads", "-1"], "--threads -1: a whole number from 1 up is expected."),
        (["nothing.csv", "-o", "out.csv"], "There is no text in the input, so there is no prediction: 2 lines without text (2, 3)."),
        (["numbers.csv"], "numbers.csv: it is not plain which column is the text. Type --text a or --text b."),
        (["folder"], "folder is a folder; texts, or one CSV, JSON lines or Parquet file are expected."),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: list[str],
    sentence: str,
    type_in: Callable[..., Output],
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing.csv").write_text("id,text\n1,\n2,  \n")
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "folder").mkdir()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    code, lines, said = type_in(*words, "-q")
    assert (code, lines) == (2, [])
    assert said.count("\n") == 1
    assert sentence in said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", [".", "nowhere.sav", "n" * 300 + ".sav"])
def test_a_model_that_is_not_there_says_what_to_name(type_in: Callable[..., Output], tmp_path: Path, name: str) -> None:
    code, lines, said = type_in("the dog", model=tmp_path / name)
    assert (code, lines) == (2, [])
    assert "no trained model there. Name a _trained_model.sav file, a model folder, or the folder of a finished run." in said


def test_the_output_is_absent_when_the_input_breaks_off(type_in: Callable[..., Output], tmp_path: Path) -> None:
    (tmp_path / "broken.csv").write_bytes(b"text\nthe dog\n\x00\x00\n")
    code, _, said = type_in(tmp_path / "broken.csv", "-o", tmp_path / "out.csv", "-q")
    assert code == 2
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["broken.csv"]


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; from bert_train_parallel.predict import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["revews.csv"], "revews.csv: there is no such file. Did you mean reviews.csv?"),
        (["reviews.csv", "-t", "twet"], "reviews.csv has no column 'twet' (--text). Did you mean tweet? Its columns: id, tweet."),
        (["empty.csv"], "empty.csv is empty."),
        (["nothing.csv"], "There is no text in the input, so there is no prediction: 1 line without text (2)."),
        (["-"], "There is no text in the input, so there is no prediction."),
        (["the dog", " "], "Text 2 is empty."),
        (["reviews.csv", "--max_cell_bytes", "1"], "--max_cell_bytes '1': should be greater than or equal to 1000."),
        (["reviews.csv", "-o", "x.doc"], "--output x.doc: a name that ends with .csv or .jsonl is expected."),
    ],
)
@pytest.mark.parametrize("by", ["file", "folder"])
def test_a_mistake_in_the_input_is_told_without_torch(
    words: list[str], sentence: str, by: str, run: RunFiles, reviews: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "nothing.csv").write_text("id,text\n1,  \n")
    model = run.saved_model if by == "file" else run.model_folder
    code = "import sys; from bert_train_parallel.predict import cli; print(cli.main(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(model), *words, "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert done.stdout == "2 False\n"
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr


def test_the_column_of_training_is_missed_without_torch(save_run: Callable[..., RunFiles], reviews: Path) -> None:
    model = save_run(text="body").saved_model
    code = "import sys; from bert_train_parallel.predict import cli; print(cli.main(sys.argv[1:]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(model), str(reviews)], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert "reviews.csv has no column 'body' (--text)." in done.stderr


@pytest.mark.parametrize("form", ["csv", "jsonl", "stdin"])
def test_a_cell_above_the_limit_of_training_gets_no_prediction(
    form: str, save_run: Callable[..., RunFiles], type_in: Callable[..., Output], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_run(max_cell_bytes=2_000).folder
    texts = ["the dog", "a cat " * 400, "\u00e9" * 1_001, "a" * 2_000, "the end"]
    if form == "csv":
        (tmp_path / "in.csv").write_text("text\n" + "".join(f"{text}\n" for text in texts), encoding="utf-8")
    elif form == "jsonl":
        (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        content = "".join(f"{text}\r\n" for text in texts).encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    source = "-" if form == "stdin" else tmp_path / f"in.{form}"
    code, lines, said = type_in(source, model=model)
    assert code == 0
    assert [bool(line[1]) for line in lines[1:]] == [True, False, False, True, True]
    numbers = "3, 4" if form == "csv" else "2, 3"
    assert f"3 texts, and no prediction for 2 lines with a cell above 2000 bytes (--max_cell_bytes) ({numbers}) (" in said
    if form == "stdin":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    code, lines, _ = type_in(source, "--max_cell_bytes", "16000000", model=model)
    assert [bool(line[1]) for line in lines[1:]] == [True] * 5


def test_a_pickle_that_would_run_something_is_an_error_before_torch_is_loaded(run: RunFiles, tmp_path: Path) -> None:
    import pickle
    import zipfile

    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    for number, content in enumerate((pickle.dumps({"format": 1, "reading": Malicious()}), b"\x80\x02(", pickle.dumps([1]), b"")):
        path = tmp_path / f"bad_{number}_trained_model.sav"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
        with pytest.raises(BadModel, match="is not a model of ours, or is damaged"):
            reading_of(path)
    assert not (tmp_path / "made").exists()
    assert reading_of(run.saved_model) == load_model(run.saved_model).saved.reading


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["the dog"], ["the dog"] * 2_000], ids=["a line", "many lines"])
def test_a_full_disk_under_standard_output_is_named_so(words: list[str], run: RunFiles) -> None:
    code = "import sys; from bert_train_parallel.predict.cli import main; sys.exit(main(sys.argv[1:]))"
    with open("/dev/full", "wb") as out:
        command = [sys.executable, "-c", code, str(run.folder), *words]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == "bert_predict: standard output: no space left on device. Free some, or send it to another place (> FILE)."
    assert "Exception ignored" not in done.stderr


def test_a_standard_output_that_is_closed_is_no_mistake(run: RunFiles) -> None:
    code = "import sys; from bert_train_parallel.predict.cli import main; sys.exit(main(sys.argv[1:]))"
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", code, str(run.folder), "the dog"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert "1 text (" in done.stderr


def test_a_reader_that_has_gone_is_no_mistake(run: RunFiles) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from bert_train_parallel.predict.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(run.folder), "the dog"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr

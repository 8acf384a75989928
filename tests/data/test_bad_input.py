"""Bad input, kind by kind: one line on stderr that names file, flag or column, exit 2, and a folder that is as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.preparation import prepare
from bert_train_parallel.errors import run_command

from .conftest import content_hash

GOOD = "text,label\n" + "".join(f"the dog loved town {number},{'ab'[number % 2]}\n" for number in range(40))


def quiet(line: str) -> None:
    pass


def outcome(source: Path | str, capsys: pytest.CaptureFixture[str], **settings: Any) -> str:
    """What a command says of a source that it cannot use; the exit code and the single line are checked here."""
    code = run_command("bert_train_parallel", lambda: prepare(DataConfig(**settings), str(source), say=quiet).close())
    stderr = capsys.readouterr().err
    assert code == 2
    assert stderr.count("\n") == 1
    return stderr


SOURCES: dict[str, tuple[str | bytes, dict[str, Any], str]] = {
    "an empty file": ("", {}, "x.csv is empty. A header line and lines of texts and labels are expected."),
    "blank lines only": ("\n\n  \n", {}, "x.csv has one column; a column of labels beside the texts is expected."),
    "a header only": ("text,label\n", {}, "x.csv has no lines of data after its header."),
    "no such column": (GOOD, {"text": "twext"}, "x.csv has no column 'twext' (--text). Did you mean text? Its columns: text, label."),
    "one column only": ("text\none\ntwo\n", {}, "x.csv has one column; a column of labels beside the texts is expected."),
    "one class only": (GOOD.replace(",b", ",a"), {}, "x.csv: every sample has the label 'a' (column 'label'). Two classes at least"),
    "a class with one sample": (
        GOOD + "lonely text,c\n",
        {},
        "x.csv: 1 of 3 classes have one sample only: 'c' (line 42). A class is to be learned and tested",
    ),
    "a wrong encoding": (
        GOOD.encode() + "café,a\n".encode("latin-1"),
        {"encoding": "utf-8"},
        "x.csv, line 42: not utf-8. Leave --encoding out to have it found",
    ),
    "an unknown encoding": (GOOD, {"encoding": "utf-99"}, "--encoding utf-99 is not known. Type utf-8"),
    "a NUL byte": (GOOD + "a\0b,a\n" + GOOD[11:], {}, "x.csv, line 42: a NUL byte; a text file is expected."),
    "a binary file": (bytes(range(256)) * 20, {}, "x.csv is a binary file; a CSV, JSON lines or Parquet file is expected."),
    "an Excel file": (b"PK\x03\x04" + bytes(100), {}, "x.csv is a zip archive or an Excel file; a text file is expected: save it as CSV."),
    "a damaged gzip file": (b"\x1f\x8b\x08" + bytes(50), {}, "x.csv is damaged: "),
    "an unbalanced quote": (
        GOOD + '"the rest is open,a\n' + GOOD[11:],
        {},
        'x.csv, line 42: a quote (") opens here and is not closed by the end of the file. Close it, or type --quoting none',
    ),
    "an unbalanced quote behind a cell of several lines": (
        GOOD + '"two\nlines","open\n' + GOOD[11:],
        {},
        'x.csv, line 43: a quote (") opens here and is not closed',
    ),
    "a text without labels": (GOOD.replace(",a", ",").replace(",b", ","), {}, "40 lines without label (2, 3, 4, 5, 6, ...)"),
    "too many bad lines": (GOOD + ",a\n" * 5, {}, "x.csv: 5 lines without text (42, 43, 44, 45, 46), of 45, cannot be used; at most 10 %"),
    "labels that are no numbers": (
        GOOD,
        {"task_type": "regression"},
        "x.csv: --task_type regression learns numbers, and the first 40 labels are none (column 'label', such as 'a')",
    ),
    "a sequence as long as no model": (GOOD, {"sequence_len": 4_096}, "--sequence_len 4096: --model"),
    "no room for pairs": (
        "one,two,label\na,b,x\nc,d,y\ne,f,x\n",
        {"sequence_len": 4, "text": "one", "text_pair": "two"},
        "--sequence_len 4: 5 at least are needed",
    ),
    "two texts in all": ("text,label\none text,a\none text,b\none text,a\none text,b\n", {}, "x.csv has too few different texts (1)"),
    "two columns of one name": (
        GOOD.replace("text,label", "text,text"),
        {},
        "x.csv has 2 columns named 'text'; give them different names.",
    ),
    "one text among numbers": (
        "text,label\n" + "".join(f"the dog {number},{number / 7:.2f}\n" for number in range(40)) + "the cat,high\n",
        {},
        "All of the labels but 'high' are numbers: to learn numbers, correct it or type --task_type regression",
    ),
    "numbers with a decimal comma": (
        "text;label\n" + "".join(f"the dog {number};{number},5\n" for number in range(40)),
        {},
        "They look like numbers with a decimal comma",
    ),
    "one number only": (GOOD.replace(",a", ",1.5").replace(",b", ",1.5"), {}, "x.csv: every sample has the number 1.5 (column 'label')"),
    "a label that is its own class everywhere": (
        "text,label\n" + "".join(f"the dog {number},id{number}\n" for number in range(40)),
        {},
        "x.csv: 40 of 40 classes have one sample only: 'id0' (line 2)",
    ),
    "lists in the place of texts": (
        "".join(f'{{"text": ["the dog {number}"], "label": "{"ab"[number % 2]}"}}\n' for number in range(40)),
        {},
        "x.csv: 40 lines whose text is a list (1, 2, 3, 4, 5, ...)",
    ),
    "JSON objects without keys": ("{}\n{}\n", {}, "x.csv has JSON objects without keys only"),
    "columns of JSON, as pandas writes them": (
        '{"text": ["the dog", "the cat"], "label": ["a", "b"]}',
        {},
        "x.csv is a single JSON object with all texts inside; one object on each line, or an array of them, is expected",
    ),
    "columns of JSON over several lines": (
        '{\n  "data": [\n    {"text": "the dog", "label": "a"},\n    {"text": "the cat", "label": "b"}\n  ]\n}\n',
        {},
        "x.csv has JSON objects of several lines; one object on each line, or an array of them, is expected",
    ),
    "one JSON object with a list of samples beside a version": (
        '{"version": "2.0", "data": [{"text": "the dog", "label": "a"}, {"text": "the cat", "label": "b"}]}',
        {},
        "x.csv is a single JSON object with all texts inside",
    ),
    "a title above the header": (
        "# exported in January\n" + GOOD,
        {},
        "It has no comma, as the lines below have: if it is a title or a comment, remove it.",
    ),
    "scores of which one comes once": (
        "text,label\n" + "".join(f"the dog {number},{number % 50}\n" for number in range(99)),
        {},
        "All of the 50 labels are numbers: to learn numbers, not classes, type --task_type regression. A class is to be learned and",
    ),
    "objects in the place of texts": (
        "".join(f'{{"text": {{"body": "the dog {number}"}}, "label": "{"ab"[number % 2]}"}}\n' for number in range(40)),
        {},
        "lines whose text is an object (1, 2, 3, 4, 5, ...), of 40, cannot be used; at most 10 % may be bad. Check --text and --label, or",
    ),
    "text and label inside of another value": (
        "".join(f'{{"data": {{"text": "the dog {number}", "label": "{"ab"[number % 2]}"}}}}\n' for number in range(40)),
        {},
        "What stands inside of other values is not looked at: write text and label side by side.",
    ),
    "UTF-16 that is cut short": (
        GOOD.encode("utf-16") + b"a",
        {},
        "x.csv, line 42: not utf-16, as its beginning is. The file is damaged or cut short there.",
    ),
    "an open quote after the line of Excel": (
        "sep=;\ntext;label\n" + "".join(f"the dog {number};{'ab'[number % 2]}\n" for number in range(40)) + '"open;a\nmore;b\n',
        {},
        "x.csv, line 43: a quote (",
    ),
    "broken JSON": ('{"text": "a", "label": \n{"text"\n{"te\n{"te\n', {}, "x.csv, line 4: not JSON. One object on each line is expected"),
    "a broken JSON array": ('[{"text": "a", "label": "b"}, {"te', {}, "x.csv begins as a JSON array and is none"),
    "a broken Parquet file": (b"PAR1" + bytes(100), {}, "x.csv cannot be read as Parquet"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_bad_source_is_one_line_and_changes_nothing(
    kind: str, tmp_path: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, settings, words = SOURCES[kind]
    source = tmp_path / "x.csv"
    source.write_bytes(content.encode() if isinstance(content, str) else content)
    before = content_hash(tmp_path)
    line = outcome(source, capsys, **{"model": str(tiny_tokenizer), **settings})
    assert words in line
    assert content_hash(tmp_path) == before


@pytest.mark.parametrize(
    "name, words",
    [
        ("nowhere.csv", "nowhere.csv: there is no such file."),
        ("nowhere.sqlite", "nowhere.sqlite: there is no such store. Name the CSV file to build it from."),
        ("empty_folder", "empty_folder cannot be loaded as a data set"),
        ("pipe.csv", "pipe.csv is a stream or a device, which can be read once only; a file is expected."),
        ("two\nlines.csv", r"two\nlines.csv: there is no such file."),
        ("n" * 300 + ".csv", "files of a run would have names longer than a file system takes"),
        ("folder/" * 600 + "x.csv", "x.csv: there is no such file."),
    ],
)
def test_a_source_that_is_not_there_is_one_line(
    name: str, words: str, tmp_path: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty_folder").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    before = content_hash(tmp_path)
    assert words in outcome(tmp_path / name, capsys, model=str(tiny_tokenizer))
    assert content_hash(tmp_path) == before


@pytest.mark.parametrize(
    "name, words",
    [
        ("", "The name of the source is empty"),
        ("-", "- is a stream or a device"),
        ("https://example.com/x.csv", "https://example.com/x.csv is an address; a file is expected."),
    ],
)
def test_a_name_that_no_source_can_have_is_one_line(
    name: str, words: str, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in outcome(name, capsys, model=str(tiny_tokenizer))


@pytest.mark.parametrize("place", ["file", "file/folder"])
def test_a_place_for_results_that_cannot_be_is_one_line(
    place: str, tmp_path: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.csv").write_text(GOOD)
    (tmp_path / "file").write_text("")
    before = content_hash(tmp_path)
    config = DataConfig(model=str(tiny_tokenizer))
    assert run_command("bert_train_parallel", lambda: prepare(config, str(tmp_path / "x.csv"), str(tmp_path / place), quiet).close()) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert f"{tmp_path / place}/x.sqlite cannot be written: " in stderr
    assert "Name another place with --output_dir." in stderr
    assert content_hash(tmp_path) == before


@pytest.mark.parametrize("place", ["n1", "n1/n2/n3", "kept/n2/n3", "n1/" + "n" * 300])
def test_no_folder_of_those_that_were_made_for_results_stays_after_a_refusal(
    place: str, tmp_path: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.csv").write_text(GOOD.replace(",b", ",a"))
    (tmp_path / "kept").mkdir()
    before = content_hash(tmp_path)
    config = DataConfig(model=str(tiny_tokenizer))
    assert run_command("bert_train_parallel", lambda: prepare(config, str(tmp_path / "x.csv"), str(tmp_path / place), quiet).close()) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert content_hash(tmp_path) == before


@pytest.mark.parametrize("flag", ["validation_file", "test_file"])
@pytest.mark.parametrize(
    "content, words",
    [
        (None, "there is no such file"),
        ("text,label\nthe dog,a\nthe cat,unseen\n", ", line 3: the label 'unseen' is not in "),
        ("words,mark\nthe dog,a\n", "has no column 'text' (--text)."),
        ("text,label\n,a\nthe dog,b\n", "1 line without text (2), of 2, cannot be used"),
    ],
)
def test_a_bad_second_file_is_one_line_that_names_it(
    flag: str, content: str | None, words: str, tmp_path: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, second = tmp_path / "x.csv", tmp_path / "second.csv"
    source.write_text(GOOD)
    if content is not None:
        second.write_text(content)
    before = content_hash(tmp_path)
    line = outcome(source, capsys, **{"model": str(tiny_tokenizer), flag: str(second)})
    assert str(second) in line
    assert words in line
    assert content_hash(tmp_path) == before


@pytest.mark.parametrize(
    "content, words",
    [
        (b"not SQLite at all", "x.sqlite is not a store: it is no SQLite file."),
        (b"SQLite format 3\0" + bytes(4_080), "x.sqlite is"),
        (b"", "x.sqlite is not a store"),
    ],
)
def test_a_bad_store_is_one_line(
    content: bytes, words: str, tmp_path: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.sqlite").write_bytes(content)
    before = content_hash(tmp_path)
    assert words in outcome(tmp_path / "x.sqlite", capsys, model=str(tiny_tokenizer))
    assert content_hash(tmp_path) == before


def test_a_truncated_store_is_one_line(tmp_path: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "x.csv"
    source.write_text(GOOD)
    store = prepare(DataConfig(model=str(tiny_tokenizer)), str(source), say=quiet)
    os.truncate(store.path, store.path.stat().st_size // 2)
    before = content_hash(tmp_path)
    assert "x.sqlite is cut short" in outcome(store.path, capsys, model=str(tiny_tokenizer))
    assert content_hash(tmp_path) == before


def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, tiny_tokenizer: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    source = tmp_path / "x.csv"
    source.write_text(GOOD)
    source.chmod(0)
    done = subprocess.run(
        [sys.executable, "-m", "bert_train_parallel", str(source), "--preponly"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Permission denied" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{source}", "--sequence_len", "2"], "--sequence_len '2'"),
        (["{source}", "--sequence_len", "513"], "has 512 positions"),
        (["{source}", "-t", "twext"], "Did you mean text?"),
        (["{folder}/nowhere.csv"], "there is no such file"),
    ],
)
def test_the_command_says_one_line_without_a_traceback(arguments: list[str], words: str, tmp_path: Path, tiny_tokenizer: Path) -> None:
    source = tmp_path / "x.csv"
    source.write_text(GOOD)
    before = content_hash(tmp_path)
    filled = [argument.format(source=source, folder=tmp_path) for argument in arguments]
    command = [sys.executable, "-m", "bert_train_parallel", *filled, "--model", str(tiny_tokenizer), "--preponly"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert content_hash(tmp_path) == before

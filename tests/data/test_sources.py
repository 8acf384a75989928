"""Sources of every kind, read sample by sample."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.sources import Sample, Source, open_source
from bert_train_parallel.errors import BadSource

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes, name: str = "leanings.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def opened(path: Path, **settings: Any) -> Source:
    (source,) = open_source(DataConfig(**settings), str(path))
    return source


def read(path: Path, **settings: Any) -> list[Sample]:
    return list(opened(path, **settings).samples())


def pairs(path: Path, **settings: Any) -> list[tuple[str, str | None]]:
    return [(sample.text, sample.label) for sample in read(path, **settings)]


EXPECTED = [("the dog", "good"), ("the cat", "bad"), ("the cow", "good")]


@pytest.mark.parametrize(
    "content",
    [
        "text,label\nthe dog,good\nthe cat,bad\nthe cow,good\n",
        "text\tlabel\nthe dog\tgood\nthe cat\tbad\nthe cow\tgood\n",
        "text;label\nthe dog;good\nthe cat;bad\nthe cow;good\n",
        "text|label\nthe dog|good\nthe cat|bad\nthe cow|good",
        "label,text\r\ngood,the dog\r\nbad,the cat\r\ngood,the cow\r\n",
        ",tweet,class\n0,the dog,good\n1,the cat,bad\n2,the cow,good\n",
        "id,Text ,LABEL,source\n7,the dog,good,x\n8,the cat,bad,\n9,the cow,good\n",
        "\ufefftext,label\nthe dog,good\nthe cat,bad\nthe cow,good\n",
        "text,label\n\nthe dog,good\n\n\nthe cat,bad\nthe cow,good\n\n",
        '"text","label"\n"the dog","good"\n"the cat","bad"\n"the cow","good"\n',
        "sep=;\r\ntext;label\r\nthe dog;good\r\nthe cat;bad\r\nthe cow;good\r\n",
        '"sep=,"\ntext,label\nthe dog,good\nthe cat,bad\nthe cow,good\n',
        "text,label\rthe dog,good\rthe cat,bad\rthe cow,good\r",
        "the dog\tgood\nthe cat\tbad\nthe cow\tgood\n",
        "the dog,good,\nthe cat,bad,\nthe cow,good,\n",
        '{"text": "the dog", "label": "good"}\n\n{"text": "the cat", "label": "bad"}\n{"label": "good", "text": "the cow"}\n',
        '[{"text": "the dog", "label": "good"},\n {"text": "the cat", "label": "bad"}, {"text": "the cow", "label": "good"}]',
    ],
)
def test_one_table_in_many_spellings_reads_the_same(write: Write, content: str) -> None:
    assert pairs(write(content)) == EXPECTED
    assert pairs(write(content.encode("utf-16"), "wide.csv")) == EXPECTED
    assert pairs(write(gzip.compress(content.encode()), "leanings.csv.gz")) == EXPECTED


def test_line_numbers_are_those_of_the_file_with_newlines_in_cells(write: Write) -> None:
    path = write('text,label\n"one\ntwo\n\nthree",a\n\n"four\x85five\u2028six",b\r\nseven,a\n')
    assert [(sample.line, sample.text) for sample in read(path)] == [(2, "one\ntwo\n\nthree"), (7, "four\x85five\u2028six"), (8, "seven")]


def test_lines_are_counted_on_behind_the_line_that_excel_reads(write: Write) -> None:
    path = write('sep=;\ntext;label\n"one\ntwo";a\nthree;b\n')
    assert [(sample.line, sample.text) for sample in read(path)] == [(3, "one\ntwo"), (5, "three")]


def test_columns_are_found_by_number_without_a_header(write: Write) -> None:
    path = write("17,the dog,good\n18,the cat,bad\n19,the cow,good\n")
    assert pairs(path, header="no", text="1", label="2") == EXPECTED
    assert pairs(path, header="no") == EXPECTED


def test_a_second_text_makes_pairs(write: Write) -> None:
    path = write("premise,hypothesis,label\nthe dog,it barks,yes\nthe cat,,no\nthe cow,it moos,yes\n")
    source = opened(path, text="premise", text_pair="hypothesis")
    assert [(sample.text, sample.pair) for sample in source.samples()] == [("the dog", "it barks"), ("the cow", "it moos")]
    assert str(source.bad) == "1 line without text (3)"


def test_lines_that_cannot_be_used_are_counted_with_their_lines(write: Write) -> None:
    path = write("text,label\nthe dog,good\n,bad\n   ,bad\nthe cat,\nthe cow,good,and,more\nlonely\n" + "x" * 1_200 + ",good\n")
    source = opened(path, max_cell_bytes=1_000)
    assert [sample.line for sample in source.samples()] == [2]
    assert str(source.bad) == (
        "2 lines without text (3, 4), 2 lines without label (5, 7), 1 line with more than 2 cells (6), "
        "1 line with a cell above 1000 bytes (--max_cell_bytes) (8)"
    )


def test_the_header_of_files_that_were_put_end_to_end_is_left_out(write: Write) -> None:
    content = "text,label\nthe dog,good\nthe cat,bad\nthe cow,good\n"
    source = opened(write(content + "\ufeff" + content + content))
    assert [(sample.text, sample.label) for sample in source.samples()] == EXPECTED * 3
    assert str(source.bad) == "2 lines equal to the header (5, 9)"


def test_cells_far_above_the_limit_of_the_csv_module_are_read(write: Write) -> None:
    long = "word " * 200_000
    assert pairs(write(f'text,label\n"{long}",good\nshort,bad\n')) == [(long, "good"), ("short", "bad")]


def test_commas_in_tweets_do_not_make_columns_of_a_tab_separated_file(write: Write) -> None:
    lines = "".join(f"well, {'so, ' * (number % 4)}yes\t{number % 2}\n" for number in range(40))
    assert len(pairs(write(lines, "tweets.tsv"))) == 40


def test_quotes_that_are_text_stay_text_where_no_cell_needs_them(write: Write) -> None:
    lines = ['ham\tOk lar... "joking"', 'spam\t"Free entry', "ham\tU dun say", 'ham\t"Ok" she said', 'spam\twin"', "ham\tyes"]
    source = opened(write("\n".join(lines) + "\n", "sms.txt"))
    assert [sample.text for sample in source.samples()] == [line.split("\t")[1] for line in lines]
    assert "quotes are text" in source.described


def test_quotes_around_cells_are_taken_off_where_cells_need_them(write: Write) -> None:
    text = 'text,label\n"He said ""no"", and left",a\n"two\nlines, ""quoted""\n""at the start",b\nplain,a\n"sloppy" end,b\n'
    assert [sample.text for sample in read(write(text))] == [
        'He said "no", and left',
        'two\nlines, "quoted"\n"at the start',
        "plain",
        "sloppy end",
    ]


@pytest.mark.parametrize(
    "content",
    [
        'text, label\n"the dog, or ""so""", good\n"two\nlines", bad\n"plain", good\n',
        'label, text\ngood, "the dog, or ""so"""\nbad, "two\nlines"\ngood, "plain"\n',
        '"label",   "text"\n"good", "the dog, or ""so"""\n"bad",  "two\nlines"\n"good","plain"\n',
        'label; text\ngood; "the dog, or ""so"""\nbad; "two\nlines"\ngood; plain\n',
        'label, text\ngood, "the dog, or \\"so\\""\nbad, "two\nlines"\ngood, plain\n',
        'text,label\n"the dog, or \\"so\\"",good\n"two\nlines",bad\n"plain",good\n',
        'text\tlabel\n"the dog, or \\"so\\""\tgood\n"two\\\nlines"\tbad\nplain\tgood\n',
    ],
)
def test_quotes_behind_spaces_and_quotes_behind_backslashes_are_read_as_meant(write: Write, content: str) -> None:
    assert pairs(write(content)) == [('the dog, or "so"', "good"), ("two\nlines", "bad"), ("plain", "good")]
    assert pairs(write(content), quoting="minimal") == [('the dog, or "so"', "good"), ("two\nlines", "bad"), ("plain", "good")]


def test_quotes_behind_spaces_that_enclose_nothing_stay_text(write: Write) -> None:
    lines = ['spam, "free" entry', 'ham, "well" he said "ok"', "ham, yes"]
    source = opened(write("label,text\n" + "\n".join(lines) + "\n"))
    assert [sample.text.strip() for sample in source.samples()] == [line.partition(", ")[2] for line in lines]
    assert "spaces before cells" not in source.described


def test_quotes_behind_spaces_within_quotes_are_no_sign_of_anything(write: Write) -> None:
    path = write('text,label\n"he said, ""so"", and left",good\n" the dog, ""or""",bad\n the cat,good\n')
    assert [sample.text for sample in read(path)] == ['he said, "so", and left', ' the dog, "or"', " the cat"]


def test_backslashes_that_do_not_stand_before_a_quote_are_kept(write: Write) -> None:
    path = write('text,label\n"in C:\\new\\, she said \\"no\\"",good\na\\b\\,bad\n"one \\\\ two",good\n')
    assert pairs(path) == [('in C:\\new\\, she said "no"', "good"), ("a\\b\\", "bad"), ("one \\ two", "good")]
    assert 'comma-separated, \\" for a quote, header' in opened(path).described


@pytest.mark.parametrize("text, meant", [('"ends in C:\\"', "ends in C:\\"), ('"both \\""so\\"" here"', 'both \\"so\\" here')])
def test_a_backslash_before_a_quote_that_closes_is_text(write: Write, text: str, meant: str) -> None:
    path = write(f"text,label\n{text},good\n" + '"the dog",bad\n' * 3)
    assert pairs(path) == [(meant, "good"), *[("the dog", "bad")] * 3]


def test_quoting_can_be_given(write: Write) -> None:
    path = write('text,label\n"a b",x\n"c d",y\n')
    assert [sample.text for sample in read(path, quoting="none")] == ['"a b"', '"c d"']
    assert [sample.text for sample in read(path)] == ["a b", "c d"]


def test_what_was_found_is_told_in_one_line(write: Write) -> None:
    assert opened(write("tweet;class\na;1\nb;2\n")).described.endswith(
        "leanings.csv: UTF-8, semicolon-separated, header; text 'tweet', label 'class'"
    )


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_western_text_that_is_not_utf_8_is_read_and_said(write: Write, encoding: str) -> None:
    source = opened(write("text,label\nplain,a\ncafé über straße,b\n".encode(encoding)))
    assert [sample.text for sample in source.samples()] == ["plain", "café über straße"]
    assert "not UTF-8 (the first such byte in line 3): read as cp1252" in source.described


def test_quotes_of_windows_are_read_as_such(write: Write) -> None:
    assert read(write(b"text,label\n\x93so\x94 he said,a\nother,b\n"))[0].text == "“so” he said"


def test_one_broken_byte_in_much_utf_8_is_replaced_and_said(write: Write) -> None:
    good = "".join(f"größe número {number},a\n" for number in range(100)).encode()
    source = opened(write(b"text,label\n" + good + b"bro\xffken,b\n" + good))
    texts = [sample.text for sample in source.samples()]
    assert texts[100] == "bro\ufffdken"
    assert texts[101] == "größe número 0"
    assert "bytes that are not UTF-8 (1, the first in line 102) are read as U+FFFD" in source.described


@pytest.mark.parametrize("letters, broken", [("’" * 90, b"\xe9"), ("é" * 40, b"\xff"), ("é" * 3, b"\xe9 and \xff")])
def test_a_broken_byte_in_little_utf_8_spoils_no_other_letter(write: Write, letters: str, broken: bytes) -> None:
    lines = [f"plain text {number}" for number in range(200)]
    for number, letter in enumerate(letters):
        lines[number] += letter
    content = "text,label\n" + "".join(f"{line},{'ab'[number % 2]}\n" for number, line in enumerate(lines))
    source = opened(write(content.encode() + b"caf" + broken + b",a\n"))
    assert [sample.text for sample in source.samples()] == [*lines, "caf" + broken.decode(errors="replace")]
    count = broken.decode(errors="replace").count("\ufffd")
    assert f"bytes that are not UTF-8 ({count}, the first in line 202) are read as U+FFFD" in source.described


def test_western_text_that_has_a_few_letters_of_utf_8_by_chance_stays_western(write: Write) -> None:
    texts = ["café", "über", "GRÄ™ und Ã©", "straße", "naïve", "señor"]  # Ä™ and Ã© are whole letters of UTF-8
    source = opened(write(b"text,label\n" + "".join(f"{text},{'ab'[len(text) % 2]}\n" for text in texts).encode("cp1252")))
    assert [sample.text for sample in source.samples()] == texts
    assert "read as cp1252" in source.described


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "texts",
    [
        ("собака", "кошка и мышь", "корова"),
        ("狗在叫", "貓和一隻老鼠", "牛"),
        ("개가 짖는다", "고양이", "소"),
        ("ο σκύλος", "η γάτα", "η αγελάδα"),
    ],
)
def test_utf_16_without_a_mark_is_known_in_any_script(write: Write, texts: tuple[str, ...], encoding: str) -> None:
    content = "text,label\n" + "".join(f"{text} {number},{'ab'[number % 2]}\n" for number in range(30) for text in texts)
    source = opened(write(content.encode(encoding)))
    assert [sample.text for sample in source.samples()] == [f"{text} {number}" for number in range(30) for text in texts]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1251", "gbk"])
def test_text_of_bytes_with_a_zero_in_it_is_not_taken_for_utf_16(write: Write, encoding: str) -> None:
    word = "собака" if encoding != "gbk" else "狗在叫"
    for lead in ("", "x"):
        path = write((lead + "text,label\n" + f"{word},a\n" * 40 + "\0plain,b\n").encode(encoding))
        with pytest.raises(BadSource, match="line 42: a NUL byte"):
            opened(path)


def test_utf_16_without_a_mark_is_known_by_its_zeros(write: Write) -> None:
    content = "text,label\nthe dog,good\nthe cat,bad\nthe cow,good\n"
    for encoding in ("utf-16-le", "utf-16-be"):
        assert pairs(write(content.encode(encoding))) == EXPECTED


def test_json_cells_become_text_and_labels(write: Write) -> None:
    lines = [
        {"text": "a", "label": 1},
        {"text": "b", "label": True},
        {"text": 3, "label": 0.5},
        {"text": "half \ud83d pair", "label": "x"},
        {"text": ["no"], "label": "x"},
        {"text": "no", "label": None},
        {"label": "x"},
        ["no object"],
    ]
    source = opened(write("\n".join(map(json.dumps, lines)) + "\n{broken\n", "x.jsonl"))
    assert [(sample.text, sample.label) for sample in source.samples()] == [
        ("a", "1"),
        ("b", "true"),
        ("3", "0.5"),
        ("half \ufffd pair", "x"),
    ]
    assert str(source.bad) == (
        "1 line whose text is a list (5), 1 line without label (6), 1 line without text (7), 2 lines that are no JSON object (8, 9)"
    )


@pytest.mark.parametrize("form", ["lines", "array"])
@pytest.mark.parametrize("settings", [{}, {"label": "stance"}])
def test_a_key_that_comes_after_many_objects_is_found(write: Write, form: str, settings: dict[str, str]) -> None:
    objects: list[dict[str, Any]] = [{"text": f"plain {number}"} for number in range(1_500)]
    objects += [{"text": f"the dog {number}", "stance": "ab"[number % 2]} for number in range(1_500)]
    source = opened(write("\n".join(map(json.dumps, objects)) if form == "lines" else json.dumps(objects), "x.jsonl"), **settings)
    samples = list(source.samples())
    assert (len(samples), samples[0]) == (1_500, Sample(1_501, "the dog 0", None, "a"))
    assert str(source.bad) == f"1 500 {'lines' if form == 'lines' else 'entries'} without label (1, 2, 3, 4, 5, ...)"
    with pytest.raises(BadSource, match=r"has no column 'stence' \(--label\)\. Did you mean stance\? Its columns: text, stance\."):
        opened(Path(source.name), label="stence")


def test_a_parquet_file_is_read_in_batches(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "x.parquet"
    columns = {"body": [f"text {number}" for number in range(3_000)] + [None], "target": [number % 3 for number in range(3_001)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    source = opened(path)
    samples = list(source.samples())
    assert (len(samples), samples[2_999]) == (3_000, Sample(3_000, "text 2999", None, "2"))
    assert str(source.bad) == "1 row without text (3001)"


def test_a_parquet_file_of_a_data_set_keeps_the_names_of_its_labels(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    columns = {"sentence": ["a b", "c d", "e f"], "label": [1, 0, -1]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "x.parquet")
    source = opened(tmp_path / "x.parquet")
    assert [sample.label for sample in source.samples()] == ["pos", "neg"]
    assert str(source.bad) == "1 row without label (3)"


def test_a_saved_data_set_keeps_its_splits_and_the_names_of_its_labels(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    parts = {
        "train": datasets.Dataset.from_dict({"sentence": ["a b", "c d"], "label": [1, 0]}, features=features),
        "validation": datasets.Dataset.from_dict({"sentence": ["e f"], "label": [1]}, features=features),
        "test": datasets.Dataset.from_dict({"sentence": ["g h"], "label": [-1]}, features=features),
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "sst")
    said: list[str] = []
    sources = open_source(DataConfig(), str(tmp_path / "sst"), say=said.append)
    assert [(source.split, [(sample.text, sample.label) for sample in source.samples()]) for source in sources] == [
        (None, [("a b", "pos"), ("c d", "neg")]),
        ("validate", [("e f", "pos")]),
    ]
    assert said == [f"{tmp_path}/sst (test) has no labels and is left out"]


def test_files_for_validation_and_test_have_the_columns_of_the_first(write: Write) -> None:
    train = write("words,mark,note\na b c d,1,x\ne f g h,2,y\ni j k l,1,z\n")
    test = write("note,mark,words\nlonger than the words are here,1,a b\n", "test.csv")
    first, second = open_source(DataConfig(text="words", label="mark", test_file=str(test)), str(train))
    assert (first.split, second.split) == (None, "test")
    assert [(sample.text, sample.label) for sample in second.samples()] == [("a b", "1")]


def test_texts_without_labels_can_be_read_from_one_column(write: Write) -> None:
    (source,) = open_source(DataConfig(), str(write("one line, and more\nanother\na third, too, yes\n", "texts.txt")), labelled=False)
    assert [sample.text for sample in source.samples()] == ["one line, and more", "another", "a third, too, yes"]


@pytest.mark.parametrize(
    "header, settings, words",
    [
        ("tweet,class", {"text": "twet"}, "has no column 'twet' (--text). Did you mean tweet? Its columns: tweet, class."),
        ("tweet,class", {"label": "Class"}, "has no column 'Class' (--label). Did you mean class?"),
        ("a,b,class", {}, "it is not plain which column is the text. Type --text a or --text b."),
        ("tweet,message,class", {}, "several columns that could be the text. Type --text tweet or --text message."),
        ("tweet,class,party", {}, "several columns that could be the label. Type --label class or --label party."),
        ("text,text", {"text": "text"}, "has 2 columns named 'text' (--text)"),
        ("tweet,class", {"text": "class", "label": "class"}, "the column class is asked for twice"),
        ("tweet", {}, "has one column; a column of labels beside the texts is expected."),
        ("tweet,class", {"text_pair": "other"}, "has no column 'other' (--text_pair)."),
    ],
)
def test_columns_that_cannot_be_told_are_one_sentence_that_names_them(
    write: Write, header: str, settings: dict[str, str], words: str
) -> None:
    width = header.count(",") + 1
    body = "".join(
        ",".join(["some words here", "other words too", "x"][:width] if width == 3 else ["some words", "x"][:width]) + "\n"
        for _ in range(4)
    )
    with pytest.raises(BadSource) as error:
        opened(write(header + "\n" + body, "x.csv"), **settings)
    assert words in str(error.value)
    assert str(error.value).count("\n") == 0


def test_a_missing_file_is_told_with_a_name_that_is_near(write: Write) -> None:
    path = write("text,label\na,b\n")
    with pytest.raises(BadSource, match=r"leaning\.csv: there is no such file\. Did you mean .*/leanings\.csv\?"):
        opened(path.with_name("leaning.csv"))
    path.unlink()
    path.with_name("leaning_logs").mkdir()  # as the launcher makes it, for this very name
    with pytest.raises(BadSource, match=r"leaning\.csv: there is no such file\.$"):
        opened(path.with_name("leaning.csv"))


def test_a_hub_that_cannot_be_reached_is_told_within_seconds(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PATH": "", "HOME": str(tmp_path)}
    code = (
        "from bert_train_parallel.config import DataConfig; from bert_train_parallel.data.sources import open_source;"
        "open_source(DataConfig(), 'someone/some-data-set')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (
        "BadSource: someone/some-data-set: there is no such file or folder here, and the Hugging Face hub" in done.stderr.splitlines()[-1]
    )


@pytest.mark.parametrize("package, name", [("pyarrow", "x.parquet"), ("datasets", "someone/some-data-set")])
def test_a_package_that_is_missing_is_named_with_its_install_line(tmp_path: Path, package: str, name: str) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from bert_train_parallel.config import DataConfig; from bert_train_parallel.data.sources import open_source\n"
        f"open_source(DataConfig(), {name!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"MissingPackage: {name} is " in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith('Type: pip install "bert-train-parallel[datasets]"')


def test_a_quote_that_never_closes_in_a_large_file_is_told_before_memory_is_full(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bert_train_parallel.data.delimited._MOST_LETTERS", 10_000)
    monkeypatch.setattr("bert_train_parallel.data.delimited._BEGINNING", 2_000)
    path = write("text,label\n" + "a b,good\n" * 400 + '"open,bad\n' + "c d,good\n" * 20_000)
    with pytest.raises(BadSource, match=r"line 402: a record of more than 10 000 letters begins here\. If a quote is open there"):
        read(path, max_cell_bytes=1_000)


@pytest.mark.parametrize(
    "content, header",
    [
        ("spam\tfree entry\nham\tok then\nspam\twin a prize\n", False),
        ("text,label\nsome words,a\ntext,label\nother words,b\n", True),
        ("utterances,kinds\nsome words here,a\nother words here,b\nmore of them,a\n", True),
        ("some words here and there,a\nother words here,b\n", False),
        ("17,0\n18,1\n", False),
    ],
)
def test_a_first_line_that_names_the_columns_is_told_from_data(write: Write, content: str, header: bool) -> None:
    from bert_train_parallel.data.delimited import find_form

    assert find_form(content, True, DataConfig()).header is header


def test_a_column_whose_name_has_line_breaks_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b',"\x1b\n!"\n\t')
    with pytest.raises(BadSource, match="it is not plain which column is the text") as caught:
        open_source(DataConfig(), str(path))
    assert "\n" not in str(caught.value)
    assert r"--text \x1b\n!" in str(caught.value)

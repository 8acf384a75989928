"""Readers against made-up bytes: whatever comes, samples or one of our sentences, never another error.

A few hundred cases each run with every suite; BERT_TRAIN_FUZZ=10000 runs as many as it says.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.preparation import prepare
from bert_train_parallel.data.sources import open_source
from bert_train_parallel.data.store import Store
from bert_train_parallel.errors import BertTrainParallelError

CASES = int(os.environ.get("BERT_TRAIN_FUZZ", "200"))
fuzzed = settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

PIECES = [
    *("text", "label", "tweet", "class", ",", ",", "\t", ";", "|", '"', '"', '""', "\n", "\n", "\r", "\r\n", "a", "0", "1.5", "good", " "),
    *("the dog barks", "\x85", "\u2028", "é", "\0", "\ufeff", "'", "\\", ', "', '\\"', "{", "}", "[", "]"),
    *('{"text": "a", "label": 1}\n', "x" * 2_000),
]
tables = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)
encodings = st.sampled_from(["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"])
encoded = st.one_of(
    tables.map(str.encode),
    st.builds(lambda table, encoding: table.encode(encoding, "replace"), tables, encodings),
    st.builds(
        lambda table, spoilt, cut: table.encode()[:cut] + spoilt + table.encode(), tables, st.binary(max_size=20), st.integers(0, 200)
    ),
    st.binary(max_size=300),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "label", "x"]), inner, max_size=3),
    max_leaves=8,
)
asked = st.fixed_dictionaries(
    {},
    optional={
        "quoting": st.sampled_from(["minimal", "none"]),
        "header": st.sampled_from(["yes", "no"]),
        "delimiter": st.sampled_from([",", "tab"]),
        "encoding": st.sampled_from(["utf-8", "latin-1", "utf-16"]),
        "text": st.sampled_from(["text", "0"]),
    },
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def check_sentence(error: BertTrainParallelError) -> None:
    assert "\n" not in str(error)


def read_all(path: Path, **found: str) -> None:
    """Every sample of a source; each has what a sample needs."""
    try:
        for source in open_source(DataConfig(max_cell_bytes=1_000, **found), str(path)):  # type: ignore[arg-type]
            lines = 0
            for sample in source.samples():
                assert sample.text.strip()
                assert sample.label
                assert len(sample.text.encode()) <= 1_000  # encodes: no halves of surrogate pairs
                assert sample.line > lines
                lines = sample.line
    except BertTrainParallelError as error:
        check_sentence(error)


@fuzzed
@given(encoded, asked)
@example(b'text,label\n"a"b,1\n', {})
@example(b"\xff\xfe", {})
@example(b"\xff", {"encoding": "utf-8"})
@example('text,label\n"\ue000 end of file \ue000\n'.encode(), {})
def test_any_bytes_are_read_as_a_table_or_refused_in_a_sentence(folder: Path, content: bytes, found: dict[str, str]) -> None:
    path = folder / "x.csv"
    path.write_bytes(content)
    read_all(path, **found)


@fuzzed
@given(st.lists(json_values, max_size=6), st.sampled_from(["lines", "array"]), st.integers(0, 400))
def test_any_json_is_read_or_refused_in_a_sentence(folder: Path, values: list[object], form: str, cut: int) -> None:
    import json

    text = "\n".join(map(json.dumps, values)) if form == "lines" else json.dumps(values)
    path = folder / "x.jsonl"
    path.write_text(text[:-cut] if 0 < cut < 100 else text, encoding="utf-8")
    read_all(path)


@pytest.fixture(scope="module")
def stored(folder: Path, tiny_tokenizer: Path) -> Path:
    source = folder / "s.csv"
    lines = "".join(f"the dog loved town {number},{'ab'[number % 2]}\n" for number in range(300))
    source.write_text("text,label\n" + lines)
    store = prepare(DataConfig(model=str(tiny_tokenizer), sequence_len=16), str(source), say=lambda line: None)
    store.close()
    return store.path


@fuzzed
@given(st.lists(st.tuples(st.integers(0, 2**32), st.binary(min_size=1, max_size=30)), min_size=1, max_size=5), st.integers(0, 2**16))
def test_a_store_with_any_bytes_spoilt_is_read_or_refused_in_a_sentence(
    folder: Path, stored: Path, spoilt: list[tuple[int, bytes]], seed: int
) -> None:
    content = bytearray(stored.read_bytes())
    for place, piece in spoilt:
        # the first page tells most of what a file is, so half of the damage is there
        start = place % (4_096 if random.Random(seed).random() < 0.5 else len(content))
        content[start : start + len(piece)] = piece
    path = folder / "spoilt.sqlite"
    path.write_bytes(content)
    try:
        with Store.open(path) as store:
            for split in ("train", "validate", "test"):
                store.rows(split)
                store.texts(store.samples(split).ids)
            store.runs()
    except BertTrainParallelError as error:
        check_sentence(error)

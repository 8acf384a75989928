"""The store as a file: what goes in comes out, and what is not one says so."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.folding import fold_texts
from bert_train_parallel.data.store import Store
from bert_train_parallel.data.tokenizing import load_tokenizer
from bert_train_parallel.errors import BadStore, DamagedStore, NotWritable

from .conftest import Disk

SPLITS = ("train", "validate", "test")


def test_every_sample_is_in_one_split_and_every_row_belongs_to_a_sample_of_its_split(store: Store) -> None:
    ids = [store.samples(split).ids for split in SPLITS]
    assert np.sort(np.concatenate(ids)).tolist() == list(range(300))
    for split, of_split in zip(SPLITS, ids, strict=True):
        rows = store.rows(split)
        assert np.unique(rows.sample).tolist() == of_split.tolist()
        assert (np.diff(rows.sample) >= 0).all()
        assert store.counts[split] == (len(of_split), len(rows), len(rows.tokens))


def test_rows_are_the_folded_texts_with_their_labels(store: Store, tiny_tokenizer: Path) -> None:
    rows, samples = store.rows("train"), store.samples("train")
    folded = fold_texts(store.texts(samples.ids), load_tokenizer(str(tiny_tokenizer)), DataConfig(sequence_len=32))
    assert (rows.tokens == folded.tokens).all()
    assert (rows.offsets == folded.offsets).all()
    assert (rows.sample == samples.ids[folded.sample]).all()
    assert (rows.targets[:, 0] == samples.labels[folded.sample]).all()
    assert (rows.weights == 1).all()
    assert rows.lengths.max() <= 32
    assert len(rows) > len(samples.ids)


def test_texts_come_in_the_order_that_is_asked_for(store: Store) -> None:
    all_texts = [texts for block in store.all_texts() for texts in block]
    assert store.texts([7, 3, 7, 299]) == [all_texts[number] for number in (7, 3, 7, 299)]


def test_lines_lead_back_to_the_source(store: Store) -> None:
    lines = store.path.with_suffix(".csv").read_text(encoding="utf-8").splitlines()
    samples = store.samples("test")
    for number, line, label in zip(samples.ids, samples.lines, samples.labels, strict=True):
        assert lines[line - 1] == f"{store.texts([number])[0][0]},{store.label_names[int(label)]}"


def test_the_store_has_no_journal_and_its_counts_can_be_read_with_sql(store: Store) -> None:
    connection = sqlite3.connect(store.path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert connection.execute("SELECT split, samples FROM splits ORDER BY samples DESC, split").fetchall() == [
        ("train", 240),
        ("test", 30),
        ("validate", 30),
    ]
    assert connection.execute("SELECT name FROM labels ORDER BY code").fetchall() == [("bad",), ("good",)]
    connection.close()


def test_a_run_is_added_beside_open_readers(store: Store) -> None:
    with Store.open(store.path) as reader:
        store.add_run({"run": "a", "figures": {"accuracy": 0.5}})
        reader.add_run({"run": "b"})
        assert [run["run"] for run in reader.runs()] == [run["run"] for run in store.runs()] == ["a", "b"]


def test_a_process_killed_while_it_adds_a_run_does_no_harm(store: Store) -> None:
    code = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('PRAGMA cache_size = 1');"
        "c.execute('BEGIN EXCLUSIVE'); c.executemany('INSERT INTO runs (record) VALUES (?)', [('x' * 100_000,)] * 50);"
        "print('begun', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(store.path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert Path(f"{store.path}-journal").exists()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with Store.open(store.path) as again:
        assert again.runs() == []
        assert len(again.rows("train")) == store.counts["train"][1]


def test_a_run_that_cannot_be_added_is_one_sentence(store: Store, disk: Disk) -> None:
    path = disk.folder / "leanings.sqlite"
    shutil.copy(store.path, path)
    disk.make_read_only()
    with Store.open(path) as copy:
        assert len(copy.rows("test")) == store.counts["test"][1]
        with pytest.raises(NotWritable, match="the record of the run could not be added to the store"):
            copy.add_run({"run": "a"})


def test_a_store_that_is_gone_is_not_made_anew_for_the_record_of_a_run(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "gone.sqlite"
    shutil.copy(store.path, path)
    with Store.open(path) as copy:
        path.unlink()
        with pytest.raises(NotWritable, match="could not be added to the store"):
            copy.add_run({"run": "a"})
    assert not path.exists()


def test_a_missing_store_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadStore, match=r"nowhere\.sqlite: there is no such store\."):
        Store.open(tmp_path / "nowhere.sqlite")


@pytest.mark.parametrize("content", [b"", b"text,label\n", b"SQLite format 3\0", os.urandom(4_096)])
def test_a_file_that_is_no_sqlite_is_not_ours_to_replace(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(content)
    with pytest.raises(BadStore, match="is not a store: it is no SQLite file") as error:
        Store.open(path)
    assert not isinstance(error.value, DamagedStore)


def test_a_store_of_2020_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE Samples (sample_id INTEGER, tok_ids TEXT, attention_mask TEXT, label INTEGER);"
        "CREATE TABLE TrainQueue (sample_id INTEGER); CREATE TABLE LabelEncodings (key_col INTEGER, val_col TEXT);"
    )
    connection.close()
    with pytest.raises(BadStore, match=r"tool of 2020\. It has tokens, but neither the texts nor which rows are of one text.*Name the CSV"):
        Store.open(path)


def test_an_sqlite_file_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(BadStore, match="an SQLite file of another program"):
        Store.open(path)


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.99])
def test_a_store_that_is_cut_short_is_damaged(store: Store, kept: float) -> None:
    size = store.path.stat().st_size
    store.close()
    os.truncate(store.path, max(100, int(size * kept)))
    with pytest.raises(DamagedStore, match=r"is cut short: \d+ of \d+ bytes"):
        Store.open(store.path)


def test_a_store_of_another_format_is_told(store: Store) -> None:
    connection = sqlite3.connect(store.path)
    connection.execute("UPDATE about SET value = '99' WHERE name = 'format'")
    connection.commit()
    connection.close()
    with pytest.raises(DamagedStore, match="has the format 99, and this version reads 1"):
        Store.open(store.path)

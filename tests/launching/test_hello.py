"""A node's hello: files become fingerprints, so that a changed byte shows and a moved file does not."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from bert_train_parallel.launching import hello
from bert_train_parallel.launching.hello import fingerprint, make_hello, pieces, words
from bert_train_parallel.launching.plan import FOLDER, LaunchRequest


def test_a_changed_byte_changes_the_fingerprint_and_a_copy_does_not(tmp_path: Path) -> None:
    one, copy, other = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv"
    one.write_bytes(b"text,label\n" * 1000)
    copy.write_bytes(one.read_bytes())
    other.write_bytes(one.read_bytes()[:-2] + b"x\n")
    assert fingerprint(one) == fingerprint(copy) != fingerprint(other)
    assert fingerprint(one).startswith("11000:")


def test_a_large_file_is_known_by_its_size_its_ends_and_pieces_between(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(hello, "WHOLE", 1000)
    monkeypatch.setattr(hello, "PIECE", 10)
    content = bytearray(range(256)) * 20
    path = tmp_path / "large.bin"
    path.write_bytes(content)
    before = fingerprint(path)
    for position in (0, len(content) - 1, next(start for start, _ in list(pieces(len(content)))[10:])):
        changed = bytearray(content)
        changed[position] ^= 255
        path.write_bytes(changed)
        assert fingerprint(path) != before
    path.write_bytes(content + b"x")
    assert fingerprint(path) != before


def test_what_is_not_a_file_has_no_fingerprint(tmp_path: Path) -> None:
    for word in ("none.csv", "a\0b", "x" * 5000, "/dev/null"):
        assert fingerprint(tmp_path / word) == ""


def test_a_store_is_known_by_its_presence_since_runs_are_noted_in_it(tmp_path: Path) -> None:
    path = tmp_path / "leanings.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE runs (name TEXT)")
    database.close()
    assert fingerprint(path) == "sqlite"


def test_the_command_is_compared_by_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print()")
    (tmp_path / "old.log").write_text("of an earlier run")
    (tmp_path / "out").mkdir()
    command = ("/usr/bin/python3.11", "train.py", "out", "--log_file", "old.log", "--lr", "1e-5")
    found = words(command, str(tmp_path))
    assert [word.text for word in found] == ["python", *command[1:]]
    assert [word.fingerprint != "" for word in found] == [False, True, True, False, False, False, False]
    assert found[2].fingerprint == FOLDER


def test_versions_come_from_metadata_without_the_build() -> None:
    same = make_hello(LaunchRequest(("a.py",)), 1, ()).same
    assert same["torch"]
    assert same["transformers"]
    assert "+" not in same["torch"]
    assert same["--gpu_map"] == "none"

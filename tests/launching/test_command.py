"""From words to a command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bert_train_parallel.errors import BadSetting
from bert_train_parallel.launching.command import checkout_path, environment_for, is_ours, option_of, resolve_command, source_of

OURS = (sys.executable, "-P", "-m", "bert_train_parallel")


@pytest.mark.parametrize("name", ["bert_train_parallel.py", "bert_train_parallel"])
def test_our_trainer_is_run_by_its_name_unless_such_a_file_stands_here(tmp_path: Path, name: str) -> None:
    assert resolve_command([name, "a.csv"], folder=str(tmp_path)) == (*OURS, "a.csv")
    (tmp_path / name).mkdir()  # a folder is no such file: it is a clone of this project
    assert resolve_command([name, "a.csv"], folder=str(tmp_path)) == (*OURS, "a.csv")
    (tmp_path / name).rmdir()
    (tmp_path / name).write_text("print()")
    assert resolve_command([name, "a.csv"], folder=str(tmp_path)) == (sys.executable, name, "a.csv")


def test_a_folder_with_a_main_module_runs_as_python_would(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    with pytest.raises(BadSetting, match="__main__"):
        resolve_command(["app"], folder=str(tmp_path))
    (tmp_path / "app" / "__main__.py").touch()
    assert resolve_command(["app", "-x"], folder=str(tmp_path)) == (sys.executable, "app", "-x")


@pytest.mark.parametrize(
    "content, runs_itself",
    [(b"#!/bin/sh\n", True), (b"#!/usr/bin/env python3\n", False), (b"\x7fELF", True), (b"print()", False), (b"", False)],
)
def test_a_file_without_the_ending_of_python_is_told_by_its_first_bytes(tmp_path: Path, content: bytes, runs_itself: bool) -> None:
    (tmp_path / "tool").write_bytes(content)
    (tmp_path / "tool").chmod(0o755)
    command = resolve_command(["tool"], folder=str(tmp_path))
    assert command == (("./tool",) if runs_itself else (sys.executable, "tool"))


def test_only_our_trainer_gets_the_path_of_the_checkout() -> None:
    assert environment_for((sys.executable, "train.py"), {}) == {}
    assert environment_for(OURS, {"PYTHONPATH": "/earlier"}) == checkout_path({"PYTHONPATH": "/earlier"})
    assert not is_ours((sys.executable, "-m", "other"))
    assert not is_ours((sys.executable, "bert_train_parallel"))


@pytest.mark.parametrize(
    "arguments, source",
    [
        (["leanings.csv"], "leanings.csv"),
        (["-e", "3", "--model", "minilm", "leanings.csv"], "leanings.csv"),
        (["--resume", "leanings.sqlite"], "leanings.sqlite"),
        (["--epochs=3", "stanfordnlp/sst2"], "stanfordnlp/sst2"),
        (["--validation_file", "v.csv", "train.csv"], "train.csv"),
        ([], None),
    ],
)
def test_the_input_is_found_among_the_arguments(arguments: list[str], source: str | None) -> None:
    assert source_of(arguments) == source


def test_the_last_value_of_an_option_counts() -> None:
    assert option_of(["--run", "a", "--run=b"], "--run") == "b"
    assert option_of(["--run"], "--run") is None

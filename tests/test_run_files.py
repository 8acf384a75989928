"""Names of a run's files, and what a new run may not write over."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_train_parallel.errors import BadSetting, NotWritable, one_line
from bert_train_parallel.run_files import RunFiles, run_files, write_text


@pytest.mark.parametrize("part", ["model_folder", "saved_model", "predictions", "progress"])
def test_what_someone_else_has_put_under_a_name_is_left_alone(part: str, tmp_path: Path) -> None:
    named = RunFiles(tmp_path, "leanings")
    place = getattr(named, part)
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    assert named.first_free().stem == "leanings-2"
    assert named.newest_begun() is None
    write_text(RunFiles(tmp_path, "leanings-2").stats, "{}")
    newest = named.newest_begun()
    assert newest is not None
    assert newest.stem == "leanings-2"
    assert named.first_free().stem == "leanings-3"


def test_a_name_too_long_for_the_files_of_a_run_is_told_before_the_run() -> None:
    with pytest.raises(BadSetting, match="longer than a file system takes"):
        run_files("é" * 120 + ".csv")
    with pytest.raises(BadSetting, match="longer than a file system takes"):
        run_files("n" * 150 + ".csv", run="r" * 60)
    run_files("n" * 200 + ".csv")


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, "n" * 200 + "-10")
    write_text(files.predictions, "x")
    assert files.predictions.read_text() == "x"


@pytest.mark.parametrize("place", ["file/stats.json", "folder"])
def test_a_place_that_cannot_be_is_a_sentence_with_its_flag(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(NotWritable, match=r"cannot be written: .* Name another place with --logfile"):
        write_text(tmp_path / place, "x", "--logfile")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_sentence_stays_one_line_whatever_names_are_in_it() -> None:
    assert one_line("a\nb\r\x1b[31m\u2028\ud800é 日本.csv") == r"a\nb\r\x1b[31m\u2028\ud800é 日本.csv"

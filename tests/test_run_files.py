"""Names of a run's files, and what a new run may not write over."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_train_parallel.errors import BadSetting, NotWritable, one_line
from bert_train_parallel.run_files import RunFiles, owner, run_files, write_json, write_text


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


def _begin(named: RunFiles, taken: str) -> None:
    """What a run leaves with its first checkpoint, under the name that it got."""
    files = RunFiles(named.folder, taken)
    files.checkpoints.mkdir()
    write_json(files.claim, {"source": named.source, "named": named.stem})


def test_a_number_behind_a_name_belongs_to_whom_the_files_of_the_run_name(tmp_path: Path) -> None:
    plain, other, named_2 = (
        run_files(str(tmp_path / source), run=run) for source, run in (("d.csv", None), ("d-2.csv", None), ("d.csv", "2"))
    )
    _begin(plain, "d")
    _begin(other, "d-2")
    _begin(named_2, "d-2-2")
    _begin(plain, "d-3")
    begun = {named: [files.stem for files in named.begun()] for named in (plain, other)}
    assert begun == {plain: ["d", "d-3"], other: ["d-2"]}
    assert [files.stem for files in named_2.begun()] == ["d-2-2"]
    assert plain.first_free().stem == "d-4"


def test_result_tells_whose_a_run_was_when_its_checkpoints_are_gone(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, "d-lr-2")
    write_json(files.result, {"files": {"store": "d.sqlite"}, "settings": {"run": "lr"}})
    assert owner(files, {"d-lr"}) == ("d", "d-lr")
    write_json(files.result, {"files": {"store": "before-it-was-renamed.sqlite"}, "settings": {"run": None}})
    assert owner(files, {"d-lr", "d"}) == ("d-lr", None)


def test_a_run_whose_files_say_nothing_is_of_the_store_that_its_name_begins_with(tmp_path: Path) -> None:
    plain, other = run_files(str(tmp_path / "d.csv")), run_files(str(tmp_path / "d-2.csv"))
    for stem in ("d", "d-2"):
        write_text(RunFiles(tmp_path, stem).stats, "{}")
    assert [files.stem for files in plain.begun()] == ["d", "d-2"]
    (tmp_path / "d-2.sqlite").touch()
    assert [files.stem for files in plain.begun()] == ["d"]
    assert [files.stem for files in other.begun()] == ["d-2"]


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

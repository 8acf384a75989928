"""Snapshots: the hash is of everything, and what is written stays whole."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bert_train_parallel.errors import BadSetting, BadSource
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.messages import DatasetSnapshotRequest, DatasetSnapshotResult
from bert_train_parallel.sweeps.snapshots import check_snapshot, take_snapshot
from bert_train_parallel.sweeps.trials import Trials

ROWS = "text,label,source\nfine day,good,a\nbad luck,bad,b\n"


def snapshot(folder: Path, content: str, **given: str) -> DatasetSnapshotResult:
    (folder / "leanings.csv").write_text(content)
    return take_snapshot(DatasetSnapshotRequest(run_id="mine", dataset_name=str(folder / "leanings.csv"), **given), SharedFolder(folder))


def test_the_same_content_is_one_snapshot_whatever_its_date(tmp_path: Path) -> None:
    first, again = snapshot(tmp_path, ROWS), snapshot(tmp_path, ROWS)
    assert first == again
    assert len(list((tmp_path / "data_snapshots").iterdir())) == 1


@pytest.mark.parametrize(
    "other",
    [
        ROWS.replace(",b\n", ",c\n"),  # a column that is not used
        "text,label,source\nbad luck,bad,b\nfine day,good,a\n",  # the order
        ROWS.replace("fine", "Fine"),
    ],
)
def test_any_other_content_is_another_snapshot(tmp_path: Path, other: str) -> None:
    assert snapshot(tmp_path, ROWS).data_hash != snapshot(tmp_path, other).data_hash


def test_samples_are_counted_without_a_header_and_with_texts_of_several_lines_as_one(tmp_path: Path) -> None:
    content = 'text,label\n"fine\nday",good\nbad luck,bad\n"a\n\nb",good'
    (tmp_path / "more.csv").write_text(ROWS)
    taken = snapshot(tmp_path, content, test_file=str(tmp_path / "more.csv"))
    assert (taken.num_train_samples, taken.num_eval_samples) == (3, 2)


def test_the_split_that_a_file_is_given_for_counts(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text(ROWS)
    as_test = snapshot(tmp_path, ROWS, test_file=str(tmp_path / "more.csv"))
    as_validation = snapshot(tmp_path, ROWS, validation_file=str(tmp_path / "more.csv"))
    assert as_test.data_hash != as_validation.data_hash
    assert as_test.files == {"train": "leanings.csv", "test": "more.csv"}


def test_a_snapshot_outlives_its_input_and_notices_a_change(tmp_path: Path) -> None:
    taken = snapshot(tmp_path, ROWS)
    (tmp_path / "leanings.csv").unlink()
    check_snapshot(taken, SharedFolder(tmp_path))
    (tmp_path / taken.snapshot_path / "leanings.csv").write_text(ROWS + "more,good,c\n")
    with pytest.raises(BadSource, match="has changed since"):
        check_snapshot(taken, SharedFolder(tmp_path))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "names no file for train; write files as data_snapshots/"),
        ({"train": "leanings.csv", "test": "../other.csv"}, "names '../other.csv' for test, which is no file of its folder"),
        ({"train": "/elsewhere/cols.csv"}, "names '/elsewhere/cols.csv' for train"),
        ({"train": "leanings.csv", "dev": "leanings.csv"}, "for dev"),
        ({"train": "linked.csv"}, "leads out of"),
    ],
)
def test_a_snapshot_that_a_person_wrote_down_names_files_of_its_own_folder_alone(tmp_path: Path, files: dict[str, str], words: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    taken = snapshot(inner, ROWS)
    (tmp_path / "other.csv").write_text(ROWS)
    (inner / taken.snapshot_path / "linked.csv").symlink_to(tmp_path / "other.csv")
    given, folder = taken.model_copy(update={"files": files}), SharedFolder(inner)
    request = m.BertFineTuneRequest(run_id="mine", config=m.BertFineTuneConfig(use_gpu=False), dataset_snapshot=given)
    for use in (lambda: check_snapshot(given, folder), lambda: asyncio.run(Trials(folder, "tester").run(request, lambda beat: None))):
        with pytest.raises((BadSource, BadSetting)) as error:
            use()
        assert words in str(error.value)


def test_nothing_is_left_where_the_input_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadSource):
        take_snapshot(DatasetSnapshotRequest(run_id="mine", dataset_name=str(tmp_path / "nowhere.csv")), SharedFolder(tmp_path))
    assert list((tmp_path / "data_snapshots").iterdir()) == []


def test_a_path_from_a_message_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "leanings.csv").write_text(ROWS)
    for place in ("../elsewhere", "/etc", "data/../../elsewhere"):
        request = DatasetSnapshotRequest(run_id="mine", dataset_name=str(tmp_path / "leanings.csv"), snapshot_dir=place)
        with pytest.raises(BadSetting, match="leads out of"):
            take_snapshot(request, SharedFolder(tmp_path))


def test_a_data_set_of_several_splits_is_kept_with_all_columns_and_its_class_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})

    def split(labels: list[int]) -> object:
        return datasets.Dataset.from_dict({"text": [f"text {number}" for number in range(len(labels))], "label": labels}, features=features)

    datasets.DatasetDict({"train": split([0, 1, 1]), "validation": split([1, 0]), "test": split([-1, -1])}).save_to_disk(tmp_path / "set")
    taken = take_snapshot(DatasetSnapshotRequest(run_id="mine", dataset_name=str(tmp_path / "set")), SharedFolder(tmp_path))
    place = tmp_path / taken.snapshot_path
    assert taken.files == {"train": "set.jsonl", "validation": "set_validation.jsonl"}  # the labels of the test split are kept secret
    assert (taken.num_train_samples, taken.num_eval_samples) == (3, 2)
    assert (place / "set.jsonl").read_text().splitlines()[1] == '{"text": "text 1", "label": "good"}'
    check_snapshot(taken, SharedFolder(tmp_path))

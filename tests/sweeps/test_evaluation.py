"""Measuring a run's model, and using it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.evaluation import reading_of
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.trials import keep_asked


@pytest.mark.parametrize(
    ("schema", "columns"),
    [
        (None, ("tweet", "mood")),  # of a file: nothing is known of its columns
        ({"tweet": "column", "mood": "column"}, ("tweet", "mood")),
        ({"text": "column", "label": "column"}, (None, None)),
    ],
)
def test_other_data_is_read_by_the_columns_that_the_training_named(
    schema: dict[str, str] | None, columns: tuple[str | None, str | None], tmp_path: Path
) -> None:
    folder = SharedFolder(tmp_path)
    config = m.BertFineTuneConfig(text_field="tweet", label_field="mood", max_seq_length=64, validation_file="elsewhere.csv")
    keep_asked(folder, "key", m.BertFineTuneRequest(run_id="mine", config=config))
    snapshot = m.DatasetSnapshotResult(
        snapshot_id="s",
        dataset_name="other.csv",
        num_train_samples=1,
        data_hash="0",
        snapshot_timestamp="",
        snapshot_path="s",
        dataset_schema=schema,
        files={"train": "other.csv"},
    )
    found = reading_of(RunFiles(folder.run("mine"), "leanings"), snapshot, folder)
    assert (found.text, found.label, found.sequence_len, found.validation_file) == (*columns, 64, None)

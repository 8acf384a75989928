"""Measuring a run's model, and using it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_train_parallel.errors import BadRun
from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.evaluation import check_length, reading_of
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.keys import keep_asked
from bert_train_parallel.sweeps.run_facts import num_parameters


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


def test_a_number_of_tokens_is_taken_only_if_it_is_that_of_the_training() -> None:
    result = {"settings": {"sequence_len": 64}}
    check_length(None, result)
    check_length(64, result)
    with pytest.raises(BadRun, match="max_seq_length 128: this model was trained to read 64 tokens"):
        check_length(128, result)


def test_the_size_of_a_model_is_that_of_its_weights(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    files = RunFiles(tmp_path, "leanings")
    assert num_parameters(files) is None
    files.model_folder.mkdir()
    tensors = {
        "weight": torch.zeros(3, 4),
        "bias": torch.zeros(3, dtype=torch.bfloat16),
        "position_ids": torch.zeros(1, 9, dtype=torch.int64),
    }
    save_file(tensors, files.model_folder / "model.safetensors")
    assert num_parameters(files) == 15

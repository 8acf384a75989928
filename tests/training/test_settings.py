"""What settings do to a run, each on a small real one."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bert_train_parallel.run_files import RunFiles
from training import worlds
from training.conftest import EXACT

Train = Callable[..., RunFiles]


def result_of(files: RunFiles) -> dict[str, Any]:
    return json.loads(files.result.read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--gradient_checkpointing",), ("--micro_batch_size", "3")])
def test_what_saves_memory_changes_no_loss(train: Train, flags: tuple[str, ...]) -> None:
    plain, spared = (train(name, 1, "--max_steps", "15", *EXACT, *more) for name, more in (("plain", ()), ("spared", flags)))
    np.testing.assert_allclose(list(worlds.losses(plain).values()), list(worlds.losses(spared).values()), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_bfloat16_learns_as_float32_does(train: Train) -> None:
    flags = ("--epochs", "6", "--batch_size", "16", "--lr", "3e-3", "--dropout", "0", "--log_every", "1", "--no_export")
    full, half = (train(dtype, 1, "--dtype", dtype, *flags) for dtype in ("float32", "bfloat16"))
    assert result_of(half)["settings"]["dtype"] == "bfloat16"
    assert result_of(half)["world"]["matmul"] == ("onednn" if torch.backends.mkldnn.is_available() else "mkl")
    assert worlds.losses(half)[1] == pytest.approx(worlds.losses(full)[1], abs=0.02)
    assert result_of(full)["figures"]["test"]["accuracy"] == result_of(half)["figures"]["test"]["accuracy"] == 1.0


@pytest.mark.slow
def test_training_stops_early_and_the_best_epoch_is_the_one_that_is_tested(train: Train) -> None:
    # a rate at which a small model is learned and then forgotten again
    flags = (*EXACT[:-2], "--epochs", "40", "--lr", "0.05", "--schedule", "constant", "--patience", "2", "--batch_size", "8")
    files = train("early", 1, *flags)
    epochs = json.loads(files.stats.read_text())["Training"]
    losses = [epoch["Validation Loss"] for epoch in epochs]
    best = losses.index(min(losses)) + 1
    assert len(epochs) == best + 2 < 40
    assert result_of(files)["best_epoch"] == best
    assert result_of(files)["figures"]["validate"]["loss"] == min(losses)


@pytest.mark.slow
def test_rows_of_like_length_make_other_batches_and_every_row_still_comes_once(train: Train, tmp_path: Path) -> None:
    with worlds.noted_rows(tmp_path) as rows:
        files = train("grouped", 1, "--epochs", "2", "--group_by_length", *EXACT, patch=worlds.note_rows)
        assert sorted(rows()) == sorted([*range(128)] * 2)
    plain = train("plain", 1, "--epochs", "2", *EXACT)
    assert worlds.losses(files)[1] != worlds.losses(plain)[1]


@pytest.mark.slow
def test_a_run_without_a_model_at_the_end_is_asked_for_by_a_sweep(train: Train) -> None:
    files = train("trial", 1, "--max_steps", "3", "--no_export", "--max_train_samples", "50", "--max_eval_samples", "7")
    assert not files.saved_model.exists()
    assert not files.model_folder.exists()
    assert result_of(files)["figures"]["test"]["samples"] == 7
    assert result_of(files)["steps"] == 3


@pytest.mark.slow
def test_numbers_are_learned_as_numbers(tiny_model: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    source = tmp_path / "grades.csv"
    with open(source, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(300):
            good = rng.randint(0, 4)
            words = rng.sample(["loved"] * good + ["hated"] * (4 - good), 4)
            writer.writerow([" ".join([*words, str(number)]), good / 4 + 0.001])
    flags = ("--epochs", "8", "--batch_size", "16", "--lr", "3e-3", "--metric", "pearson", "--quiet_progress")
    worlds.run_world(2, source, "--model", tiny_model, *flags, folder=tmp_path)
    result = result_of(RunFiles(tmp_path, "grades"))
    assert result["task_type"] == "regression"
    assert result["figures"]["test"]["pearson"] > 0.8
    assert "Validation Accuracy" not in json.loads((tmp_path / "grades_train_test_stats.json").read_text())["Training"][0]


@pytest.mark.slow
def test_a_class_that_weighs_nothing_is_not_learned(train: Train) -> None:
    files = train("blind", 1, "--epochs", "3", "--class_weights", '{"bad": 0}', "--batch_size", "4", "--lr", "3e-3")
    with open(files.predictions, newline="") as file:
        assert {row["prediction_name"] for row in csv.DictReader(file)} == {"good"}


@pytest.mark.slow
def test_the_log_file_has_what_the_terminal_shows(train: Train, tmp_path: Path) -> None:
    train("logged", 1, "--max_steps", "3", "--logfile", tmp_path / "logs" / "run.txt")
    text = (tmp_path / "logs" / "run.txt").read_text()
    assert text.index("model: ") < text.index("world: 1 rank") < text.index("epoch 1/1") < text.index("test: ")

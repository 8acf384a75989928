"""What the speed rests on: no padded token is computed, and a profile says where the time goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bert_train_parallel.data.store import Store
from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.training.profiling import ProductCounter, measured_peak
from training import worlds


@pytest.mark.slow
def test_no_more_rows_enter_the_linear_layers_than_a_step_has_tokens(
    write_csv: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    source = write_csv(100, long_every=10)
    with worlds.noted_rows(tmp_path):
        flags = ("--model", tiny_model, "--epochs", "1", "--batch_size", "16", "--sequence_len", "48", "--no_export")
        worlds.run_world(1, source, *flags, folder=tmp_path, patch=worlds.note_tokens)
    steps = [json.loads(line) for line in (tmp_path / "tokens.jsonl").read_text().splitlines()]
    with Store.open(source.with_suffix(".sqlite")) as store:
        lengths = store.rows("train").lengths
    assert np.ptp(lengths) > 30  # padding would show
    assert sum(tokens for tokens, _ in steps) == lengths.sum()
    assert all(max(entered) == tokens for tokens, entered in steps)


@pytest.mark.slow
def test_a_profile_names_the_greatest_costs_and_leaves_a_trace(write_csv: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    source = write_csv(100)
    flags = ("--model", tiny_model, "--max_steps", "20", "--batch_size", "8", "--epochs", "2", "--no_export", "--profile")
    world = worlds.run_world(1, source, *flags, folder=tmp_path)
    assert "profile: a step takes" in world.output()
    assert "matrix products" in world.output()
    assert json.loads(RunFiles(source.parent, "leanings").trace.read_text())["traceEvents"]


def test_operations_of_linear_layers_are_counted_by_the_rows_that_enter() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 3))
    counter = ProductCounter(model)
    counter.start()
    model(torch.zeros(5, 7, 8))
    counter.stop()
    model(torch.zeros(5, 7, 8))
    assert counter.operations == 6 * 35 * (8 * 64 + 64 * 3)
    assert counter.most_rows == 35
    assert measured_peak(model, 35, "float32", rounds=2) > 0

"""Kills at random times over build, train, evaluate and write, each followed by the same command: it always ends, and all is whole.

CHAOS_ROUNDS=50 kills fifty times; the default is a few. CHAOS_SEED repeats a sequence.
"""

from __future__ import annotations

import csv
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from training import worlds

from bert_train_parallel.data.store import Store
from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.training import checkpoints

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "6"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
# shares and library are chosen by timing otherwise
REPEATS = ("--shares", "equal", "--matmul", "mkl", "--lr", "3e-3")


def assert_whole(folder: Path) -> None:
    """Every file that has its name is complete."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name.endswith("_predictions.csv"):
            with open(path, newline="") as file:
                assert len({len(row) for row in csv.reader(file)}) == 1
        elif path.suffix == ".sqlite":
            with Store.open(path) as store:
                assert len(store.samples("train").ids)
        elif path.name.endswith("_checkpoints"):
            for place in checkpoints.found(path):
                checkpoints.read(place)
        elif path.name.endswith("_model"):
            assert load_file(path / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_any_time_the_same_command_ends_well(
    ranks: int, write_csv: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    rng = random.Random(f"{SEED} {ranks}")
    flags = ("--model", tiny_model, "--epochs", "3", "--batch_size", "16", "--checkpoint_every", "3", *REPEATS)
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    for folder in (calm, wild):
        folder.mkdir()
        write_csv(200).rename(folder / "leanings.csv")
    began = time.monotonic()
    worlds.run_world(ranks, calm / "leanings.csv", *flags, folder=tmp_path)
    duration = time.monotonic() - began
    for _ in range(ROUNDS):
        world = worlds.start_world(ranks, wild / "leanings.csv", *flags, *rng.choice([("--resume",), ("--resume",), ()]), folder=tmp_path)
        time.sleep(rng.uniform(0, 1.1 * duration))
        world.kill()
        assert all(process.exitcode in (0, -9) for process in world.processes), world.output()
        assert_whole(wild)
    worlds.run_world(ranks, wild / "leanings.csv", *flags, "--resume", folder=tmp_path)
    assert_whole(wild)
    newest = RunFiles(wild, "leanings").newest_begun()
    assert newest is not None
    assert newest.is_finished
    for path in wild.glob("leanings*_RESULT.json"):
        finished = RunFiles.of(path)
        expected, found = (load_file(files.model_folder / "model.safetensors") for files in (RunFiles(calm, "leanings"), finished))
        assert all(np.array_equal(found[name], expected[name]) for name in expected), finished.stem

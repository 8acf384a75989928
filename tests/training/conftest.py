"""What tests of training share: exact settings, and runs that several tests look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bert_train_parallel.run_files import RunFiles
from training import worlds

# one thread, no dropout, float64: what is left between two worlds is the order of sums
EXACT = ("--dtype", "float64", "--dropout", "0", "--log_every", "1", "--lr", "3e-3", "--quiet_progress", "--no_export")


@pytest.fixture
def train(write_csv: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> Callable[..., RunFiles]:
    """Runs a world to its end over one small CSV: `train("three", 3, "--epochs", "2")` gives the files of run `three`."""
    source = write_csv(160)

    def run(name: str, ranks: int, *arguments: object, **who: object) -> RunFiles:
        worlds.run_world(ranks, source, "--model", tiny_model, "--run", name, *arguments, folder=tmp_path, **who)
        return RunFiles(source.parent, f"leanings-{name}")

    return run

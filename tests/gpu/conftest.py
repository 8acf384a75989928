"""What tests of GPUs share: the device, which is a CPU too where the same path runs there, and trainings on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from one_thread import one_thread

from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.training.api import train

__all__ = ["one_thread"]

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
TWO_GPUS = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]
ON_GPU = pytest.param("cuda", marks=GPU)
ON_EACH = pytest.mark.parametrize("device", ["cpu", ON_GPU])
EXACT = {"dtype": "float32", "dropout": 0.0, "matmul": "mkl"}


@pytest.fixture
def source(write_csv: Callable[..., Path]) -> Path:
    """160 short texts and some long ones."""
    return write_csv(160, long_every=20)


@pytest.fixture
def trained(source: Path, tiny_model: Path) -> Callable[..., RunFiles]:
    """Trains a tiny model in this process: `trained("half", "cuda", dtype="bfloat16")` gives the files of run `half`."""

    def run(name: str, device: str, **settings: Any) -> RunFiles:
        how = {"epochs": 2, "max_steps": 20, "batch_size": 12, "learning_rate": 1e-3, "log_every": 1, "export": False} | EXACT | settings
        train(source, model=str(tiny_model), run=name, device=device, quiet=True, threads=1, **how)
        return RunFiles(source.parent, f"leanings-{name}")

    return run

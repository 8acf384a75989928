"""What fits a GPU, as far as that can be known without one, and what a training on a CPU gives back to the system."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bert_train_parallel.errors import OutOfMemory
from bert_train_parallel.training import memory
from bert_train_parallel.training.data_parallel import DataParallel

GAPS = """
import numpy as np
from bert_train_parallel.training import memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

np.ones(30 << 20, np.uint8)  # freed at once: from now on glibc takes blocks up to this size from its heap
blocks = [np.ones(1 << 20, np.uint8) for _ in range(400)]
del blocks[::2]
before = resident()
print(memory.return_freed(above=1 << 40), memory.return_freed(above=100 << 20), before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux" or memory._glibc() is None, reason="needs a glibc that tells what it keeps")
def test_gaps_between_tensors_go_back_to_the_system_where_they_are_large() -> None:
    done = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    untouched, returned, megabytes = done.stdout.split()
    assert (untouched, returned) == ("False", "True")
    assert int(megabytes) >= 150  # of 200


class FakeGpu:
    """Memory of a GPU in bytes: so much is taken by the model and its gradients, and so much by each token of a pass."""

    def __init__(self, total: int, model: int, each_token: int) -> None:
        self.total, self.model, self.each_token, self.peak = total, model, each_token, model

    def compute(self, rows: np.ndarray) -> None:
        needed = self.model + self.each_token * tokens_of(rows)
        if needed > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.peak = max(self.peak, needed)

    def reset(self, device: torch.device) -> None:
        self.peak = self.model

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers: dict[str, Callable[..., Any]] = {
            "memory_allocated": lambda device: self.model,
            "max_memory_allocated": lambda device: self.peak,
            "memory_reserved": lambda device: self.model,
            "mem_get_info": lambda device: (self.total - self.model, self.total),
            "reset_peak_memory_stats": self.reset,
            "synchronize": lambda device: None,
            "empty_cache": lambda: None,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)


LENGTHS = np.arange(1, 101)


def tokens_of(rows: np.ndarray) -> int:
    return int(LENGTHS[rows].sum())


def world_of_one() -> Any:
    return SimpleNamespace(device=torch.device("cuda", 0), hosts=("alpha",), rank=SimpleNamespace(attempt=0, rank=0))


@pytest.mark.parametrize("total", [1_000_000, 100_000, 30_000])
def test_room_on_a_gpu_is_for_as_many_tokens_as_fit_beside_the_model_and_its_optimizer(monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    gpu = FakeGpu(total, model=5_000, each_token=40)
    gpu.patch(monkeypatch)
    found = memory.find_room(np.arange(100), tokens_of, gpu.compute, world_of_one())
    most = (total - 2 * gpu.model) / gpu.each_token  # the optimizer's moments come with the first step
    assert 0.8 * most - 0.1 * total / gpu.each_token <= found <= most


def test_a_gpu_without_room_for_one_row_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(6_000, model=5_000, each_token=40)
    gpu.patch(monkeypatch)
    with pytest.raises(OutOfMemory, match="alpha, cuda:0: no memory left for one row of 100 tokens"):
        memory.find_room(np.array([99]), tokens_of, gpu.compute, world_of_one())


@pytest.mark.parametrize("parts, rows", [((0.75, 0.25), [24, 8]), ((1.0, 0.0), [32, 1])])
def test_room_is_looked_for_with_the_longest_rows_of_a_share_and_one_where_it_is_empty(parts: tuple[float, ...], rows: list[int]) -> None:
    for rank, expected in enumerate(rows):
        strategy: Any = SimpleNamespace(
            _rows=SimpleNamespace(lengths=LENGTHS),
            shares=SimpleNamespace(parts=parts),
            _world=SimpleNamespace(rank=SimpleNamespace(rank=rank)),
        )
        heaviest = DataParallel._heaviest_share(strategy, 32)
        assert sorted(LENGTHS[heaviest]) == LENGTHS[-expected:].tolist()

"""What fits a GPU, as far as that can be known without one, and how shares are cut by it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data.test_batches import make_rows

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.errors import OutOfMemory
from bert_train_parallel.training.optimizer import Updater
from bert_train_parallel.training.pace import Pace
from bert_train_parallel.training.room import Room

LENGTHS = np.arange(1, 101)
MODEL = 5_000  # bytes, its gradients counted in


class FakeGpu:
    """Memory of a GPU in bytes: so much is taken by the model and its gradients, and so much by each token of a pass."""

    def __init__(self, total: int, model: int, each_token: int, error: Exception | None = None) -> None:
        self.total, self.model, self.each_token, self.peak = total, model, each_token, model
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def compute(self, rows: np.ndarray) -> None:
        needed = self.model + self.each_token * int(LENGTHS[rows].sum())
        if needed > self.total:
            raise self.error
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


def room_of(max_rows: int | None = None, lengths: np.ndarray = LENGTHS) -> Room:
    """The room of the only rank, on a GPU."""
    world: Any = SimpleNamespace(device=torch.device("cuda", 0), hosts=("alpha",), rank=SimpleNamespace(attempt=0, rank=0))
    return Room(make_rows(lengths.tolist()), max_rows, world)


@pytest.mark.parametrize("error", [None, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")])
@pytest.mark.parametrize("total", [1_000_000, 100_000, 30_000])
def test_room_on_a_gpu_is_for_as_many_tokens_as_fit_beside_the_model_and_its_optimizer(
    monkeypatch: pytest.MonkeyPatch, total: int, error: Exception | None
) -> None:
    gpu = FakeGpu(total, MODEL, each_token=40, error=error)
    gpu.patch(monkeypatch)
    room = room_of()
    to_come = 3_000  # the optimizer's moments come with the first step
    room.find(100, gpu.compute, to_come)
    most = (total - MODEL - to_come) / gpu.each_token
    assert room.max_tokens is not None
    assert 0.8 * most - 0.1 * total / gpu.each_token <= room.max_tokens <= most


def test_a_gpu_without_room_for_one_row_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(6_000, MODEL, each_token=40)
    gpu.patch(monkeypatch)
    with pytest.raises(OutOfMemory, match="alpha, cuda:0: no memory left for one row of 100 tokens"):
        room_of().find(1, gpu.compute, 0)


def test_an_error_of_another_kind_is_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(6_000, MODEL, each_token=40, error=RuntimeError("CUDA error: an illegal memory access"))
    gpu.patch(monkeypatch)
    with pytest.raises(RuntimeError, match="illegal"):
        room_of().find(8, gpu.compute, 0)


@pytest.mark.parametrize(("max_rows", "batch_size", "rows"), [(None, 32, 32), (8, 32, 8), (64, 32, 32), (None, 500, 100)])
def test_room_is_looked_for_with_the_longest_rows_that_any_rank_may_ever_have_at_once(
    max_rows: int | None, batch_size: int, rows: int
) -> None:
    heaviest = room_of(max_rows).heaviest(batch_size)
    assert sorted(LENGTHS[heaviest]) == LENGTHS[-rows:].tolist()


def test_parts_are_halved_until_each_is_one_row() -> None:
    room, rows = room_of(lengths=np.array([2, 3, 4])), np.arange(3)
    assert [part.tolist() for part in room.parts(rows)] == [[0, 1, 2]]
    room.halve(room.parts(rows))
    assert [part.tolist() for part in room.parts(rows)] == [[0], [1], [2]]
    with pytest.raises(OutOfMemory, match="for one row of 4 tokens"):
        room.halve(room.parts(rows))


def test_a_run_that_goes_on_cuts_its_shares_as_before_where_there_is_room_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(1_000_000, MODEL, each_token=40)
    gpu.patch(monkeypatch)
    found = {}
    for kept in (None, 700, 10**9):
        room = room_of()
        room.limit(kept)
        room.find(32, gpu.compute, 0)
        found[kept] = room.max_tokens
    assert found[700] == 700
    assert found[None] == found[10**9]


def test_every_rank_knows_after_a_step_how_much_each_computes_at_once() -> None:
    world: Any = SimpleNamespace(size=1)
    pace = Pace(world)
    assert pace.limits == [None]
    for limit in (700, None):
        pace.send(False, 1.0, 10, limit)
        pace.receive()
        assert pace.limits == [limit]


def test_the_optimizer_says_what_it_will_take_until_it_has_it() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 5))
    updater = Updater([parameter], TrainConfig(dtype="float32"), torch.device("cpu"))
    assert updater.bytes_to_come() == 2 * 15 * 4
    parameter.grad = torch.ones(3, 5)
    updater.update(1e-3)
    assert updater.bytes_to_come() == 0

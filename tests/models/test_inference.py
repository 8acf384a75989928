"""Outputs of batches that do not fit, and how a lack of memory is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from data.test_batches import make_rows

from bert_train_parallel.models.inference import outputs_of, tells_of_memory

# as torch and the libraries below it say it
NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory", 2),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("NCCL error: unhandled cuda error\nncclUnhandledCudaError: ...\nLast error:\nCuda failure 2 'out of memory'"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GiB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
]
OTHERS = [RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("out of memory"), MemoryError()]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_a_lack_of_memory_is_known_by_its_class_or_its_words(error: Exception) -> None:
    assert tells_of_memory(error)


@pytest.mark.parametrize("error", OTHERS)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not tells_of_memory(error)


@pytest.mark.parametrize("error", NO_MEMORY[:3])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(error: Exception) -> None:
    def tight(tokens: torch.Tensor, *_: Any) -> torch.Tensor:
        if len(tokens) > 5:
            raise error
        return tokens[:1]

    rows: Any = make_rows([2, 3, 4, 5])
    model: Any = tight
    numbers = torch.arange(4).numpy()
    assert len(outputs_of(model, rows, numbers, torch.device("cpu"))) == 3  # 2 and 3 tokens together
    with pytest.raises(type(error)):
        outputs_of(model, make_rows([6]), numbers[:1], torch.device("cpu"))

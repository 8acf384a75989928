"""A model's outputs for rows, on any device: what training evaluates with and prediction predicts with."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bert_train_parallel.data.batches import Batch, IntArray, Rows, make_batch
from bert_train_parallel.models import packing
from bert_train_parallel.models.packed import PackedModel

_NO_MEMORY = re.compile("out of memory|alloc_failed|can't allocate memory|not enough memory", re.IGNORECASE)
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def batch_tokens(device: torch.device) -> int:
    """Tokens per forward pass. The same for like devices, so that outputs repeat to the bit."""
    return 32768 if device.type == "cuda" else 2048


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """Half precision where `dtype` names one, else the parameters' own."""
    return torch.autocast(device.type, HALF[dtype]) if dtype in HALF else nullcontext()


def inputs_of(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a model takes: tokens, positions and segments on the device, starts on the CPU; the copies wait for nothing."""
    return (
        to_device(batch.tokens, device),
        to_device(batch.positions, device),
        to_device(batch.segments, device),
        torch.from_numpy(batch.starts),
    )


def to_device(values: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """An array as a tensor on the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "mps" and tensor.dtype == torch.float64:
        tensor = tensor.float()  # Metal has no float64
    return packing.to_device(tensor, device)


def outputs_of(model: PackedModel, rows: Rows, numbers: IntArray, device: torch.device) -> list[Tensor]:
    """Outputs (b, k) of the rows of these numbers, in one or more pieces: a batch that does not fit is halved."""
    try:
        return [model(*inputs_of(make_batch(rows, numbers, 1.0), device))]
    except RuntimeError as error:
        if len(numbers) < 2 or not tells_of_memory(error):
            raise
    torch.cuda.empty_cache()  # out of the except block, where the traceback would keep the activations alive
    half = len(numbers) // 2
    return outputs_of(model, rows, numbers[:half], device) + outputs_of(model, rows, numbers[half:], device)


def tells_of_memory(error: BaseException) -> bool:
    """Whether torch says that a device, or this machine, has no memory left.

    It has a class of errors for that, which only its own allocator for CUDA raises. CUDA itself, cuBLAS, NCCL, Metal and the CPU's
    allocator say it in words.

    >>> tells_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    True
    """
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None)

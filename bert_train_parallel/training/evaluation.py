"""A model's outputs for every row of a split, each computed once, whatever the world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bert_train_parallel.data.batches import Batch, FloatArray, IntArray, Rows, batches_by_length, make_batch
from bert_train_parallel.models.packed import PackedModel
from bert_train_parallel.training.world import World

# Tokens per forward pass. The batches are the same in any world of like devices, so that outputs repeat to the bit.
_BATCH_TOKENS, _GPU_BATCH_TOKENS = 4096, 32768


def outputs(
    model: PackedModel,
    rows: Rows,
    world: World,
    autocast: Callable[[], AbstractContextManager[Any]],
    speeds: Sequence[float],
    before_each: Callable[[], None],
) -> FloatArray | None:
    """(N, k) float64 in the order of the rows, on rank 0; None elsewhere.

    Args:
        speeds: of the ranks, to divide the work by.
        before_each: called before each batch, and may raise.
    """
    lengths = rows.lengths
    batches = batches_by_length(lengths, _GPU_BATCH_TOKENS if world.device.type == "cuda" else _BATCH_TOKENS)
    ranks = deal([int(lengths[batch].sum()) for batch in batches], speeds)
    mine = [batch for batch, rank in zip(batches, ranks, strict=True) if rank == world.rank.rank]
    found: list[Tensor] = []
    with torch.inference_mode(), autocast():
        for numbers in mine:
            before_each()
            found += _forward(model, rows, numbers, world.device)
    part = (np.concatenate(mine), torch.cat(found).cpu().double().numpy()) if mine else None
    parts = world.gather_to_first(part)
    if not world.rank.is_first:
        return None
    everything = np.zeros((len(rows), model.config.num_labels))
    for numbers, values in filter(None, parts):
        everything[numbers] = values
    return everything


def deal(loads: Sequence[int], speeds: Sequence[float]) -> list[int]:
    """The rank of each batch: in turn to the one that would be done with it first.

    >>> deal([8, 8, 4, 4], speeds=[2.0, 1.0])
    [0, 0, 1, 1]
    """
    ready = [(0.0, rank) for rank, speed in enumerate(speeds) if speed > 0]
    ranks = []
    for load in loads:
        _, rank = min((time + load / speeds[rank], rank) for time, rank in ready)
        ranks.append(rank)
        ready = [(time + load / speeds[rank] if of == rank else time, of) for time, of in ready]
    return ranks


def inputs_of(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a model takes: tokens, positions and segments on the device, starts on the CPU; the copies wait for nothing."""
    return (
        to_device(batch.tokens, device),
        to_device(batch.positions, device),
        to_device(batch.segments, device),
        torch.from_numpy(batch.starts),
    )


def to_device(values: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "mps" and tensor.dtype == torch.float64:
        tensor = tensor.float()  # Metal has no float64
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _forward(model: PackedModel, rows: Rows, numbers: IntArray, device: torch.device) -> list[Tensor]:
    """Outputs in one or more pieces: a batch that does not fit is halved."""
    try:
        return [model(*inputs_of(make_batch(rows, numbers, 1.0), device))]
    except torch.OutOfMemoryError:
        if len(numbers) < 2:
            raise
    torch.cuda.empty_cache()  # out of the except block, where the traceback would keep the activations alive
    half = len(numbers) // 2
    return _forward(model, rows, numbers[:half], device) + _forward(model, rows, numbers[half:], device)

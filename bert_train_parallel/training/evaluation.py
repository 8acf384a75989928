"""A model's outputs for every row of a split, each computed once, whatever the world."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bert_train_parallel.data.batches import FloatArray, Rows, batches_by_length
from bert_train_parallel.models.inference import autocast, batch_tokens, outputs_of
from bert_train_parallel.models.packed import PackedModel
from bert_train_parallel.training.world import World


def outputs(
    model: PackedModel,
    rows: Rows,
    world: World,
    dtype: str,
    speeds: Sequence[float],
    before_each: Callable[[], None],
) -> FloatArray | None:
    """(N, k) float64 in the order of the rows, on rank 0; None elsewhere.

    Args:
        speeds: of the ranks, to divide the work by.
        before_each: called before each batch, and may raise.
    """
    lengths = rows.lengths
    batches = batches_by_length(lengths, batch_tokens(world.device))
    ranks = deal([int(lengths[batch].sum()) for batch in batches], speeds)
    mine = [batch for batch, rank in zip(batches, ranks, strict=True) if rank == world.rank.rank]
    found: list[Tensor] = []
    with torch.inference_mode(), autocast(world.device, dtype):
        for numbers in mine:
            before_each()
            found += outputs_of(model, rows, numbers, world.device)
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

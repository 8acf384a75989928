"""The loss of each row, and the loss that makes every row count by its weight wherever it is computed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # a class code that does not count


def row_losses(outputs: Tensor, targets: Tensor, task_type: str) -> Tensor:
    """The loss of each row, in float32 at least: cross entropy in nats, or the squared error of a regression.

    Args:
        outputs: (b, k) logits, or k predicted values.
        targets: (b, 1) class codes int64, or (b, k) values; a code of -100 has loss 0.
    Returns:
        (b,); class weights are row weights, and belong to `rank_loss`.
    """
    outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
    if task_type == "regression":
        return F.mse_loss(outputs, targets.to(outputs.dtype), reduction="none").mean(dim=1)
    return F.cross_entropy(outputs, targets[:, 0], reduction="none", ignore_index=IGNORED)


def rank_loss(losses: Tensor, weights: Tensor, total_weight: float, world_size: int) -> Tensor:
    """The loss to call backward() on, so that every row counts by its weight wherever it is computed.

    DDP averages gradients over ranks, so a short share would count its rows for more.
    Dividing by the weight of the global batch and multiplying by the ranks undoes that.

    Args:
        losses: (b,) loss of each row on this rank; b may differ by rank, and be 0.
        weights: (b,) weight of each row; 0 for a target that does not count.
        total_weight: sum of the weights of the global batch, all ranks; above 0.
        world_size: number of ranks.
    Raises:
        ValueError: no row of the global batch has a weight.
    Source: gradient averaging, DistributedDataParallel documentation, PyTorch.
    """
    if not total_weight > 0:
        raise ValueError("no row of the global batch has a weight")
    return (losses * weights.to(losses.dtype)).sum() * (world_size / total_weight)

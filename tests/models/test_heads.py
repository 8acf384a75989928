"""Losses of rows, and that any shares of a batch give its gradient."""

from __future__ import annotations

import pytest
import torch

from bert_train_parallel.models.heads import rank_loss, row_losses


def test_row_losses_are_cross_entropies_in_nats() -> None:
    losses = row_losses(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1], [0]]), "classification")
    torch.testing.assert_close(losses, torch.tensor([0.693147, 0.126928]), rtol=1e-5, atol=0)


def test_a_regression_loses_the_squared_error_of_each_row() -> None:
    losses = row_losses(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.5], [1.0]], dtype=torch.float64), "regression")
    torch.testing.assert_close(losses, torch.tensor([0.25, 4.0]))


def test_half_precision_outputs_lose_in_float32_and_double_ones_in_float64() -> None:
    targets = torch.tensor([[0]])
    assert row_losses(torch.zeros(1, 2, dtype=torch.bfloat16), targets, "classification").dtype == torch.float32
    assert row_losses(torch.zeros(1, 2, dtype=torch.float64), targets, "classification").dtype == torch.float64


@pytest.mark.parametrize("shares", [[8], [4, 4], [5, 2, 1], [7, 0, 1]])
def test_the_mean_over_ranks_of_any_shares_is_the_gradient_of_the_whole_batch(shares: list[int]) -> None:
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(8, 3, dtype=torch.float64, generator=draw)
    targets = torch.tensor([[0], [1], [2], [-100], [1], [0], [2], [2]])
    weights = torch.tensor([1.0, 2.0, 0.5, 0.0, 1.0, 3.0, 1.0, 0.25])
    total = float(weights.sum())

    whole = outputs.clone().requires_grad_()
    mean = torch.nn.functional.cross_entropy(whole, targets[:, 0], reduction="none", ignore_index=-100)
    ((mean * weights).sum() / total).backward()

    shared = outputs.clone().requires_grad_()
    first = 0
    for share in shares:
        rows = slice(first, first + share)
        first += share
        losses = row_losses(shared[rows], targets[rows], "classification")
        (rank_loss(losses, weights[rows], total, len(shares)) / len(shares)).backward()  # DDP divides by the ranks
    torch.testing.assert_close(shared.grad, whole.grad, rtol=1e-14, atol=1e-16)


def test_a_batch_without_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="no row"):
        rank_loss(torch.zeros(2), torch.zeros(2), 0.0, 1)

"""Attention as the model calls it against its definition by groups in float32, forward and backward, at the sizes of real models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bert_train_parallel.models import attention
from bert_train_parallel.models.packing import make_packing
from gpu.conftest import GPU

LENGTHS = (1, 2, 7, 16, 17, 64, 65, 200, 384)
KINDS = [
    ("cpu", torch.float32),
    pytest.param("cuda", torch.float32, marks=GPU),
    pytest.param("cuda", torch.bfloat16, marks=GPU),
    pytest.param("cuda", torch.float16, marks=GPU),
]


@pytest.mark.parametrize(("window", "first_tokens"), [(None, False), (65, False), (None, True)])
@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize(("device", "dtype"), KINDS)
def test_results_and_gradients_are_those_of_groups_in_float32(
    device: str, dtype: torch.dtype, width: int, window: int | None, first_tokens: bool
) -> None:
    draw = torch.Generator().manual_seed(0)
    packing = make_packing(LENGTHS, torch.device(device))
    given = [torch.randn(sum(LENGTHS), 4, width, generator=draw).to(device, dtype).requires_grad_() for _ in range(3)]
    upstream = torch.randn(sum(LENGTHS), 4, width, generator=draw).to(device, dtype)

    def results(query: Tensor, key: Tensor, value: Tensor, by_groups: bool) -> list[Tensor]:
        asked = query[packing.starts[:-1].long()] if first_tokens else query
        if by_groups:
            found = attention._grouped(asked, key, value, packing, 0.0, None, window, first_tokens)
        else:
            found = attention.attend(asked, key, value, packing, 0.0, None, window, first_tokens)
        gradients = torch.autograd.grad(found, (query, key, value), upstream[: len(found)].to(found.dtype))
        return [found, *gradients]

    exact = results(*(tensor.detach().float().requires_grad_() for tensor in given), by_groups=True)
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    for mine, theirs in zip(results(*given, by_groups=False), exact, strict=True):
        torch.testing.assert_close(mine.float(), theirs, rtol=tolerance, atol=tolerance * float(theirs.detach().abs().max()))

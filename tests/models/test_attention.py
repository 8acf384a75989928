"""Attention within rows against the same rows one by one, and which kernel is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bert_train_parallel.models import attention
from bert_train_parallel.models.packing import make_packing

LENGTHS = (1, 2, 2, 2, 3, 9, 10, 11, 30)


def rows_of(dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(sum(LENGTHS), 2, 8, generator=draw, dtype=torch.float64).to(device, dtype).requires_grad_() for _ in range(3)]


def one_by_one(query: Tensor, key: Tensor, value: Tensor, window: int | None = None) -> Tensor:
    """The definition, row by row."""
    found = []
    for q, k, v in zip(*(tensor.split(LENGTHS) for tensor in (query, key, value)), strict=True):
        place = torch.arange(len(k))
        seen = None if window is None else (place[:, None] - place).abs() < window
        rows = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v))
        found.append(F.scaled_dot_product_attention(*rows, attn_mask=seen, scale=0.3)[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("window", [None, 3, 100])
def test_no_token_sees_another_row(window: int | None) -> None:
    query, key, value = rows_of()
    packing = make_packing(LENGTHS, torch.device("cpu"))
    found = attention.attend(query, key, value, packing, 0.0, 0.3, window)
    expected = one_by_one(query, key, value, window)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    upstream = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, (query, key, value), upstream), torch.autograd.grad(expected, (query, key, value), upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("window", [None, 3])
def test_first_tokens_alone_see_what_they_see_among_all(window: int | None) -> None:
    query, key, value = rows_of()
    packing = make_packing(LENGTHS, torch.device("cpu"))
    first = packing.starts[:-1].long()
    found = attention.attend(query[first], key, value, packing, 0.0, 0.3, window, first_tokens=True)
    expected = one_by_one(query, key, value, window)[first]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    upstream = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, (query, key, value), upstream), torch.autograd.grad(expected, (query, key, value), upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("lengths", [(4,), (4, 4, 4), (1, 7, 8, 8), (1, 1, 1, 2, 50), (3, 63, 64, 65, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_one_gathering_for_all_groups_gives_what_a_gathering_for_each_gives(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(sum(lengths), 3, 16, generator=draw).to(dtype).requires_grad_() for _ in range(3))
    packing = make_packing(lengths, torch.device("cpu"))
    tensors = (query, key, value)
    found = attention.attend(*tensors, packing)
    expected = attention._grouped(*tensors, packing, 0.0, None, None, False)
    upstream = torch.randn(expected.shape, generator=draw).to(dtype)
    close = {"rtol": 0.0, "atol": 1e-5 if dtype == torch.float32 else 0.05}
    torch.testing.assert_close(found, expected, **close)
    for mine, theirs in zip(torch.autograd.grad(found, tensors, upstream), torch.autograd.grad(expected, tensors, upstream), strict=True):
        torch.testing.assert_close(mine, theirs, **close)


def test_under_autocast_short_rows_keep_their_weights_precise() -> None:
    query, key, value = (tensor.detach().bfloat16() for tensor in rows_of())
    packing = make_packing(LENGTHS, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        found = attention.attend(query, key, value, packing, 0.0, 0.3)
    assert found.dtype == torch.bfloat16
    expected = one_by_one(query.double(), key.double(), value.double())
    assert float((found.double() - expected).abs().max()) <= 2**-8 * float(expected.abs().max())  # the result alone is rounded


def test_attention_dropout_leaves_out_weights_and_keeps_the_mean() -> None:
    query, key = (tensor.detach() for tensor in rows_of()[:2])
    packing = make_packing(LENGTHS, torch.device("cpu"))
    ones = torch.ones_like(key)
    torch.manual_seed(0)
    found = torch.stack([attention.attend(query, key, ones, packing, 0.25) for _ in range(300)])
    assert float(found.std(0)[3:].min()) > 0.01
    torch.testing.assert_close(found.mean(), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=0.01)


def test_without_a_gpu_no_row_goes_to_the_kernel_for_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> bool:
        raise AssertionError

    monkeypatch.setattr(attention, "_varlen_is_right", never)
    query, key, value = rows_of(torch.bfloat16)
    attention.attend(query, key, value, make_packing(LENGTHS, torch.device("cpu")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("first_tokens", [False, True])
def test_the_kernel_for_rows_of_any_length_gives_what_groups_give(first_tokens: bool) -> None:
    query, key, value = rows_of(torch.bfloat16, "cuda")
    packing = make_packing(LENGTHS, torch.device("cuda"))
    asked = query[packing.starts[:-1].long()] if first_tokens else query
    if not attention._has_varlen(asked, 0.0):
        pytest.skip("this GPU or this torch has no such kernel")
    found = attention._varlen(asked, key, value, packing, 0.3, None, first_tokens)
    expected = attention._grouped(asked, key, value, packing, 0.0, 0.3, None, first_tokens)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)

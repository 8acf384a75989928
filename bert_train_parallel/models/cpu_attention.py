"""Attention within rows on a CPU, in few calls: one gathering for all groups of rows, and plain products where rows are short."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bert_train_parallel.models.packing import SHORT, Packing


class CpuAttention(torch.autograd.Function):
    """What `attention.attend` gives without dropout and windows, in a fraction of the calls: gathered once for all groups, in backward too.

    Short rows go through plain products of matrices, several times faster there than the kernel that long rows need.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None, first_tokens: bool) -> Tensor:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        parts = [_padded(tensor, packing, one_each) for tensor, one_each in ((query, first_tokens), (key, False), (value, False))]
        found = [
            _by_products(q, k, v, mask, scale)
            if _is_short(k)
            else torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=scale)
            for q, k, v, mask in zip(*parts, packing.masks(query.dtype), strict=True)
        ]
        ctx.save_for_backward(*itertools.chain(*parts, *found))
        ctx.packing, ctx.scale, ctx.first_tokens = packing, scale, first_tokens
        return _unpadded([attended for attended, _ in found], packing, first_tokens)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        packing, first_tokens, saved = ctx.packing, ctx.first_tokens, ctx.saved_tensors
        count = len(packing.groups)
        parts = [saved[place * count : (place + 1) * count] for place in range(3)]
        attended, kept = saved[3 * count :: 2], saved[3 * count + 1 :: 2]
        upstream = _padded(gradient, packing, first_tokens, zeros=True)
        gradients = [
            _products_backward(grad, q, k, v, weights, ctx.scale)
            if _is_short(k)
            else torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad, q, k, v, out, weights, 0.0, False, attn_mask=mask, scale=ctx.scale
            )
            for grad, q, k, v, out, weights, mask in zip(upstream, *parts, attended, kept, packing.masks(gradient.dtype), strict=True)
        ]
        to_query, to_key, to_value = zip(*gradients, strict=True)
        return (
            _unpadded(to_query, packing, first_tokens),
            _unpadded(to_key, packing, False),
            _unpadded(to_value, packing, False),
            None,
            None,
            None,
        )


def _is_short(key: Tensor) -> bool:
    """Whether products of matrices are faster for these (rows, heads, longest, d)."""
    return key.shape[2] <= SHORT


def _by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attended (rows, heads, queries, d), and the weights (rows * heads, queries, longest), never in half precision."""
    q, k, v = (_precise(tensor.flatten(0, 1)) for tensor in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        scores = torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), beta=0, alpha=scale)
        if mask is not None:
            scores.unflatten(0, query.shape[:2]).add_(mask)
        weights = scores.softmax(-1)
        return weights.bmm(v).unflatten(0, query.shape[:2]).to(query.dtype), weights


def _precise(tensor: Tensor) -> Tensor:
    """In float32 at least, as the kernel computes inside: small products are slower in half precision, and round more."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _products_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, weights: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, of the gradient of what `_by_products` gave."""
    upstream, q, k, v = (_precise(tensor.flatten(0, 1)) for tensor in (gradient, query, key, value))
    unused, shape = q.new_empty(1), query.shape[:2]
    with torch.autocast("cpu", enabled=False):
        to_scores = torch.ops.aten._softmax_backward_data(upstream.bmm(v.transpose(1, 2)), weights, -1, weights.dtype)
        to_query = torch.baddbmm(unused, to_scores, k, beta=0, alpha=scale)
        to_key = torch.baddbmm(unused, to_scores.transpose(1, 2), q, beta=0, alpha=scale)
        to_value = weights.transpose(1, 2).bmm(upstream)
    return tuple(found.unflatten(0, shape).to(query.dtype) for found in (to_query, to_key, to_value))


def _padded(tokens: Tensor, packing: Packing, one_each: bool, zeros: bool = False) -> list[Tensor]:
    """(rows, heads, longest, d) of each group from (T, heads, d), or (rows, heads, 1, d) from one token of each row, (b, heads, d).

    What stands in padding is some token, or zero where `zeros` asks for it.
    """
    if one_each:
        return [part.unsqueeze(2) for part in tokens.split([group.rows for group in packing.groups])]
    heads, width = tokens.shape[1:]
    cells, flat = packing.cells(heads), tokens.reshape(-1, width)
    flat = flat.new_zeros(len(cells.tokens), width).index_copy_(0, cells.cells, flat) if zeros else flat.index_select(0, cells.tokens)
    parts = flat.split([group.rows * group.longest * heads for group in packing.groups])
    return [part.view(group.rows, heads, group.longest, width) for group, part in zip(packing.groups, parts, strict=True)]


def _unpadded(parts: Sequence[Tensor], packing: Packing, one_each: bool) -> Tensor:
    """What `_padded` takes, from what it gives."""
    heads, width = parts[0].shape[1], parts[0].shape[3]
    flat = torch.cat([part.reshape(-1, width) for part in parts])
    return flat.view(-1, heads, width) if one_each else flat.index_select(0, packing.cells(heads).cells).view(-1, heads, width)

"""Attention over rows laid end to end: no padded token enters a linear layer.

A transformers model asks its attention function by name. Ours is called `packed`: the model sees one long
sequence `(1, T)`, and only this function knows where each row begins and ends.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bert_train_parallel.models.cpu_attention import CpuAttention
from bert_train_parallel.models.packing import Group, Packing, make_packing

NAME = "packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each row of `packing`, as transformers' attention interface calls it.

    Args:
        query, key, value: (1, heads, T, d), the rows end to end.
        sliding_window: a token sees those less than this far away; None: all of its row.
    Returns:
        (1, T, heads, d), and no weights.
    """
    # squeeze, where an index would cost a tensor of zeros in backward
    queries, keys, values = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    return attend(queries, keys, values, packing, dropout, scaling, sliding_window).unsqueeze(0), None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    first_tokens: bool = False,
) -> Tensor:
    """Attention within each row, (T, heads, d) from (T, heads, d).

    With `first_tokens`, query and result are those of the first token of each row alone, (b, heads, d).
    """
    if _has_varlen(query, dropout):
        return _varlen(query, key, value, packing, scaling, sliding_window, first_tokens)
    if query.device.type == "cpu" and not dropout and sliding_window is None:
        return CpuAttention.apply(query, key, value, packing, scaling, first_tokens)
    return _grouped(query, key, value, packing, dropout, scaling, sliding_window, first_tokens)


def _grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
    first_tokens: bool,
) -> Tensor:
    """What `attend` gives, by one call for each group of rows of like length."""
    sizes = [group.size for group in packing.groups]
    asked_sizes = [group.rows for group in packing.groups] if first_tokens else sizes
    outputs = []
    parts = zip(packing.groups, query.split(asked_sizes), key.split(sizes), value.split(sizes), strict=True)
    for group, asked, keys, values in parts:
        q = asked.unsqueeze(2) if first_tokens else _rows(asked, group)
        mask = _visible(group, sliding_window, first_tokens, query.device)
        attended = F.scaled_dot_product_attention(
            q, _rows(keys, group), _rows(values, group), attn_mask=mask, dropout_p=dropout, scale=scaling
        )
        attended = attended.transpose(1, 2).flatten(0, 1)
        outputs.append(attended if group.cells is None or first_tokens else attended.index_select(0, group.cells))
    return torch.cat(outputs)


def _rows(tokens: Tensor, group: Group) -> Tensor:
    """(rows, heads, longest, d) from the tokens (size, heads, d) of a group."""
    cells = tokens if group.tokens is None else tokens.index_select(0, group.tokens)
    return cells.unflatten(0, (group.rows, group.longest)).transpose(1, 2)


def _visible(group: Group, sliding_window: int | None, first_tokens: bool, device: torch.device) -> Tensor | None:
    """(rows or 1, 1, queries or 1, longest) True where a query may look; None where it may look everywhere."""
    if sliding_window is None or sliding_window >= group.longest:
        return group.mask
    place = torch.arange(group.longest, device=device)
    near = (place[: 1 if first_tokens else None, None] - place).abs() < sliding_window
    if group.mask is None or first_tokens:
        return near[None, None] if group.mask is None else near & group.mask
    return near & group.mask | ~group.mask.transpose(-1, -2)  # a padded cell must see something: softmax of nothing is NaN


def _has_varlen(query: Tensor, dropout: float) -> bool:
    """Whether the kernel for rows of any length takes these: half precision on a GPU, no dropout, and right when tried."""
    if query.device.type != "cuda" or dropout or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    return _varlen_is_right(query.device, query.dtype, query.shape[1], query.shape[2])


@cache
def _varlen_is_right(device: torch.device, dtype: torch.dtype, heads: int, width: int) -> bool:
    """Tries the kernel once on a few rows: it is for compute capability 8.0 on, and its interface is young."""
    lengths = (1, 3, 17)
    draw = torch.Generator(device).manual_seed(0)
    own = torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)  # a checkpointed layer counts what is saved, and tries only once
    with own, torch.inference_mode(False), torch.enable_grad(), torch.autocast("cuda", enabled=False):
        packing = make_packing(lengths, device)
        query, key, value = (
            torch.randn(sum(lengths), heads, width, device=device, dtype=dtype, generator=draw).requires_grad_() for _ in range(3)
        )

        def tried(first_tokens: bool, grouped: bool) -> list[Tensor]:
            """Results and gradients of either way."""
            asked = query[: len(lengths)] if first_tokens else query
            if grouped:
                attended = _grouped(asked, key, value, packing, 0.0, None, None, first_tokens)
            else:
                attended = _varlen(asked, key, value, packing, None, None, first_tokens)
            return [attended, *torch.autograd.grad(attended.float().square().sum(), (query, key, value))]

        try:
            found = tried(first_tokens=False, grouped=False) + tried(first_tokens=True, grouped=False)
        except (ImportError, TypeError, RuntimeError):
            return False
        expected = tried(first_tokens=False, grouped=True) + tried(first_tokens=True, grouped=True)
    pairs = zip(found, expected, strict=True)
    return all(bool((mine - theirs).detach().abs().max() <= 0.02 * theirs.detach().abs().max()) for mine, theirs in pairs)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None, sliding_window: int | None, first_tokens: bool
) -> Tensor:
    """What `attend` gives, by one kernel call without any padding."""
    from torch.nn.attention.varlen import varlen_attn

    longest = packing.lengths[-1]
    window = (-1, -1) if sliding_window is None else (sliding_window - 1, sliding_window - 1)
    starts, longest_query = packing.starts, longest
    if first_tokens:
        starts, longest_query = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device), 1
        if sliding_window is not None:
            raise ValueError("a sliding window is aligned at the row's end, where first tokens are not")
    return varlen_attn(query, key, value, starts, packing.starts, longest_query, longest, scale=scaling, window_size=window)


def register() -> None:
    """Make `packed` an attention implementation that transformers knows; calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)

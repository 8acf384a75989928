"""Attention over rows laid end to end: no padded token enters a linear layer.

A transformers model asks its attention function by name. Ours is called `packed`: the model sees one long
sequence `(1, T)`, and only this function knows where each row begins and ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "packed"
_WASTE = 1.15  # padded area of a group over the area of its rows, at most; measured on two and on one CPU core
_SHORT = 64  # tokens of a row up to which products of matrices beat the kernel on a CPU
_ALIGNED = 16  # longer rows are padded to a multiple of it: in bfloat16 the kernel on a CPU keeps 2 MB for each length it has met
_FEW = 3  # rows that are worth a call of their own, unless the next is more than twice as long


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """Rows of like length that share one attention call, padded to `longest` for that call alone."""

    rows: int
    longest: int  # cells of a row
    size: int  # tokens
    tokens: Tensor | None  # (rows * longest,) the group's token in each cell; None: equal lengths, so cells are tokens
    cells: Tensor | None  # (size,) the cell of each token
    mask: Tensor | None  # (rows, 1, 1, longest) True where a cell holds a token


@dataclass(frozen=True, eq=False, slots=True)
class Cells:
    """Where each head of each token goes when the rows of each group lie padded to its longest, (rows, heads, longest), and back."""

    tokens: Tensor  # (area * heads,) what is in each cell: token * heads + head; of some token where there is padding
    cells: Tensor  # (T * heads,) the cell of each head of each token


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the rows of one forward pass lie, in ascending order of length; made once, used by every layer."""

    lengths: tuple[int, ...]  # ascending
    starts: Tensor  # (b + 1,) int32 on the model's device
    _masks: dict[torch.dtype, list[Tensor | None]] = field(default_factory=dict, init=False)
    _cells: dict[int, Cells] = field(default_factory=dict, init=False)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Made where attention goes by groups; the kernel for rows of any length needs none."""
        lengths = torch.tensor(self.lengths)
        return tuple(_make_group(lengths[rows.start : rows.stop], self.starts.device) for rows in group_lengths(self.lengths))

    def cells(self, heads: int) -> Cells:
        """The cells of all groups, one group after the other; made once for a number of heads."""
        if heads not in self._cells:
            head = torch.arange(heads)[:, None]  # (heads, 1)
            tokens, cells, first_token, first_cell = [], [], 0, 0
            for group in self.groups:
                area = group.rows * group.longest
                in_group = torch.arange(area) if group.tokens is None else group.tokens
                places = (in_group + first_token).view(group.rows, 1, group.longest) * heads + head
                tokens.append(places.flatten())
                cell = torch.arange(area) if group.cells is None else group.cells
                row, place = cell // group.longest, cell % group.longest
                cells.append(first_cell + (row * heads + head) * group.longest + place)  # (heads, size)
                first_token, first_cell = first_token + group.size, first_cell + area * heads
            self._cells[heads] = Cells(torch.cat(tokens), torch.cat(cells, 1).t().flatten())
        return self._cells[heads]

    def masks(self, dtype: torch.dtype) -> list[Tensor | None]:
        """The mask of each group as numbers to be added to scores of this dtype."""
        if dtype not in self._masks:
            self._masks[dtype] = [
                None if group.mask is None else torch.zeros(group.mask.shape, dtype=dtype).masked_fill_(~group.mask, -torch.inf)
                for group in self.groups
            ]
        return self._masks[dtype]


def group_lengths(ascending: Sequence[int]) -> list[range]:
    """Cuts rows, in ascending order of length, into groups whose padding costs less than another call would.

    >>> group_lengths([15, 15, 15, 15, 16, 30, 30, 30, 31, 31, 512])
    [range(0, 5), range(5, 10), range(10, 11)]
    """
    groups: list[range] = []
    begin, area = 0, 0
    for row, length in enumerate(ascending):
        padded = (row + 1 - begin) * length * length
        if row > begin and padded > _WASTE * (area + length * length) and (row - begin >= _FEW or length > 2 * ascending[begin]):
            groups.append(range(begin, row))
            begin, area = row, 0
        area += length * length
    if begin < len(ascending):
        groups.append(range(begin, len(ascending)))
    return groups


def make_packing(ascending: Sequence[int], device: torch.device) -> Packing:
    """The packing of rows that lie end to end, in ascending order of length."""
    starts = F.pad(torch.tensor(ascending, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
    return Packing(tuple(ascending), to_device(starts, device))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy that a GPU makes when it gets to it, while Python goes on."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _make_group(lengths: Tensor, device: torch.device) -> Group:
    rows, longest, size = len(lengths), int(lengths[-1]), int(lengths.sum())
    if longest > _SHORT:
        longest = -(-longest // _ALIGNED) * _ALIGNED
    if int(lengths[0]) == longest:
        return Group(rows, longest, size, None, None, None)
    inside = torch.arange(longest) < lengths[:, None]
    cells = inside.flatten().nonzero().squeeze(1)
    tokens = torch.zeros(rows * longest, dtype=torch.int64).index_copy_(0, cells, torch.arange(size))
    return Group(rows, longest, size, to_device(tokens, device), to_device(cells, device), to_device(inside[:, None, None], device))


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
        return _OnCpu.apply(query, key, value, packing, scaling, first_tokens)
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


class _OnCpu(torch.autograd.Function):
    """What `_grouped` gives on a CPU without dropout, in a fraction of the calls: gathered once for all groups, in backward too.

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
    return key.shape[2] <= _SHORT


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

"""Attention over rows laid end to end: no padded token enters a linear layer.

A transformers model asks its attention function by name. Ours is called `packed`: the model sees one long
sequence `(1, T)`, and only this function knows where each row begins and ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "packed"
_WASTE = 1.25  # padded area of a group over the area of its rows, at most; 1 would mean equal lengths only
_FEW = 4  # rows that are worth a call of their own even when their lengths differ more


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """Rows of like length that share one attention call: `rows` of them, padded to `longest` for that call alone."""

    rows: int
    longest: int
    tokens: Tensor | None  # (rows * longest,) where each cell's token stands in the packing; None: equal lengths, in order
    mask: Tensor | None  # (rows, 1, 1, longest) True for a token; None: equal lengths
    cells: Tensor | None  # (tokens of the group,) which cells hold tokens


@dataclass(frozen=True, eq=False, slots=True)
class Packing:
    """Where the rows of one forward pass lie, in ascending order of length; made once, used by every layer."""

    lengths: tuple[int, ...]  # ascending
    starts: Tensor  # (b + 1,) int32 on the model's device
    groups: tuple[Group, ...]

    @property
    def sizes(self) -> list[int]:
        """Tokens of each group."""
        return [group.rows * group.longest if group.cells is None else len(group.cells) for group in self.groups]


def group_lengths(ascending: Sequence[int]) -> list[range]:
    """Cuts rows, in ascending order of length, into groups whose padding costs less than another call would.

    >>> group_lengths([7, 7, 7, 7, 8, 30, 30, 30, 31, 31, 512])
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
    lengths = torch.tensor(ascending, dtype=torch.int64)
    starts = F.pad(lengths.cumsum(0), (1, 0))
    groups = []
    for rows in group_lengths(ascending):
        longest = ascending[rows[-1]]
        if ascending[rows[0]] == longest:
            groups.append(Group(len(rows), longest, None, None, None))
            continue
        inside = torch.arange(longest) < lengths[rows[0] : rows[-1] + 1, None]
        first = starts[rows[0]]
        tokens = (starts[rows[0] : rows[-1] + 1, None] - first + torch.arange(longest)).where(inside, 0).flatten()
        cells = inside.flatten().nonzero().squeeze(1)
        groups.append(Group(len(rows), longest, tokens.to(device), inside[:, None, None].to(device), cells.to(device)))
    return Packing(tuple(ascending), starts.to(device, torch.int32), tuple(groups))


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
    if _has_varlen(query, dropout):
        return _varlen(query, key, value, packing, scaling, sliding_window).unsqueeze(0), None
    grouped = [tensor[0].transpose(0, 1).split(packing.sizes) for tensor in (query, key, value)]  # (tokens, heads, d) each
    outputs = []
    for group, *parts in zip(packing.groups, *grouped, strict=True):
        cells = [part if group.tokens is None else part.index_select(0, group.tokens) for part in parts]
        q, k, v = (cell.view(group.rows, group.longest, *cell.shape[1:]).transpose(1, 2) for cell in cells)
        mask = _within(group, sliding_window, query.device)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling)
        attended = attended.transpose(1, 2).flatten(0, 1)
        outputs.append(attended if group.cells is None else attended.index_select(0, group.cells))
    return torch.cat(outputs).unsqueeze(0), None


def _has_varlen(query: Tensor, dropout: float) -> bool:
    """Whether the kernel for rows of any length takes these: half precision, no dropout, compute capability 8.0 on."""
    if query.device.type != "cuda" or dropout or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def _varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None, sliding_window: int | None) -> Tensor:
    """(T, heads, d) by one kernel call, without any padding."""
    from torch.nn.attention.varlen import varlen_attn

    window = (-1, -1) if sliding_window is None else (sliding_window - 1, sliding_window - 1)
    longest = packing.lengths[-1]
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    return varlen_attn(*rows, packing.starts, packing.starts, longest, longest, scale=scaling, window_size=window)


def _within(group: Group, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """(rows or 1, 1, longest or 1, longest) True where a token may look; None where it may look everywhere."""
    if sliding_window is None or sliding_window >= group.longest:
        return group.mask
    place = torch.arange(group.longest, device=device)
    near = (place[:, None] - place).abs() < sliding_window
    if group.mask is None:
        return near[None, None]
    return near & group.mask | ~group.mask.transpose(-1, -2)  # a padded cell must see something: softmax of nothing is NaN


def register() -> None:
    """Make `packed` an attention implementation that transformers knows; calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)

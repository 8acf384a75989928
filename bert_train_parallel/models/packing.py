"""Where rows of unequal length lie when they are laid end to end, and which of them share an attention call.

Made once for a forward pass, and used by every layer: no padded token enters a linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 64  # tokens of a row up to which products of matrices beat the kernel on a CPU
_WASTE = 1.15  # padded area of a group over the area of its rows, at most; measured on two and on one CPU core
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
    if longest > SHORT:
        longest = -(-longest // _ALIGNED) * _ALIGNED
    if int(lengths[0]) == longest:
        return Group(rows, longest, size, None, None, None)
    inside = torch.arange(longest) < lengths[:, None]
    cells = inside.flatten().nonzero().squeeze(1)
    tokens = torch.zeros(rows * longest, dtype=torch.int64).index_copy_(0, cells, torch.arange(size))
    return Group(rows, longest, size, to_device(tokens, device), to_device(cells, device), to_device(inside[:, None, None], device))

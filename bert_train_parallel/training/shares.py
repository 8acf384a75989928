"""Which rows of a global batch each rank computes: by tokens, in proportion to how fast the ranks are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bert_train_parallel.data.batches import IntArray
from bert_train_parallel.errors import BadSetting

# Shares follow the speeds only where equal ones make a step this much longer than it need be: at once, or when two measurements
# in a row say so. Smaller differences are noise, and shares that stay as they are repeat to the bit.
_AT_ONCE, _TWICE = 1.5, 1.2
_MEMORY = 0.5  # weight of what was known in a new estimate of a speed


@dataclass(frozen=True, slots=True)
class Shares:
    """How a batch is cut over the ranks, and the measured speeds behind it. Equal on every rank: its inputs are gathered.

    >>> shares = Shares.equal(2).after(seconds=(1.0, 3.0), tokens=(900, 900))
    >>> [round(part, 2) for part in shares.parts]
    [0.75, 0.25]
    >>> shares.cut([10] * 8)
    [slice(0, 6, None), slice(6, 8, None)]
    """

    parts: tuple[float, ...]  # of the tokens of a batch, one for each rank, with the sum 1; 0: the rank computes nothing
    speeds: tuple[float, ...] = ()  # tokens per second of each rank, as measured; empty before
    fixed: bool = False  # set by the user: speeds are measured, the parts stay
    in_doubt: bool = False  # the last measurement would have them changed

    @classmethod
    def equal(cls, ranks: int, fixed: bool = False) -> Shares:
        return cls((1 / ranks,) * ranks, fixed=fixed)

    @classmethod
    def of_setting(cls, setting: str, ranks: int) -> Shares:
        """`auto`, `equal`, or numbers such as `3,1,1`; in a world that goes on without lost nodes, the numbers of those left.

        Raises:
            BadSetting: as many numbers as ranks are expected.
        """
        if setting in ("auto", "equal"):
            return cls.equal(ranks, fixed=setting == "equal")
        numbers = [float(part) for part in setting.split(",")]
        left = numbers_left(numbers, ranks, os.environ)
        if left is None and len(numbers) != ranks:
            raise BadSetting(f"--shares {setting} has {len(numbers)} numbers, and the world has {ranks} ranks. Give one for each, or auto.")
        numbers = numbers if left is None else left
        if not sum(numbers):
            return cls.equal(ranks)
        return cls(tuple(number / sum(numbers) for number in numbers), fixed=True)

    def cut(self, lengths: IntArray | Sequence[int]) -> list[slice]:
        """The rows of each rank: neighbours, all rows covered once, tokens as near to the parts as whole rows allow.

        Args:
            lengths: (B,) tokens of the rows of the global batch, in its order.
        Returns:
            one slice for each rank; some may be empty.
        """
        ends = np.concatenate(([0], np.cumsum(lengths)))  # (B + 1,) tokens before each edge between rows
        wanted = np.cumsum(self.parts)[:-1] * ends[-1]
        nearest = np.searchsorted((ends[:-1] + ends[1:]) / 2, wanted, side="right")
        edges = [0, *nearest.tolist(), len(ends) - 1]
        return [slice(first, last) for first, last in itertools.pairwise(edges)]

    def after(self, seconds: Sequence[float], tokens: Sequence[float]) -> Shares:
        """The shares for the next steps, from what each rank has computed since the last call.

        Args:
            seconds: time each rank spent computing, waiting for others left out.
            tokens: tokens it computed in that time; 0 leaves its speed as it was known.
        """
        known = self.speeds or (0.0,) * len(self.parts)
        measured = [count / time if count and time > 0 else 0.0 for time, count in zip(seconds, tokens, strict=True)]
        speeds = tuple(_blend(old, new) for old, new in zip(known, measured, strict=True))
        if self.fixed or not all(speeds):
            return replace(self, speeds=speeds)
        ideal = tuple(speed / sum(speeds) for speed in speeds)
        longer = _step_time(self.parts, speeds) / _step_time(ideal, speeds)
        if longer >= _AT_ONCE or (longer >= _TWICE and self.in_doubt):
            return replace(self, parts=ideal, speeds=speeds, in_doubt=False)
        return replace(self, speeds=speeds, in_doubt=longer >= _TWICE)

    @property
    def known_speeds(self) -> tuple[float, ...]:
        """The speeds; all alike where one is not known."""
        return self.speeds if self.speeds and all(self.speeds) else (1.0,) * len(self.parts)

    @property
    def utilisation(self) -> tuple[float, ...]:
        """Share of a step in which each rank computes, the busiest one being 1; empty before anything was measured."""
        if not self.speeds or not all(self.speeds):
            return ()
        busy = [part / speed for part, speed in zip(self.parts, self.speeds, strict=True)]
        return tuple(time / max(busy) for time in busy)


def numbers_left(numbers: Sequence[float], ranks: int, environ: Mapping[str, str]) -> list[float] | None:
    """Of one number for each rank of the first world, those of the ranks that are left.

    Returns:
        None in a world that has lost no rank; an empty list where the launcher does not say which ranks are left.

    >>> numbers_left([3, 1, 2], 2, {"BERT_TRAIN_RANKS_LEFT": "0,2"}), numbers_left([3, 1, 2], 2, {"BERT_TRAIN_RANKS_LEFT": ""})
    ([3, 2], [])
    >>> numbers_left([3, 1], 2, {})
    """
    said = environ.get("BERT_TRAIN_RANKS_LEFT")
    if said is None:  # of other launchers, torchrun tells at least that this is not the first start
        restarted = environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")
        return [] if restarted and ranks < len(numbers) else None
    left = [int(rank) for rank in said.split(",") if rank.isdecimal()]
    if len(left) != ranks or max(left) >= len(numbers):
        return []
    return [numbers[rank] for rank in left]


def words_on_those_left(setting: str, ranks: int, environ: Mapping[str, str]) -> str:
    """A sentence about shares that a user has set, for a world that goes on without lost nodes; empty where there is nothing to say.

    >>> words_on_those_left("3,1,2", 2, {"BERT_TRAIN_RANKS_LEFT": "0,2"})
    '--shares 3,1,2: the ranks that are left keep their numbers, 3,2.'
    """
    if setting in ("auto", "equal"):
        return ""
    left = numbers_left([float(part) for part in setting.split(",")], ranks, environ)
    if left is None:
        return ""
    if sum(left):
        return f"--shares {setting}: the ranks that are left keep their numbers, {','.join(f'{number:g}' for number in left)}."
    reason = "the ranks that are left had none of it" if left else "which of its numbers are those of the ranks that are left is not known"
    return f"--shares {setting}: {reason}; shares follow measured speeds from here on (auto)."


def _blend(old: float, new: float) -> float:
    """A speed known so far and a new measurement of it, either 0 for unknown."""
    return new if not old else old if not new else _MEMORY * old + (1 - _MEMORY) * new


def _step_time(parts: Sequence[float], speeds: Sequence[float]) -> float:
    """Seconds per token of a batch when all wait for the slowest."""
    return max(part / speed for part, speed in zip(parts, speeds, strict=True))


def micro_batches(lengths: IntArray | Sequence[int], max_rows: int | None, max_tokens: int | None) -> list[slice]:
    """Neighbouring rows that are computed at once: as many as fit, one row at least; nothing gives one empty slice.

    >>> micro_batches([3, 3, 4, 9], max_rows=None, max_tokens=6)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    >>> micro_batches([], 8, None)
    [slice(0, 0, None)]
    """
    slices, first, held = [], 0, 0
    for row, length in enumerate(lengths):
        full = (max_rows is not None and row - first >= max_rows) or (max_tokens is not None and held + length > max_tokens)
        if row > first and full:
            slices.append(slice(first, row))
            first, held = row, 0
        held += int(length)
    return [*slices, slice(first, len(lengths))]

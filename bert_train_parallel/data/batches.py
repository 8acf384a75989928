"""Rows of tokens without padding, and which of them make up a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Rows:
    """The folded rows of one split, one after the other, with [CLS] and [SEP]; N rows of T tokens in all.

    Row i is `tokens[offsets[i]:offsets[i + 1]]`. For a sentence pair the tokens from `segments_at[i]` on
    (counted within the row) belong to the second text; for a single text it is the row's length.
    """

    tokens: IntArray  # (T,) uint16 or uint32, may be a memory map
    offsets: IntArray  # (N + 1,) int64, from 0 to T
    segments_at: IntArray  # (N,) int32
    sample: IntArray  # (N,) int64, number of the sample in the store; ascending
    targets: npt.NDArray[np.generic]  # (N, k): class codes int64, or float64 for regression; k = 1 for one label
    weights: FloatArray  # (N,) float64, 1 unless the settings say otherwise

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """(N,) tokens of each row."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one share, b of them with T tokens in all, ready for packed attention; b = 0 is legal."""

    tokens: IntArray  # (T,) int64
    positions: IntArray  # (T,) int64, from 0 in each row
    segments: IntArray  # (T,) int64, 0 or 1
    starts: IntArray  # (b + 1,) int64, where each row begins, and T
    targets: npt.NDArray[np.generic]  # (b, k)
    weights: FloatArray  # (b,)
    rows: IntArray  # (b,) row numbers in the split
    total_weight: float  # sum of the weights of the valid targets of the GLOBAL batch

    def __len__(self) -> int:
        return len(self.rows)

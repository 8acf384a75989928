"""How much of a share a device computes at once: found before the first step on a GPU, halved wherever it was too much."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from bert_train_parallel.data.batches import IntArray, Rows
from bert_train_parallel.errors import OutOfMemory
from bert_train_parallel.models.inference import tells_of_memory
from bert_train_parallel.training import memory
from bert_train_parallel.training.shares import micro_batches
from bert_train_parallel.training.world import World

_SAFE = 0.9  # of the memory is planned with; less after each restart, which an error of this kind may have caused
_AFTER_RESTART = 0.8


class Room:
    """Cuts shares into parts: of as many rows as the settings say, and of as many tokens as the device has memory for."""

    def __init__(self, rows: Rows, max_rows: int | None, world: World) -> None:
        self.max_tokens: int | None = None  # of a part; None until memory asks for a limit
        self._rows, self._max_rows, self._world = rows, max_rows, world

    def parts(self, numbers: IntArray) -> list[IntArray]:
        """The rows of these numbers in parts that are computed one after the other; one empty part of none."""
        return [numbers[part] for part in micro_batches(self.lengths(numbers), self._max_rows, self.max_tokens)]

    def lengths(self, numbers: IntArray) -> IntArray:
        return self._rows.offsets[numbers + 1] - self._rows.offsets[numbers]

    def tokens(self, numbers: IntArray) -> int:
        return int(self.lengths(numbers).sum())

    def limit(self, max_tokens: int | None) -> None:
        """Parts of no more tokens than these, as they were before a run was stopped: the same cuts add up to the same gradients."""
        if max_tokens:
            self.max_tokens = min(max_tokens, self.max_tokens or max_tokens)

    def find(self, batch_size: int, attempt: Callable[[IntArray], None], to_come: int) -> None:
        """Limit the tokens to what fits this GPU, by computing the heaviest part there can be, or as much of it as fits.

        Averaging begins inside a backward pass, and an error there cannot be undone; so the limit is found without any.

        Args:
            batch_size: rows of a global batch.
            attempt: forward and backward over rows, without averaging.
            to_come: bytes that the optimizer will take beside.
        Raises:
            OutOfMemory: not even one row fits.
        """
        device, rows = self._world.device, self.heaviest(batch_size)
        _fits(attempt, rows[:1], device)  # from here on the gradients are there
        before = torch.cuda.memory_allocated(device)
        while not _fits(attempt, rows, device):
            if len(rows) < 2:
                raise OutOfMemory(memory.sentence(self._world, self.tokens(rows)))
            rows = rows[: len(rows) // 2]
        each_token = (torch.cuda.max_memory_allocated(device) - before) / self.tokens(rows)
        free, total = torch.cuda.mem_get_info(device)
        others = total - free - torch.cuda.memory_reserved(device)
        usable = total * _SAFE * _AFTER_RESTART**self._world.rank.attempt - others - before - to_come
        self.limit(max(self.tokens(rows[:1]), int(usable / each_token) if usable > 0 else 0))

    def heaviest(self, batch_size: int) -> IntArray:
        """The longest rows of the split, as many as a part may ever have: shares change, up to a whole batch for one rank."""
        lengths = self._rows.lengths
        rows = min(len(lengths), batch_size, self._max_rows or batch_size)
        return np.argpartition(lengths, len(lengths) - rows)[len(lengths) - rows :]

    def halve(self, parts: Sequence[IntArray]) -> None:
        """Limit the tokens further, after one of these parts did not fit.

        Raises:
            OutOfMemory: each was one row already.
        """
        most = max(map(self.tokens, parts))
        if len(parts) >= sum(map(len, parts)):
            raise OutOfMemory(memory.sentence(self._world, most))
        torch.cuda.empty_cache()
        self.max_tokens = max(1, most // 2)


def _fits(attempt: Callable[[IntArray], None], rows: IntArray, device: torch.device) -> bool:
    torch.cuda.reset_peak_memory_stats(device)
    try:
        attempt(rows)
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        if not tells_of_memory(error):
            raise
    else:
        return True
    torch.cuda.empty_cache()  # out of the except block, whose traceback keeps the activations alive
    return False

"""How many tokens a GPU can hold at once, found before the first step, what to say when it is not enough, and what a CPU gives back."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch

from bert_train_parallel.data.batches import IntArray
from bert_train_parallel.errors import OutOfMemory
from bert_train_parallel.training.world import World

_SAFE = 0.9  # of the memory is planned with; less after each restart, which an error of this kind may have caused
_AFTER_RESTART = 0.8
_KEPT_FOR_LATER = 128 << 20  # bytes that the C library may keep of what was freed


def find_room(heaviest: IntArray, tokens_of: Callable[[IntArray], int], attempt: Callable[[IntArray], None], world: World) -> int:
    """Tokens of a micro-batch that fit this GPU, by computing the heaviest share there can be, or as much of it as fits.

    Averaging begins inside a backward pass, and an error there cannot be undone; so the limit is found without any.

    Args:
        heaviest: row numbers of that share.
        attempt: forward and backward over rows, without averaging.
    Raises:
        OutOfMemory: not even one row fits.
    """
    device, rows = world.device, heaviest
    _fits(attempt, rows[:1], device)  # from here on the gradients are there
    before = torch.cuda.memory_allocated(device)
    while not _fits(attempt, rows, device):
        if len(rows) < 2:
            raise OutOfMemory(sentence(world, tokens_of(rows)))
        rows = rows[: len(rows) // 2]
    each_token = (torch.cuda.max_memory_allocated(device) - before) / tokens_of(rows)
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    moments = before  # of AdamW, which come with the first step: two for each parameter, as its value and its gradient are two
    usable = total * _SAFE * _AFTER_RESTART**world.rank.attempt - others - before - moments
    return max(tokens_of(rows[:1]), int(usable / each_token) if usable > 0 else 0)


def halved(sizes: Sequence[int], rows: int, world: World) -> int:
    """The limit of tokens to try next, after micro-batches of these sizes did not fit.

    Raises:
        OutOfMemory: each was one row already.
    """
    if len(sizes) >= rows:
        raise OutOfMemory(sentence(world, max(sizes, default=0)))
    torch.cuda.empty_cache()
    return max(1, max(sizes) // 2)


def sentence(world: World, tokens: int | None = None) -> str:
    """What to say when the device has no room for the work of a step."""
    what = f"for one row of {tokens} tokens" if tokens else "for the work of a step"
    return (
        f"{world.hosts[world.rank.rank]}, {world.device}: no memory left {what}. Try --micro_batch_size 8 or less, "
        "--gradient_checkpointing, --dtype bfloat16, a smaller --sequence_len or a smaller model. "
        "What was saved so far is whole, and --resume goes on from it."
    )


def return_freed(above: int = _KEPT_FOR_LATER) -> bool:
    """Give what was freed back to the system, where the C library keeps more than `above` bytes of it; whether it did.

    Steps of differing sizes leave gaps that later tensors do not fit: of 1.0 GiB after 15 steps a quarter was in use.
    Some 30 ms for 300 MB. Only glibc tells and trims; elsewhere nothing is done.
    """
    glibc = _glibc()
    if glibc is None or glibc.mallinfo2().fordblks <= above:
        return False
    return bool(glibc.malloc_trim(0))


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and newer."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


@cache
def _glibc() -> Any:
    """The C library of this process, or None where it is not a glibc that can be asked."""
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _MallocInfo
        library.malloc_trim.argtypes = [ctypes.c_size_t]
    except (AttributeError, OSError, TypeError):
        return None
    return library


@contextlib.contextmanager
def errors_as_sentences(world: World) -> Iterator[None]:
    """Raises OutOfMemory where torch says in its own words that a device or this machine has no memory left."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(sentence(world)) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise OutOfMemory(sentence(world)) from error
        raise


def _fits(attempt: Callable[[IntArray], None], rows: IntArray, device: torch.device) -> bool:
    torch.cuda.reset_peak_memory_stats(device)
    try:
        attempt(rows)
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        pass
    else:
        return True
    torch.cuda.empty_cache()  # out of the except block, whose traceback keeps the activations alive
    return False

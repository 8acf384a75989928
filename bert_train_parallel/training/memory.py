"""What to say when a device has no memory left, and what a CPU gives back to the system."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from functools import cache
from typing import Any

from bert_train_parallel.errors import OutOfMemory
from bert_train_parallel.models.inference import tells_of_memory
from bert_train_parallel.training.world import World

_KEPT_FOR_LATER = 128 << 20  # bytes that the C library may keep of what was freed


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
    except RuntimeError as error:
        if not tells_of_memory(error):
            raise
        raise OutOfMemory(sentence(world)) from error

"""Rows of a large split in a file beside the store, which all processes of a machine map into memory.

The file is nothing but arrays, one after the other; their types and lengths are known to the store.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import mmap
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bert_train_parallel.data.store_lock import only_builder
from bert_train_parallel.errors import NotWritable
from bert_train_parallel.run_files import written_aside

Part = tuple[str, int]  # an array's type and length


def bytes_of(parts: Sequence[Part]) -> int:
    """What the arrays take, in the file as in memory."""
    return sum(map(_bytes_of_one, parts))


def _bytes_of_one(part: Part) -> int:
    kind, length = part
    return np.dtype(kind).itemsize * length


def mapped_file(store: Path, fingerprint: str, split: str) -> Path:
    """Where the rows of a split lie; those of another content of the store have another name."""
    return store.with_name(f".{store.name}.{fingerprint}.{split}.rows")


def map_arrays(path: Path, parts: Sequence[Part], write: Callable[[IO[bytes]], None]) -> list[npt.NDArray[Any]] | None:
    """Arrays of these types and lengths, which `write` writes, in a file that is mapped; None where none can be.

    It lies beside the store, and is trusted as the store is. Of processes that come at the same time one writes it, and
    the others wait: each file that is written takes its place on the disk and in memory. Where it cannot be written, each
    process maps a temporary file of its own that has no name, so that nobody else can have written it and none stays.
    """
    with contextlib.suppress(NotWritable, OSError):  # of the latter, that the store is being replaced, and the file gone
        if not _has_size(path, parts):
            with only_builder(path):
                if not _has_size(path, parts):  # it may have been written meanwhile
                    with written_aside(path) as aside, open(aside, "wb") as file:
                        write(file)
        with open(path, "rb") as file:
            return _mapped(file, parts)
    with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
        write(file)
        file.flush()
        return _mapped(file, parts)
    return None


def _has_size(path: Path, parts: Sequence[Part]) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size == bytes_of(parts)
    return False


def _mapped(file: IO[bytes], parts: Sequence[Part]) -> list[npt.NDArray[Any]]:
    """The arrays that lie in a file one after the other, read when they are looked into."""
    whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    begins = itertools.accumulate(map(_bytes_of_one, parts), initial=0)
    return [np.frombuffer(whole, kind, length, begin) for (kind, length), begin in zip(parts, begins, strict=False)]


def forget_mapped_rows(store: Path) -> None:
    """Remove the files of rows beside a store that has been replaced; processes that have mapped them keep them."""
    name = glob.escape(store.name)
    for pattern in (f".{name}.*.rows", f"..{name}.*.rows.*"):  # the second: what killed processes left of writing them
        for file in store.parent.glob(pattern):
            file.unlink(missing_ok=True)

"""One builder of a store at a time, over all processes and machines that share its folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bert_train_parallel.errors import not_writable

try:
    import fcntl
except ImportError:  # Windows: no lock between processes there; the rename still keeps the store whole
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def only_builder(store: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a store. What killed builders left beside it is removed; a folder that was made for the lock and
    stayed empty goes too.

    Args:
        waiting: called once when another process holds the lock.
    Raises:
        NotWritable: the folder is read-only or full.
    """
    lock = store.with_name(f".{store.name}.lock")
    made = not lock.parent.exists()
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(lock, waiting)
    except OSError as error:
        raise not_writable(error, store) or error from error
    try:
        for leftover in store.parent.glob(f".{store.name}.*.part"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()  # while it is held: who waits for this file finds that it is gone, and makes a new one
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):
                lock.parent.rmdir()


def _locked(lock: Path, waiting: Callable[[], None]) -> int:
    """A descriptor that holds the lock, of the file that bears its name now."""
    told = False
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        if fcntl is None:
            return descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                waiting()
                told = True
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        os.close(descriptor)

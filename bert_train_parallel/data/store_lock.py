"""One builder of a store at a time, over all processes and machines that share its folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bert_train_parallel.errors import not_writable

try:
    import fcntl
except ImportError:  # Windows: no lock between processes there; the rename still keeps the store whole
    fcntl = None  # type: ignore[assignment]

_TRIES = 20  # to make a folder that others, who have made and not filled it, remove


@contextlib.contextmanager
def only_builder(store: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a store. What killed builders left beside it is removed; folders that were made for the lock and
    stayed empty go too.

    Args:
        waiting: called once when another process holds the lock.
    Raises:
        NotWritable: the folder is read-only or full.
    """
    lock = store.with_name(f".{store.name}.lock")
    made: set[Path] = set()  # folders
    try:
        descriptor = _locked_in_its_folder(lock, waiting, made)
    except BaseException as error:
        _remove_empty(made)
        if isinstance(error, OSError):
            raise not_writable(error, store) or error from error
        raise
    try:
        for leftover in store.parent.glob(f".{store.name}.*.part"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()  # while it is held: who waits for this file finds that it is gone, and makes a new one
        _remove_empty(made)
        os.close(descriptor)


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that hold nothing, or nothing but each other."""
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _locked_in_its_folder(lock: Path, waiting: Callable[[], None], made: set[Path]) -> int:
    """A descriptor that holds the lock; its folder is made anew where the one who held the lock before has taken it away.

    Args:
        made: takes the folders that are made.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            made.update(folder for folder in lock.parents if not os.path.lexists(folder))
            lock.parent.mkdir(parents=True, exist_ok=True)
            return _locked(lock, waiting)
        except FileNotFoundError:
            if not tries_left:
                raise
    raise AssertionError


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

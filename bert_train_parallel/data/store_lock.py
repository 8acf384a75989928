"""One builder of a store at a time, over all processes and machines that share its folder."""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

from bert_train_parallel.errors import StoppedBySignal, not_writable

try:
    import fcntl
except ImportError:  # Windows: no lock between processes there; the rename still keeps the store whole
    fcntl = None  # type: ignore[assignment]

_ASKS = (signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_TRIES = 20  # to make a folder that others, who have made and not filled it, remove


@contextlib.contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the block as Ctrl-C does, where they would end the process at once.

    Raises:
        StoppedBySignal: one of them came.
    """
    asked: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) == 1:  # a second one would keep the first from removing what is left
            raise KeyboardInterrupt  # which no library catches with what went wrong

    held = []
    if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
        held = [number for number in _ASKS if signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in held:
            signal.signal(number, interrupt)
        yield
    except KeyboardInterrupt:
        if not asked:
            raise
        raise StoppedBySignal(f"stopped by {signal.Signals(asked[0]).name}.", 128 + asked[0]) from None
    finally:
        for number in held:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def only_builder(store: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a store. What killed builders left beside it is removed; folders that were made for the lock and
    stayed empty go too.

    Args:
        waiting: called once when another process holds the lock.
    Raises:
        NotWritable: the folder is read-only or full.
        StoppedBySignal: SIGTERM or SIGHUP, which nobody else handles, came; nothing is left of the lock, nor of what was begun.
    """
    with _ended_as_by_ctrl_c(), _held(store, waiting):
        yield


@contextlib.contextmanager
def _held(store: Path, waiting: Callable[[], None]) -> Iterator[None]:
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
        for leftover in store.parent.glob(f".{glob.escape(store.name)}.*.part"):
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

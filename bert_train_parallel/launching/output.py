"""What ranks print: each line to the terminal with its rank, and every byte to a log file per rank.

Nothing here ever waits: a terminal that does not take more (a pager, Ctrl-S) must not keep the launcher from its ranks.
"""

from __future__ import annotations

import errno
import os
import re
import select
from collections.abc import Iterable

LONGEST_LINE = 64 * 1024  # bytes; a longer line is shown in pieces, and is whole in the log
ERASE = b"\x1b[K"  # for a terminal: a line over the longer rest of a progress bar's update
_CHUNK = 64 * 1024
_ALWAYS_FITS = select.PIPE_BUF if hasattr(select, "PIPE_BUF") else 512  # what a pipe that is ready takes without waiting
_FULL = 1024 * 1024  # bytes not yet shown, above which the ranks are read no further
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\n|\r)")


class Sink:
    """One of the launcher's own streams: takes bytes at once, passes them on as fast as they are read."""

    def __init__(self, descriptor: int, heading: bytes = b"") -> None:
        """
        Args:
            heading: goes before the first that is written.
        """
        self.descriptor = descriptor
        self.closed = False  # it takes no more
        self.why: OSError | None = None
        self._waiting = bytearray()
        self._heading = heading

    @property
    def backlog(self) -> int:
        return len(self._waiting)

    def write(self, data: bytes) -> None:
        if not self.closed:
            self._waiting += self._heading + data
            self._heading = b""
            self.flush()

    def flush(self) -> None:
        """Pass on what can be passed on without waiting."""
        sent = 0
        try:
            while sent < len(self._waiting) and select.select([], [self.descriptor], [], 0)[1]:
                sent += os.write(self.descriptor, self._waiting[sent : sent + _ALWAYS_FITS])
        except BlockingIOError:
            pass
        except OSError as error:  # the reader has gone (head, a closed terminal), or its disk is full; the logs go on
            self.closed, self.why = True, error
            sent = len(self._waiting)
        del self._waiting[:sent]


def why_unread(sinks: Iterable[Sink]) -> str:
    """Why one of the launcher's streams takes no more, in words: its disk, or its reader."""
    for name, sink in zip(("standard output", "standard error"), sinks, strict=True):
        if sink.why is not None and sink.why.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"{name} cannot be written any more: {(sink.why.strerror or str(sink.why)).lower()}"
    return "nobody reads the output any more"


class RankStream:
    """One pipe from one rank."""

    def __init__(self, pipe: int, sink: Sink, log: int, prefix: bytes, shows_updates: bool) -> None:
        os.set_blocking(pipe, False)
        self.pipe = pipe
        self._sink = sink
        self._log = log
        self._prefix = prefix
        self._shows_updates = shows_updates
        self._partial = b""
        self.is_open = True
        self.has_lost_log = False

    @property
    def is_held_up(self) -> bool:
        """Whether the terminal is so far behind that no more should be read."""
        return self._sink.backlog > _FULL

    def close(self) -> None:
        if self.is_open:
            self._show(self._partial)
        os.close(self.pipe)
        os.close(self._log)

    def pump(self) -> bool:
        """Read what is there, at most one chunk; False when there was nothing, or no more will come."""
        if not self.is_open:
            return False
        try:
            data = os.read(self.pipe, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._show(self._partial)
            self._partial = b""
            self.is_open = False
            return False
        if not self._prefix:  # nobody shares the terminal with this rank: what it prints is shown at once, not line by line
            self._show(data)
            return True
        self._partial += data
        whole = max(self._partial.rfind(b"\n"), self._partial.rfind(b"\r", 0, len(self._partial) - 1)) + 1
        if whole == 0 and len(self._partial) >= LONGEST_LINE:
            whole = len(self._partial)
        if whole:
            self._show(self._partial[:whole])
            self._partial = self._partial[whole:]
        return True

    def _show(self, text: bytes) -> None:
        if not text:
            return
        self._sink.write(prefixed(text, self._prefix, self._shows_updates) if self._prefix else text)
        view = memoryview(text)
        try:
            while view:
                view = view[os.write(self._log, view) :]
        except OSError:  # a full disk costs the log, never the run
            self.has_lost_log = True


def prefixed(text: bytes, prefix: bytes, shows_updates: bool = True) -> bytes:
    r"""Lines with a prefix each, for a terminal that several ranks share; the last one is ended if it is not.

    A line that ends in a carriage return is a progress bar's update: shown as one, or left out where `shows_updates` is False, since
    bars of several ranks on one line would overwrite each other.

    >>> prefixed(b"one\ntwo", b"[rank 1] ")
    b'[rank 1] one\n[rank 1] two\n'
    >>> prefixed(b"\r 5%\r 9%\rdone\n", b"[rank 0] ")
    b'[rank 0]  5%\r[rank 0]  9%\r[rank 0] done\n'
    >>> prefixed(b"\r 5%\r 9%\rdone\n", b"[rank 1] ", shows_updates=False)
    b'[rank 1] done\n'
    """
    if not text:
        return b""
    if b"\r" not in text:
        ended = text if text.endswith(b"\n") else text + b"\n"
        return prefix + ended[:-1].replace(b"\n", b"\n" + prefix) + b"\n"
    shown = []
    end = 0
    for found in _LINE.finditer(text):
        line, end = found.group(), found.end()
        if line == b"\r" or (line.endswith(b"\r") and not shows_updates):
            continue
        shown.append(prefix + line)
    if end < len(text):
        shown.append(prefix + text[end:] + b"\n")
    return b"".join(shown)


def last_lines(path: str, count: int = 20, most: int = 64 * 1024) -> list[str]:
    """The end of a log as text; an update of a progress bar that was overwritten is left out."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line[:2000] for line in lines if line][-count:]

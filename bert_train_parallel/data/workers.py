"""The work on blocks of texts, done by processes of its own where there are many: Python computes on one core in each.

A process is given the tokenizer once and then block after block through its standard input. It ends when that is closed,
so also when the process that started it is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bert_train_parallel.data.folding import Folded, FoldingSettings, fold_texts
from bert_train_parallel.data.store import pack_texts
from bert_train_parallel.data.tokenizing import TextTokenizer
from bert_train_parallel.processes import cores

_ALONE = 16  # blocks after which processes are started: before, their own start would take longer
_MOST = 8  # processes: reading the source, which is left to one, keeps no more of them busy
# what a process runs: it finds the package where the one that starts it does
_PROGRAM = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from {module} import serve; serve()"


@dataclass(frozen=True, slots=True)
class Worked:
    """What the store needs of a block of texts."""

    keys: npt.NDArray[np.uint64]  # (samples,), equal for equal texts
    packed: bytes  # the texts themselves
    folded: Folded


def work_on(texts: Sequence[tuple[str, ...]], tokenizer: TextTokenizer, settings: FoldingSettings) -> Worked:
    """Keys, packed texts and rows of a block."""
    return Worked(np.array([text_key(some) for some in texts], np.uint64), pack_texts(texts), fold_texts(texts, tokenizer, settings))


def text_key(texts: tuple[str, ...]) -> int:
    """64 bits that are equal for equal texts, however their spaces run.

    >>> text_key(("to be  or not\\n",)) == text_key((" to be or not",)), text_key(("a", "b")) == text_key(("a b",))
    (True, False)
    """
    plain = "\x1f".join([" ".join(text.split()) for text in texts])
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little")


class Workers:
    """Work on blocks, beside the thread that reads them: first in another thread, then in processes, one for each core.

    What comes out is the same. A process that is killed, or cannot be started, is done without.
    """

    def __init__(self, tokenizer: TextTokenizer, settings: FoldingSettings) -> None:
        self._tokenizer, self._settings = tokenizer, settings
        processes = min(cores(), _MOST)
        self._may_start = processes > 1  # until one could not be started, or was lost
        self.ahead = 2 * processes  # blocks that may wait, so that reading and working wait for each other less
        self._threads = ThreadPoolExecutor(processes, "texts")
        self._helpers: queue.SimpleQueue[_Helper | None] = queue.SimpleQueue()
        for _ in range(processes):
            self._helpers.put(None)
        self._alone = threading.Lock()  # the tokenizer remembers words for one thread
        self._given = 0

    def submit(self, texts: Sequence[tuple[str, ...]]) -> Future[Worked]:
        """Begin the work on the next block.

        Raises:
            BadSetting, by the future: see `fold_texts`.
        """
        self._given += 1
        return self._threads.submit(self._work, texts, self._given)

    def close(self) -> None:
        """End all processes; blocks that nobody has waited for are dropped."""
        self._threads.shutdown(cancel_futures=True)
        while not self._helpers.empty():
            helper = self._helpers.get()
            if helper is not None:
                helper.close()

    def _work(self, texts: Sequence[tuple[str, ...]], number: int) -> Worked:
        helper = self._helpers.get()
        try:
            if helper is None and self._may_start and number > _ALONE:
                with self._alone:
                    helper = _start(self._tokenizer, self._settings)
                if helper is None:
                    self._may_start = False
            if helper is not None:
                try:
                    return helper.work_on(texts)
                except (OSError, EOFError, pickle.UnpicklingError):
                    helper.close()
                    helper, self._may_start = None, False
            with self._alone:
                return work_on(texts, self._tokenizer, self._settings)
        finally:
            self._helpers.put(helper)


class _Helper:
    """The near end of a process."""

    def __init__(self, process: subprocess.Popen[bytes], to: IO[bytes], answers: IO[bytes]) -> None:
        self._process, self._to, self._answers = process, to, answers

    def work_on(self, texts: Sequence[tuple[str, ...]]) -> Worked:
        """
        Raises:
            OSError, EOFError, pickle.UnpicklingError: the process has ended.
        """
        _send(texts, self._to)
        found: Worked = pickle.load(self._answers)
        return found

    def close(self) -> None:
        for end in (self._to, self._answers):
            with contextlib.suppress(OSError):
                end.close()
        self._process.wait()


def _start(tokenizer: TextTokenizer, settings: FoldingSettings) -> _Helper | None:
    """A process that has been given all it needs; None where none can be started."""
    # -P: the folder that the user stands in may hold a file named as a module is
    command = [sys.executable, "-P", "-c", _PROGRAM.format(module=__name__)]
    environment = os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return None
    assert process.stdin is not None
    assert process.stdout is not None
    helper = _Helper(process, process.stdin, process.stdout)
    try:
        _send(sys.path, process.stdin)
        _send((tokenizer, settings), process.stdin)
    except OSError:
        helper.close()
        return None
    return helper


def serve() -> None:
    """Work on blocks from standard input until it ends; answers go to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that reads the source: it closes our input
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed is no answer
    with contextlib.suppress(EOFError, BrokenPipeError):
        tokenizer, settings = pickle.load(sys.stdin.buffer)
        while True:
            _send(work_on(pickle.load(sys.stdin.buffer), tokenizer, settings), answers)


def _send(value: Any, to: IO[bytes]) -> None:
    pickle.dump(value, to, protocol=5)
    to.flush()

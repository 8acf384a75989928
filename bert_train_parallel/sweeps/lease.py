"""Who may work in a run's folder: one attempt at a time, and never an older one after a newer.

Two things make that sure. Each attempt takes the next number (a fencing token): an older attempt that sees a newer number ends.
And a lock, which the launcher's processes inherit, is free only when the last of them is gone.

Only attempts of the same owner end each other. Another trial that asks for the same waits as long as the lock is held: were it to
take the next number, each would end the other for ever.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bert_train_parallel.errors import not_writable

_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a run, as its file says it; `outcome` is empty while it runs, and for ever if its worker was lost."""

    token: int
    host: str = ""
    worker: str = ""
    owner: str = ""  # the trial of a workflow whose attempt it is: of a retry the same
    gpus: int = 1
    began: float = 0.0  # of the launch, seconds since 1970; 0: it has not begun
    seconds: float = 0.0  # since then
    outcome: str = ""  # finished | failed | killed | full, a disk | cancelled | nan | oom
    error: str = ""
    final: bool = False  # another attempt would end the same way
    first_step: int = -1
    last_step: int = -1
    saved_step: int = -1  # of the newest checkpoint


class Fenced(Exception):
    """A newer attempt has the run; this one is to end and to leave everything as it is."""


class Lease:
    """The right of one attempt to work in a run's folder, from `take` until `release`."""

    def __init__(self, folder: Path, worker: str, gpus: int, owner: str = "") -> None:
        self.folder = folder
        self._folder = folder / "attempts"
        self._lock = -1
        self.attempt = Attempt(0, socket.gethostname(), worker, owner, gpus)  # 0: it has taken no number yet

    @property
    def token(self) -> int:
        return self.attempt.token

    @property
    def lock(self) -> int:
        """An open file, to be inherited by whatever works in the folder."""
        return self._lock

    async def take(self, tick: Callable[[], None], is_settled: Callable[[], bool] = lambda: False) -> bool:
        """Become the newest attempt, and wait until no process of an older one is left.

        Args:
            tick: called while waiting.
            is_settled: asked while another owner is at work: whether what it found will do.
        Returns:
            False where that is so: there is nothing left to be done, and no number was taken.
        Raises:
            Fenced: a still newer attempt came meanwhile.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            while True:
                has_lock = self._has_lock()  # looked at first: what another one leaves, it leaves before it lets go
                is_of_another = not self.token and self._is_of_another()
                if is_of_another and is_settled():
                    return False
                if not self.token and (has_lock or not is_of_another):
                    self.attempt = _next_attempt(self._folder, self.attempt)
                if self.token:
                    self.check()
                    if has_lock:
                        return True
                tick()
                await asyncio.sleep(_LOOK_S)
        except OSError as error:
            raise not_writable(error, self._folder) or error from error

    def _has_lock(self) -> bool:
        """Take the lock, unless others hold it; a second time it is ours already."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _is_of_another(self) -> bool:
        """Whether the newest attempt is that of another owner; one that was begun before owners were written down is not."""
        found = attempts(self.folder)
        return bool(found) and found[-1].owner not in ("", self.attempt.owner)

    def check(self) -> None:
        """Raises Fenced where a newer attempt has begun."""
        if (self._folder / f"{self.token + 1:04d}.json").exists():
            raise Fenced(f"attempt {self.token + 1} has taken over from attempt {self.token}")

    def begin(self) -> None:
        """The launch begins now: from here on its GPUs cost."""
        self.note(began=time.time())

    def note(self, **changes: Any) -> None:
        """Write down what is known of this attempt; a worker that is killed leaves what it wrote last."""
        seconds = time.time() - self.attempt.began if self.attempt.began and not self.attempt.outcome else self.attempt.seconds
        self.attempt = replace(self.attempt, seconds=seconds, **changes)
        path = self._folder / f"{self.token:04d}.json"
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(asdict(self.attempt)), encoding="utf-8")
        os.replace(aside, path)

    def release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _next_attempt(folder: Path, attempt: Attempt) -> Attempt:
    """Take the number after the newest; of two that try at once, each gets its own."""
    token = max((one.token for one in attempts(folder.parent)), default=0)
    while True:
        token += 1
        try:
            with open(folder / f"{token:04d}.json", "x", encoding="utf-8") as file:
                file.write(json.dumps(asdict(replace(attempt, token=token))))
            return replace(attempt, token=token)
        except FileExistsError:
            continue


def attempts(run: Path) -> list[Attempt]:
    """All attempts at a run, the oldest first."""
    found = []
    for path in sorted((run / "attempts").glob("[0-9]*.json")):
        try:
            found.append(Attempt(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):  # its worker was killed while it took the number
            found.append(Attempt(int(path.stem)))
    return found


def gpu_seconds(found: list[Attempt]) -> float:
    """What all attempts cost, those too that failed or were lost.

    >>> gpu_seconds([Attempt(1, gpus=2, seconds=30), Attempt(2, gpus=2, seconds=5)])
    70.0
    """
    return float(sum(attempt.gpus * attempt.seconds for attempt in found))


def own_failures(found: list[Attempt]) -> int:
    """How often the trial itself failed; workers that were lost do not count."""
    return sum(attempt.outcome == "failed" for attempt in found)


def kills_without_progress(found: list[Attempt]) -> int:
    """How often in a row, up to the newest attempt, processes were killed from outside before a new checkpoint was made.

    >>> kills_without_progress([Attempt(1, outcome="killed", saved_step=9), Attempt(2, outcome="killed", saved_step=9)])
    1
    """
    count, furthest = 0, -1
    for attempt in found:
        count = 0 if attempt.saved_step > furthest else count + (attempt.outcome == "killed")
        furthest = max(furthest, attempt.saved_step)
    return count

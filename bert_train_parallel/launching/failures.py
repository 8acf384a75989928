"""What a rank's end means: is it the cause or the consequence of another's, and how is it told in a few lines."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from bert_train_parallel.launching.output import last_lines
from bert_train_parallel.launching.plan import Failure
from bert_train_parallel.lost_peer import tells_of_lost_peer
from bert_train_parallel.processes import signal_name
from bert_train_parallel.rank import Rank

SAID_IN_FULL = ("usage", "stopped", "nan", "oom")  # kinds whose one sentence is all that a user needs


@dataclass(frozen=True, slots=True)
class Ended:
    """A rank that ended with a failure."""

    rank: Rank
    pid: int
    returncode: int  # as in subprocess: minus the signal
    log: str
    error_file: str

    @property
    def exit_code(self) -> int:
        """As a shell says it: 128 and the signal for a process that was killed."""
        return self.returncode if self.returncode > 0 else 128 - self.returncode


def is_consequence(ended: Ended) -> bool:
    """Whether the rank's last words say that it lost a peer, so that the peer's failure is the one to tell.

    A rank whose peer died fails too, and may be noticed first.
    """
    if ended.returncode < 0 and ended.returncode != -6:  # abort() is how NCCL and gloo end a rank that lost its peers
        return False
    said = read_error_file(ended.error_file)
    message = str(said.get("message", "")) if said else "\n".join(last_lines(ended.log, 8))
    return tells_of_lost_peer(message)


def describe(ended: Ended, host: str) -> Failure:
    """The failure of a rank, for its user: who, how, and its traceback or its last lines."""
    rank = ended.rank
    said = read_error_file(ended.error_file)
    kind = str(said.get("kind", "error"))
    if kind in SAID_IN_FULL and said.get("message"):
        return Failure(host, rank.rank, kind, ended.exit_code, str(said["message"]))
    who = f"rank {rank.rank} on {host} (pid {ended.pid})"
    if ended.returncode < 0:
        how = f"was killed by {signal_name(-ended.returncode)}"
        if ended.returncode == -9:
            how += ", and not by this launcher; the kernel does that when a machine runs out of memory (see dmesg)"
    else:
        how = f"failed with exit code {ended.returncode}"
    lines = [f"{who} {how}."]
    if rank.world_size > 1:  # the output of a single rank stands just above
        told = str(said.get("callstack") or said.get("message") or "").rstrip().splitlines()[-40:] or last_lines(ended.log)
        lines += [f"  {line}" for line in told]
    return Failure(host, rank.rank, "signal" if ended.returncode < 0 else "exit", ended.exit_code, "\n".join(lines))


def read_error_file(path: str) -> dict[str, Any]:
    """What a rank wrote to TORCHELASTIC_ERROR_FILE in the format of torch's `@record`; empty where there is none.

    Returns:
        `message`, `callstack` where the rank wrote them, and `kind` where it is one of ours.
    """
    try:
        if os.path.getsize(path) > 1 << 20:
            return {}
        with open(path, encoding="utf-8", errors="replace") as file:
            written = json.load(file)
        message = written["message"]
        if isinstance(message, str):
            return {"message": message}
        extra = message.get("extraInfo") or {}
        found = {"message": message.get("message", ""), "callstack": extra.get("py_callstack", "")}
        return found | {name: message[name] for name in ("kind",) if name in message}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}

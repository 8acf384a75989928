"""A run's events, one JSON line each: the terminal, a sweep's heartbeat, `watch` and the report read this file."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

KINDS = ("start", "step", "epoch", "checkpoint", "resume", "share", "test", "finished", "failed")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a run.

    >>> event = Event("step", step=120, steps=480, epoch=2, figures={"loss": 0.431}, time=1.5)
    >>> Event.from_json(event.to_json()) == event
    True
    """

    kind: str  # one of KINDS
    time: float = field(default_factory=time.time)  # seconds since 1970
    attempt: int = 0
    step: int = 0  # optimizer steps done, over all epochs
    steps: int = 0  # optimizer steps of the whole run
    epoch: int = 0  # counted from 1; 0 before the first
    figures: dict[str, Any] = field(default_factory=dict)
    path: str = ""  # of a checkpoint or result file

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Event:
        """Raises ValueError for a line that is not an event; unknown fields of a later version are passed over."""
        found = json.loads(line)
        if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
            raise ValueError(f"not an event: {line[:80]!r}")
        return cls(**{name: found[name] for name in cls.__slots__ if name in found})


def append_event(path: Path, event: Event) -> None:
    """Add one line; a single write, so that a reader never sees half of one unless the writer died in it."""
    with open(path, "ab") as file:
        file.write((event.to_json() + "\n").encode())


def read_events(path: Path, offset: int = 0) -> Iterator[Event]:
    """The complete events from a byte offset on; a torn last line, or a damaged one, is passed over."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                yield Event.from_json(line.decode())
            except (ValueError, TypeError):
                continue

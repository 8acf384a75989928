"""How long a rank computes in each step, without the time in which it waits for other ranks."""

from __future__ import annotations

import time
from collections import deque

import torch


class Stopwatch:
    """Measures from `start` to `stop`; on a GPU by events in its stream, so that nothing waits for it.

    DDP's hook stops it, so that a world of one rank, which has no speeds to compare, measures nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._began: float | torch.cuda.Event | None = None
        self._ended: float | torch.cuda.Event | None = None
        self._laps: deque[tuple[float | torch.cuda.Event, float | torch.cuda.Event, int]] = deque()

    def start(self) -> None:
        self._began, self._ended = self._now(), None

    def stop(self) -> None:
        """The rank's own work of this step is done; called again, the last call counts."""
        self._ended = self._now()

    def lap(self, tokens: int) -> None:
        """The step that was started and stopped computed this many tokens."""
        if self._began is not None and self._ended is not None:
            self._laps.append((self._began, self._ended, tokens))

    def read(self) -> tuple[float, int]:
        """Seconds and tokens of the steps since the last call, as far as the device has finished them."""
        seconds, tokens = 0.0, 0
        while self._laps:
            began, ended, count = self._laps[0]
            if isinstance(began, float) or isinstance(ended, float):
                seconds += ended - began
            elif ended.query():
                seconds += began.elapsed_time(ended) / 1000
            else:
                break
            tokens += count
            self._laps.popleft()
        return seconds, tokens

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

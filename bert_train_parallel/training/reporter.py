"""What rank 0 tells while it trains: sentences, one progress line, and the events of the run's progress file."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from bert_train_parallel.errors import not_writable
from bert_train_parallel.metrics import figure_words
from bert_train_parallel.progress import Event, append_event

_LINE_EVERY = 5.0  # seconds, where the line cannot be overwritten
_WINDOW = 30  # looks at the clock over which speeds are taken


class Reporter:
    """Speaks on rank 0 and is silent elsewhere, so that callers need not ask who they are."""

    def __init__(self, is_first: bool, attempt: int = 0, logfile: str | None = None, speaks: bool = True, shows_line: bool = True) -> None:
        self._is_first, self._attempt, self._speaks, self._shows_line = is_first, attempt, speaks, speaks and shows_line
        self._events: Path | None = None
        self._log: TextIO | None = None
        self._line_length = 0  # of the progress line that stands on the terminal
        self._line_time = 0.0
        self._in_place = sys.stdout.isatty() or os.environ.get("BERT_TRAIN_TERMINAL") == "1"
        self._looks: deque[tuple[float, int, float, float]] = deque(maxlen=_WINDOW)  # clock, step, tokens, rows
        self.steps = 0  # of the whole run
        if is_first and logfile:
            try:
                Path(logfile).parent.mkdir(parents=True, exist_ok=True)
                self._log = open(logfile, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed by close)
            except OSError as error:
                raise not_writable(error, logfile, "--logfile") or error from error

    def write_events_to(self, path: Path) -> None:
        self._events = path

    def say(self, sentence: str) -> None:
        if not self._is_first or not sentence:
            return
        self._end_line()
        if self._speaks:
            print(sentence, flush=True)
        self._write_log(sentence)

    def _write_log(self, line: str) -> None:
        if self._log:
            try:
                self._log.write(line + "\n")
            except OSError as error:
                raise not_writable(error, self._log.name, "--logfile") or error from error

    def event(self, kind: str, *, step: int = 0, epoch: int = 0, figures: dict[str, Any] | None = None, path: str = "") -> None:
        if self._is_first and self._events:
            event = Event(
                kind, attempt=self._attempt, step=step, steps=self.steps, epoch=epoch, figures=json_figures(figures or {}), path=path
            )
            try:
                append_event(self._events, event)
            except OSError as error:
                raise not_writable(error, self._events) or error from error

    def start_clock(self, step: int) -> None:
        self._looks.append((time.monotonic(), step, 0.0, 0.0))

    def progress(self, step: int, epoch: str, loss: float, tokens: float, rows: float, usage: str) -> dict[str, float]:
        """Show one progress line, and give the speeds in it.

        Args:
            loss, tokens, rows: mean and sums since the last line.
            usage: of memory and ranks, in words.
        """
        _, _, tokens_before, rows_before = self._looks[-1]
        self._looks.append((time.monotonic(), step, tokens_before + tokens, rows_before + rows))
        (began, first, first_tokens, first_rows), (now, _, last_tokens, last_rows) = self._looks[0], self._looks[-1]
        seconds = max(now - began, 1e-9)
        speeds = {"tokens_per_s": (last_tokens - first_tokens) / seconds, "rows_per_s": (last_rows - first_rows) / seconds}
        left = (self.steps - step) * seconds / max(1, step - first)
        loss_words = f"{loss:.3f}" if abs(loss) < 1000 else figure_words(loss)
        self._draw(
            f"epoch {epoch}  step {step}/{self.steps}  loss {loss_words}  {grouped(speeds['tokens_per_s'])} tokens/s  "
            f"{grouped(speeds['rows_per_s'])} rows/s  {usage}  {duration(left)} left"
        )
        return speeds | {"seconds_left": left}

    def close(self) -> None:
        self._end_line()
        if self._log:
            with suppress(OSError):
                self._log.close()

    def _draw(self, line: str) -> None:
        if not self._is_first:
            return
        is_due = time.monotonic() - self._line_time >= _LINE_EVERY
        if self._in_place and self._shows_line:
            print("\r" + line.ljust(self._line_length), end="", flush=True)
            self._line_length = len(line)
        elif is_due and self._shows_line:
            print(line, flush=True)
        if is_due:
            self._line_time = time.monotonic()
            self._write_log(line)

    def _end_line(self) -> None:
        if self._line_length:
            print(flush=True)
            self._line_length = 0


def json_figures(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures as JSON can say them: what is not a number becomes null."""
    return {name: None if isinstance(value, float) and not abs(value) < float("inf") else value for name, value in figures.items()}


def duration(seconds: float) -> str:
    """
    >>> duration(80), duration(7), duration(7300)
    ('1 min 20 s', '7 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def grouped(number: float) -> str:
    """
    >>> grouped(2910.4), grouped(7.26)
    ('2 910', '7.3')
    """
    return f"{number:,.0f}".replace(",", " ") if number >= 100 else f"{number:.1f}"

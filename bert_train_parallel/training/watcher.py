"""Who looks on while a run trains: the terminal, the progress file and the figures of each epoch."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bert_train_parallel.metrics import figure_words
from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.training import outcome
from bert_train_parallel.training.course import Course
from bert_train_parallel.training.loop import Progress
from bert_train_parallel.training.reporter import Reporter, duration
from bert_train_parallel.training.strategy import Strategy, Sums
from bert_train_parallel.training.world import World

_ESTIMATE_AFTER = 20  # steps


class RunWatcher:
    """Tells on rank 0 how the run goes, and keeps the files that show it up to date."""

    def __init__(self, reporter: Reporter, files: RunFiles, course: Course, strategy: Strategy, world: World, first_step: int) -> None:
        self._reporter, self._files, self._course, self._strategy, self._world = reporter, files, course, strategy, world
        self._first_step = first_step
        self._has_estimated = False
        self._epoch_began = time.monotonic()
        reporter.steps = course.steps
        reporter.start_clock(first_step)

    def looked(self, progress: Progress, since: Sums) -> None:
        epoch = len(progress.epochs) + 1
        speeds = self._reporter.progress(
            progress.step, f"{epoch}/{self._course.epochs}", since.mean_loss, since.tokens, since.rows, self._usage()
        )
        rate = self._course.learning_rate(progress.step - 1)
        self._reporter.event("step", step=progress.step, epoch=epoch, figures={"loss": since.mean_loss, "learning_rate": rate, **speeds})
        if not self._has_estimated and progress.step - self._first_step >= _ESTIMATE_AFTER:
            self._has_estimated = True
            self._reporter.say(f"about {duration(speeds['seconds_left'])} of training to go")

    def epoch_done(self, progress: Progress) -> None:
        entry = progress.epochs[-1]
        shown = [f"epoch {entry['epoch']}/{self._course.epochs}", f"loss {figure_words(entry['Training Loss'])}"]
        validated = {name: value for name, value in entry["Validation"].items() if name in _SHOWN and value is not None}
        shown += [f"validation {name} {figure_words(value)}" for name, value in validated.items()]
        is_best = progress.best is not None and progress.best["epoch"] == entry["epoch"]
        shown += [duration(time.monotonic() - self._epoch_began), *(["best so far"] if is_best and self._course.epochs > 1 else [])]
        self._reporter.say("  ".join(shown))
        self._reporter.event("epoch", step=progress.step, epoch=entry["epoch"], figures=entry)
        if self._world.rank.is_first:
            outcome.write_stats(self._files, progress, self._strategy.description())
        self._epoch_began = time.monotonic()

    def _usage(self) -> str:
        """Memory, and in a world of several how much each rank computes, and for how much of a step."""
        described = self._strategy.description()
        return "  ".join(filter(None, (_memory(self._world.device), usage_words(described["parts"], described["utilisation"]))))

    def saved(self, progress: Progress, place: Path | None) -> None:
        """A checkpoint was written here."""
        if place is not None:
            self._reporter.event("checkpoint", step=progress.step, epoch=len(progress.epochs), path=str(place))

    def say(self, sentence: str) -> None:
        self._reporter.say(sentence)
        self._reporter.event("share", figures=self._strategy.description() | {"words": sentence})


_MOST_RANKS = 8  # on the progress line; the progress file has all


def usage_words(parts: Sequence[float], utilisation: Sequence[float]) -> str:
    """Of each rank, its share of a batch where shares differ, and the part of a step in which it computes; empty for one rank.

    Args:
        parts: of the tokens of a batch, with the sum 1.
        utilisation: the busiest rank being 1; empty before anything was measured.

    >>> usage_words([0.5, 0.5], [1.0, 0.98]), usage_words([0.75, 0.25], [1.0, 0.98]), usage_words([0.75, 0.25], [])
    ('busy 100 98 %', 'share 75 25 %  busy 100 98 %', 'share 75 25 %')
    >>> usage_words([0.1] * 10, [1.0] * 10), usage_words([1.0], [1.0])
    ('busy 100 100 100 100 100 100 100 100 % and 2 ranks more', '')
    """
    if len(parts) < 2:
        return ""
    rows = [("share", parts if max(parts) - min(parts) > 1e-9 else ()), ("busy", utilisation)]
    shown = [f"{name} {' '.join(f'{100 * part:.0f}' for part in values[:_MOST_RANKS])} %" for name, values in rows if values]
    more = len(parts) - _MOST_RANKS
    return "  ".join(shown) + (f" and {more} rank{'s' * (more > 1)} more" if shown and more > 0 else "")


_SHOWN = ("loss", "accuracy", "macro_f1", "mse", "pearson")


def _memory(device: torch.device) -> str:
    """The greatest memory so far: of the GPU, or of this process.

    >>> _memory(torch.device("cpu")).endswith(" GiB")
    True
    """
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return f"{peak / (2**30 if sys.platform == 'darwin' else 2**20):.1f} GiB"

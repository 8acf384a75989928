"""The training loop: steps, validation and checkpoints, in the order in which they happen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.errors import LossIsNaN, StoppedBySignal
from bert_train_parallel.training.course import Course
from bert_train_parallel.training.samples import LESS_IS_BETTER
from bert_train_parallel.training.strategy import Strategy, Sums

_LOOK_EVERY = 1.0  # seconds between looks at the loss: reading it back makes a GPU wait


@dataclass(slots=True)
class Progress:
    """How far a run is: with the model and the optimizer, all that it takes to go on from here."""

    step: int = 0  # optimizer steps done
    sums: Sums = field(default_factory=Sums)  # over the steps of the epoch that is not over
    epochs: list[dict[str, Any]] = field(default_factory=list)  # what the stats file says of each epoch that is
    best: dict[str, Any] | None = None  # epoch, step, figure and all figures of the best validation so far
    worse: int = 0  # epochs since then

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Progress:
        return cls(**{**found, "sums": Sums(**found["sums"])})


class Watcher(Protocol):
    """Who looks on: the terminal and the files of the run."""

    def looked(self, progress: Progress, since: Sums) -> None:
        """The figures of the steps since the last look were read back."""

    def epoch_done(self, progress: Progress) -> None:
        """An epoch was validated and saved."""

    def say(self, sentence: str) -> None:
        """A sentence for the user."""


def fit(
    strategy: Strategy,
    course: Course,
    progress: Progress,
    validate: Callable[[], dict[str, Any]],
    save: Callable[[], None],
    watcher: Watcher,
) -> None:
    """Train from where `progress` stands to the end of the course.

    Args:
        validate: gives the figures of the validation split, the same on every rank.
        save: writes a checkpoint of the strategy and the progress.
    Raises:
        LossIsNaN: on every rank; what was saved before is whole.
        StoppedBySignal: on every rank, after a checkpoint.
    """
    config = course.config
    if progress.step < course.steps:
        for note in strategy.set_up(course.batch(progress.step)):
            watcher.say(note)
    looked_at, saved_at = -math.inf, progress.step
    while not is_over(progress, course):
        end = course.end_of(len(progress.epochs))
        for step in range(progress.step, end):
            done = strategy.step(course.batch(step), step, course.learning_rate(step))
            progress.step = step + 1
            for note in done.notes:
                watcher.say(note)
            must_save = done.stop or (config.checkpoint_every > 0 and progress.step % config.checkpoint_every == 0 and progress.step < end)
            if must_save or _is_due(config, progress.step, done.clock - looked_at):
                look(strategy, progress, watcher)
                looked_at = done.clock
            if must_save:
                save()
                saved_at = progress.step
            if done.stop:
                raise StoppedBySignal(f"stopped after step {progress.step}; --resume goes on from there.")
        look(strategy, progress, watcher)
        try:
            figures = validate()
        except StoppedBySignal:
            if saved_at < progress.step:
                save()
            raise
        add_epoch(progress, figures, config)
        save()
        saved_at = progress.step
        watcher.epoch_done(progress)


def is_over(progress: Progress, course: Course) -> bool:
    """Whether all epochs are validated, or the last ones were no better than one before."""
    patience = course.config.patience
    return len(progress.epochs) >= course.epochs or 0 < patience <= progress.worse


def look(strategy: Strategy, progress: Progress, watcher: Watcher) -> None:
    """Read back the figures of the steps since the last look.

    Raises:
        LossIsNaN: the sum of their losses is not a number.
    """
    since = strategy.sums()
    if not math.isfinite(since.loss):
        raise LossIsNaN(
            f"The loss is no longer a number (noticed after step {progress.step}). Try a lower --learning_rate, a longer --warmup, or "
            "--dtype float32 where it was a shorter one. What was saved before is whole."
        )
    if since.rows:
        progress.sums += since
        watcher.looked(progress, since)


def add_epoch(progress: Progress, figures: dict[str, Any], config: TrainConfig) -> None:
    """Enter an epoch that was trained and validated, and whether it is the best so far."""
    sums, number = progress.sums, len(progress.epochs) + 1
    entry = {"epoch": number, "step": progress.step, "Training Loss": sums.mean_loss, "Validation Loss": figures.get("loss")}
    if "accuracy" in figures:
        entry |= {"Training Accuracy": sums.accuracy, "Validation Accuracy": figures["accuracy"]}
    progress.epochs.append(entry | {"Validation": figures})
    progress.sums = Sums()
    figure = figures.get(config.metric)
    if progress.best is None or is_better(figure, progress.best["figure"], config.metric):
        progress.best, progress.worse = {"epoch": number, "step": progress.step, "figure": figure, "figures": figures}, 0
    else:
        progress.worse += 1


def is_better(figure: float | None, best: float | None, metric: str) -> bool:
    """Whether a validation figure beats the best one; what cannot be computed beats nothing but its like, a later one.

    >>> is_better(0.3, 0.4, "loss"), is_better(0.3, 0.4, "accuracy"), is_better(None, None, "loss")
    (True, False, True)
    """
    if figure is None or best is None or math.isnan(figure) or math.isnan(best):
        return best is None or math.isnan(best)
    return figure < best if metric in LESS_IS_BETTER else figure > best


def _is_due(config: TrainConfig, step: int, seconds: float) -> bool:
    return step % config.log_every == 0 if config.log_every else seconds >= _LOOK_EVERY

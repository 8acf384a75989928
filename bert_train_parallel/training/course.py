"""Which rows and which learning rate each step of a run has, from the number of the step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.data.batches import IntArray, Rows, global_batch, steps_per_epoch


@dataclass(frozen=True)
class Course:
    """The plan of a run over these rows. Steps and epochs are counted from 0."""

    rows: Rows
    config: TrainConfig

    @cached_property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.rows), self.config.batch_size)

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        asked = self.config.epochs * self.steps_per_epoch
        return min(asked, self.config.max_steps or asked)

    @property
    def epochs(self) -> int:
        """Epochs that are begun."""
        return -(-self.steps // self.steps_per_epoch)

    def end_of(self, epoch: int) -> int:
        """The step after the last one of an epoch."""
        return min(self.steps, (epoch + 1) * self.steps_per_epoch)

    def batch(self, step: int) -> IntArray:
        """The row numbers of the global batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return global_batch(len(self.rows), self.config.batch_size, self.config.seed, epoch, place, self._lengths)

    def learning_rate(self, step: int) -> float:
        return learning_rate(step, self.steps, self.config.learning_rate, self.config.warmup, self.config.schedule)

    @cached_property
    def _lengths(self) -> IntArray | None:
        return self.rows.lengths if self.config.group_by_length else None


def learning_rate(step: int, steps: int, peak: float, warmup: float, schedule: str) -> float:
    """The learning rate of one optimizer step.

    Args:
        step: counted from 0.
        steps: of the whole run.
        warmup: share of the steps in which the rate rises to `peak`, in a line.
        schedule: linear or cosine, down to 0 after the last step; or constant.

    >>> [learning_rate(step, 4, 1.0, 0.25, "linear") for step in range(4)]
    [0.5, 1.0, 0.6666666666666667, 0.33333333333333337]
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / (rising + 1)  # the first step is not wasted on a rate of 0
    if schedule == "constant":
        return peak
    done = (step - rising) / max(1, steps - rising)
    return peak * (0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done)

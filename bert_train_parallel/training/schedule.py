"""The course of the learning rate: up in a line, then down as asked."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup: float, schedule: str) -> float:
    """The learning rate of one optimizer step, from its number alone.

    Args:
        step: counted from 0.
        steps: of the whole run.
        warmup: share of the steps in which the rate rises to `peak`.
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

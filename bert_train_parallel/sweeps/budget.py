"""GPU-hours: what was spent, what is being spent, and whether another trial may begin. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Running:
    """A trial under way: seconds since it began, and the GPUs it holds (CPU ranks count as GPUs)."""

    seconds: float
    gpus: int


@dataclass(frozen=True, slots=True)
class Spending:
    """What a sweep has spent, in GPU-seconds; failed and killed attempts are in it.

    >>> Spending(finished=5400, running=1800, budget=7200).may_begin
    False
    >>> Spending(finished=5400, running=900, budget=None).hours
    1.75
    """

    finished: float
    running: float
    budget: float | None  # None: no limit

    @property
    def hours(self) -> float:
        return (self.finished + self.running) / 3600

    @property
    def may_begin(self) -> bool:
        """Whether another trial may begin; those under way always end."""
        return self.budget is None or self.finished + self.running < self.budget


def spending(finished: float, running: Iterable[Running], budget_hours: float | None) -> Spending:
    """The state of a budget.

    >>> spending(3600, [Running(60, gpus=4), Running(30, gpus=1)], budget_hours=1.5)
    Spending(finished=3600, running=270, budget=5400.0)
    """
    under_way = sum(trial.seconds * trial.gpus for trial in running)
    return Spending(finished, under_way, None if budget_hours is None else budget_hours * 3600)

"""The rungs of a ladder: how many trials train how long, and who goes on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field

MINIMISED = {"loss", "mse"}
_EPOCHS = (1, 2, 4, 8)
_CAPS = (1000, 2000, 5000, None)


class LadderStage(BaseModel, frozen=True, extra="forbid"):
    """One rung as a user writes it; what is left out follows from the number of trials."""

    epochs: int | None = Field(default=None, ge=1)  # over the whole of a trial, those of earlier rungs included
    max_train_samples: int | None = Field(default=None, ge=1)  # null: all; left out: 1,000, 2,000, 5,000 by its place, and all on the last
    keep: int | None = Field(default=None, ge=1)  # trials that go on; of the last rung: winners
    new: int | None = Field(default=None, ge=0)  # trials that begin here


class Ladder(BaseModel, frozen=True, extra="forbid"):
    """The rungs; left out: four of them, with 1, 2, 4 and 8 epochs."""

    stages: tuple[LadderStage, ...] = Field(default=tuple(LadderStage() for _ in _EPOCHS), min_length=1)


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung with nothing left open."""

    number: int  # from 0
    epochs: int
    max_train_samples: int | None  # None: all
    keep: int
    new: int


def rungs_of(ladder: Ladder, trials: int) -> tuple[Rung, ...]:
    """The rungs for a number of trials: keep n/4, n/6, n/8, 1 and begin n, n/2, n/4, 0 where the ladder does not say.

    >>> [(rung.epochs, rung.max_train_samples, rung.keep, rung.new) for rung in rungs_of(Ladder(), 24)]
    [(1, 1000, 6, 24), (2, 2000, 4, 12), (4, 5000, 3, 6), (8, None, 1, 0)]
    >>> stages = [{"epochs": 1}, {"epochs": 3, "max_train_samples": 4000}, {"epochs": 5}, {"epochs": 6}, {"epochs": 7}]
    >>> [rung.max_train_samples for rung in rungs_of(Ladder(stages=stages), 24)]
    [1000, 4000, 5000, None, None]

    Raises:
        ValueError: a rung trains no longer than the one before, or nobody would be on it.
    """
    last = len(ladder.stages) - 1
    rungs: list[Rung] = []
    for number, stage in enumerate(ladder.stages):
        epochs = stage.epochs or (_EPOCHS[number] if number < len(_EPOCHS) else 2 * rungs[-1].epochs)
        cap = stage.max_train_samples
        if "max_train_samples" not in stage.model_fields_set and number < min(last, len(_CAPS)):
            cap = _CAPS[number]
            if cap is not None and number:
                before_it = rungs[-1].max_train_samples
                cap = None if before_it is None else max(cap, before_it)
        keep = stage.keep or (1 if number == last else max(1, trials // (4, 6, 8)[min(number, 2)]))
        new = stage.new if stage.new is not None else (0 if number == last and number else trials >> number)
        rungs.append(Rung(number, epochs, cap, keep, new))
        if number and epochs <= rungs[-2].epochs:
            before = f"{rungs[-2].epochs} on the one before"
            raise ValueError(f"stage {number + 1} has {epochs} epoch{'s' * (epochs != 1)}, after {before}; each stage trains longer")
        if number and cap is not None and (rungs[-2].max_train_samples is None or rungs[-2].max_train_samples > cap):
            raise ValueError(f"stage {number + 1} has fewer samples ({cap:,}) than the one before; each stage has as many or more")
    if not rungs[0].new:
        raise ValueError("stage 1 begins no trial; give new a number from 1 up")
    return tuple(rungs)


def maximises(metric: str) -> bool:
    """Whether more of a figure is better.

    >>> maximises("accuracy"), maximises("loss")
    (True, False)
    """
    return metric not in MINIMISED


def best_first(scores: Sequence[tuple[int, float | None]], maximise: bool) -> list[int]:
    """Trial numbers by score, equal scores by number; trials without a score are left out.

    >>> best_first([(0, 0.5), (1, None), (2, 0.9), (3, 0.5)], maximise=True)
    [2, 0, 3]
    """
    scored = [(-score if maximise else score, number) for number, score in scores if score is not None]
    return [number for _, number in sorted(scored)]


def promoted(scores: Sequence[tuple[int, float | None]], keep: int, maximise: bool) -> list[int]:
    """The trials of a rung that go on to the next, best first."""
    return best_first(scores, maximise)[:keep]


def trials_on(rungs: Sequence[Rung], number: int) -> int:
    """How many trials a rung runs when nothing fails.

    >>> [trials_on(rungs_of(Ladder(), 24), number) for number in range(4)]
    [24, 18, 10, 3]
    """
    before = min(rungs[number - 1].keep, trials_on(rungs, number - 1)) if number else 0
    return before + rungs[number].new


def rows_of_whole(steps: int, first_step: int, rows_seen: int, batch_size: int) -> int:
    """Rows that a trial of so many steps sees, by those that a run saw of it from its first step on.

    >>> rows_of_whole(6, 3, 40, 16), rows_of_whole(6, 6, 0, 16)
    (80, 96)
    """
    trained = steps - first_step
    return round(steps * rows_seen / trained) if trained > 0 and rows_seen else steps * batch_size


def random_trials_at_equal_rows(rows_seen: int, rows_of_last: int) -> int:
    """How many whole trials see as many rows as a ladder did, at least one.

    >>> random_trials_at_equal_rows(10_000, 1_600)
    6
    """
    return max(1, rows_seen // max(rows_of_last, 1))

"""A sweep: what a user asks for, what it hands on between two workflow runs, and what it found."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from bert_train_parallel.config import METRICS
from bert_train_parallel.sweeps.draw import Values, grid
from bert_train_parallel.sweeps.folder import HISTORIES, RUNS, SNAPSHOTS, STORES
from bert_train_parallel.sweeps.messages.base import MOST_AT_ONCE, Message, Metric, RunId, State
from bert_train_parallel.sweeps.messages.runs import (
    BertEvalResult,
    BertFineTuneConfig,
    CoordinatorWorkflowConfig,
    DatasetSnapshotResult,
    LaunchSettings,
)
from bert_train_parallel.sweeps.rungs import Ladder, maximises, rungs_of
from bert_train_parallel.sweeps.space import DEFAULT_SPACE, SweepSpace


class TrialResult(Message):
    """A trial of a sweep and how it ended; `score` is None for one that has no figure."""

    number: int = Field(ge=0)
    rung: int = 0
    run_id: RunId
    values: Values = Field(default={})  # what was drawn for it
    score: float | None = None
    state: State = "finished"
    error: str = ""
    figures: dict[str, float] = Field(default={})  # of the validation split
    gpu_seconds: float = 0.0
    rows_seen: int = 0
    first_step: int = 0
    steps: int = 0
    attempts: int = 1
    promoted_from: RunId | None = None
    same_as: RunId | None = None
    host: str = ""
    fine_tune_config: BertFineTuneConfig | None = None  # the whole config; only when the sweep has ended, for values and base say it
    eval_result: BertEvalResult | None = None  # of the validation split, without what `figures` has

    @field_validator("score")
    @classmethod
    def _is_a_number(cls, found: float | None) -> float | None:
        return None if found is None or math.isnan(found) else found


class HistoryReference(Message):
    """Trials that have ended, in a file: too many for a message. The hash is of the whole file."""

    path: str
    count: int = Field(ge=0)
    sha256: str


class Climber(Message):
    """A trial on a rung of a ladder: still to be run there, or one of the best that were."""

    number: int
    values: Values
    from_run: RunId | None = None
    score: float | None = None
    first_step: int = 0
    steps: int = 0
    rows_seen: int = 0


class RungState(Message):
    """A rung of a ladder between two workflow runs."""

    rung: int
    waiting: tuple[Climber, ...] = ()
    best: tuple[Climber, ...] = ()  # of those that ended: no others can go on


class SweepState(Message):
    """A board between two workflow runs of one sweep."""

    number: int = 0  # of the next trial
    trials: int  # to be run, as things stand
    concurrency: int
    budget_gpu_hours: float | None = None
    paused: bool = False
    stopped: str = ""
    approved_rung: int = -1  # of no use; sweeps that earlier versions began hand it on
    spent_s: float = 0.0
    rows_seen: int = 0
    ended: int = 0
    states: dict[str, int] = Field(default={})
    best: tuple[TrialResult, ...] = ()
    recent: tuple[TrialResult, ...] = ()  # not yet in the history file
    history: HistoryReference | None = None
    uncleaned: tuple[RunId, ...] = ()
    snapshot: DatasetSnapshotResult | None = None
    climbing: RungState | None = None  # of a ladder
    winner: TrialResult | None = None  # of a ladder whose random trials, to compare it with, are under way
    randoms: SweepState | None = None  # the board of those; its number is that of the next one
    note: str = ""  # why there are fewer trials than were asked for
    by_score: bool = False  # of its trials' best epochs; those of sweeps that earlier versions began are chosen by loss
    on_gpus: bool | None = None  # whether trials need GPUs: then a node without does not take them; None: not known yet


class SweepRequest(Message):
    """A sweep as a user writes it."""

    experiment_id: RunId
    base: CoordinatorWorkflowConfig
    space: SweepSpace = Field(default_factory=lambda: SweepSpace(DEFAULT_SPACE))
    num_trials: int = Field(default=8, ge=1)  # of a ladder: those that begin on its first rung; a file of a grid: left out, all of it
    max_concurrency: int = Field(default=4, ge=1, le=MOST_AT_ONCE)
    seed: int = Field(default=42, ge=0)
    sampler: Literal["random", "grid", "tpe"] | None = None  # None: random; tpe on a ladder
    ladder: Ladder | None = None
    metric: Metric | None = None
    direction: Literal["maximize", "minimize"] | None = None
    budget_gpu_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    launch: LaunchSettings = LaunchSettings()
    approval: bool = False  # wait for `bert_sweep approve` between rungs
    compare: bool = False  # a ladder's winner against random trials at equal rows seen, on the test split
    keep_checkpoints: bool = False  # also of trials that lost
    so_far: SweepState | None = None  # what an earlier workflow run of the sweep hands on; never in a file

    @field_validator("experiment_id")
    @classmethod
    def _leaves_room(cls, found: str) -> str:
        if found in (RUNS, SNAPSHOTS, STORES, HISTORIES):
            raise ValueError("this is the name of a folder that all sweeps share; choose another")
        if len(found) > 60:
            raise ValueError("at most 60 characters, since trials add a number to it")
        return found

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [name for name, _ in self.space]
        if self.metric and self.direction and maximises(self.metric) != (self.direction == "maximize"):
            raise ValueError(f"direction: {self.metric} is to be {'maximized' if maximises(self.metric) else 'minimized'}; leave it out")
        if self.direction == "minimize" and self.metric is None:
            raise ValueError(
                "direction: accuracy, which is compared where no metric is named, is to be maximized; name loss or mse as metric"
            )
        task = self.base.fine_tune_config.task_type
        if self.metric and task != "auto" and self.metric not in METRICS[task]:
            raise ValueError(f"metric: {self.metric} is not a figure of a {task}; choose one of {', '.join(METRICS[task])}")
        if self.ladder is None:
            if self.approval or self.compare:
                raise ValueError(f"{'approval' if self.approval else 'compare'}: only a sweep with a ladder has rungs")
            if self.sampler == "grid":
                next(iter(grid(self.space)))
            return self
        rungs_of(self.ladder, self.num_trials)
        fixed = [name for name in names if name in ("epochs", "max_train_samples", "max_steps")]
        if fixed:
            raise ValueError(f"space: {fixed[0]} is what the rungs of a ladder decide; leave one of the two out")
        if self.sampler == "grid":
            raise ValueError("sampler: a ladder begins new trials on later rungs, which a grid has not; use tpe or random")
        if self.base.fine_tune_config.settings.get("max_steps"):
            raise ValueError("base.fine_tune_config.settings.max_steps: the rungs of a ladder decide how long a trial trains")
        return self

    @property
    def chosen_sampler(self) -> str:
        return self.sampler or ("tpe" if self.ladder else "random")

    @property
    def maximise(self) -> bool:
        return maximises(self.metric) if self.metric else True


class Comparison(Message):
    """A ladder's winner beside the best of random trials that saw as many rows, on the test split."""

    rows_seen: int
    random_trials: int
    winner: RunId
    winner_figures: dict[str, float]
    random_best: RunId | None
    random_figures: dict[str, float]
    metric: str
    random_rows_seen: int = 0
    random_gpu_hours: float = 0.0  # failed attempts are in it, and it is in those of the sweep
    random_planned: int = 0  # 0: as many as were run; more: the sweep ended before
    randoms: HistoryReference | None = None  # all of them


class SweepResult(Message):
    """What a sweep found."""

    experiment_id: str
    metric: str = "accuracy"
    best_run_id: str | None = None
    best_score: float | None = None
    best_values: Values = Field(default={})
    leaderboard: list[TrialResult] = Field(default=[])  # the best ones, best first
    trials: int = 0  # runs that ended, in whatever state
    states: dict[str, int] = Field(default={})
    gpu_hours: float = 0.0
    stopped: str = ""  # why it ended before all trials were run
    note: str = ""  # why there were fewer trials than were asked for
    history: HistoryReference | None = None  # all trials
    comparison: Comparison | None = None

"""What a sweep answers to people; `as_of` is when its workflow last had something to do."""

from __future__ import annotations

from pydantic import Field

from bert_train_parallel.sweeps.draw import Values
from bert_train_parallel.sweeps.messages.base import Message, RunId
from bert_train_parallel.sweeps.messages.runs import LaunchSettings
from bert_train_parallel.sweeps.messages.sweep import HistoryReference, TrialResult


class RunningAnswer(Message):
    number: int
    rung: int
    run_id: RunId
    values: Values
    seconds: float


class ProgressAnswer(Message):
    """Where a sweep stands; `as_of` is when the workflow last had something to do."""

    as_of: str
    experiment_id: RunId
    trials: int
    ended: int
    states: dict[str, int]
    running: list[RunningAnswer]
    concurrency: int
    paused: bool
    stopped: str
    waiting_for: str
    over: bool
    comparing: bool = False  # these are the random trials that a ladder is compared with
    launch: LaunchSettings = LaunchSettings()
    on_gpus: bool | None = None  # whether trials need GPUs


class LeaderboardAnswer(Message):
    as_of: str
    metric: str
    trials: list[TrialResult]
    newest: list[TrialResult] = Field(default=[])  # those that ended last, in whatever state


class TrialAnswer(Message):
    as_of: str
    running: bool
    ended: list[TrialResult]  # by rung
    history: HistoryReference | None  # where older ones are


class BudgetAnswer(Message):
    as_of: str
    finished_gpu_hours: float
    running_gpu_hours: float
    budget_gpu_hours: float | None
    may_begin: bool
    gpus_each: int = 1  # of a trial

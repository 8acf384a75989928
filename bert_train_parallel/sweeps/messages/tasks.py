"""What a sweep asks of its activities beside trainings."""

from __future__ import annotations

from pydantic import Field

from bert_train_parallel.sweeps.draw import Values
from bert_train_parallel.sweeps.messages.base import Message, Metric, RunId, State
from bert_train_parallel.sweeps.messages.runs import BertFineTuneRequest, DatasetSnapshotResult
from bert_train_parallel.sweeps.messages.sweep import HistoryReference, SweepRequest, SweepResult, TrialResult
from bert_train_parallel.sweeps.space import SweepSpace


class TrialValues(Message):
    number: int
    values: Values


class SuggestRequest(Message):
    """What TPE is to know: the space, all that has ended, and what is running."""

    space: SweepSpace
    seed: int
    number: int  # of the first trial to propose
    count: int = 1
    maximise: bool = True
    history: HistoryReference | None = None
    recent: tuple[TrialResult, ...] = ()  # ended since the history was written
    known: int | None = None  # trials from this number on count as running, whether they have ended or not
    running: tuple[TrialValues, ...] = ()
    rung: int | None = None  # only results of this rung, or of the highest below it that has enough
    distinct: bool = False  # propose nothing that a trial has had; rather fewer


class Proposals(Message):
    values: tuple[Values, ...]


class RecordRequest(Message):
    """Trials to be added to the history file of a sweep."""

    experiment_id: RunId
    history: HistoryReference | None = None
    ended: tuple[TrialResult, ...]
    beside: bool = False  # the random trials that a ladder is compared with, in a file of their own


class CleanUpRequest(Message):
    """Runs whose checkpoints and models may go; what they found stays."""

    among: tuple[RunId, ...]
    keep: tuple[RunId, ...]


class CompareRequest(Message):
    """A ladder's winner and random trials, to be compared by their test figures."""

    winner: RunId
    winner_rows: int
    randoms: tuple[TrialResult, ...]  # the best first; those that are not among the best may be left out
    metric: Metric | None = None
    random_trials: int | None = None  # of all of them; None: they are all here
    random_rows_seen: int | None = None
    random_gpu_hours: float | None = None


class ExportRequest(Message):
    """A sweep that has ended, to be written out for people."""

    request: SweepRequest
    result: SweepResult
    snapshot: DatasetSnapshotResult | None = None


class AccountRequest(Message):
    """A trial that ended without its activity's telling how, and what there is to say of it."""

    trial: BertFineTuneRequest
    state: State
    error: str


class HoldRequest(Message):
    """GPUs of one node to be held for a launch on several."""

    run_id: RunId
    gpus: int = Field(ge=1)
    use_gpu: bool = True
    dataset_snapshot: DatasetSnapshotResult | None = None  # which the node's folder is to have


class Fleet(Message):
    """The nodes whose workers run trials."""

    nodes: dict[str, int]  # their GPUs

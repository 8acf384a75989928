"""What passes between a user's files, workflows and activities: frozen models, checked where they are made.

The names and fields are those of Temporal's BERT demos, and files written for those are accepted; what was added has a default.
Paths in messages are relative to the folder that all workers of a sweep share.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from bert_train_parallel.config import TrainConfig, setting_names
from bert_train_parallel.sweeps.draw import Values, grid
from bert_train_parallel.sweeps.folder import HISTORIES, RUNS, SNAPSHOTS, STORES
from bert_train_parallel.sweeps.rungs import Ladder, maximises, rungs_of
from bert_train_parallel.sweeps.space import DEFAULT_SPACE, SweepSpace

TRAINING_QUEUE = "bert-training-task-queue"
EVAL_QUEUE = "bert-eval-task-queue"
MOST_AT_ONCE = 1000  # trials of a sweep

RunId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]  # a folder's name, never a path
Metric = Literal["accuracy", "macro_f1", "weighted_f1", "mcc", "loss", "pearson", "spearman", "mse"]
State = Literal["finished", "failed", "nan", "oom", "stopped"]


def node_queue(host: str) -> str:
    """The queue that only one node's worker reads.

    >>> node_queue("alpha")
    'bert-node-alpha'
    """
    return f"bert-node-{host}"


def gpu_queue(gpus: int) -> str:
    """The queue for trials of one node that need so many GPUs, which nodes with fewer do not read; 0: those that any node can run.

    >>> gpu_queue(0), gpu_queue(2)
    ('bert-training-task-queue', 'bert-training-task-queue-2-gpus')
    """
    return f"{TRAINING_QUEUE}-{gpus}-gpus" if gpus else TRAINING_QUEUE


class Message(BaseModel):
    """What all messages have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class DatasetSnapshotRequest(Message):
    """A data set to be kept as it is now."""

    run_id: RunId
    dataset_name: str  # a file, a folder, or a name on the Hugging Face hub
    dataset_config: str | None = None
    max_samples: int | None = Field(default=None, ge=1)  # of each split of a data set; a file is kept whole
    snapshot_dir: str = "data_snapshots"
    validation_file: str | None = None
    test_file: str | None = None


class DatasetSnapshotResult(Message):
    """A snapshot on disk; `data_hash` is over all columns, splits and their order."""

    snapshot_id: str
    dataset_name: str
    dataset_config: str | None = None
    num_train_samples: int
    num_eval_samples: int = 0  # of separate files for validation and test; 0: they are split off
    data_hash: str
    snapshot_timestamp: str
    snapshot_path: str
    dataset_schema: dict[str, str] | None = None  # text_field, label_field, ... where the data set names them
    files: dict[str, str] = {}  # train, validation, test: names inside snapshot_path


class CheckpointInfo(Message):
    """A checkpoint of a run."""

    epoch: int
    step: int
    path: str
    loss: float | None = None
    timestamp: str = ""


class BertFineTuneConfig(Message):
    """How one run is trained. `settings` takes any other setting of `bert_train_parallel`, by its name there."""

    model_name: str = "bert-base-uncased"
    dataset_name: str = "glue"
    dataset_config_name: str | None = None
    num_epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=5e-5, gt=0)
    max_seq_length: int = Field(default=128, ge=3)
    use_gpu: bool = True
    max_train_samples: int | None = Field(default=None, ge=1)
    max_eval_samples: int | None = Field(default=None, ge=1)
    text_field: str | None = None
    text_pair_field: str | None = None
    label_field: str | None = None
    task_type: Literal["auto", "classification", "regression"] = "auto"
    shuffle_before_select: bool = True
    seed: int = Field(default=42, ge=0)
    run_id: RunId | None = None
    validation_file: str | None = None
    test_file: str | None = None
    settings: dict[str, Any] = {}

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        known = set(setting_names("data", "model", "machine")) - set(_SETTING_OF.values()) - _NOT_FOR_A_TRIAL
        for name in self.settings:
            if name not in known:
                field = next((field for field, setting in _SETTING_OF.items() if setting == name), None)
                raise ValueError(f"settings.{name}: " + (f"write it as {field}, beside settings" if field else "there is no such setting"))
        try:
            self.train_config()
        except ValidationError as error:
            raise ValueError(_first_words(error)) from None
        return self

    def train_config(self) -> TrainConfig:
        """The same for the trainer. What it would decide by a clock is fixed unless asked otherwise, so that a trial can be repeated."""
        found = {setting: getattr(self, field) for field, setting in _SETTING_OF.items()}
        found |= {"dataset_config": self.dataset_config_name, "validation_file": self.validation_file, "test_file": self.test_file}
        return TrainConfig.model_validate(_BY_NO_CLOCK | found | ({} if self.use_gpu else {"device": "cpu"}) | self.settings)

    def with_values(self, values: Values) -> BertFineTuneConfig:
        """The config with settings of a trial in place of its own.

        >>> BertFineTuneConfig().with_values({"epochs": 2, "warmup": 0.2}).settings
        {'warmup': 0.2}
        """
        field_of = {setting: field for field, setting in _SETTING_OF.items()}
        found = self.model_dump()
        for name, value in values.items():
            if name in field_of:
                found[field_of[name]] = value
            else:
                found["settings"] = found["settings"] | {name: value}
        return BertFineTuneConfig.model_validate(found)


_SETTING_OF = {
    "model_name": "model",
    "num_epochs": "epochs",
    "batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "max_seq_length": "sequence_len",
    "max_train_samples": "max_train_samples",
    "max_eval_samples": "max_eval_samples",
    "text_field": "text",
    "text_pair_field": "text_pair",
    "label_field": "label",
    "task_type": "task_type",
    "shuffle_before_select": "shuffle_before_select",
    "seed": "seed",
}
_BY_NO_CLOCK = {"shares": "equal", "matmul": "mkl"}
# where a run's files are, and how it goes on, is for the sweep to say
_NOT_FOR_A_TRIAL = {"resume", "from_run", "run", "output_dir", "logfile", "validation_file", "test_file", "dataset_config", "profile"}


class LaunchSettings(Message):
    """The machines of one trial: GPUs of one node, or every node of a map."""

    here_gpus: int = Field(default=1, ge=1)  # processes on the one node, each with a GPU or, without GPUs, on the CPU
    gpu_map: dict[str, Annotated[int, Field(ge=1)]] | None = None  # node to processes; more than one: the whole fleet alone
    master_port: int = Field(default=29500, ge=1, le=65535)
    grace_s: float = Field(default=10, ge=0)  # between asking a trial to stop and ending it
    max_hours: float = Field(default=72, gt=0)  # of one attempt
    no_progress_s: float = Field(default=3600, gt=0)  # without a step, epoch or checkpoint told: then the attempt has failed

    @property
    def gpus(self) -> int:
        return sum(self.gpu_map.values()) if self.gpu_map else self.here_gpus

    @property
    def on_one_node(self) -> int:
        """Processes of a trial that one node runs alone; a map may name that node."""
        return self.gpus if self.gpu_map and len(self.gpu_map) == 1 else self.here_gpus


class BertFineTuneRequest(Message):
    """One trial, or one rung of it: what is trained, from where it goes on, and on which machines."""

    run_id: RunId
    config: BertFineTuneConfig
    dataset_snapshot: DatasetSnapshotResult | None = None
    resume_from_checkpoint: str | None = None  # of this run, beside what is found on disk
    from_run: RunId | None = None  # an earlier run whose newest checkpoint this one begins with
    rung: int = Field(default=0, ge=0)
    metric: Metric | None = None  # None: accuracy, or pearson for a regression
    launch: LaunchSettings = LaunchSettings()
    node_rank: int | None = None  # of a launch on several nodes
    reservation: str | None = None  # the GPUs held for it on this node
    again: int = 0  # above 0: trained once more, though there is a RESULT
    signal_checkpoints: bool = False  # tell the workflow of new checkpoints, some seconds apart


class BertFineTuneResult(Message):
    """How a trial ended. A trial that failed is a result too: `state` and `error` say so."""

    run_id: RunId
    config: BertFineTuneConfig
    state: State = "finished"
    error: str = ""
    train_loss: float | None = None
    eval_metrics: dict[str, float] | None = None  # of the validation split, best epoch
    score: float | None = None  # the metric of the sweep
    metric: str = ""
    training_time_seconds: float = 0.0
    gpu_seconds: float = 0.0  # over all attempts, failed ones too
    attempts: int = 1
    rows_seen: int = 0  # by this run alone, without what it began with
    first_step: int = 0
    steps: int = 0
    num_parameters: int | None = None
    dataset_snapshot: DatasetSnapshotResult | None = None
    total_checkpoints_saved: int = 0
    checkpoint: CheckpointInfo | None = None  # the newest
    same_as: RunId | None = None  # the run that had been asked for the same, and is not trained twice
    host: str = ""
    inferred_text_field: str | None = None
    inferred_text_pair_field: str | None = None
    inferred_label_field: str | None = None
    inferred_task_type: str | None = None
    inferred_num_labels: int | None = None


class BertInferenceRequest(Message):
    """Texts for a run's model."""

    run_id: RunId
    texts: list[str] = Field(min_length=1)
    max_seq_length: int | None = Field(default=None, ge=3)  # None: as in training
    use_gpu: bool = True


class BertInferenceResult(Message):
    run_id: RunId
    texts: list[str]
    predicted_labels: list[int]  # codes; for a regression empty
    confidences: list[float]  # probability of the predicted class; for a regression the number itself
    label_names: list[str] = []  # of each text's prediction


class BertEvalRequest(Message):
    """A trained model and the samples to measure it by."""

    run_id: RunId | None = None
    dataset_name: str | None = None  # None: the data that the run was trained with
    dataset_config_name: str | None = None
    split: Literal["train", "validation", "validate", "test"] = "validation"
    max_eval_samples: int | None = Field(default=None, ge=1)
    max_seq_length: int | None = Field(default=None, ge=3)
    batch_size: int = Field(default=32, ge=1)
    use_gpu: bool = True
    model_path: str | None = None  # None: bert_runs/{run_id}
    seed: int = 42
    dataset_snapshot: DatasetSnapshotResult | None = None


class BertEvalResult(Message):
    run_id: RunId
    dataset_name: str
    dataset_config_name: str | None = None
    split: str
    num_examples: int = Field(ge=0)
    accuracy: float | None = Field(default=None, ge=0, le=1)  # None: a regression, or a run that failed
    figures: dict[str, float] = {}
    error: str = ""
    baseline_accuracy: float | None = None
    improvement_vs_baseline: float | None = None


class CoordinatorWorkflowConfig(Message):
    """One configuration: a training and the evaluation of its model."""

    run_id: RunId | None = None
    fine_tune_config: BertFineTuneConfig
    dataset_snapshot: DatasetSnapshotResult | None = None
    evaluation_config: BertEvalRequest = BertEvalRequest()
    launch: LaunchSettings = LaunchSettings()


class CoordinatorWorkflowInput(Message):
    configs: list[CoordinatorWorkflowConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        named = [config.run_id or config.fine_tune_config.run_id for config in self.configs]
        twice = next((name for number, name in enumerate(named) if name and name in named[:number]), None)
        if twice:
            raise ValueError(f"configs: two of them have the run_id {twice}")
        return self


class TrialResult(Message):
    """A trial of a sweep and how it ended; `score` is None for one that has no figure."""

    number: int = Field(ge=0)
    rung: int = 0
    run_id: RunId
    values: Values = {}  # what was drawn for it
    score: float | None = None
    state: State = "finished"
    error: str = ""
    figures: dict[str, float] = {}  # of the validation split
    gpu_seconds: float = 0.0
    rows_seen: int = 0
    first_step: int = 0
    steps: int = 0
    attempts: int = 1
    promoted_from: RunId | None = None
    same_as: RunId | None = None
    host: str = ""
    fine_tune_config: BertFineTuneConfig | None = None  # the whole config; left out where values and base say it
    eval_result: BertEvalResult | None = None

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
    steps: int = 0


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
    approved_rung: int = -1
    spent_s: float = 0.0
    rows_seen: int = 0
    ended: int = 0
    states: dict[str, int] = {}
    best: tuple[TrialResult, ...] = ()
    recent: tuple[TrialResult, ...] = ()  # not yet in the history file
    history: HistoryReference | None = None
    uncleaned: tuple[RunId, ...] = ()
    snapshot: DatasetSnapshotResult | None = None
    climbing: RungState | None = None  # of a ladder
    winner: TrialResult | None = None  # of a ladder whose random trials, to compare it with, are under way
    randoms: SweepState | None = None  # the board of those; its number is that of the next one
    note: str = ""  # why there are fewer trials than were asked for
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
    budget_gpu_hours: float | None = Field(default=None, gt=0)
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


class SweepResult(Message):
    """What a sweep found."""

    experiment_id: str
    metric: str = "accuracy"
    best_run_id: str | None = None
    best_score: float | None = None
    best_values: Values = {}
    leaderboard: list[TrialResult] = []  # the best ones, best first
    trials: int = 0  # runs that ended, in whatever state
    states: dict[str, int] = {}
    gpu_hours: float = 0.0
    stopped: str = ""  # why it ended before all trials were run
    note: str = ""  # why there were fewer trials than were asked for
    history: HistoryReference | None = None  # all trials
    comparison: Comparison | None = None


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


class HoldRequest(Message):
    """GPUs of one node to be held for a launch on several."""

    run_id: RunId
    gpus: int = Field(ge=1)
    use_gpu: bool = True


class Fleet(Message):
    """The nodes whose workers run trials."""

    nodes: dict[str, int]  # their GPUs


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


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "trial"), counted(1200, "trial")
    ('1 trial', '1,200 trials')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def first_problem(error: ValidationError) -> str:
    """Where and what the first thing is that a user got wrong.

    >>> for changes in ({"base": {"fine_tune_config": {"num_epochs": 0}}}, {"ladder": {"stages": []}}, {"num_trials": "many"}):
    ...     try:
    ...         SweepRequest.model_validate({"experiment_id": "x", "base": {"fine_tune_config": {}}, **changes})
    ...     except ValidationError as error:
    ...         print(first_problem(error))
    base.fine_tune_config.num_epochs: 0: should be greater than or equal to 1
    ladder.stages: should have at least 1 item, not 0
    num_trials: 'many': should be a valid integer
    """
    first = error.errors()[0]
    tags = {"float", "int", "choice"}
    place = ".".join(str(part) for part in first["loc"] if part not in tags or first["loc"][-1] == part)
    words = _first_words(error)
    if first["type"] == "extra_forbidden":
        return f"{place} is not a setting of a sweep"
    if first["type"] == "missing":
        return f"{place} is missing"
    shown = "" if first["type"] == "value_error" or isinstance(first["input"], dict | list) else f"{first['input']!r}: "
    return f"{place}: {shown}{words}" if place else words


def _first_words(error: ValidationError) -> str:
    words = re.sub(r"^(Value error, |Input |(Tuple|List|Dictionary) (?=should have))", "", str(error.errors()[0]["msg"]))
    return re.sub(r" after validation|, unable to parse string as an? \w+", "", words)

"""One run: its data, how it is trained and on which machines, what came out, and what its model is asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from bert_train_parallel.config import TrainConfig, setting_names
from bert_train_parallel.sweeps.draw import Values
from bert_train_parallel.sweeps.messages.base import Message, Metric, RunId, State
from bert_train_parallel.sweeps.messages.mistakes import first_words


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
    num_train_samples: int  # of one file, which a training splits: all that are in it
    num_eval_samples: int = 0  # of separate files for validation and test; 0: they are split off
    data_hash: str
    snapshot_timestamp: str
    snapshot_path: str
    dataset_schema: dict[str, str] | None = None  # text_field, label_field, ... where the data set names them
    files: dict[str, str] = Field(default={})  # train, validation, test: names inside snapshot_path


class CheckpointInfo(Message):
    """A checkpoint of a run."""

    epoch: int
    step: int
    path: str
    loss: float | None = None
    timestamp: str = ""


FULL_DISK = "waiting for room on a full disk"  # phases that an attempt tells as it ends, true until the next one begins
NO_FOLDER = "waiting for a node with the sweep's folder"


class TrialProgress(Message):
    """What a heartbeat says of a trial under way."""

    run_id: str
    # waiting for an earlier attempt, for another trial that asked for the same, for GPUs | preparing | training | FULL_DISK | NO_FOLDER
    phase: str
    host: str
    worker: str
    attempt: int
    step: int = 0
    steps: int = 0
    epoch: int = 0
    loss: float | None = None
    figures: dict[str, float | None] | None = None  # of the newest validation
    checkpoint: CheckpointInfo | None = None
    gpu_seconds: float = 0.0  # over all attempts so far
    time: float


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
    settings: dict[str, Any] = Field(default={})

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
            name = ".".join(map(str, error.errors()[0]["loc"]))
            field = next((field for field, setting in _SETTING_OF.items() if setting == name), f"settings.{name}")
            place = f"{field} {error.errors()[0]['input']!r}: " if name else ""
            raise ValueError(place + first_words(error)) from None
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
    grace_s: float = Field(default=10, ge=0, le=1e6)  # between asking a trial to stop and ending it
    max_hours: float = Field(default=72, gt=0, le=1e6)  # of one attempt
    no_progress_s: float = Field(default=3600, gt=0, le=1e9)  # without a step, epoch or checkpoint told: then the attempt has failed

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
    resume_from_checkpoint: str | None = None  # of this run, which goes on from its newest one in any case
    from_run: RunId | None = None  # an earlier run whose newest checkpoint this one begins with
    rung: int = Field(default=0, ge=0)
    metric: Metric | None = None  # None: accuracy, or pearson for a regression
    by_score: bool = False  # then that chooses the best epoch too, as a named metric does; else the trainer's own default, loss
    launch: LaunchSettings = LaunchSettings()
    node_rank: int | None = None  # of a launch on several nodes
    reservation: str | None = None  # the GPUs held for it on this node
    again: int = 0  # above 0: trained once more, though there is a RESULT
    signal_checkpoints: bool = False  # tell the workflow of new checkpoints, some seconds apart
    signal_start: bool = False  # tell the workflow when the training begins: from then on it costs


class BertEvalResult(Message):
    run_id: RunId
    dataset_name: str
    dataset_config_name: str | None = None
    split: str
    num_examples: int = Field(ge=0)
    accuracy: float | None = Field(default=None, ge=0, le=1)  # None: a regression, or a run that failed
    figures: dict[str, float] = Field(default={})
    error: str = ""
    baseline_accuracy: float | None = None  # of whoever always says the commonest class
    improvement_vs_baseline: float | None = None


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
    eval_result: BertEvalResult | None = None  # of the validation split


class BertInferenceRequest(Message):
    """Texts for a run's model."""

    run_id: RunId
    texts: list[str] = Field(min_length=1)
    text_pairs: list[str] | None = None  # the second text of each, for a model that was trained on pairs
    max_seq_length: int | None = Field(default=None, ge=3)  # None: as in training; another is refused
    use_gpu: bool = True

    @model_validator(mode="after")
    def _as_many_second_texts(self) -> Self:
        if self.text_pairs is not None and len(self.text_pairs) != len(self.texts):
            raise ValueError(f"text_pairs: {len(self.text_pairs)} for {len(self.texts)} texts; each of texts has one second text")
        return self


class BertInferenceResult(Message):
    run_id: RunId
    texts: list[str]
    text_pairs: list[str] | None = None
    predicted_labels: list[int]  # codes; for a regression empty
    confidences: list[float]  # probability of the predicted class; for a regression the number itself
    label_names: list[str] = Field(default=[])  # of each text's prediction


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


class CoordinatorWorkflowConfig(Message):
    """One configuration: a training and the evaluation of its model."""

    run_id: RunId | None = None
    fine_tune_config: BertFineTuneConfig
    dataset_snapshot: DatasetSnapshotResult | None = None
    evaluation_config: BertEvalRequest = BertEvalRequest()
    launch: LaunchSettings = LaunchSettings()

    @property
    def named(self) -> str | None:
        """The run id that it names, in whichever of its parts; None where it names none."""
        return self.run_id or self.fine_tune_config.run_id or self.evaluation_config.run_id


class CoordinatorWorkflowInput(Message):
    configs: list[CoordinatorWorkflowConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        named = [config.named for config in self.configs]
        twice = next((name for number, name in enumerate(named) if name and name in named[:number]), None)
        if twice:
            raise ValueError(f"configs: two of them have the run_id {twice}")
        return self

"""What passes between a user's files, workflows and activities: frozen models, checked where they are made.

The names and fields are those of Temporal's BERT demos, and files written for those are accepted; what was added has a default.
Paths in messages are relative to the folder that all workers of a sweep share.

All of them are named here; other modules take them from here alone.
"""

from __future__ import annotations

from bert_train_parallel.sweeps.messages.answers import (
    BudgetAnswer,
    LeaderboardAnswer,
    ProgressAnswer,
    RunningAnswer,
    TrialAnswer,
)
from bert_train_parallel.sweeps.messages.base import (
    EVAL_QUEUE,
    MOST_AT_ONCE,
    TRAINING_QUEUE,
    Message,
    Metric,
    RunId,
    State,
    counted,
    gpu_queue,
    node_queue,
    run_id_of,
)
from bert_train_parallel.sweeps.messages.mistakes import (
    first_problem,
    fitting_name,
)
from bert_train_parallel.sweeps.messages.runs import (
    FULL_DISK,
    NO_FOLDER,
    BertEvalRequest,
    BertEvalResult,
    BertFineTuneConfig,
    BertFineTuneRequest,
    BertFineTuneResult,
    BertInferenceRequest,
    BertInferenceResult,
    CheckpointInfo,
    CoordinatorWorkflowConfig,
    CoordinatorWorkflowInput,
    DatasetSnapshotRequest,
    DatasetSnapshotResult,
    LaunchSettings,
    TrialProgress,
)
from bert_train_parallel.sweeps.messages.sweep import (
    Climber,
    Comparison,
    HistoryReference,
    RungState,
    SweepRequest,
    SweepResult,
    SweepState,
    TrialResult,
)
from bert_train_parallel.sweeps.messages.tasks import (
    AccountRequest,
    CleanUpRequest,
    CompareRequest,
    ExportRequest,
    Fleet,
    HoldRequest,
    Proposals,
    RecordRequest,
    SuggestRequest,
    TrialValues,
)

__all__ = [
    "EVAL_QUEUE",
    "FULL_DISK",
    "MOST_AT_ONCE",
    "NO_FOLDER",
    "TRAINING_QUEUE",
    "AccountRequest",
    "BertEvalRequest",
    "BertEvalResult",
    "BertFineTuneConfig",
    "BertFineTuneRequest",
    "BertFineTuneResult",
    "BertInferenceRequest",
    "BertInferenceResult",
    "BudgetAnswer",
    "CheckpointInfo",
    "CleanUpRequest",
    "Climber",
    "CompareRequest",
    "Comparison",
    "CoordinatorWorkflowConfig",
    "CoordinatorWorkflowInput",
    "DatasetSnapshotRequest",
    "DatasetSnapshotResult",
    "ExportRequest",
    "Fleet",
    "HistoryReference",
    "HoldRequest",
    "LaunchSettings",
    "LeaderboardAnswer",
    "Message",
    "Metric",
    "ProgressAnswer",
    "Proposals",
    "RecordRequest",
    "RunId",
    "RungState",
    "RunningAnswer",
    "State",
    "SuggestRequest",
    "SweepRequest",
    "SweepResult",
    "SweepState",
    "TrialAnswer",
    "TrialProgress",
    "TrialResult",
    "TrialValues",
    "counted",
    "first_problem",
    "fitting_name",
    "gpu_queue",
    "node_queue",
    "run_id_of",
]

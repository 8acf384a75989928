"""The workflows, each a story: what is trained next, and when it is over. All side effects are in activities.

Other modules take them from here. Within, modules are imported by their full names: what is imported "from
bert_train_parallel.sweeps" is loaded a second time inside the sandbox.
"""

from __future__ import annotations

from bert_train_parallel.sweeps.workflows.coordinator import CoordinatorWorkflow
from bert_train_parallel.sweeps.workflows.flat import SweepWorkflow
from bert_train_parallel.sweeps.workflows.ladder import LadderSweepWorkflow
from bert_train_parallel.sweeps.workflows.runs import BertEvalWorkflow, BertInferenceWorkflow, CheckpointedBertTrainingWorkflow

WORKFLOWS = (
    SweepWorkflow,
    LadderSweepWorkflow,
    CheckpointedBertTrainingWorkflow,
    BertEvalWorkflow,
    BertInferenceWorkflow,
    CoordinatorWorkflow,
)

__all__ = [
    "WORKFLOWS",
    "BertEvalWorkflow",
    "BertInferenceWorkflow",
    "CheckpointedBertTrainingWorkflow",
    "CoordinatorWorkflow",
    "LadderSweepWorkflow",
    "SweepWorkflow",
]

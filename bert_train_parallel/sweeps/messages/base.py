"""What all messages have in common: their kind, the queues that they travel by, and how a count is written."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

TRAINING_QUEUE = "bert-training-task-queue"
EVAL_QUEUE = "bert-eval-task-queue"
MOST_AT_ONCE = 1000  # trials of a sweep

RunId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]  # a folder's name, never a path
Metric = Literal["accuracy", "macro_f1", "weighted_f1", "mcc", "loss", "pearson", "spearman", "mse"]
State = Literal["finished", "failed", "nan", "oom", "stopped"]


def run_id_of(workflow_id: str) -> str:
    """The name of a run that was given none: that of its workflow, as far as a folder may be called so.

    >>> run_id_of("bert-my runs-0"), run_id_of("../" + "long " * 40)[:16]
    ('bert-my-runs-0', 'long-long-long-l')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", workflow_id)[-100:].lstrip("._-") or "run"


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


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "trial"), counted(1200, "trial")
    ('1 trial', '1,200 trials')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"

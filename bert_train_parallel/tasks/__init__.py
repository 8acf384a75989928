"""What is learned: how outputs of rows become predictions of samples, figures and a file. No torch."""

from __future__ import annotations

from bert_train_parallel.tasks.task import Predictions, Task, task_of

__all__ = ["Predictions", "Task", "task_of"]

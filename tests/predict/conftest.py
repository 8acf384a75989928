"""Tiny models with random weights, saved as training saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from one_thread import one_thread

from bert_train_parallel.run_files import RunFiles

__all__ = ["one_thread"]

LABELS = ["bad", 'good, or "so"']


@pytest.fixture(scope="session")
def save_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFiles]:
    """Saves a tiny model as training does; what is told apart by settings is `save_run(combine="vote")`."""
    from bert_train_parallel.models.export import save_model, tokenizer_files
    from bert_train_parallel.models.loading import build_model

    def save(**settings: Any) -> RunFiles:
        task = {"task_type": "classification", "sequence_len": 16} | settings
        labels = LABELS if task["task_type"] == "classification" else []
        model = build_model(tiny_model, len(labels) or 1, task["task_type"], labels, seed=4)
        files = RunFiles(tmp_path_factory.mktemp("run"), "leanings")
        save_model(model, files, tokenizer_files(tiny_model), labels, task)
        return files

    return save


@pytest.fixture(scope="session")
def run(save_run: Callable[..., RunFiles]) -> RunFiles:
    return save_run()

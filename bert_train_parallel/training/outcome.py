"""What a run leaves: figures of each epoch as it goes, and at its end predictions, model, a line in the store, and RESULT last."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from torch import nn

from bert_train_parallel import __version__
from bert_train_parallel.data.store import Store
from bert_train_parallel.errors import BadStore, NotWritable
from bert_train_parallel.run_files import RunFiles, write_json
from bert_train_parallel.training.loop import Progress


def write_stats(files: RunFiles, progress: Progress, ranks: Mapping[str, Any], test: Mapping[str, Any] | None = None) -> None:
    """The figures of each epoch and of the test, under the names that the 2020 tool gave them; and who did how much of the work."""
    tested: dict[str, Any] = {}
    if test is not None:
        tested = {"Testing Loss": test.get("loss")}
        tested |= {"Testing Accuracy": test["accuracy"]} if "accuracy" in test else {}
        tested |= {"Test": dict(test)}
    write_json(files.stats, {"Training": progress.epochs, "Testing": tested, "Ranks": dict(ranks)})


def add_to_store(store: Store, result: Mapping[str, Any]) -> str:
    """The run's line in the store's history, once; a sentence where the store cannot take it."""
    record = {name: result[name] for name in ("key", "run", "figures", "settings", "seconds")}
    try:
        if not any(run.get("key") == result["key"] and run.get("run") == result["run"] for run in store.runs()):
            store.add_run(record)
    except (NotWritable, BadStore) as error:
        return f"The store keeps no line of this run: {error}"
    return ""


def fingerprint(model: nn.Module) -> str:
    """A hash of the parameters' names and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.ndim else str(tensor.item()).encode())
    return found.hexdigest()[:32]


def file_names(files: RunFiles, store: Store) -> dict[str, str]:
    """The files of a run that are there, relative to its folder."""
    parts = {
        "predictions": files.predictions,
        "stats": files.stats,
        "saved_model": files.saved_model,
        "model_folder": files.model_folder,
        "checkpoints": files.checkpoints,
        "progress": files.progress,
    }
    names = {name: path.name for name, path in parts.items() if path.exists()}
    return {"store": os.path.relpath(store.path, files.folder), **names}


def versions() -> dict[str, str]:
    found = {"bert-train-parallel": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}

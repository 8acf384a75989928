"""Sweep files to begin with: small ones for a file of texts here, and those that Temporal's BERT demos run from the hub."""

from __future__ import annotations

from typing import Any

_LEANINGS: dict[str, Any] = {
    "model_name": "minilm",
    "dataset_name": "leanings.csv",
    "num_epochs": 2,
    "batch_size": 32,
    "learning_rate": 5e-5,
    "max_seq_length": 128,
}
_SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 5e-4, "log": True},
    "batch_size": [16, 32],
    "schedule": ["linear", "constant"],
    "warmup": {"low": 0.0, "high": 0.2, "when": {"schedule": "linear"}},
}
_HUB = [
    ("bert-base-uncased", "nyu-mll/glue", "sst2", {"text_field": "sentence", "label_field": "label"}),
    ("distilbert-base-uncased", "stanfordnlp/imdb", None, {"text_field": "text", "label_field": "label"}),
    ("microsoft/deberta-v3-small", "allenai/scicite", None, {"text_field": "string", "label_field": "label"}),
]


def example(kind: str, hub: bool = False) -> dict[str, Any]:
    """A ready file, as JSON values.

    >>> example("random")["num_trials"], len(example("coordinate", hub=True)["configs"])
    (8, 3)
    """
    if kind == "coordinate":
        return {"configs": _hub_configs() if hub else _local_configs()}
    base = _hub_config(*_HUB[0]) if hub else {"fine_tune_config": dict(_LEANINGS)}
    name = "sst2" if hub else "leanings"
    found: dict[str, Any] = {
        "experiment_id": f"{name}-{kind}",
        "base": base,
        "space": _SPACE,
        "num_trials": 8,
        "max_concurrency": 2,
        "seed": 42,
        "metric": "accuracy",
    }
    if kind == "ladder":
        stages = [
            {"epochs": 1, "max_train_samples": 500, "keep": 3, "new": 8},
            {"epochs": 2, "max_train_samples": 1000, "keep": 2, "new": 2},
            {"epochs": 4},
        ]
        for decided in ("num_epochs", "max_train_samples"):  # by the rungs
            base["fine_tune_config"].pop(decided, None)
        return found | {"ladder": {"stages": stages}}
    return found | {"sampler": "random"}


def _local_configs() -> list[dict[str, Any]]:
    rates = {"slow": 2e-5, "fast": 1e-4}
    return [{"run_id": f"leanings-{name}", "fine_tune_config": _LEANINGS | {"learning_rate": rate}} for name, rate in rates.items()]


def _hub_configs() -> list[dict[str, Any]]:
    return [_hub_config(*found) for found in _HUB]


def _hub_config(model: str, dataset: str, config: str | None, fields: dict[str, str]) -> dict[str, Any]:
    tuned: dict[str, Any] = {"model_name": model, "dataset_name": dataset, "dataset_config_name": config, "num_epochs": 2, "batch_size": 32}
    tuned |= {"learning_rate": 2e-5, "max_train_samples": 3000, "max_eval_samples": 2000, **fields}
    name = f"{model.rsplit('/', 1)[-1]}-{dataset.rsplit('/', 1)[-1]}"
    return {"run_id": name, "fine_tune_config": tuned, "evaluation_config": {"split": "validation", "max_eval_samples": 1000}}

"""In which fields two requests differ, in words. Pure."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel


def differences(asked: BaseModel, before: BaseModel) -> list[str]:
    """The fields in which two requests differ.

    >>> from bert_train_parallel.sweeps.messages import SweepRequest
    >>> base = {"fine_tune_config": {}}
    >>> differences(SweepRequest(experiment_id="a", base=base), SweepRequest(experiment_id="a", base=base, seed=7))
    ['seed (was 7, is now 42)']
    """
    return differing(asked.model_dump(mode="json"), before.model_dump(mode="json"))


def differing(asked: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """The same of two requests as JSON values."""
    now, then = _leaves(asked), _leaves(before)
    names = [name for name in {**now, **then} if now.get(name) != then.get(name)]
    return [f"{name} (was {_short(then.get(name))}, is now {_short(now.get(name))})" for name in names]


def _leaves(found: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    >>> _leaves({"a": {"b": 1, "c": {}}, "d": [2]})
    {'a.b': 1, 'a.c': {}, 'd': [2]}
    >>> _leaves({"configs": [{"run_id": "mine"}]})
    {'configs.0.run_id': 'mine'}
    """
    leaves: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            value = {str(place): one for place, one in enumerate(value)}
        leaves |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return leaves


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""Launching: one process per GPU on one machine or many. Standard library only; a name loads its module when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_train_parallel.launching.agent import LaunchEvent
    from bert_train_parallel.launching.library import launch
    from bert_train_parallel.launching.plan import Failure, LaunchRequest, LaunchResult, Node, WorldPlan, make_plan

__all__ = ["Failure", "LaunchEvent", "LaunchRequest", "LaunchResult", "Node", "WorldPlan", "launch", "make_plan"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = {"launch": "library", "LaunchEvent": "agent"}.get(name, "plan")
    return getattr(import_module(f"{__name__}.{module}"), name)

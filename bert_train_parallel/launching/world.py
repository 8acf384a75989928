"""What a node's launcher needs of the world around it; one node alone and one of several look the same to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bert_train_parallel.launching.plan import Failure, WorldPlan
from bert_train_parallel.processes import Interrupts


@dataclass(frozen=True, slots=True)
class Start:
    """Run an attempt of this plan, as this node of it."""

    plan: WorldPlan
    node_rank: int


@dataclass(frozen=True, slots=True)
class End:
    """The launch is over on every node; without a failure, well."""

    failure: Failure | None


class World(Protocol):
    """What a launcher needs of the world around its node, for one attempt after another."""

    environment: dict[str, str]  # for the ranks

    def fileno(self) -> int:
        """Readable when `messages` has something; -1 when nothing ever comes."""

    def messages(self) -> list[Failure]:
        """Failures that have come since the last call; any of them ends this attempt."""

    def report(self, failure: Failure) -> None:
        """The first failure of this node in this attempt; told to all at once, before the node's other ranks are ended."""

    def finished(self, exit_code: int) -> None:
        """No process of this attempt is left on this node."""

    def next(self, interrupts: Interrupts) -> Start | End:
        """Wait for what follows: the first plan, another attempt, or the end."""

    def close(self) -> None:
        """Leave; before the end this ends the launch on every node."""

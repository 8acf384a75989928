"""What the loop asks of a way to spread a model's work over a world; the loop never knows which one runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from bert_train_parallel.data.batches import FloatArray, IntArray, Rows


@dataclass(frozen=True, slots=True)
class StepResult:
    """What all ranks know after a step, each the same; it cost no waiting for the device."""

    stop: bool  # some rank was asked to end
    clock: float  # seconds on rank 0, for decisions by time that all ranks must make alike
    notes: tuple[str, ...] = ()  # sentences about what has changed in how the work is spread


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over the rows of all ranks since some step."""

    loss: float = 0.0  # row loss x row weight
    weight: float = 0.0
    correct: float = 0.0  # rows whose greatest output is the target's
    rows: float = 0.0
    tokens: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    @property
    def mean_loss(self) -> float:
        return self.loss / self.weight if self.weight else 0.0

    @property
    def accuracy(self) -> float:
        return self.correct / self.rows if self.rows else 0.0


class Strategy(Protocol):
    """A model spread over a world. Every method is called on all ranks at the same point, but for `state`."""

    def set_up(self, numbers: IntArray) -> list[str]:
        """Whatever must happen once before the first step, whose rows these are; sentences for the user."""

    def step(self, numbers: IntArray, step: int, learning_rate: float) -> StepResult:
        """One optimizer step over the rows of these numbers, the global batch, of which this rank computes its part."""

    def sums(self) -> Sums:
        """Over the steps since the last call; waits for the device."""

    def outputs(self, rows: Rows) -> FloatArray | None:
        """(N, k) of all rows, in their order, on rank 0; None elsewhere."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Model and optimizer by name, and JSON values, to go on from; on any one rank alone."""

    def load(self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], values: dict[str, Any], source: int) -> None:
        """Go on from what `state` gave; only rank `source` needs to have the tensors."""

    def load_model(self, model: Mapping[str, Tensor], source: int = 0) -> None:
        """The model of an earlier step, to evaluate it; only rank `source` needs to have the tensors."""

    def close(self) -> None:
        """Let go of what the ranks share; nothing else may be asked afterwards."""

    def description(self) -> dict[str, Any]:
        """How the work is spread now, as JSON values: share, speed and utilisation of each rank."""

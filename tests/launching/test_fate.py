"""Whether a world starts again, and how a node alone goes through its attempts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bert_train_parallel.errors import BadSetting
from bert_train_parallel.launching.fate import NextStep, next_step
from bert_train_parallel.launching.plan import Failure, LaunchRequest, Node, WorldPlan
from bert_train_parallel.launching.restarts import Alone, run_attempts
from bert_train_parallel.launching.world import World
from bert_train_parallel.processes import Interrupts

LOST = Failure("beta", None, "lost", 1, "lost beta")
FAILED = Failure("beta", 1, "exit", 1, "RuntimeError\n  in a.py")


@pytest.mark.parametrize(
    ("flags", "cause", "lost", "restarts", "step"),
    [
        ({}, None, 0, 0, NextStep(False)),
        ({}, FAILED, 0, 0, NextStep(False)),
        ({"max_restarts": 2}, FAILED, 0, 1, NextStep(True, restarts=2)),
        ({"max_restarts": 2}, FAILED, 0, 2, NextStep(False, restarts=2)),
        ({"max_restarts": 2}, LOST, 1, 0, NextStep(True, restarts=1)),
        ({"elastic": True}, LOST, 1, 0, NextStep(True, without_lost=True)),
        ({"elastic": True}, FAILED, 0, 0, NextStep(False)),
        ({"elastic": True, "max_restarts": 1}, LOST, 1, 1, NextStep(True, without_lost=True, restarts=1)),
        ({"max_restarts": 2}, Failure("beta", 1, "usage", 2, "no such file"), 0, 0, NextStep(False)),
        ({"max_restarts": 2}, Failure("beta", 1, "nan", 3, "the loss is NaN"), 0, 0, NextStep(False)),
        ({"max_restarts": 2}, Failure("beta", None, "stopped", 130, "Ctrl-C"), 0, 0, NextStep(False)),
        ({"max_restarts": 2}, Failure("beta", 1, "oom", 4, "out of memory"), 0, 0, NextStep(True, restarts=1)),
    ],
)
def test_what_follows_a_failure(flags: dict[str, object], cause: Failure | None, lost: int, restarts: int, step: NextStep) -> None:
    request = LaunchRequest(("a.py",), others=1, **flags)  # type: ignore[arg-type]
    assert next_step(request, cause, lost, restarts) == step


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    made = Interrupts()
    yield made
    made.close()


def alone(max_restarts: int, said: list[str]) -> Alone:
    request = LaunchRequest(("a.py",), max_restarts=max_restarts)
    return Alone(request, WorldPlan((Node("alpha", 1),), store_port=20_000), said.append, lambda: 20_001)


def test_a_node_alone_starts_again_with_the_next_attempt_and_a_new_port(interrupts: Interrupts) -> None:
    said: list[str] = []
    seen: list[tuple[int, int]] = []

    def fails_once(plan: WorldPlan, node_rank: int, world: World) -> None:
        seen.append((plan.attempt, plan.store_port))
        if plan.attempt == 0:
            world.report(FAILED)

    result = run_attempts(alone(3, said), fails_once, interrupts)
    assert seen == [(0, 20_000), (1, 20_001)]
    assert (result.exit_code, result.attempts, result.first_failure) == (0, 2, None)
    assert said == ["RuntimeError", "restart 1 of 3 (--max_restarts)."]


def test_a_node_alone_gives_its_last_failure_when_restarts_are_used_up(interrupts: Interrupts) -> None:
    result = run_attempts(alone(1, []), lambda plan, node_rank, world: world.report(FAILED), interrupts)
    assert (result.exit_code, result.attempts, result.first_failure) == (1, 2, FAILED)


def test_a_mistake_found_when_ranks_start_is_told_to_the_world_and_raised(interrupts: Interrupts) -> None:
    world = alone(3, [])
    told: list[Failure] = []
    world.report = told.append  # type: ignore[method-assign]

    def cannot_start(plan: WorldPlan, node_rank: int, world: World) -> None:
        raise BadSetting("not executable")

    with pytest.raises(BadSetting):
        run_attempts(world, cannot_start, interrupts)
    assert [(failure.kind, failure.words, failure.exit_code) for failure in told] == [("usage", "alpha: not executable", 2)]

"""One fate for all nodes: whether the world starts again after its first failure. Pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bert_train_parallel.launching.command import is_ours
from bert_train_parallel.launching.plan import Failure, Hello, LaunchRequest, WorldPlan

WORTH_A_RESTART = {"exit", "signal", "lost", "oom"}  # a wrong setting, a NaN or Ctrl-C would only come again


@dataclass(frozen=True, slots=True)
class NextStep:
    """What follows when no process of an attempt is left on any node."""

    again: bool
    without_lost: bool = False  # go on with the nodes that are left; else wait for the lost ones to come back
    restarts: int = 0


def next_step(request: LaunchRequest, cause: Failure | None, lost: int, restarts: int) -> NextStep:
    """Whether the world starts again; a world that only goes on without lost nodes uses up no restart.

    >>> request = LaunchRequest(("train.py",), max_restarts=1)
    >>> died = Failure("beta", 1, "exit", 1, "RuntimeError")
    >>> next_step(request, died, lost=0, restarts=0).again, next_step(request, died, lost=0, restarts=1).again
    (True, False)
    """
    if cause is None or cause.kind not in WORTH_A_RESTART:
        return NextStep(False, restarts=restarts)
    if lost and request.elastic:
        return NextStep(True, without_lost=True, restarts=restarts)
    if restarts < request.max_restarts:
        return NextStep(True, restarts=restarts + 1)
    return NextStep(False, restarts=restarts)


def without_lost(request: LaunchRequest, left: Sequence[Hello]) -> tuple[LaunchRequest, list[Hello]]:
    """The request and hellos of a world that goes on with the nodes that are left, in their old order.

    >>> request, hellos = without_lost(LaunchRequest(("train.py",), others=5), [Hello("alpha", 1, 5, 0), Hello("gamma", 2, 4, 2)])
    >>> request.others, [hello.node_rank for hello in hellos]
    (2, [0, 1])
    """
    hellos = [replace(hello, others=None, node_rank=number) for number, hello in enumerate(left)]
    return replace(request, gpu_map=None, others=sum(hello.ranks for hello in left[1:])), hellos


def ranks_left(first: WorldPlan, plan: WorldPlan) -> tuple[int, ...]:
    """For each rank of a plan, which rank it was in the first plan; empty where a node was not in it, or had another number of ranks.

    >>> from bert_train_parallel.launching.plan import Node
    >>> first = WorldPlan((Node("alpha", 2), Node("beta", 1), Node("gamma", 1)))
    >>> ranks_left(first, WorldPlan((Node("alpha", 2), Node("gamma", 1)))), ranks_left(first, WorldPlan((Node("delta", 1),)))
    ((0, 1, 3), ())
    """
    places = {node.host: number for number, node in enumerate(first.nodes)}
    found: list[int] = []
    for node in plan.nodes:
        if node.host not in places or first.nodes[places[node.host]].ranks != node.ranks:
            return ()
        found += first.ranks_on(places[node.host])
    return tuple(found)


def how_to_go_on(command: Sequence[str]) -> str:
    """What to type after a loss that ended the launch: our trainer begins a new run unless it is told to go on.

    >>> how_to_go_on(("python", "-P", "-m", "bert_train_parallel", "leanings.csv"))
    'Start the same line again with --resume on every node: training goes on where it was saved'
    >>> how_to_go_on(("python", "train.py"))
    'Start the same line again on every node: a script goes on from its own checkpoints, if it keeps any'
    """
    if not is_ours(command):
        return "Start the same line again on every node: a script goes on from its own checkpoints, if it keeps any"
    flag = "" if "--resume" in command else " with --resume"
    return f"Start the same line again{flag} on every node: training goes on where it was saved"

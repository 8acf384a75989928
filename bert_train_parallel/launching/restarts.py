"""One attempt of the world after another, on this node: alone, or in step with the other nodes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace

from bert_train_parallel.errors import BertTrainParallelError
from bert_train_parallel.launching.fate import next_step
from bert_train_parallel.launching.plan import Failure, LaunchRequest, LaunchResult, WorldPlan
from bert_train_parallel.launching.world import End, Start, World
from bert_train_parallel.processes import Interrupts

RunAttempt = Callable[[WorldPlan, int, World], object]


class Alone:
    """The world of a single node; it needs no channel, and no event loop."""

    def __init__(self, request: LaunchRequest, plan: WorldPlan, say: Callable[[str], None], free_port: Callable[[], int]) -> None:
        self.request, self.plan, self.say, self.free_port = request, plan, say, free_port
        self.environment: dict[str, str] = {}
        self.failure: Failure | None = None
        self.begun = False
        self.restarts = 0

    def fileno(self) -> int:
        return -1

    def messages(self) -> list[Failure]:
        return []

    def report(self, failure: Failure) -> None:
        self.failure = self.failure or failure

    def finished(self, exit_code: int) -> None:
        pass

    def next(self, interrupts: Interrupts) -> Start | End:
        if not self.begun:
            self.begun = True
            return Start(self.plan, 0)
        for number in interrupts.read():
            if number != signal.SIGCHLD and self.failure:  # it came while a failed attempt ended: no other one is wanted
                return End(self.failure)
        step = next_step(self.request, self.failure, lost=0, restarts=self.restarts)
        if not step.again:
            return End(self.failure)
        if self.failure:  # its end is not told otherwise, and what other ranks say is what they saw of it
            self.say(self.failure.headline)
        self.restarts, self.failure = step.restarts, None
        self.say(f"restart {self.restarts} of {self.request.max_restarts} (--max_restarts).")
        self.plan = replace(self.plan, attempt=self.plan.attempt + 1, store_port=self.free_port())
        return Start(self.plan, 0)

    def close(self) -> None:
        pass


def run_attempts(world: World, run_attempt: RunAttempt, interrupts: Interrupts) -> LaunchResult:
    """Run this node's part of every attempt until the launch is over.

    Args:
        run_attempt: runs this node's ranks of one attempt, reports the first failure to the world, and leaves no process.
    Raises:
        NodesDisagree, Unreachable, BadSetting: the world does not come about.
        LaunchFailed: a signal arrived while this node waited for the others.
    """
    began = time.monotonic()
    step = world.next(interrupts)
    plan = WorldPlan(())
    attempts = 0
    while isinstance(step, Start):
        plan = step.plan
        attempts += 1
        try:
            run_attempt(plan, step.node_rank, world)
        except BertTrainParallelError as error:
            host = plan.nodes[step.node_rank].host
            words = str(error) if host in str(error) else f"{host}: {error}"  # the other nodes must read whose mistake it is
            world.report(Failure(host, None, error.kind, error.exit_code, words))
            world.finished(error.exit_code)
            world.next(interrupts)  # the others have heard of it before this node goes
            raise
        step = world.next(interrupts)
    first = step.failure
    return LaunchResult(plan, first.exit_code if first else 0, first, attempts, time.monotonic() - began)

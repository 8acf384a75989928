"""One node's part of a launch: its plan, alone or with the other nodes; its ranks; and what is said of how it ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

from bert_train_parallel import gpus
from bert_train_parallel.errors import BertTrainParallelError, NotWritable
from bert_train_parallel.launching.agent import LaunchEvent, OnEvent, run_ranks
from bert_train_parallel.launching.command import is_ours, option_of, source_of
from bert_train_parallel.launching.fate import ranks_left
from bert_train_parallel.launching.output import last_lines
from bert_train_parallel.launching.plan import Failure, Hello, LaunchRequest, LaunchResult, WorldPlan, make_plan
from bert_train_parallel.launching.ports import checked_port, free_port
from bert_train_parallel.launching.restarts import Alone, run_attempts
from bert_train_parallel.launching.world import World
from bert_train_parallel.processes import Interrupts

Say = Callable[[str], None]


def launch_node(
    request: LaunchRequest,
    claim: gpus.Claim,
    interrupts: Interrupts,
    *,
    say: Say,
    warn: Say,
    on_event: OnEvent | None = None,
    problem: str = "",
    signature: str = "",
) -> LaunchResult:
    """Run this node's part of a launch until it is over on every node; the caller is guarded (`processes.guarded`).

    Args:
        claim: this node's devices.
        say: takes the lines that a quiet launch leaves out.
        warn: takes those that it does not: how the launch failed.
        problem: why this node cannot take part; all nodes hear it, and stop.
        signature: put before the line that heads what our trainer prints, on standard output: a mistake that the trainer tells on
            standard error stays one line. Without it, and for other programs, the line is said before the start.
    Raises:
        NodesDisagree, Unreachable, BadSetting, NotWritable: the ranks cannot be started.
        LaunchFailed: a signal arrived while this node waited for the others.
    """
    world = make_world(request, claim, say, problem)
    if request.check:
        from bert_train_parallel.launching.check import check_request

        request = check_request(request)
    logs = Logs(request)
    first: WorldPlan | None = None

    def run_attempt(plan: WorldPlan, node_rank: int, world: World) -> None:
        nonlocal first
        first = first or plan
        asked = request
        if plan.world_size < first.world_size:  # what a user has said of each rank is still said of those that are left
            left = ",".join(map(str, ranks_left(first, plan)))
            asked = replace(request, environment=request.environment | {"BERT_TRAIN_RANKS_LEFT": left})
        folder = logs.folder(plan)
        devices = ", ".join(plan.nodes[node_rank].devices) or plan.nodes[node_rank].device.upper()
        words = f"{_processes(plan, node_rank)} on {devices}; output in {folder}"
        heading = f"{signature}{words}\n" if signature and is_ours(request.command) else ""
        if not heading:
            say(words)
        if on_event:
            on_event(LaunchEvent("planned" if plan.attempt == 0 else "restarted", folder))
        run_ranks(
            plan,
            node_rank,
            world,
            request=asked,
            folder=folder,
            interrupts=interrupts,
            say=say,
            on_event=on_event,
            heading=heading,
        )

    try:
        result = run_attempts(world, run_attempt, interrupts)
    except BertTrainParallelError as error:
        warn(str(error))  # at once: a master then stays a moment for nodes that come late
        error.was_said = True
        logs.end(Failure("", None, error.kind, error.exit_code, str(error)), say, warn)
        raise
    finally:
        world.close()
    if result.first_failure is not None and not logs.have_said(result.first_failure):
        warn(result.first_failure.words)
    logs.end(result.first_failure, say, warn)
    return result


def make_world(request: LaunchRequest, claim: gpus.Claim, say: Say, problem: str = "") -> World:
    """What this node needs of the world around it."""
    if request.is_single_node:
        return Alone(request, own_plan(request, claim), say, free_port)
    from bert_train_parallel.launching.agreement import Channel
    from bert_train_parallel.launching.hello import make_hello

    return Channel(request, make_hello(request, claim.ranks, claim.devices, problem), say)


def own_plan(request: LaunchRequest, claim: gpus.Claim) -> WorldPlan:
    """The plan of a single node, with a free port unless one was asked for.

    Raises:
        BadSetting: the port is taken.
    """
    host = request.host or os.uname().nodename
    asked = request.master_port or request.store_port
    port = checked_port(asked) if asked else free_port()
    return make_plan(request, [Hello(host, claim.ranks, others=0, devices=claim.devices, store_port=port)], job=new_job())


def new_job() -> str:
    """A name for a launch: when it began, and a few letters that tell two of one second apart."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"


def _processes(plan: WorldPlan, node_rank: int) -> str:
    here = plan.nodes[node_rank].ranks
    count = f"{here} process{'es' * (here != 1)}"
    return count if len(plan.nodes) == 1 else f"{count} of {plan.world_size}, ranks {plan.ranks_on(node_rank)[0]} up, as node {node_rank}"


class Logs:
    """Where the output of each rank is kept: beside a run of our trainer, else in a temporary folder, or where `--log_dir` says."""

    def __init__(self, request: LaunchRequest) -> None:
        self._request = request
        self._own = os.path.abspath(request.folder)
        self._temporary: str | None = None
        self._made: list[str] = []  # folders that were not there before, inner ones first
        self._last = ""

    def folder(self, plan: WorldPlan) -> str:
        """Make the folder of one attempt.

        Raises:
            NotWritable: it cannot be made.
        """
        self._last = os.path.join(self._parent(), plan.job, *([f"attempt_{plan.attempt}"] if plan.attempt else []))
        folder, missing = self._last, []
        while not os.path.exists(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        try:
            os.makedirs(self._last, exist_ok=True)
        except OSError as error:
            raise NotWritable(
                f"{self._last}: {(error.strerror or str(error)).lower()}. The output of each process is kept there; name another place "
                f"with --log_dir."
            ) from None
        self._made = missing + self._made
        return self._last

    def _parent(self) -> str:
        request = self._request
        if request.log_dir:
            return os.path.join(self._own, request.log_dir)
        arguments = request.command[request.command.index("-m") + 2 :] if is_ours(request.command) else ()
        source = source_of(arguments)
        if source:
            from bert_train_parallel.run_files import run_files

            outputs = option_of(arguments, "--output_dir", "--output-dir")
            return os.path.join(self._own, run_files(source, outputs, option_of(arguments, "--run")).logs)
        if self._temporary is None:
            self._temporary = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"launch-{os.urandom(6).hex()}")
        return self._temporary

    def end(self, failure: Failure | None, say: Say, warn: Say) -> None:
        """Remove what nobody will ask for, and say where the rest is.

        Removed are temporary logs of a launch that ended well or printed nothing, and those of a mistake that was told in full.
        """
        is_mistake = failure is not None and failure.kind == "usage" and not self._request.log_dir
        if is_mistake or (self._temporary is not None and (failure is None or not self._has_output())):
            self._remove()
        elif failure is not None:
            self._point_to(failure, say if self._temporary is None else warn)  # a quiet launch has not named it before

    def _has_output(self) -> bool:
        for folder in self._made:
            with os.scandir(folder) as entries:
                if any(entry.name.endswith(".log") and entry.stat().st_size for entry in entries):
                    return True
        return False

    def _remove(self) -> None:
        for folder in self._made:
            try:
                for entry in os.listdir(folder):
                    if entry.startswith("rank_"):
                        os.unlink(os.path.join(folder, entry))
                os.rmdir(folder)
            except OSError:  # another launch uses it too
                return

    def _point_to(self, failure: Failure, say: Say) -> None:
        """Say where the whole output of a rank that failed here is; of any process, where it lies in a temporary folder."""
        log = os.path.join(self._last, f"rank_{failure.rank}.log")
        if failure.kind in ("exit", "signal") and os.path.exists(log):
            say(f"the whole output of rank {failure.rank} is in {log}")
        elif self._temporary is not None:
            say(f"the whole output of each process here is in {self._last}")

    def have_said(self, failure: Failure) -> bool:
        """Whether the one sentence of a failure has been printed by the first rank itself already."""
        from bert_train_parallel.launching.failures import SAID_IN_FULL

        if failure.kind not in SAID_IN_FULL or failure.rank is None:
            return False
        return failure.words in "\n".join(last_lines(os.path.join(self._last, "rank_0.log")))

"""Following a sweep from outside: its workflow's answers, the heartbeats of its trials, and a table that is drawn anew."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from bert_train_parallel import errors
from bert_train_parallel.errors import BadRun, BertTrainParallelError, Unreachable
from bert_train_parallel.sweeps import fleet, views
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.trial import WrongFolder

LOOK_S = 1.0
PATIENCE = timedelta(seconds=20)  # with a worker that answers for a sweep: a new one reads the history of a long one first
_SCHEDULED = PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
RUNNING, COMPLETED = WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.COMPLETED

Asked = TypeVar("Asked", bound=m.Message)


def sweep_handle(client: Client, experiment_id: str) -> WorkflowHandle[Any, m.SweepResult]:
    return client.get_workflow_handle(workflow_id(experiment_id), result_type=m.SweepResult)


def workflow_id(experiment_id: str) -> str:
    return f"bert-sweep-{experiment_id}"


async def request_of(client: Client, experiment_id: str) -> m.SweepRequest:
    """What the newest workflow of a sweep was asked; raises as `asked_of` does."""
    found = await asked_of(client, workflow_id(experiment_id), m.SweepRequest)
    return found.model_copy(update={"so_far": None})


async def asked_of(client: Client, workflow_id: str, model: type[Asked]) -> Asked:
    """What the newest workflow of this id was asked.

    Raises:
        RPCError: there is none, or the server does not answer.
    """
    events = client.get_workflow_handle(workflow_id).fetch_history_events(page_size=1)
    started = (await anext(events)).workflow_execution_started_event_attributes
    found = await client.data_converter.decode(list(started.input.payloads), [model])
    return model.model_validate(found[0])


async def status_of(handle: WorkflowHandle[Any, Any]) -> WorkflowExecutionStatus | None:
    """Whether a workflow runs; None where there is none.

    Raises:
        Unreachable: the server does not answer.
    """
    try:
        return (await handle.describe()).status
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            return None
        raise Unreachable(f"The Temporal server does not answer: {error.message}.") from None


async def check_served(client: Client, experiment_id: str) -> None:
    """See that there is somebody to answer for a sweep: the server alone keeps what is asked of it, and says nothing.

    Raises:
        Unreachable: no worker asks for its tasks.
    """
    if await status_of(sweep_handle(client, experiment_id)) is not None and not await fleet.is_served(client, m.EVAL_QUEUE):
        raise unserved(experiment_id)


def unserved(experiment_id: str) -> Unreachable:
    return Unreachable(
        f"No worker answers for {experiment_id}, though the server does. bert_sweep run FILE goes on with a sweep of this machine; "
        "bert_sweep worker --queue eval serves those whose workers run elsewhere."
    )


def silence(error: RPCError, experiment_id: str) -> Unreachable:
    """A server's error in words of ours: what is late is a worker."""
    if error.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED) or "no poller" in error.message:
        return unserved(experiment_id)
    return Unreachable(f"The Temporal server does not answer: {error.message}.")


@dataclass(slots=True)
class UnderWay:
    """What Temporal knows of the trials under way, by run id."""

    beats: dict[str, m.TrialProgress] = field(default_factory=dict)  # what each last said
    lost: dict[str, float] = field(default_factory=dict)  # of those that no worker has any more: seconds since
    faults: set[str] = field(default_factory=set)  # of nodes, which leave trials to others

    @property
    def gpu_hours(self) -> float:
        return sum(beat.gpu_seconds for beat in self.beats.values()) / 3600


async def trials_under_way(client: Client, workflow_id: str) -> UnderWay:
    description = await client.get_workflow_handle(workflow_id).describe()
    found = UnderWay()
    for pending in description.raw_description.pending_activities:
        has_worker = pending.state != _SCHEDULED
        if not has_worker and pending.last_failure.application_failure_info.type == WrongFolder.__name__:
            found.faults.add(pending.last_failure.message)
        if pending.activity_type.name != "fine_tune_bert" or not pending.heartbeat_details.payloads:
            continue
        (beat,) = await client.data_converter.decode(list(pending.heartbeat_details.payloads), [m.TrialProgress])
        earlier = found.beats.get(beat.run_id)  # of a launch on several nodes, the first one counts what it costs
        if earlier is None or beat.gpu_seconds >= earlier.gpu_seconds:
            found.beats[beat.run_id] = beat
        if not has_worker and beat.phase not in (m.FULL_DISK, m.NO_FOLDER):
            found.lost[beat.run_id] = max(time.time() - beat.time, 0.0)
    return found


async def look(client: Client, experiment_id: str, page: str = "") -> views.View:
    """All that can be seen of a sweep now.

    Raises:
        RPCError: the server does not answer, or no worker of it for `PATIENCE`.
    """
    handle = sweep_handle(client, experiment_id)
    progress = await handle.query("progress", result_type=m.ProgressAnswer, rpc_timeout=PATIENCE)
    board = await handle.query("leaderboard", 100, result_type=m.LeaderboardAnswer, rpc_timeout=PATIENCE)
    spent = await handle.query("budget", result_type=m.BudgetAnswer, rpc_timeout=PATIENCE)
    since_s = max(time.time() - datetime.fromisoformat(spent.as_of).timestamp(), 0.0)  # a workflow's clock stands while nothing happens
    limit = f" of {spent.budget_gpu_hours:g}" if spent.budget_gpu_hours else ""
    trials = await trials_under_way(client, workflow_id(experiment_id))
    hours = spent.finished_gpu_hours + trials.gpu_hours
    lacking = ""
    waiting = {one.run_id for one in progress.running} - (trials.beats.keys() - trials.lost.keys())
    if not progress.over and (progress.on_gpus is None or waiting):
        lacking = fleet.shortage(progress.launch, bool(progress.on_gpus), await fleet.nodes(client, progress.launch), experiment_id)
    lacking = "; ".join([*([lacking] if lacking else []), *sorted(trials.faults)])
    link = f"{page}/namespaces/{client.namespace}/workflows/{workflow_id(experiment_id)}" if page else ""
    return views.View(
        progress,
        board.trials,
        board.metric,
        trials.beats,
        f", {hours:.3g}{limit} GPU-hours",
        link,
        since_s,
        board.newest,
        lacking,
        trials.lost,
    )


async def shortage_of(client: Client, request: m.SweepRequest) -> str:
    """Why a sweep's trials would wait for a node if they began now; empty where they would not, or where no node is up yet."""
    up = await fleet.nodes(client, request.launch)
    device = request.base.fine_tune_config.train_config().device
    needs_gpus = device == "cuda" or (device == "auto" and any(up.values()))
    return fleet.shortage(request.launch, needs_gpus, up, request.experiment_id) if up else ""


class Screen:
    """Lines that are drawn over on a terminal; elsewhere one line for each trial that ends."""

    def __init__(self) -> None:
        self._in_place = sys.stdout.isatty()
        self._drawn = 0
        self._told: set[str] = set()
        self._head = self._shortage = ""

    def show(self, view: views.View) -> None:
        if self._in_place:
            self._draw(views.lines_of(view, shutil.get_terminal_size().columns))
            return
        best = view.best[0].run_id if view.best else ""
        for trial in sorted({one.run_id: one for one in (*view.best, *view.newest)}.values(), key=lambda trial: (trial.rung, trial.number)):
            if trial.run_id not in self._told:
                self._told.add(trial.run_id)
                print(views.ended_line(trial, view.metric, trial.run_id == best), flush=True)
        if view.progress.waiting_for and view.progress.waiting_for != self._head:
            self._head = view.progress.waiting_for
            print(views.lines_of(view, 400)[0], flush=True)
        if view.shortage != self._shortage:
            self._shortage = view.shortage
            print(view.shortage or "there is a node for its trials now", flush=True)

    def end(self, view: views.View) -> None:
        """The lines of the last trials, where there is no table."""
        if not self._in_place:
            self.show(view)

    def note(self, sentence: str) -> None:
        """A sentence that stays."""
        self.clear()
        print(sentence, flush=True)

    def clear(self) -> None:
        """Take the table away."""
        if self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="", flush=True)
            self._drawn = 0

    def _draw(self, lines: list[str]) -> None:
        height = shutil.get_terminal_size().lines - 2
        shown = lines[:height]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        print(up + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J", end="", flush=True)
        self._drawn = len(shown)


async def follow(client: Client, experiment_id: str, page: str = "") -> m.SweepResult:
    """Show a sweep until it ends; gives its result.

    Raises:
        BertTrainParallelError: the sweep failed as a whole, or was cancelled or terminated.
    """
    handle, screen, silent = sweep_handle(client, experiment_id), Screen(), False
    while True:
        try:
            status = (await handle.describe()).status
            if status != RUNNING:
                screen.clear()
                result: m.SweepResult = await result_of(handle)
                with contextlib.suppress(RPCError):  # what ended since the last look; the result itself is there
                    screen.end(await look(client, experiment_id, page))
                return result
            screen.show(await look(client, experiment_id, page))
            silent = False
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                raise BadRun(f"There is no sweep {experiment_id} on this server. bert_sweep status lists them.") from None
            if not silent:
                screen.note(f"{str(silence(error, experiment_id)).split('. ')[0].rstrip('.')}; trials under way go on")
            silent = True
        await asyncio.sleep(LOOK_S)


async def outcome(handle: WorkflowHandle[Any, Any]) -> Any:
    """Wait for the result of a workflow, over restarts of its server; raises as `result_of` does."""
    while True:
        try:
            return await result_of(handle)
        except RPCError:
            await asyncio.sleep(LOOK_S)


async def result_of(handle: WorkflowHandle[Any, Any]) -> Any:
    """The result of a workflow that has ended.

    Raises:
        BertTrainParallelError: it failed; the sentence at the bottom of the chain.
    """
    try:
        return await handle.result()
    except WorkflowFailureError as error:
        raise sentence_of(error) from None


def sentence_of(error: BaseException) -> BertTrainParallelError:
    """Our own error, of its own kind, from a chain of Temporal's."""
    while error.__cause__ is not None:
        error = error.__cause__
    kind = getattr(errors, str(getattr(error, "type", "")), BadRun)
    words = str(getattr(error, "message", "") or error or type(error).__name__)
    is_ours = isinstance(kind, type) and issubclass(kind, BertTrainParallelError) and kind is not errors.LaunchFailed
    return kind(words) if is_ours else BadRun(words)

"""What a person asks about sweeps, and tells them, from another terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.service import RPCError, RPCStatusCode

from bert_train_parallel.errors import BadRun, BadSetting, Unreachable
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps import results, views, watching
from bert_train_parallel.sweeps.folder import SharedFolder

WithClient = Callable[[Callable[[Client], Awaitable[Any]]], Any]


async def update(client: Client, experiment_id: str, name: str, given: Sequence[Any]) -> str:
    """Tell a sweep something; gives its answer.

    Raises:
        BadSetting: it refuses, and says why.
        BadRun: it does not run.
    """
    handle = watching.sweep_handle(client, experiment_id)
    await watching.check_served(client, experiment_id)
    try:
        async with asyncio.timeout(watching.PATIENCE.total_seconds()):
            return str(await handle.execute_update(name, args=list(given)))
    except TimeoutError:
        raise watching.unserved(experiment_id) from None
    except WorkflowUpdateFailedError as error:
        raise BadSetting(f"{experiment_id}: {watching.sentence_of(error)}.") from None
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            raise BadRun(f"There is no sweep {experiment_id} that runs on this server. bert_sweep status lists them.") from None
        raise watching.silence(error, experiment_id) from None


def all_in(folder: Path, with_client: WithClient) -> list[str]:
    """One line for each sweep of a folder."""
    known = sorted(place.parent.name for place in folder.glob(f"*/{results.REQUEST}"))
    return [_line(folder, one, with_client) for one in known] or [f"There is no sweep in {folder}."]


def all_with(folder: Path, with_client: WithClient) -> list[str]:
    """One line for each sweep of another server than a folder's own, and for those that have ended in the folder.

    Raises:
        Unreachable: the server does not answer, and nothing has ended in the folder.
    """
    ended = {place.parent.name: done[1] for place in folder.glob(f"*/{results.RESULT}") if (done := results.read_result(place.parent))}
    found = {name: _ended(result) for name, result in ended.items()}
    try:
        found |= with_client(all_of)
    except Unreachable as error:
        if not found:
            raise
        return [*(line for _, line in sorted(found.items())), str(error)]
    return [line for _, line in sorted(found.items())] or ["There is no sweep on this server."]


async def all_of(client: Client) -> dict[str, str]:
    """One line for each sweep of a server, whose files may lie elsewhere, by its name.

    Raises:
        Unreachable: it does not answer.
    """
    try:
        kinds = "WorkflowType IN ('SweepWorkflow', 'LadderSweepWorkflow')"
        known = {one.id.removeprefix("bert-sweep-") async for one in client.list_workflows(kinds)}
        return {one: await _line_of(client, one) for one in sorted(known)}
    except RPCError as error:
        raise Unreachable(f"The Temporal server does not answer: {error.message}.") from None


async def _line_of(client: Client, experiment_id: str) -> str:
    status = await watching.status_of(watching.sweep_handle(client, experiment_id))  # a list of workflows is a moment behind
    if status == watching.COMPLETED:
        return _ended(await watching.result_of(watching.sweep_handle(client, experiment_id)))
    if status != watching.RUNNING:
        return f"{experiment_id}: {status.name.lower() if status else 'unknown'}; bert_sweep watch {experiment_id} says why"
    try:
        return views.lines_of(await _look(client, experiment_id), width=200)[0]
    except Unreachable:
        return f"{experiment_id}: begun, and no worker serves it now"


def lines(folder: Path, experiment_id: str, with_client: WithClient) -> list[str]:
    """One sweep at length.

    Raises:
        BadRun: there is no such sweep.
    """
    done = results.read_result(folder / experiment_id)
    if done:
        place = folder / experiment_id
        return [*views.result_lines(done[1], results.places_of(place)), *results.why_ended(place)]
    return views.lines_of(with_client(lambda client: _look(client, experiment_id)), width=200, rows=20)


async def _look(client: Client, experiment_id: str) -> views.View:
    await watching.check_served(client, experiment_id)
    try:
        return await watching.look(client, experiment_id)
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            raise BadRun(f"There is no sweep {experiment_id} on this server. bert_sweep status lists them.") from None
        raise watching.silence(error, experiment_id) from None


def _line(folder: Path, experiment_id: str, with_client: WithClient) -> str:
    try:
        done = results.read_result(folder / experiment_id)
    except BadRun as error:  # of one sweep, which keeps nobody from the others
        return f"{experiment_id}: {error}"
    if done:
        return _ended(done[1])
    try:
        return views.lines_of(with_client(lambda client: _look(client, experiment_id)), width=200)[0]
    except (Unreachable, BadRun):
        return f"{experiment_id}: begun, not running now; bert_sweep run FILE goes on with it"


def _ended(result: m.SweepResult) -> str:
    best = "none" if result.best_score is None else f"{result.best_score:.4f}"
    return f"{result.experiment_id}: ended, {m.counted(result.trials, 'trial')}, best {result.metric} {best}"


def export_now(folder: Path, experiment_id: str, with_client: WithClient) -> str:
    """Write out a sweep as it is now; gives the path of its page, or of its table and why there is no page."""
    shared = SharedFolder(folder.resolve())
    done = results.read_result(folder / experiment_id)
    request = m.ExportRequest(request=done[0], result=done[1]) if done else with_client(lambda client: _so_far(client, experiment_id))
    written = folder / asyncio.run(results.export(request, shared, lambda: None, is_over=done is not None))
    no_page = results.why_no_page(folder / experiment_id, is_over=done is not None)
    return f"{written}\nno page: {no_page}" if no_page else str(written)


async def _so_far(client: Client, experiment_id: str) -> m.ExportRequest:
    await watching.check_served(client, experiment_id)
    handle = watching.sweep_handle(client, experiment_id)
    try:
        found: m.ExportRequest = await handle.query("so_far", result_type=m.ExportRequest, rpc_timeout=watching.PATIENCE)
        return found
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            raise BadRun(f"There is no sweep {experiment_id} on this server. bert_sweep status lists them.") from None
        raise watching.silence(error, experiment_id) from None

"""A trial repeated from what was asked, and the snapshot: the original input is not needed.

What was asked is in the folder of each run; where that is gone, it is in the history of the server."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
from collections.abc import Sequence
from typing import Any

from temporalio.client import Client, WorkflowHistory

from bert_train_parallel.errors import BadRun, LaunchFailed
from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps import views
from bert_train_parallel.sweeps.folder import SharedFolder, is_trial_of
from bert_train_parallel.sweeps.keys import asked_before, home_of
from bert_train_parallel.sweeps.snapshots import check_snapshot
from bert_train_parallel.sweeps.trials import Trials, TryAgain
from bert_train_parallel.sweeps.watching import workflow_id


async def asked_for(client: Client, experiment_id: str) -> list[m.BertFineTuneRequest]:
    """Every launch that a sweep asked for, from its workflow's history."""
    found: dict[str, m.BertFineTuneRequest] = {}
    async for run in client.list_workflows(f'WorkflowId = "{workflow_id(experiment_id)}"'):
        history = await client.get_workflow_handle(run.id, run_id=run.run_id).fetch_history()
        for request in await _launches(client, history):
            found[request.run_id] = request
    return list(found.values())


def written_down(folder: SharedFolder, experiment_id: str) -> list[m.BertFineTuneRequest]:
    """The same, as the runs' folders say it."""
    return [asked_before(folder, place.name)[1] for place in folder.trials_of(experiment_id) if (place / "asked.json").is_file()]


async def _launches(client: Client, history: WorkflowHistory) -> list[m.BertFineTuneRequest]:
    found = []
    for event in history.events:
        asked = event.activity_task_scheduled_event_attributes
        if asked.activity_type.name == "fine_tune_bert":
            found += await client.data_converter.decode(list(asked.input.payloads), [m.BertFineTuneRequest])
    return found


def chain_of(asked: Sequence[m.BertFineTuneRequest], run_id: str) -> list[m.BertFineTuneRequest]:
    """A run and those that it went on from, the first one first.

    Raises:
        BadRun: the history has no such run.
    """
    by_id = {request.run_id: request for request in asked}
    chain: list[m.BertFineTuneRequest] = []
    wanted: str | None = run_id
    while wanted is not None:
        if wanted not in by_id:
            raise BadRun(f"The history of the sweep has no launch of {wanted}. It has: {', '.join(sorted(by_id)[:20]) or 'none'}.")
        chain.insert(0, by_id[wanted])
        wanted = by_id[wanted].from_run
    return chain


def run_again(chain: Sequence[m.BertFineTuneRequest], folder: SharedFolder) -> int:
    """Train a chain of runs once more, under new names, and compare the predictions; 0 when they are the same."""
    names: dict[str, str] = {}
    for request in chain:
        assert request.dataset_snapshot is not None
        check_snapshot(request.dataset_snapshot, folder)
        again = _times(request.run_id, folder)
        names[request.run_id] = f"{request.run_id}-again{again}"
        earlier = request.from_run and names[request.from_run]
        config = request.config.model_copy(update={"settings": request.config.settings | _machine_of(request.run_id, folder)})
        renamed = request.model_copy(update={"run_id": names[request.run_id], "again": again, "from_run": earlier, "config": config})
        result = asyncio.run(_train(renamed, folder))
        if result.state != "finished":
            raise LaunchFailed(f"{renamed.run_id}: {result.state}: {result.error}", 1)
    return _compare(folder, chain[-1].run_id, names[chain[-1].run_id])


def _machine_of(run_id: str, folder: SharedFolder) -> dict[str, Any]:
    """What the last digits depend on beside what was asked: threads, and the library of matrix products."""
    files = folder.finished_files(home_of(folder, run_id))
    if files is None:
        return {}
    world = json.loads(files.result.read_text(encoding="utf-8")).get("world", {})
    found = {"threads": world.get("threads"), "matmul": world.get("matmul")}
    return {name: value for name, value in found.items() if value}


def _times(run_id: str, folder: SharedFolder) -> int:
    """The number of the next repetition: the first that is not finished."""
    number = 1
    while folder.finished_files(f"{run_id}-again{number}") is not None:
        number += 1
    return number


async def _train(request: m.BertFineTuneRequest, folder: SharedFolder) -> m.BertFineTuneResult:
    def show(progress: m.TrialProgress) -> None:
        if sys.stdout.isatty():
            print(f"\r{request.run_id}  {views.course(progress)}", end="", flush=True)

    trials, owner = Trials(folder, "again"), f"again-{secrets.token_hex(8)}"  # of two commands at once, the second waits for the first
    while True:
        try:
            result = await trials.run(request, show, owner)
        except TryAgain as error:
            print(f"{request.run_id}: {error}; again", file=sys.stderr)
            continue
        print(f"{request.run_id}: {result.state}, {result.metric} {result.score}")
        return result


def _compare(folder: SharedFolder, first: str, second: str) -> int:
    one, other = (_lines(folder.finished_files(home_of(folder, run_id)), run_id) for run_id in (first, second))
    same = sum(a == b for a, b in zip(one, other, strict=False))
    count = max(len(one), len(other))
    print(f"{same} of {count} test predictions are the same, to the last digit, as those of {first}")
    return 0 if same == count else 1


def _lines(files: RunFiles | None, run_id: str) -> list[str]:
    if files is None or not files.predictions.is_file():
        raise BadRun(f"{run_id} has no test predictions to compare with.")
    return files.predictions.read_text(encoding="utf-8").splitlines()[1:]


def run_named(asked: Sequence[m.BertFineTuneRequest], experiment_id: str, number: int | None, result: m.SweepResult | None) -> str:
    """The run of a trial on its last rung; without a number, the best run of a sweep that has ended.

    Raises:
        BadRun: there is no such trial.
    """
    if not any(is_trial_of(request.run_id, experiment_id) for request in asked):
        raise BadRun(f"There is no sweep {experiment_id} of which a trial has begun. bert_sweep status lists them.")
    if number is None:
        if result is None:
            raise BadRun(f"The sweep {experiment_id} has not ended, so it has no best trial yet; name one by its number.")
        if result.best_run_id is None:
            raise BadRun(f"No trial of {experiment_id} has a score, so there is no best one; name one by its number.")
        return result.best_run_id
    name = re.compile(rf"{re.escape(experiment_id)}-t{number:04d}(-r\d+)?")
    found = [request for request in asked if name.fullmatch(request.run_id)]
    if not found:
        raise BadRun(f"The history of {experiment_id} has no trial {number}.")
    return max(found, key=lambda request: request.rung).run_id

"""`bert_sweep run`: a sweep from its file to its leaderboard, going on wherever an earlier call of the command was ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from bert_train_parallel.errors import BadRun, BadSetting, BertTrainParallelError, Unreachable, not_writable
from bert_train_parallel.processes import cores
from bert_train_parallel.run_files import write_json
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps import views, watching
from bert_train_parallel.sweeps.differences import differences
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.local import local
from bert_train_parallel.sweeps.requests import check_data, notes_on, notes_on_configurations, read_configurations, read_sweep
from bert_train_parallel.sweeps.reservations import TooFewGpus, check_can_run, count_here
from bert_train_parallel.sweeps.results import PAGE, REQUEST, draw_page, export, places_of, read_result, why_ended
from bert_train_parallel.sweeps.workflows import CoordinatorWorkflow, LadderSweepWorkflow, SweepWorkflow


def run(path: Path, folder: Path) -> int:
    """Run a sweep to its end on this machine."""
    request = read_sweep(path)
    done = _known(request, folder)
    if done is not None:
        place = SharedFolder(folder.resolve()).sweep(request.experiment_id)
        if not (place / PAGE).is_file():
            tell(["its page is missing, and is drawn now"])
            asyncio.run(draw_page(place))
        return show(done, request, folder)
    check_launch(request.launch, request.base.fine_tune_config, path)
    if _begun(SharedFolder(folder).sweep(request.experiment_id)) is None:  # later it has a snapshot of its own
        check_data([request.base.fine_tune_config], path)
    tell(notes_on(request))
    result = asyncio.run(_run(request, folder))
    return show(result, request, folder)


def check_launch(launch: m.LaunchSettings, config: m.BertFineTuneConfig, path: Path) -> None:
    """See that this machine, alone, can run the trials of a file.

    Raises:
        BadSetting: it has too few GPUs, or its worker serves no node of a map; the sentence says how to use other machines.
    """
    if launch.gpu_map:
        raise BadSetting(
            f"{path}: launch.gpu_map names nodes, each of which has a worker of its own: type bert_sweep server, bert_sweep worker "
            "--queue node --host NAME on each node, and bert_sweep start; or write launch.here_gpus for trials on this machine."
        )
    try:
        check_can_run(launch.here_gpus, config.train_config().device)
    except TooFewGpus as error:
        raise BadSetting(f"{path}: {error}") from None


def tell(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", flush=True)


def _known(request: m.SweepRequest, folder: Path) -> m.SweepResult | None:
    """The result of the very same sweep, if it has ended.

    Raises:
        BadSetting: a sweep of this name was begun with another request.
    """
    place = SharedFolder(folder).sweep(request.experiment_id)
    found = read_result(place)
    before = found[0] if found else _begun(place)
    differing = differences(request, before) if before else []
    if differing:
        raise BadSetting(
            f"{place} is of another sweep of this name, which differs in {'; '.join(differing)}. Give the new one its own experiment_id."
        )
    return found[1] if found else None


def _begun(place: Path) -> m.SweepRequest | None:
    try:
        return m.SweepRequest.model_validate_json((place / REQUEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise BadRun(f"{place / REQUEST} is damaged, or of another version. Remove it, and run the sweep again: it goes on.") from None


async def _run(request: m.SweepRequest, folder: Path) -> m.SweepResult:
    shared = SharedFolder(folder.resolve())
    place = shared.sweep(request.experiment_id)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(error, place) or error from error
    each = max(cores() // request.max_concurrency, 1)  # of the file: the same for all trials, whatever set-concurrency says later
    async with local(folder, most_at_once(request), request.launch.grace_s + 5, each) as here:
        await start(here.client, request)
        tell(await notes_on_others(here.client, request, each))
        if not (place / REQUEST).is_file():
            await _refuse_other(here.client, request, f"{place} is gone, but the history of {place.parent} has")
            write_json(place / REQUEST, request.model_dump(mode="json"))
        try:
            result = await watching.follow(here.client, request.experiment_id, here.page)
        except BertTrainParallelError:
            if not shared.trials_of(request.experiment_id):
                (place / REQUEST).unlink()  # it failed before any trial: its file may be mended, and run again
            raise
    if read_result(place) is None:  # the history has it, and someone removed the folder
        await export(m.ExportRequest(request=request, result=result), shared, lambda: None)
    return result


async def notes_on_others(client: Client, request: m.SweepRequest, cores_each: int) -> list[str]:
    """That other sweeps run trials on these cores: the number of a trial's threads stays as it is, for on it depend its last digits."""
    if request.base.fine_tune_config.use_gpu and count_here():  # whose holders wait for each other
        return []
    kinds = ", ".join(f"'{kind.__name__}'" for kind in (SweepWorkflow, LadderSweepWorkflow))
    try:
        found = [one.id async for one in client.list_workflows(f"ExecutionStatus = 'Running' AND WorkflowType IN ({kinds})")]
    except RPCError:  # it is a note: a server that does not answer is told elsewhere
        return []
    others = sorted(one.removeprefix("bert-sweep-") for one in found if one != watching.workflow_id(request.experiment_id))
    if not others:
        return []
    words = (
        f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} under way in this folder too: each trial here takes {cores_each} of "
    )
    return [f"{words}the {m.counted(cores(), 'core')} that all share, and is slower than alone; one sweep after the other takes no longer"]


async def _refuse_other(client: Client, request: m.SweepRequest, who_has: str) -> None:
    """Raises BadSetting where the history has another sweep of this name."""
    differing = differences(request, await watching.request_of(client, request.experiment_id))
    if differing:
        raise BadSetting(
            f"{who_has} another sweep of this name, which differs in {'; '.join(differing)}. Give the new one its own experiment_id."
        )


async def hand_over(client: Client, request: m.SweepRequest, folder: Path) -> str:
    """Start a sweep whose workers run elsewhere, and say so; one that runs, or has ended, is told as such.

    Raises:
        BadSetting: another sweep has its name.
    """
    name, place = request.experiment_id, SharedFolder(folder).sweep(request.experiment_id)
    status = await watching.status_of(watching.sweep_handle(client, name))
    if status not in (None, watching.RUNNING, watching.COMPLETED) and not SharedFolder(folder).trials_of(name):
        (place / REQUEST).unlink(missing_ok=True)  # it failed before any trial: its file may be mended
    _known(request, folder)
    await start(client, request)
    await _refuse_other(client, request, "The server has")
    lacking = "" if status == watching.COMPLETED else await watching.shortage_of(client, request)
    tell([lacking] if lacking else [])
    if folder.is_dir() and not (place / REQUEST).is_file():  # elsewhere, the workers' folder is not reached from here
        place.mkdir(exist_ok=True)
        write_json(place / REQUEST, request.model_dump(mode="json"))
    if status == watching.COMPLETED:
        return f"{name} has ended; bert_sweep status {name} shows what it found."
    return f"{name} is {'already running' if status == watching.RUNNING else 'started'}; bert_sweep watch {name} shows it."


async def start(client: Client, request: m.SweepRequest, patience_s: float = 60.0) -> None:
    """Start the sweep's workflow; one that runs, or has ended well, is left as it is.

    Raises:
        Unreachable: the server takes no workflows for `patience_s`; a new one answers before it does that.
    """
    kind: Any = LadderSweepWorkflow if request.ladder else SweepWorkflow
    deadline = time.monotonic() + patience_s
    while True:
        try:
            await client.start_workflow(
                kind.run,
                request,
                id=watching.workflow_id(request.experiment_id),
                task_queue=m.EVAL_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                static_summary=f"{m.counted(request.num_trials, 'trial')}, {'ladder' if request.ladder else request.chosen_sampler}",
            )
            return
        except WorkflowAlreadyStartedError:
            return
        except RPCError as error:
            if time.monotonic() > deadline:
                raise Unreachable(f"The Temporal server takes no workflow: {error.message}.") from None
        await asyncio.sleep(0.3)


def most_at_once(request: m.SweepRequest) -> int:
    """What this machine could run at a time, should set-concurrency ask for it: what its GPUs allow; without GPUs, what it may ask for."""
    gpus = count_here() if request.base.fine_tune_config.use_gpu else 0
    return max(gpus // request.launch.here_gpus, 1) if gpus else m.MOST_AT_ONCE


def show(result: m.SweepResult, request: m.SweepRequest, folder: Path) -> int:
    """Print what a sweep found and where it lies; 0 when there is a best trial."""
    place = SharedFolder(folder).sweep(request.experiment_id)
    places = places_of(place)
    if result.best_run_id:
        places["best run"] = str(SharedFolder(folder).run(result.best_run_id))
    print("\n".join(views.result_lines(result, places)))
    for line in why_ended(place):
        print(line)
    return 0 if result.best_run_id else 1


def coordinate(path: Path, folder: Path, trials: int | None) -> int:
    """Train and evaluate given configurations on this machine."""
    given = read_configurations(path)
    tell(notes_on_configurations(given))
    for config in given.configs:
        check_launch(config.launch, config.fine_tune_config, path)
    check_data([part for config in given.configs for part in (config.fine_tune_config, config.evaluation_config) if part], path)
    results = asyncio.run(_coordinate(given, path.stem, folder, trials or max(count_here(), 1)))
    for result in results:
        accuracy = "" if result.accuracy is None else f"accuracy {result.accuracy:.4f} on {result.num_examples} samples of {result.split}"
        figures = "" if result.accuracy is not None else views.values_in_words(result.figures)
        print(f"{result.run_id}  {result.dataset_name}  {result.error or accuracy or figures}")
    return 1 if any(result.error for result in results) else 0


async def _coordinate(given: m.CoordinatorWorkflowInput, name: str, folder: Path, trials: int) -> list[m.BertEvalResult]:
    async with local(folder, trials) as here:
        place = f"bert-coordinate-{name}"
        handle = await here.client.start_workflow(
            CoordinatorWorkflow.run,
            given,
            id=place,
            task_queue=m.EVAL_QUEUE,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        )
        differing = differences(given, await watching.asked_of(here.client, place, m.CoordinatorWorkflowInput))
        if differing:
            raise BadSetting(
                f"{folder} has configurations of a file {name}.json under way, which differ in {'; '.join(differing)}. "
                "Put that file back to go on with them, or give the new file another name."
            )
        count, page = m.counted(len(given.configs), "configuration"), f"{here.page}/namespaces/default/workflows/{place}"
        print(f"{count}, {trials} at a time; Temporal's page: {page}")
        return list(await watching.outcome(handle))

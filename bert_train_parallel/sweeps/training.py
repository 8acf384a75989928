"""How workflows ask for work: every activity with its bound, its heartbeat and its retries, in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.exceptions import TimeoutError as ActivityTimeout

with workflow.unsafe.imports_passed_through():
    import bert_train_parallel.sweeps.messages as m
    from bert_train_parallel.sweeps.activities import Activities
    from bert_train_parallel.sweeps.draw import Values

HEARTBEAT = timedelta(seconds=10)  # without one for so long, a worker or node is lost, and the trial goes on elsewhere
FATE = timedelta(seconds=15)  # in which all nodes of a launch end after a failure on one
HOUR = timedelta(hours=1)

FLEET_FAILURES = 10  # of a launch on several nodes, lost workers not counted
# A lost worker may be followed by any number of others, each at once: the heartbeat that did not come was wait enough, and an
# attempt that fails says itself how long to wait. The trial's own failures are counted by its attempts' files.
LOST = RetryPolicy(initial_interval=timedelta(seconds=0.5), backoff_coefficient=1.0)
SHORT = RetryPolicy(initial_interval=timedelta(seconds=0.5), maximum_interval=timedelta(seconds=20), maximum_attempts=50)
ONCE = RetryPolicy(maximum_attempts=1)

_Asked = TypeVar("_Asked")
_Told = TypeVar("_Told")


async def _ask(method: Callable[[Activities, _Asked], Awaitable[_Told]], request: _Asked, within: timedelta = HOUR) -> _Told:
    """Work beside trainings, by whichever worker serves the queue for it."""
    return await workflow.execute_activity_method(
        method,
        request,
        task_queue=m.EVAL_QUEUE,
        start_to_close_timeout=within,
        heartbeat_timeout=HEARTBEAT,
        retry_policy=SHORT,
    )


async def take_snapshot(request: m.DatasetSnapshotRequest) -> m.DatasetSnapshotResult:
    return await _ask(Activities.create_dataset_snapshot, request, within=12 * HOUR)


async def snapshot_of(given: m.DatasetSnapshotResult | None, request: m.DatasetSnapshotRequest) -> m.DatasetSnapshotResult:
    """The snapshot that a person named, when it has been looked at; else a new one."""
    if given is None:
        return await take_snapshot(request)
    if workflow.patched("given-snapshots-are-checked"):
        await _ask(Activities.check_dataset_snapshot, given, within=12 * HOUR)
    return given


def snapshot_request(config: m.BertFineTuneConfig, run_id: str) -> m.DatasetSnapshotRequest:
    return m.DatasetSnapshotRequest(
        run_id=run_id,
        dataset_name=config.dataset_name,
        dataset_config=config.dataset_config_name,
        validation_file=config.validation_file,
        test_file=config.test_file,
    )


async def look_for_nodes() -> m.Fleet:
    return await workflow.execute_activity_method(
        Activities.look_for_nodes,
        task_queue=m.EVAL_QUEUE,
        start_to_close_timeout=12 * HOUR,
        heartbeat_timeout=HEARTBEAT,
        retry_policy=LOST,
    )


def may_use_gpus(config: m.BertFineTuneConfig, launch: m.LaunchSettings) -> bool:
    """Whether it matters how many GPUs the node has that takes a trial."""
    return not launch.gpu_map and config.train_config().device in ("auto", "cuda")


async def needs_gpus(config: m.BertFineTuneConfig) -> bool:
    """Whether a trial that may use GPUs is for nodes that have them alone: where there is one."""
    return config.train_config().device == "cuda" or any((await look_for_nodes()).nodes.values())


async def train(request: m.BertFineTuneRequest, on_gpus: bool = False) -> m.BertFineTuneResult:
    """One trial, on whichever node is free, with as many GPUs as it needs where it needs some, or on all nodes of its map."""
    if request.launch.gpu_map and len(request.launch.gpu_map) > 1:
        return await _train_on_fleet(request)
    if request.launch.gpu_map:
        return await _fine_tune(request, m.node_queue(next(iter(request.launch.gpu_map))), LOST)
    return await _fine_tune(request, m.gpu_queue(request.launch.here_gpus if on_gpus else 0), LOST)


def _longest(launch: m.LaunchSettings) -> timedelta:
    """When Temporal ends an attempt that has not ended itself: it may wait, make a store and train, each for `max_hours`."""
    return timedelta(hours=min(3 * launch.max_hours, 1e6), seconds=launch.grace_s + 60)


async def _fine_tune(request: m.BertFineTuneRequest, queue: str, retry: RetryPolicy) -> m.BertFineTuneResult:
    return await workflow.execute_activity_method(
        Activities.fine_tune_bert,
        request,
        task_queue=queue,
        start_to_close_timeout=_longest(request.launch),
        heartbeat_timeout=HEARTBEAT,
        retry_policy=retry,
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )


async def _train_on_fleet(request: m.BertFineTuneRequest) -> m.BertFineTuneResult:
    """The whole fleet alone: every node's GPUs are held before anything starts, and a failure anywhere frees all.

    Nodes are asked in the order of their names, so that two sweeps never wait for each other.
    """
    assert request.launch.gpu_map is not None
    nodes = list(request.launch.gpu_map)
    failures = 0
    while True:
        held: dict[str, str] = {}
        try:
            for host in sorted(nodes):
                held[host] = await _hold(request, host, request.launch.gpu_map[host])
            return await _on_all_nodes(request, nodes, held)
        except ActivityError as error:
            cause = error.cause
            # and not a worker that was lost or has another folder, nor another trial of the same that is under way
            failures += isinstance(cause, ApplicationError) and cause.type not in ("Busy", "WrongFolder")
            if is_cancelled_exception(error) or failures >= FLEET_FAILURES or (isinstance(cause, ApplicationError) and cause.non_retryable):
                raise
            workflow.logger.info("%s: the fleet begins again: %s", request.run_id, error.cause)
        finally:
            await asyncio.shield(_give_back(held))
        await workflow.sleep(timedelta(seconds=1))


async def _on_all_nodes(request: m.BertFineTuneRequest, nodes: list[str], held: dict[str, str]) -> m.BertFineTuneResult:
    launches = []
    for node_rank, host in enumerate(nodes):
        part = request.model_copy(update={"node_rank": node_rank, "reservation": held[host]})
        launches.append(asyncio.create_task(_fine_tune(part, m.node_queue(host), ONCE)))
    try:
        await workflow.wait(launches, return_when=asyncio.FIRST_EXCEPTION)
        # a failure elsewhere ends the first node's part too, and may be a result there
        await workflow.wait_condition(launches[0].done, timeout=FATE)
    except TimeoutError:
        pass
    finally:
        for launch in launches:
            launch.cancel()
        results = await asyncio.gather(*launches, return_exceptions=True)
    if isinstance(results[0], m.BertFineTuneResult):
        return results[0]
    raise next(result for result in results if isinstance(result, BaseException))


async def _hold(request: m.BertFineTuneRequest, host: str, gpus: int) -> str:
    return await workflow.execute_activity_method(
        Activities.hold_gpus,
        m.HoldRequest(run_id=request.run_id, gpus=gpus, use_gpu=request.config.use_gpu, dataset_snapshot=request.dataset_snapshot),
        task_queue=m.node_queue(host),
        start_to_close_timeout=timedelta(hours=request.launch.max_hours),
        heartbeat_timeout=HEARTBEAT,
        retry_policy=LOST,
    )


async def _give_back(held: dict[str, str]) -> None:
    """Free what was not taken over by a launch; a node that does not answer has freed it by dying."""
    for host, reservation in held.items():
        try:
            await workflow.execute_activity_method(
                Activities.give_back_gpus,
                reservation,
                task_queue=m.node_queue(host),
                schedule_to_close_timeout=timedelta(seconds=5),
                retry_policy=ONCE,
            )
        except ActivityError as error:
            if not isinstance(error.cause, ActivityTimeout):
                raise


async def account_for(request: m.AccountRequest) -> m.BertFineTuneResult:
    """What the attempts of a trial say that ended without telling."""
    return await _ask(Activities.account_for_trial, request)


async def evaluate(request: m.BertEvalRequest) -> m.BertEvalResult:
    return await _ask(Activities.evaluate_bert_model, request, within=12 * HOUR)


async def infer(request: m.BertInferenceRequest) -> m.BertInferenceResult:
    return await _ask(Activities.run_bert_inference, request)


async def suggest(request: m.SuggestRequest) -> list[Values]:
    proposals = await _ask(Activities.suggest_trials, request)
    return list(proposals.values)


async def record(request: m.RecordRequest) -> m.HistoryReference:
    return await _ask(Activities.record_trials, request)


async def clean_up(request: m.CleanUpRequest) -> int:
    return await _ask(Activities.clean_up, request)


async def compare(request: m.CompareRequest) -> m.Comparison:
    return await _ask(Activities.compare_on_test, request)


async def export(request: m.ExportRequest) -> str:
    return await _ask(Activities.export_sweep, request)

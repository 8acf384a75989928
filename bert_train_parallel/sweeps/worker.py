"""A worker: polls queues, runs workflows and activities, and takes its trials' processes along when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
from collections.abc import Sequence
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker

from bert_train_parallel.processes import cores
from bert_train_parallel.sweeps.activities import Activities
from bert_train_parallel.sweeps.fleet import identity
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.messages import EVAL_QUEUE, TRAINING_QUEUE, counted, gpu_queue, node_queue
from bert_train_parallel.sweeps.reservations import count_here
from bert_train_parallel.sweeps.workflows import WORKFLOWS, CheckpointedBertTrainingWorkflow

ROLES = ("training", "eval", "node")
# Heartbeats are held back to a part of their timeout unless told otherwise; a cancel arrives with one.
_THROTTLE = timedelta(seconds=1)
_TO_FINISH = timedelta(seconds=5)  # for what is short, when the worker is asked to end; trials are asked to end at once, and save


def make_workers(client: Client, roles: Sequence[str], trials: int, host: str, gpus: int, activities: Activities) -> list[Worker]:
    """The workers of one process: `training` and `node` run trials, `eval` runs sweeps and all that is short.

    Trials that need GPUs are asked for at the queue of each number up to those that are here, as many as fit at a time.
    """
    make = functools.partial(
        Worker,
        client,
        identity=identity(worker_name(host), gpus),
        max_heartbeat_throttle_interval=_THROTTLE,
        default_heartbeat_throttle_interval=_THROTTLE,
    )
    workers = []
    if "training" in roles or "node" in roles:
        workers.append(
            make(
                task_queue=TRAINING_QUEUE,
                workflows=[CheckpointedBertTrainingWorkflow],
                activities=[activities.fine_tune_bert],
                max_concurrent_activities=trials,
            )
        )
        for each in range(1, gpus + 1):
            most = max(min(trials, gpus // each), 1)
            workers.append(make(task_queue=gpu_queue(each), activities=[activities.fine_tune_bert], max_concurrent_activities=most))
    if "node" in roles:
        workers.append(make(task_queue=node_queue(host), activities=activities.of_a_node))
    if "eval" in roles:
        workers.append(
            make(task_queue=EVAL_QUEUE, workflows=list(WORKFLOWS), activities=activities.short, graceful_shutdown_timeout=_TO_FINISH)
        )
    return workers


async def work(
    client: Client,
    folder: SharedFolder,
    roles: Sequence[str],
    trials: int | None = None,
    host: str | None = None,
    cores_each: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; trials under way then end and go on elsewhere.

    Args:
        trials: at a time; None: one for each GPU.
        cores_each: CPU cores for each trial that trains without a GPU; None: an equal part of this machine's. Where
            OMP_NUM_THREADS is set it stands.
    """
    host = host or socket.gethostname()
    gpus = count_here()
    at_once = trials or max(gpus, 1)
    share = None if "OMP_NUM_THREADS" in os.environ else cores_each or max(cores() // at_once, 1)
    if share and not gpus:  # for evaluations and pages, which run beside trials
        os.environ["OMP_NUM_THREADS"] = str(share)
    if share and share < cores():
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads that spin would take the cores of other trials
    activities = Activities(folder, worker_name(host), client, cores_each=share)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        workers = make_workers(client, roles, at_once, host, gpus, activities)
        for worker in workers:
            await stack.enter_async_context(worker)
        server = client.service_client.config.target_host
        print(
            f"{worker_name(host)} serves {', '.join(roles)} of {server}, {counted(at_once, 'trial')} at a time, on {counted(gpus, 'GPU')}",
            flush=True,
        )
        await stop.wait()
        await asyncio.gather(*(worker.shutdown() for worker in workers))  # all at once: each waits for its trials


def worker_name(host: str) -> str:
    return f"{host}/{os.getpid()}"

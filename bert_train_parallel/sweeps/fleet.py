"""The nodes that are up, with their GPUs as their workers report them to Temporal, and whether trials can run on any of them.

A worker's identity says its node and its GPUs. It asks for trials at the queue of every number of GPUs up to that, so a trial is
never given to a node with fewer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client

from bert_train_parallel.sweeps.messages import TRAINING_QUEUE, LaunchSettings, counted, node_queue


def identity(worker: str, gpus: int) -> str:
    """What a worker tells Temporal of itself.

    >>> identity("alpha/123", 2), identity("beta/7", 0)
    ('alpha/123 (2 GPUs)', 'beta/7 (0 GPUs)')
    """
    return f"{worker} ({counted(gpus, 'GPU')})"


def reported(identity: str) -> tuple[str, int] | None:
    """Node and GPUs, of an identity; None for that of another program.

    >>> reported("alpha/123 (2 GPUs)"), reported("7@beta")
    (('alpha', 2), None)
    """
    found = re.fullmatch(r"(.+)/\d+ \(([\d,]+) GPUs?\)", identity)
    return (found[1], int(found[2].replace(",", ""))) if found else None


async def nodes(client: Client, launch: LaunchSettings | None = None) -> dict[str, int]:
    """Nodes on which trials of a launch could run, by name, with their GPUs: all, or those of its map.

    The server forgets a worker that was killed after five minutes; one that ends in order, at once.

    Raises:
        RPCError: the server does not answer.
    """
    if launch is None or not launch.gpu_map:
        # its workflows, not its activities: those are not asked for while all places for trials are taken
        return await _asking(client, TRAINING_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)
    found: dict[str, int] = {}
    for host in launch.gpu_map:
        here = await _asking(client, node_queue(host), TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY)
        found |= {host: here[host]} if host in here else {}
    return found


async def is_served(client: Client, queue: str) -> bool:
    """Whether any worker asks for the workflows of a queue; one that was killed counts for five minutes."""
    return bool(await _pollers(client, queue, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW))


async def _pollers(client: Client, queue: str, kind: TaskQueueType.ValueType) -> list[PollerInfo]:
    request = DescribeTaskQueueRequest(namespace=client.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind)
    return list((await client.workflow_service.describe_task_queue(request)).pollers)


async def _asking(client: Client, queue: str, kind: TaskQueueType.ValueType) -> dict[str, int]:
    pollers = await _pollers(client, queue, kind)
    found: dict[str, int] = {}
    for poller in sorted(pollers, key=lambda one: one.last_access_time.ToNanoseconds()):  # of a node that was restarted, the newest
        node = reported(poller.identity)
        if node:
            found[node[0]] = node[1]
    return dict(sorted(found.items()))


def shortage(launch: LaunchSettings, needs_gpus: bool, nodes: Mapping[str, int], name: str) -> str:
    """Why trials wait for a node, in one sentence with what to type; empty where some node, or every one of the map, will do.

    >>> shortage(LaunchSettings(here_gpus=2), True, {"alpha": 1, "beta": 2}, "mine")
    ''
    >>> shortage(LaunchSettings(gpu_map={"alpha": 2}), False, {}, "mine").split(" (")[0]
    'launch.gpu_map cannot be had: no worker of alpha is up'
    """
    if launch.gpu_map:
        short = {host: asked for host, asked in launch.gpu_map.items() if 0 < nodes.get(host, 0) < asked}
        lacks = [f"{host}, of which it asks {counted(asked, 'GPU')}, has {nodes[host]}" for host, asked in short.items()]
        missing = [host for host in launch.gpu_map if host not in nodes]
        if missing:
            lacks.append(f"no worker of {', '.join(missing)} is up (type bert_sweep worker --queue node --host {missing[0]} there)")
        return f"launch.gpu_map cannot be had: {'; '.join(lacks)}; bert_sweep stop {name} gives the sweep up" if lacks else ""
    if not nodes:
        return "no worker that runs trials is up: type bert_sweep worker --queue node on each node"
    most = max(nodes.values())
    if not needs_gpus or most >= launch.here_gpus:
        return ""
    have = ", ".join(f"{host} has {counted(gpus, 'GPU')}" for host, gpus in nodes.items())
    fewer = f"here_gpus {most}" if most else "use_gpu false"
    return (
        f"no node has the {counted(launch.here_gpus, 'GPU')} that launch.here_gpus asks for ({have}): type bert_sweep worker --queue node "
        f"on one that has, or bert_sweep stop {name}, and start another sweep with {fewer}"
    )

"""`--dry_run`: the plan as a person reads it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from bert_train_parallel.gpus import Claim
from bert_train_parallel.launching.environment import rank_environment
from bert_train_parallel.launching.hello import own_host
from bert_train_parallel.launching.plan import LaunchRequest, Node, WorldPlan


def describe_plan(request: LaunchRequest, claim: Claim) -> str:
    """Nodes, ranks and devices; then the command and the variables of this node's first rank."""
    node_rank = request.node_rank or 0
    plan = foreseen(request, claim)
    rows = [("node", "host", "ranks", "devices")]
    for number, node in enumerate(plan.nodes):
        ranks = plan.ranks_on(number)
        is_here = number == node_rank or len(plan.nodes) == 1
        devices = ", ".join(node.devices) or ("CPU" if is_here else "its own")
        rows.append((str(number), node.host, f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else str(ranks[0]), devices))
    lines = table(rows)
    if request.others:
        place = f"node {node_rank} here; " if request.node_rank is not None else ""
        lines.append(f"{place}{request.others} more processes on other nodes: who has which rank is agreed when the nodes meet")
    given = dict(os.environ)
    rank = plan.rank(min(node_rank, len(plan.nodes) - 1), 0)
    variables = rank_environment(rank, request, claim.devices, given)
    if not request.is_single_node or not (request.master_port or request.store_port):
        unknown = "<a free one>" if request.is_single_node else "<agreed when the nodes meet>"
        variables["MASTER_PORT"] = str(request.store_port or unknown)
    changed = [f"  {name}={shlex.quote(value)}" for name, value in sorted(variables.items()) if given.get(name) != value]
    return "\n".join([*lines, "", f"command: {shlex.join(request.command)}", f"in: {request.folder}", f"rank {rank.rank}:", *changed])


def foreseen(request: LaunchRequest, claim: Claim) -> WorldPlan:
    """What of the plan is known before the nodes meet; ranks count from 0 on this node where the others are not known."""
    here = Node(own_host(request), claim.ranks, claim.devices)
    nodes: list[Node] = [here]
    if request.gpu_map:
        nodes = [Node(host, ranks) for host, ranks in request.gpu_map.items()]
        nodes[request.node_rank or 0] = here
    master = request.master_addr or (next(iter(request.gpu_map)) if request.gpu_map else "127.0.0.1")
    return WorldPlan(tuple(nodes), master_addr=master, store_port=request.master_port or request.store_port or 0)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their longest cell.

    >>> table([("node", "ranks"), ("0", "0-11")])
    ['node  ranks', '0     0-11']
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

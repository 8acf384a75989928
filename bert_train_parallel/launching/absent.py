"""A node that cannot take part, for a mistake of its own line: how the nodes that wait for it come to hear why."""

from __future__ import annotations

import os

from bert_train_parallel.errors import Unreachable
from bert_train_parallel.launching import network
from bert_train_parallel.launching.plan import LaunchRequest

TELL_WITHIN_S = 2.0  # a master that starts at the same time is heard; nobody waits for one that does not


def request_to_tell(
    master_addr: str | None, gpu_map: dict[str, int] | None, master_port: int | None, job_token: str | None
) -> LaunchRequest | None:
    """What to join with, for the sake of saying that this node does not come; None where no other machine is the master.

    >>> request_to_tell("10.77.0.1", None, 29511, None).master_port
    29511
    >>> request_to_tell(None, {"localhost": 1, "10.77.0.1": 1}, None, None)
    """
    master = master_addr or (next(iter(gpu_map)) if gpu_map else None)
    if master is None:
        return None
    try:
        if any(map(network.is_own, network.resolve(master))):
            return None
    except Unreachable:
        return None
    return LaunchRequest(
        ("",), os.getcwd(), others=1, master_addr=master, master_port=master_port, job_token=job_token, join_timeout_s=TELL_WITHIN_S
    )

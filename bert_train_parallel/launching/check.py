"""`--check`: the nodes agree as for a launch, then measure the network between all ranks instead of training."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from bert_train_parallel.launching.command import environment_for
from bert_train_parallel.launching.plan import LaunchRequest


def check_request(request: LaunchRequest) -> LaunchRequest:
    """The request whose ranks measure the network; its hello is still that of the command that was typed."""
    ours = (sys.executable, "-P", "-m", "bert_train_parallel")
    return replace(
        request,
        command=(*ours[:-1], "bert_train_parallel.training.network_check"),
        environment=request.environment | environment_for(ours, dict(os.environ)),
        max_restarts=0,
        elastic=False,
    )

"""The environment of a rank: who it is, what it computes on, and how many threads it may use."""

from __future__ import annotations

from collections.abc import Sequence

from bert_train_parallel.gpus import HELD_VARIABLE
from bert_train_parallel.launching.command import environment_for
from bert_train_parallel.launching.plan import LaunchRequest
from bert_train_parallel.processes import cores
from bert_train_parallel.rank import Rank


def rank_environment(rank: Rank, request: LaunchRequest, devices: Sequence[str], given: dict[str, str]) -> dict[str, str]:
    """All variables of one rank: the launcher's own, who it is, its node's GPUs, and threads that share the cores.

    >>> rank = Rank(rank=1, local_rank=1, world_size=2, local_world_size=2, device="cuda")
    >>> variables = rank_environment(rank, LaunchRequest(("a.py",)), ["GPU-1", "GPU-2"], {"OMP_NUM_THREADS": "3"})
    >>> variables["CUDA_VISIBLE_DEVICES"], variables["LOCAL_RANK"], variables["OMP_NUM_THREADS"]
    ('GPU-1,GPU-2', '1', '3')
    """
    variables = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(max(1, cores() // rank.local_world_size))}
    if rank.local_world_size > 1:
        variables["OMP_WAIT_POLICY"] = "passive"  # idle threads that spin would take the cores of other ranks
    variables |= given | environment_for(request.command, given) | request.environment | rank.to_environ()
    variables["BERT_TRAIN_JOIN_TIMEOUT"] = f"{request.join_timeout_s:g}"  # ranks must reach each other within it as well
    variables.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # from a torchrun around us: it would send ranks to that one's store
    variables.pop(HELD_VARIABLE, None)  # open files of the launcher, which ranks do not get
    if rank.device == "cuda":
        variables |= {"CUDA_VISIBLE_DEVICES": ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    elif request.device == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables

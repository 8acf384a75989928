"""The ranks as one world: joining it, telling each other values, and deciding `auto` settings once for all."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bert_train_parallel.errors import BadSetting, BertTrainParallelError, LaunchFailed, NodesDisagree, Unreachable
from bert_train_parallel.rank import Rank

_Value = TypeVar("_Value")

# The launcher notices a lost rank within seconds and ends the world; this only bounds waiting for one that is writing a large file.
_PATIENCE = timedelta(hours=2)

_LOST_PEER = re.compile("connection (was )?(closed|reset|refused)|socket closed|broken pipe|nccl.*(remote|system) error", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class World:
    """All ranks of a run, seen from one of them. Values travel over gloo, so no GPU is made to wait for them."""

    rank: Rank
    device: torch.device
    hosts: tuple[str, ...]  # of each rank
    node_ranks: tuple[int, ...]  # of each rank
    backend: str  # nccl | gloo; none in a world of one

    @property
    def size(self) -> int:
        return self.rank.world_size

    def broadcast(self, value: _Value, source: int = 0) -> _Value:
        """The value that rank `source` has, on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=source, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: _Value) -> list[_Value]:
        """The values of all ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_to_first(self, value: _Value) -> list[_Value]:
        """The values of all ranks on rank 0; nothing elsewhere."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.gather_object(value, values if self.rank.is_first else None)
        return values if self.rank.is_first else []

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks of a tensor, on the CPU."""
        values = values.to("cpu", torch.float64)
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def send_tensors(self, tensors: Mapping[str, Tensor], source: int) -> None:
        """Overwrite these tensors with those of rank `source`, in the order of their names."""
        if self.size > 1:
            for name in sorted(tensors):
                dist.broadcast(tensors[name], src=source)

    def together(self, work: Callable[[], _Value]) -> list[_Value]:
        """What each rank's work gives, on every rank; an error of ours on one of them is raised on all."""
        try:
            mine: tuple[Any, BertTrainParallelError | None] = work(), None
        except BertTrainParallelError as error:
            mine = None, error
        done = self.gather(mine)
        for _, raised in done:
            if raised is not None:
                raise raised
        return [value for value, _ in done]

    def on_first(self, work: Callable[[], _Value]) -> _Value:
        """What the work gives on rank 0, which alone does it, on every rank; its error too."""
        found: list[Any] = self.together(lambda: work() if self.rank.is_first else None)
        return found[0]

    def agree(self, what: str, value: str, todo: str) -> None:
        """Go on only if every rank has the same value.

        Raises:
            NodesDisagree: on every rank, with the value of each node.
        """
        values = self.gather(value)
        if len(set(values)) == 1:
            return
        seen = zip(self.node_ranks, self.hosts, values, strict=True)
        shown = ", ".join({node: f"{host} (node {node}) has {found}" for node, host, found in seen}.values())
        raise NodesDisagree(f"{what} differs between nodes: {shown}. {todo}")


@contextlib.contextmanager
def join_world(rank: Rank, device: torch.device) -> Iterator[World]:
    """This process as one of the world's ranks, until the block ends.

    Raises:
        Unreachable: rank 0 does not answer at the address that the launcher gave.
    """
    if rank.world_size == 1:
        yield World(rank, device, (socket.gethostname(),), (0,), "none")
        return
    backend = "gloo" if device.type != "cuda" or rank.backend == "gloo" else "nccl"
    # with GPUs both: NCCL for gradients, gloo for values
    both = {"gloo": "gloo", "nccl": "cpu:gloo,cuda:nccl"}[backend]
    try:
        dist.init_process_group(both, rank=rank.rank, world_size=rank.world_size, timeout=_PATIENCE)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Unreachable(
            f"Rank {rank.rank} does not reach rank 0 at {rank.master_addr}:{rank.master_port}: {reason}. "
            "See that --master_addr is right and that no firewall is between the nodes."
        ) from error
    try:
        alone = World(rank, device, (), (), backend)
        seen = alone.gather((socket.gethostname(), rank.node_rank))
        yield World(rank, device, tuple(host for host, _ in seen), tuple(node for _, node in seen), backend)
    except RuntimeError as error:
        if not _LOST_PEER.search(str(error)):
            raise
        raise LaunchFailed(
            f"Rank {rank.rank} has lost another rank (connection closed by peer); its end is the one to look at.", 1
        ) from error
    finally:
        dist.destroy_process_group()


def choose_device(asked: str, rank: Rank) -> torch.device:
    """What this rank computes on: as the settings say, else as the launcher says, else the best there is.

    Raises:
        BadSetting: it is not there.
    """
    kind = asked if asked != "auto" else rank.device
    instance = own_instance(os.environ.get("CUDA_VISIBLE_DEVICES", ""), rank.local_rank)
    if instance:
        os.environ["CUDA_VISIBLE_DEVICES"] = instance
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise BadSetting("--device cuda: torch sees no CUDA GPU here. Leave --device out, or type --device cpu.")
        seen = torch.cuda.device_count()
        if seen > 1 and rank.local_rank >= seen:
            raise BadSetting(f"Rank {rank.local_rank} of this node has no GPU: torch sees {seen}. Type --here_gpus {seen}.")
        torch.cuda.set_device(min(rank.local_rank, seen - 1))
        return torch.device("cuda", torch.cuda.current_device())
    if kind == "mps" and not torch.backends.mps.is_available():
        raise BadSetting("--device mps: torch sees no Metal GPU here. Leave --device out, or type --device cpu.")
    if kind == "mps" and rank.world_size > 1:
        raise BadSetting("A Metal GPU cannot average gradients with other processes. Type --device cpu, or train on it alone.")
    return torch.device(kind)


def own_instance(visible: str, local_rank: int) -> str | None:
    """This rank's MIG instance, where it is one of several: CUDA shows a process only the first that it is given.

    >>> own_instance("MIG-a1,MIG-a2", 1), own_instance("GPU-b,GPU-c", 1), own_instance("MIG-a1", 0)
    ('MIG-a2', None, None)
    """
    given = [name.strip() for name in visible.split(",")]
    return given[local_rank] if 1 < len(given) > local_rank and any(name.startswith("MIG-") for name in given) else None


def set_threads(asked: int | None, rank: Rank) -> int:
    """CPU threads of this rank: as asked, else as OMP_NUM_THREADS says, else its part of the cores."""
    if asked is None and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        asked = max(1, cores // rank.local_world_size)
    if asked is not None:
        torch.set_num_threads(asked)
    return torch.get_num_threads()

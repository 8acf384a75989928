"""The ranks as one world: joining it, telling each other values, and deciding `auto` settings once for all."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bert_train_parallel.errors import BadSetting, BertTrainParallelError, LaunchFailed, NodesDisagree, Unreachable
from bert_train_parallel.lost_peer import tells_of_lost_peer
from bert_train_parallel.processes import cores
from bert_train_parallel.rank import Rank

_LOG = logging.getLogger(__name__)
_Value = TypeVar("_Value")

# The launcher notices a lost rank within seconds and ends the world; this only bounds waiting for one that is writing a large file.
_PATIENCE = timedelta(hours=2)
_LEAST_TO_MEET_S = 5.0  # a --join_timeout may be shorter than what many ranks on a busy machine need for their connections

_has_joined = False  # in this process torch's group, where there is one, was made here


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


def meet(rank: Rank, device: torch.device, backend: str, patience: timedelta = _PATIENCE) -> None:
    """Make this process a rank of torch's default process group, all of whose connections are made.

    A rank that comes late, since its node still prepares the data, is waited for. What swallows messages on the way is not:
    a port that gives no answer within the launch's --join_timeout is told. NCCL's own ports are tried last; where they drop
    messages, NCCL itself tries again for some minutes before it gives up.

    Args:
        device: what the rank computes on.
        backend: gloo | nccl. With NCCL for tensors of GPUs there is gloo too, for values.
        patience: how long each later message may take.
    Raises:
        Unreachable: a port of rank 0, or of other ranks, gives no answer.
        LaunchFailed: another rank ended meanwhile.
    """
    within_s = _join_timeout_s()
    if rank.nodes > 1 and not rank.is_first:
        _await_answer(rank, within_s)
    began = time.monotonic()
    try:
        store, _, _ = next(dist.rendezvous("env://", rank=rank.rank, world_size=rank.world_size, timeout=_PATIENCE))
        if store.add("ranks that have come", 1) == rank.world_size:
            store.set("all ranks have come", "")
        store.wait(["all ranks have come"], _PATIENCE)
        began = time.monotonic()
        # gloo tries for five times its timeout to reach a rank
        timeout = timedelta(seconds=max(_LEAST_TO_MEET_S, within_s / 5))
        both = {"gloo": "gloo", "nccl": "cpu:gloo,cuda:nccl"}[backend]
        dist.init_process_group(both, store=store, rank=rank.rank, world_size=rank.world_size, timeout=timeout)
    except RuntimeError as error:
        if tells_of_lost_peer(str(error)):
            raise LaunchFailed(_lost_peer_words(rank, error), 1) from error
        raise Unreachable(_unreachable_words(rank, _reason(error), time.monotonic() - began)) from error
    # torch has one timeout for meeting and for every later message; there is no public way to set it between the two
    dist.distributed_c10d._set_pg_timeout(patience)
    store.set_timeout(_PATIENCE)
    if backend == "nccl":
        _first_message(rank, device, within_s)


def _first_message(rank: Rank, device: torch.device, within_s: float) -> None:
    """One number from all ranks to all, for which a backend that connects late must connect.

    Raises:
        Unreachable: it has not come within so many seconds.
        LaunchFailed: another rank ended meanwhile.
    """
    began = time.monotonic()
    try:
        work = dist.all_reduce(torch.ones(1, device=device), async_op=True)
        while not work.is_completed():
            if time.monotonic() - began > within_s:
                raise Unreachable(_unreachable_words(rank, "a first message does not arrive", within_s))
            time.sleep(0.01)
        work.wait()
    except RuntimeError as error:
        # any other error than of the connection may be one of this machine, such as a full /dev/shm: it keeps its traceback
        if tells_of_lost_peer(str(error)):
            raise LaunchFailed(_lost_peer_words(rank, error), 1) from error
        raise


_OPEN_PORTS = (
    "gloo and NCCL take free ports: open TCP ports {} between all nodes, or have them use another network by GLOO_SOCKET_IFNAME and "
    "NCCL_SOCKET_IFNAME."
)


def _await_answer(rank: Rank, within_s: float) -> None:
    """Wait until something answers where rank 0 will: a refusal is an answer, of a node whose rank 0 is still to come.

    Raises:
        Unreachable: no answer of any kind.
    """
    place = f"{rank.master_addr}, port {rank.master_port}"
    began = answered = time.monotonic()
    is_told = False
    while True:
        try:
            left = max(0.1, answered + within_s - time.monotonic())
            socket.create_connection((rank.master_addr, rank.master_port), left).close()
            return
        except ConnectionRefusedError:
            answered = time.monotonic()
            if answered - began > within_s and not is_told and rank.is_first_of_node:
                is_told = True
                _LOG.warning(
                    f"rank {rank.rank} still waits for rank 0 at {place}, which refuses connections: it prepares its data, "
                    f"or a firewall rejects the port (--store_port gives another one)"
                )
        except OSError as error:
            if time.monotonic() - answered >= within_s:
                raise Unreachable(
                    f"Rank {rank.rank} on {socket.gethostname()} gets no answer from rank 0 at {place}, within {within_s:g} s "
                    f"({error.strerror or error}): a firewall drops it. Open that port between all nodes, or give one that is open with "
                    f"--store_port. {_OPEN_PORTS.format(_free_ports())}"
                ) from None
        time.sleep(0.1)


def _join_timeout_s() -> float:
    """Seconds in which the launch wants its ranks to reach each other; as the launcher says, else its own default."""
    try:
        return max(_LEAST_TO_MEET_S, float(os.environ["BERT_TRAIN_JOIN_TIMEOUT"]))
    except (KeyError, ValueError):
        return 120.0


def _free_ports() -> str:
    """The ports from which the system takes one when a program asks for any."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
            first, last = file.read().split()
    except (OSError, ValueError):
        first, last = "49152", "65535"  # as IANA says
    return f"{first} to {last}"


def _reason(error: Exception) -> str:
    """The first sentence of torch's own words, without the path of its source.

    >>> _reason(RuntimeError("Gloo failed with [/pytorch/tcp/pair.h:311] Connect timeout [none]\\nException raised from ..."))
    'Gloo failed with Connect timeout [none]'
    >>> _reason(RuntimeError("Read error [10.0.0.1]:80: Connection reset by peer. This is typically caused by ... GLHF!"))
    'Read error [10.0.0.1]:80: Connection reset by peer'
    """
    lines = str(error).strip().splitlines()
    return re.sub(r"\[\S+:\d+\] ", "", lines[0]).partition(". ")[0].rstrip(".") if lines else type(error).__name__


def _unreachable_words(rank: Rank, reason: str, seconds: float) -> str:
    return (
        f"Rank {rank.rank} on {socket.gethostname()} reached the ranks' store at {rank.master_addr}, port {rank.master_port}, but not "
        f"every other rank: {reason}, after {seconds:.0f} s. {_OPEN_PORTS.format(_free_ports())}"
    )


def _lost_peer_words(rank: Rank, error: Exception) -> str:
    return (
        f"Rank {rank.rank} has lost another rank (connection closed by peer); its end is the one to look at. Seen here: {_reason(error)}."
    )


@contextlib.contextmanager
def join_world(rank: Rank, device: torch.device) -> Iterator[World]:
    """This process as one of the world's ranks, until the block ends.

    Raises:
        Unreachable: rank 0 does not answer at the address that the launcher gave, or other ranks do not at theirs.
    """
    if rank.world_size == 1:
        yield World(rank, device, (socket.gethostname(),), (0,), "none")
        return
    global _has_joined
    if _has_joined and dist.is_initialized():  # by a run before this one in the same process, which failed on every rank alike
        dist.destroy_process_group()
    _has_joined = True
    backend = "gloo" if device.type != "cuda" or rank.backend == "gloo" else "nccl"
    meet(rank, device, backend)
    try:
        alone = World(rank, device, (), (), backend)
        seen = alone.gather((socket.gethostname(), rank.node_rank))
        yield World(rank, device, tuple(host for host, _ in seen), tuple(node for _, node in seen), backend)
    except RuntimeError as error:
        if not tells_of_lost_peer(str(error)):
            raise
        raise LaunchFailed(_lost_peer_words(rank, error), 1) from error
    # not where the block has failed: NCCL waits here for the other ranks of the machine, which may wait for this one in a collective,
    # and nobody would be told. The end of the process closes its connections as well.
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
        asked = max(1, cores() // rank.local_world_size)
    if asked is not None:
        torch.set_num_threads(asked)
    return torch.get_num_threads()

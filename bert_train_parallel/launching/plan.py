"""Which ranks run on which node: what is asked, what the nodes say of themselves, and the plan that follows from both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bert_train_parallel.errors import NodesDisagree
from bert_train_parallel.rank import DEFAULT_PORT, Rank

FOLDER = "folder"  # the fingerprint of a folder: its presence alone
PROTOCOL = 1  # raised when two versions of this project could misunderstand each other on the control channel


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the world and its training processes.

    >>> Node("alpha", 2).device, Node("beta", 1, ("GPU-5f2c",)).device
    ('cpu', 'cuda')
    """

    host: str
    ranks: int
    devices: tuple[str, ...] = ()  # one GPU UUID per rank; ("mps",) on a Mac; empty: these ranks compute on the CPU

    @property
    def device(self) -> str:
        """cuda | mps | cpu"""
        if not self.devices:
            return "cpu"
        return "mps" if self.devices[0] == "mps" else "cuda"

    @property
    def has_instances(self) -> bool:
        """Whether some of its devices are MIG instances: parts of a GPU."""
        return any(device.startswith("MIG-") for device in self.devices)


@dataclass(frozen=True, slots=True)
class WorldPlan:
    """Which ranks run on which node, for nodes with unequal GPU counts.

    Ranks are handed out in the order of the nodes. A node's first rank is the number of ranks on the nodes before it,
    the rule that torchrun uses as well (`_assign_worker_ranks` in torch.distributed.elastic).

    >>> plan = WorldPlan((Node("alpha", 2), Node("beta", 3)))
    >>> plan.world_size, list(plan.ranks_on(1))
    (5, [2, 3, 4])
    >>> plan.rank(1, 2).rank, plan.rank(1, 2).nodes, plan.rank(1, 2).backend
    (4, 2, 'gloo')
    """

    nodes: tuple[Node, ...]
    master_addr: str = "127.0.0.1"  # as the node that holds this plan reaches the master
    store_port: int = DEFAULT_PORT  # where the ranks meet: MASTER_PORT
    attempt: int = 0
    job: str = ""

    @property
    def world_size(self) -> int:
        return sum(node.ranks for node in self.nodes)

    @property
    def backend(self) -> str:
        """nccl | gloo"""
        # NCCL needs a whole GPU for every rank (two MIG instances of one are the same to it): one node without makes it gloo for all
        is_for_nccl = all(node.device == "cuda" and not node.has_instances for node in self.nodes)
        return "nccl" if is_for_nccl else "gloo"

    def ranks_on(self, node_rank: int) -> range:
        """The ranks of one node."""
        first = sum(node.ranks for node in self.nodes[:node_rank])
        return range(first, first + self.nodes[node_rank].ranks)

    def rank(self, node_rank: int, local_rank: int) -> Rank:
        """Who one process of the world is; its environment follows by `to_environ()`."""
        node = self.nodes[node_rank]
        return Rank(
            rank=self.ranks_on(node_rank)[local_rank],
            local_rank=local_rank,
            node_rank=node_rank,
            world_size=self.world_size,
            local_world_size=node.ranks,
            nodes=len(self.nodes),
            master_addr=self.master_addr,
            master_port=self.store_port,
            device=node.device,
            backend=self.backend,
            attempt=self.attempt,
            job=self.job,
        )


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """What one node was asked to launch; crosses JSON as it is."""

    command: tuple[str, ...]  # what runs in every rank, ready for exec
    folder: str = "."  # the ranks' working directory
    here: int | None = None  # ranks on this node; None: every GPU that no other launch holds, or one CPU process
    others: int = 0  # ranks on all other nodes
    gpu_map: dict[str, int] | None = None  # host to ranks, in the order of node ranks
    host: str | None = None  # this node's name in the map; None: found by its addresses
    node_rank: int | None = None  # None: by the map, or in order of arrival
    master_addr: str | None = None
    master_port: int | None = None  # the control port of several nodes, the store port of one; None: 29500, or a free one
    store_port: int | None = None  # where the ranks meet, on the master; None: a free one, another at each attempt
    device: str = "auto"  # auto | cuda | mps | cpu
    devices: tuple[str, ...] = ()  # GPU UUIDs to use; empty: the least busy ones
    environment: dict[str, str] = field(default_factory=dict)  # on top of the launcher's own
    log_dir: str | None = None
    join_timeout_s: float = 120.0
    grace_s: float = 5.0  # between SIGTERM and SIGKILL
    max_restarts: int = 0
    elastic: bool = False  # restart without the nodes that were lost
    job_token: str | None = None
    send_data: bool = False
    check: bool = False

    @property
    def is_single_node(self) -> bool:
        """Whether no other node takes part, so that no control channel is needed."""
        return len(self.gpu_map) == 1 if self.gpu_map else self.others == 0


@dataclass(frozen=True, slots=True)
class Failure:
    """The first thing that went wrong in a world, in words for every node."""

    node: str
    rank: int | None  # None: the node as a whole
    kind: str  # exit | signal | lost | disagree | usage | stopped | oom | nan
    exit_code: int
    words: str

    @property
    def headline(self) -> str:
        """Who and how, without the traceback."""
        return self.words.partition("\n")[0]


@dataclass(frozen=True, slots=True)
class LaunchResult:
    """How a launch ended; `exit_code` is that of the first failure, 0 without one."""

    plan: WorldPlan
    exit_code: int
    first_failure: Failure | None = None
    attempts: int = 1
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Word:
    """One word of the command; for a word that names a file of this node, what the file holds."""

    text: str
    fingerprint: str = ""  # of the content; empty: nothing here under that name, or a file that is written


@dataclass(frozen=True, slots=True)
class Hello:
    """What a node says of itself when it asks to join; the master makes the plan of nothing else."""

    host: str
    ranks: int
    others: int | None = None  # None with a GPU map, which says it for all
    node_rank: int | None = None
    devices: tuple[str, ...] = ()
    same: dict[str, str] = field(default_factory=dict)  # what must be equal on every node, by the name a user knows it by
    command: tuple[Word, ...] = ()
    store_port: int = 0  # a free port, from the master
    problem: str = ""  # why this node cannot take part, for all to read

    @property
    def total(self) -> int | None:
        """The world size that this node expects; None where the map says it."""
        return None if self.others is None else self.ranks + self.others

    @property
    def node(self) -> Node:
        return Node(self.host, self.ranks, self.devices)


def make_plan(request: LaunchRequest, hellos: Sequence[Hello], attempt: int = 0, job: str = "") -> WorldPlan:
    """The plan of a world whose nodes have all said hello; the master's hello first, the others as they arrived.

    >>> hellos = [Hello("alpha", 2, others=4), Hello("beta", 3, others=3, node_rank=2), Hello("gamma", 1, others=5)]
    >>> plan = make_plan(LaunchRequest(("train.py",), here=2, others=4), hellos)
    >>> [(node.host, list(plan.ranks_on(number))) for number, node in enumerate(plan.nodes)]
    [('alpha', [0, 1]), ('gamma', [2]), ('beta', [3, 4, 5])]

    Raises:
        NodesDisagree: the hellos contradict each other, or do not make up the whole world.
    """
    missing = missing_ranks(request, hellos)
    if missing:
        what = f"{abs(missing)} GPU{'s' * (abs(missing) != 1)}"
        raise NodesDisagree(f"{what} {'missing' if missing > 0 else 'too many'}: {roll_call(hellos)}.")
    return WorldPlan(
        nodes=tuple(hello.node for hello in in_node_order(hellos)),
        master_addr=request.master_addr or "127.0.0.1",
        store_port=hellos[0].store_port,
        attempt=attempt,
        job=job,
    )


def missing_ranks(request: LaunchRequest, hellos: Sequence[Hello]) -> int:
    """How many ranks the world still lacks; below 0 when there are too many.

    A node of a map may bring fewer ranks than the map says (`--here_gpus`), so there hosts are counted.

    >>> missing_ranks(LaunchRequest(("train.py",), here=1, others=3), [Hello("alpha", 1, others=3)])
    3
    >>> missing_ranks(LaunchRequest(("train.py",), gpu_map={"alpha": 2, "beta": 4}), [Hello("alpha", 1, node_rank=0)])
    4
    """
    if request.gpu_map:
        here = {0, *(hello.node_rank for hello in hellos[1:])}  # the first hello is the master's, whatever it says
        return sum(ranks for number, ranks in enumerate(request.gpu_map.values()) if number not in here)
    return hellos[0].ranks + request.others - sum(hello.ranks for hello in hellos)


def in_node_order(hellos: Sequence[Hello]) -> list[Hello]:
    """The hellos by node rank: given ranks are kept, the others fill the gaps in order of arrival; the master is 0.

    Raises:
        NodesDisagree: two nodes with one rank, or a rank beyond the number of nodes.
    """
    placed: dict[int, Hello] = {0: hellos[0]}
    for hello in hellos[1:]:
        if hello.node_rank is None:
            continue
        if hello.node_rank in placed:
            other = placed[hello.node_rank]
            raise NodesDisagree(
                f"{other.host} and {hello.host} are both node {hello.node_rank}. Give each node its own --node_rank "
                f"(0 is the master), or leave --node_rank out on all but the master."
            )
        placed[hello.node_rank] = hello
    free = (number for number in range(len(hellos)) if number not in placed)
    for hello in hellos[1:]:
        if hello.node_rank is None:
            placed[next(free, len(hellos))] = hello
    beyond = sorted(set(placed) - set(range(len(hellos))))
    if beyond:
        raise NodesDisagree(
            f"{placed[beyond[0]].host} has --node_rank {beyond[0]}, and this world has {len(hellos)} nodes. "
            f"Use 0 to {len(hellos) - 1}, each once."
        )
    return [placed[number] for number in range(len(hellos))]


def roll_call(hellos: Sequence[Hello]) -> str:
    """Who is here, with how many ranks.

    >>> roll_call([Hello("alpha", 1, devices=("GPU-5f2c",)), Hello("beta", 3, node_rank=1)])
    'alpha (1 GPU), beta (3 CPU processes, --node_rank 1)'
    """

    def one(hello: Hello) -> str:
        number = "" if hello.node_rank is None else f", --node_rank {hello.node_rank}"
        kind = ("GPU", "GPUs") if hello.devices else ("CPU process", "CPU processes")
        return f"{hello.host} ({hello.ranks} {kind[hello.ranks != 1]}{number})"

    return ", ".join(one(hello) for hello in hellos)

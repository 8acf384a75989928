"""Who am I: one process of a world, as the launcher says it and the trainer reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from bert_train_parallel.errors import BadSetting

DEFAULT_PORT = 29500


@dataclass(frozen=True, slots=True)
class Rank:
    """One training process; both directions between the launcher and the trainer go through it.

    >>> three = Rank(rank=3, local_rank=1, node_rank=1, world_size=5, local_world_size=3, nodes=2)
    >>> Rank.from_environ(three.to_environ()) == three
    True
    >>> Rank.from_environ({})                                    # no launcher: a world of one
    Rank(rank=0, local_rank=0, node_rank=0, world_size=1, local_world_size=1, nodes=1, \
master_addr='127.0.0.1', master_port=29500, device='auto', backend='auto', attempt=0, job='')
    """

    rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    nodes: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = DEFAULT_PORT
    device: str = "auto"  # cuda | mps | cpu; auto where no launcher has decided
    backend: str = "auto"  # nccl | gloo, one for the whole world; auto where no launcher has decided
    attempt: int = 0  # 0 for the first start of the world, then one more for each restart
    job: str = ""  # names the launch; empty without a launcher

    @property
    def is_first(self) -> bool:
        """The rank that writes the files of the run."""
        return self.rank == 0

    @property
    def is_first_of_node(self) -> bool:
        """The rank that prepares the data on its machine."""
        return self.local_rank == 0

    def to_environ(self) -> dict[str, str]:
        """The variables that torchrun sets too, and two of our own."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "NODE_RANK": str(self.node_rank),
            "GROUP_RANK": str(self.node_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "GROUP_WORLD_SIZE": str(self.nodes),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
            "TORCHELASTIC_RUN_ID": self.job,
            "TORCHELASTIC_RESTART_COUNT": str(self.attempt),
            "BERT_TRAIN_DEVICE": self.device,
            "BERT_TRAIN_BACKEND": self.backend,
        }

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Rank:
        """This process's rank; a world of one where no launcher set the variables.

        Works under torchrun as well, which sets the same names.

        Raises:
            BadSetting: a variable is not a whole number, or the numbers contradict each other.
        """
        environ = os.environ if environ is None else environ

        def number(name: str, default: int) -> int:
            text = environ.get(name, "")
            if not text:
                return default
            try:
                return int(text)
            except ValueError:
                raise BadSetting(f"{name}={text!r} in the environment is not a whole number. Start with launch.py.") from None

        world_size = number("WORLD_SIZE", 1)
        rank = cls(
            rank=number("RANK", 0),
            local_rank=number("LOCAL_RANK", 0),
            node_rank=number("NODE_RANK", number("GROUP_RANK", 0)),
            world_size=world_size,
            local_world_size=number("LOCAL_WORLD_SIZE", world_size),
            nodes=number("GROUP_WORLD_SIZE", 1),
            master_addr=environ.get("MASTER_ADDR") or "127.0.0.1",
            master_port=number("MASTER_PORT", DEFAULT_PORT),
            device=environ.get("BERT_TRAIN_DEVICE") or "auto",
            backend=environ.get("BERT_TRAIN_BACKEND") or "auto",
            attempt=number("TORCHELASTIC_RESTART_COUNT", 0),
            job=environ.get("TORCHELASTIC_RUN_ID", ""),
        )
        if not 0 <= rank.rank < rank.world_size:
            raise BadSetting(
                f"RANK={rank.rank} with WORLD_SIZE={rank.world_size} in the environment: a rank is below the "
                f"world size. Start with launch.py, or unset both."
            )
        return rank

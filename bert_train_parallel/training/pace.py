"""What ranks tell each other in every step, and what follows from it about who is slow.

The message of a step travels while the optimizer works, over gloo, so it costs the device nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from bert_train_parallel.training.shares import Shares
from bert_train_parallel.training.world import World

_SLOW = 1.5  # a rank that is this many times slower than the fastest is named
_WASTED = 0.9  # of the speed that fewer ranks would have: below it, the world is not worth its messages


class Pace:
    """One message per rank and step: was I asked to stop, rank 0's clock, seconds computed, tokens computed, tokens at once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sent: tuple[list[torch.Tensor], dist.Work | None] | None = None
        self._seconds = torch.zeros(world.size, dtype=torch.float64)
        self._tokens = torch.zeros(world.size, dtype=torch.float64)
        self.limits: list[int | None] = [None] * world.size  # of each rank: how many tokens it computes at once

    def send(self, stop: bool, seconds: float, tokens: int, limit: int | None = None) -> None:
        mine = torch.tensor([float(stop), time.monotonic(), seconds, float(tokens), float(limit or 0)], dtype=torch.float64)
        everyone = [torch.empty_like(mine) for _ in range(self._world.size)] if self._world.size > 1 else [mine]
        work = dist.all_gather(everyone, mine, async_op=True) if self._world.size > 1 else None
        self._sent = everyone, work

    def receive(self) -> tuple[bool, float]:
        """Whether any rank was asked to stop, and rank 0's clock in seconds."""
        assert self._sent is not None
        everyone, work = self._sent
        if work is not None:
            work.wait()
        told = torch.stack(everyone)
        self._seconds += told[:, 2]
        self._tokens += told[:, 3]
        self.limits = [int(limit) or None for limit in told[:, 4].tolist()]
        return bool(told[:, 0].any()), float(told[0, 1])

    def take(self) -> tuple[list[float], list[float]]:
        """Seconds and tokens of each rank since the last call."""
        taken = self._seconds.tolist(), self._tokens.tolist()
        self._seconds.zero_()
        self._tokens.zero_()
        return taken


def describe(shares: Shares, hosts: Sequence[str]) -> str:
    """One line on who gets how much, with the slow ones named.

    >>> describe(Shares((0.75, 0.25), (9000.0, 3000.0)), ["alpha", "beta"])
    'shares: rank 0 on alpha 75 % (9 000 tokens/s), rank 1 on beta 25 % (3 000 tokens/s);
     rank 1 on beta is 3.0 times slower than the fastest'
    """
    fastest = max(shares.speeds)
    who = [f"rank {number} on {host}" for number, host in enumerate(hosts)]
    each = [
        f"{name} {100 * part:.0f} % ({speed:,.0f} tokens/s)".replace(",", " ")
        for name, part, speed in zip(who, shares.parts, shares.speeds, strict=True)
    ]
    slow = [
        f"{name} is {fastest / speed:.1f} times slower than the fastest"
        for name, speed in zip(who, shares.speeds, strict=True)
        if 0 < speed * _SLOW < fastest
    ]
    return "shares: " + ", ".join(each) + "".join("; " + sentence for sentence in slow)


def advice(speeds: Sequence[float], node_ranks: Sequence[int], hosts: Sequence[str], tokens: float, seconds: float) -> str | None:
    """A sentence when fewer ranks would be faster: what one node, or one rank, could do alone against what all do together.

    Args:
        speeds: tokens per second that each rank computes.
        tokens: of a global batch.
        seconds: that a step takes.

    >>> advice([2100.0, 2100.0], [0, 1], ["alpha", "beta"], tokens=1000, seconds=3.3)
    'alpha alone would make 2.1 steps/s, together it is 0.3: use one machine, or a larger --batch_size.'
    """
    if not all(speeds) or len(speeds) < 2:
        return None
    together = 1 / seconds
    nodes = {node: sum(speed for speed, of in zip(speeds, node_ranks, strict=True) if of == node) / tokens for node in node_ranks}
    if len(nodes) > 1:
        best = max(nodes, key=lambda node: nodes[node])
        alone, who, todo = nodes[best], hosts[list(node_ranks).index(best)], "use one machine"
    else:
        alone, who, todo = max(speeds) / tokens, "one process", "use --here_gpus 1"
    if together > _WASTED * alone:
        return None
    return f"{who} alone would make {alone:.1f} steps/s, together it is {together:.1f}: {todo}, or a larger --batch_size."

"""Nodes for tests: each is a channel of its own over real sockets, all in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from bert_train_parallel.errors import BertTrainParallelError
from bert_train_parallel.launching.agreement import Channel
from bert_train_parallel.launching.hello import make_hello
from bert_train_parallel.launching.plan import Failure, LaunchRequest
from bert_train_parallel.launching.ports import free_port
from bert_train_parallel.launching.world import End, Start
from bert_train_parallel.processes import Interrupts

WITHIN_S = 30.0  # far more than anything here takes
HOSTS = ("alpha", "beta", "gamma", "delta")
BROKEN = Failure("beta", 1, "exit", 7, "Traceback: KeyError: 'label'")


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Nodes:
    """Starts nodes and waits for what follows on all of them at once."""

    def __init__(self, interrupts: Interrupts) -> None:
        self.interrupts, self.port = interrupts, free_port()
        self.channels: dict[str, Channel] = {}
        self.said: dict[str, list[str]] = {}

    def add(self, host: str, ranks: int, others: int, *command: str, **flags: object) -> Channel:
        """A node; alpha is the master."""
        if host != "alpha":
            flags = {"master_addr": "127.0.0.1", "node_rank": max(1, len(self.channels))} | flags
        settings = {"join_timeout_s": 20.0, "master_port": self.port, **flags}
        request = LaunchRequest(command or ("train.py", "--lr", "1e-5"), host=host, here=ranks, others=others, **settings)  # type: ignore[arg-type]
        said = self.said.setdefault(host, [])
        channel = Channel(request, make_hello(request, ranks, ()), said.append)
        self.channels[host] = channel
        return channel

    def follow(self, *hosts: str) -> dict[str, Start | End | BertTrainParallelError]:
        """What comes next on these nodes, or on all."""
        found: dict[str, Start | End | BertTrainParallelError] = {}

        def wait(host: str) -> None:
            try:
                found[host] = self.channels[host].next(self.interrupts)
            except BertTrainParallelError as error:
                found[host] = error

        threads = [threading.Thread(target=wait, args=(host,), daemon=True) for host in hosts or self.channels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WITHIN_S)
        assert not any(thread.is_alive() for thread in threads), f"a node still waits: {self.said}"
        return found

    def start(self, *hosts: str) -> dict[str, Start]:
        found = self.follow(*hosts)
        assert all(isinstance(step, Start) for step in found.values()), found
        return found  # type: ignore[return-value]

    def vanish(self, host: str) -> None:
        """Its connection ends without a word, as when its launcher is killed."""
        link = self.channels[host].link
        link.over = True  # type: ignore[assignment]
        self.channels[host].loop.call_soon_threadsafe(link.writer.transport.abort)  # type: ignore[union-attr]


def heard(channel: Channel) -> Failure:
    found: list[Failure] = []
    until(lambda: bool(found.extend(channel.messages()) or found))
    return found[0]


def finish(nodes: Nodes, **codes: int) -> None:
    for host, code in codes.items():
        nodes.channels[host].finished(code)

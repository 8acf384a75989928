"""Ranks that meet: one that comes late is waited for, a port that gives no answer is told."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from bert_train_parallel.errors import LaunchFailed, Unreachable
from bert_train_parallel.launching.ports import free_port
from bert_train_parallel.rank import Rank
from bert_train_parallel.training import world


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port whose queue is full, so that whoever comes next hears nothing, as behind a firewall that drops messages."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def of_another_node(port: int) -> Rank:
    return Rank(rank=1, node_rank=1, world_size=2, nodes=2, master_addr="127.0.0.1", master_port=port)


def test_a_port_without_an_answer_is_told_with_the_flag_within_the_deadline() -> None:
    began = time.monotonic()
    with silent_port() as port, pytest.raises(Unreachable) as raised:
        world._await_answer(of_another_node(port), within_s=1.0)
    assert time.monotonic() - began < 5
    assert all(part in str(raised.value) for part in ("127.0.0.1", f"port {port}", "--store_port", "open TCP ports"))


def test_a_rank_0_that_still_prepares_its_data_is_waited_for_beyond_the_deadline_and_aloud(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    servers = []
    timer = threading.Timer(1.5, lambda: servers.append(socket.create_server(("127.0.0.1", port))))
    timer.start()
    with caplog.at_level(logging.WARNING):
        world._await_answer(of_another_node(port), within_s=0.5)
    timer.join()
    servers[0].close()
    assert [record.message.count(f"port {port}, which refuses connections") for record in caplog.records] == [1]


class Work:
    """A message whose fate is known."""

    def __init__(self, error: str | None = None, *, arrives: bool = True) -> None:
        self.error, self.arrives = error, arrives

    def is_completed(self) -> bool:
        return self.arrives

    def wait(self) -> None:
        if self.error:
            raise RuntimeError(self.error)


@pytest.mark.parametrize(
    ("work", "raised", "words"),
    [
        (Work(arrives=False), Unreachable, "a first message does not arrive"),
        (Work("NCCL error: remote process exited or there was a network error"), LaunchFailed, "Rank 1 has lost another rank"),
        (Work("NCCL error: unhandled system error. /dev/shm: No space left on device"), RuntimeError, "No space left"),
    ],
)
def test_connections_that_are_made_late_are_tried_when_ranks_meet(
    work: Work, raised: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.dist, "all_reduce", lambda values, async_op: work)
    with pytest.raises(raised, match=words):
        world._first_message(of_another_node(1), torch.device("cpu"), within_s=0.05)


@pytest.mark.parametrize(("given", "found"), [("30", 30.0), ("0.5", world._LEAST_TO_MEET_S), ("soon", 120.0), (None, 120.0)])
def test_the_deadline_is_the_launchers(given: str | None, found: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BERT_TRAIN_JOIN_TIMEOUT", raising=False)
    if given:
        monkeypatch.setenv("BERT_TRAIN_JOIN_TIMEOUT", given)
    assert world._join_timeout_s() == found

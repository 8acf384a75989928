"""Addresses and sentences of the network, asked of this machine alone."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bert_train_parallel.errors import Unreachable
from bert_train_parallel.launching import network


def test_own_addresses_are_those_that_can_be_bound() -> None:
    addresses = network.own_addresses()
    assert "127.0.0.1" in addresses
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        if not address.startswith("fe80"):
            with socket.socket(family, socket.SOCK_STREAM) as listener:
                listener.bind((address, 0))


def test_the_interface_of_an_own_address_is_set_for_gloo_and_nccl_unless_the_user_has() -> None:
    name = network.own_addresses()["127.0.0.1"]
    assert network.interface_environ("127.0.0.1", {}) == {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    assert network.interface_environ("127.0.0.1", {"GLOO_SOCKET_IFNAME": "eth7"}) == {"NCCL_SOCKET_IFNAME": name}
    assert network.interface_environ("192.0.2.7", {}) == {}


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 70 + ".invalid", "two words", "::::"])
def test_a_name_without_an_address_is_told_at_once(host: str) -> None:
    with pytest.raises(Unreachable, match=r"has no address .*give the IP address"):
        network.resolve(host)


def test_many_names_are_looked_up_together_and_unknown_ones_are_empty() -> None:
    found = network.resolve_all(["localhost", "no.such.host.invalid"])
    assert found["localhost"]
    assert found["no.such.host.invalid"] == []


@pytest.fixture
def silent_name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Names are looked up for as long as the event is not set, as where no name server answers."""
    answers = threading.Event()
    ask = socket.getaddrinfo

    def look_up(host: str | None, *arguments: object, **more: object) -> list[object]:
        if host not in ("alpha", "beta", "gamma"):  # an address, or none, is no question to a name server
            return ask(host, *arguments, **more)  # type: ignore[arg-type, return-value]
        answers.wait(20)
        return ask("127.0.0.1", *arguments, **more)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "getfqdn", lambda: str(answers.wait(20)))
    yield answers
    answers.set()
    for thread in threading.enumerate():
        if thread.name == "look-up":
            thread.join(20)
    network._asked.clear()  # or the next test would be given these answers


def test_a_silent_name_server_is_told_within_3_s_and_its_late_answer_counts(silent_name_server: threading.Event) -> None:
    began = time.monotonic()
    with pytest.raises(network.SilentNameServer, match=r"does not answer for 'alpha' \(--master_addr\): give the IP address"):
        network.resolve("alpha", "--master_addr")
    assert network.resolve_all(["alpha", "beta", "gamma"]) == {"alpha": [], "beta": [], "gamma": []}
    assert time.monotonic() - began < 4
    threads = threading.active_count()
    with pytest.raises(network.SilentNameServer):
        network.resolve("alpha", within_s=0.01)
    assert threading.active_count() == threads  # the question is asked once
    silent_name_server.set()
    assert network.resolve("alpha") == ["127.0.0.1"]


def test_a_silent_name_server_does_not_keep_this_machine_from_its_own_name(silent_name_server: threading.Event) -> None:
    began = time.monotonic()
    assert socket.gethostname().lower() in network.own_names()
    assert time.monotonic() - began < 2


def test_a_node_that_waits_for_a_name_server_says_so_again_and_gives_up_at_the_deadline(silent_name_server: threading.Event) -> None:
    from bert_train_parallel.launching import member
    from bert_train_parallel.launching.plan import Hello, LaunchRequest

    told: list[tuple[float, dict[str, object]]] = []
    began = time.monotonic()
    request = LaunchRequest(("a.py",), others=1, node_rank=1, master_addr="alpha", master_port=29499, join_timeout_s=4.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(member, "REPEAT_S", 1.0)
        node = member.Member(request, Hello("beta", 1, others=1), "alpha", lambda message: told.append((time.monotonic() - began, message)))
        asyncio.run(node.run())
    said = [moment for moment, message in told if message["kind"] == "say" and "name server does not answer for 'alpha'" in str(message)]
    assert len(said) >= 2
    assert said[0] < 3
    assert told[-1][1]["kind"] == "refused"
    assert "Gave up after 4 s" in str(told[-1][1]["words"])
    assert told[-1][0] < 10


def test_questions_of_a_process_are_not_waited_for_in_its_fork(silent_name_server: threading.Event) -> None:
    with pytest.raises(network.SilentNameServer):
        network.resolve("alpha", within_s=0.01)
    assert network._asked
    pid = os.fork()
    if pid == 0:
        os._exit(len(network._asked))
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "refuses connections"),
        (OSError(errno.EHOSTUNREACH, "no route"), "cannot be reached from here (No route to host)"),
        (OSError(errno.ENETUNREACH, "unreachable"), "cannot be reached from here (Network is unreachable)"),
        (TimeoutError(), "does not answer"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "closed the connection"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
    ],
)
def test_why_a_connection_failed_is_told_with_host_and_port(error: OSError, words: str) -> None:
    sentence = network.why_unreachable(error, "alpha", 29500)
    assert words in sentence
    assert "alpha" in sentence
    assert "29500" in sentence or "cannot be reached" in sentence

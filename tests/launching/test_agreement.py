"""Nodes that become one world or are told why not, over real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from bert_train_parallel.errors import LaunchFailed, NodesDisagree, Unreachable
from bert_train_parallel.launching import door, master, wire
from bert_train_parallel.launching.plan import LaunchRequest
from bert_train_parallel.launching.ports import free_port, holder_of

from .nodes import BROKEN, HOSTS, WITHIN_S, Nodes, finish, heard, until


@pytest.mark.parametrize("counts", [[1, 1], [3, 1], [2, 3, 1], [1, 1, 1, 1]])
def test_nodes_with_their_own_counts_get_the_ranks_of_one_world(nodes: Nodes, counts: list[int]) -> None:
    for number, count in enumerate(counts):
        nodes.add(HOSTS[number], count, sum(counts) - count)
    found = nodes.start()
    plans = [found[HOSTS[number]].plan for number in range(len(counts))]
    assert [list(plan.ranks_on(number)) for number, plan in enumerate(plans)] == [
        list(range(sum(counts[:number]), sum(counts[: number + 1]))) for number in range(len(counts))
    ]
    assert [found[HOSTS[number]].node_rank for number in range(len(counts))] == list(range(len(counts)))
    assert len({(plan.store_port, plan.job, plan.nodes) for plan in plans}) == 1
    assert plans[0].store_port != nodes.port


def test_the_ranks_meet_on_the_port_that_the_master_was_given_at_each_attempt(nodes: Nodes) -> None:
    port = free_port()
    nodes.add("alpha", 1, 1, store_port=port, max_restarts=1)
    nodes.add("beta", 1, 1, max_restarts=1)
    assert {step.plan.store_port for step in nodes.start().values()} == {port}
    nodes.channels["beta"].report(BROKEN)
    heard(nodes.channels["alpha"])
    finish(nodes, alpha=1, beta=7)
    assert {step.plan.store_port for step in nodes.start().values()} == {port}


def test_a_port_for_the_ranks_that_is_taken_is_told_to_every_node(nodes: Nodes) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        nodes.add("alpha", 1, 1, store_port=port)
        nodes.add("beta", 1, 1)
        found = nodes.follow()
    assert all(f"port {port} of this machine is taken" in str(error) for error in found.values()), found
    assert all("--store_port" in str(error) for error in found.values()), found


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"others": 5}, ["--other_gpus"]),
        ({"command": ("train.py", "--lr", "2e-5")}, ['"1e-5" on alpha, "2e-5" on beta']),
        ({"command": ("train.py", "--lr")}, ['alpha has the argument "1e-5", beta does not']),
        ({"max_restarts": 3}, ["--max_restarts: 0 on alpha, 3 on beta"]),
        ({"send_data": True}, ["--send_data: no on alpha, yes on beta"]),
        ({"ranks": 3, "others": 0}, ["4 GPUs came and 3 were announced", "--other_gpus"]),
    ],
)
def test_a_mistake_ends_every_node_with_one_sentence(nodes: Nodes, flags: dict[str, object], words: list[str]) -> None:
    nodes.add("alpha", 1, 2)
    settings = {"ranks": 1, "others": 2} | flags
    command = settings.pop("command", ())
    nodes.add("beta", settings.pop("ranks"), settings.pop("others"), *command, **settings)  # type: ignore[arg-type, misc]
    found = nodes.follow()
    sentences = {str(error) for error in found.values()}
    assert all(isinstance(error, NodesDisagree) for error in found.values()), found
    assert len(sentences) == 1
    assert all(part in sentence for sentence in sentences for part in ["alpha", "beta", *words]), sentences


def test_all_nodes_hear_of_a_mistake_between_two_of_them(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 3)
    nodes.add("beta", 1, 3)
    nodes.add("gamma", 1, 9, node_rank=2)
    found = nodes.follow()
    assert all("gamma counts 1 here and 9 elsewhere" in str(error) for error in found.values()), found


def test_two_nodes_with_one_rank_are_named(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 3)
    nodes.add("beta", 1, 3, node_rank=1)
    nodes.add("gamma", 1, 3, node_rank=1)
    found = nodes.follow()
    assert all("are both node 1" in str(error) and "--node_rank" in str(error) for error in found.values()), found


def test_another_version_is_named_with_both_versions(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.add("alpha", 1, 1)
    monkeypatch.setattr("bert_train_parallel.launching.hello.versions", lambda: {"torch": "1.0.0"})
    nodes.add("beta", 1, 1)
    assert all("1.0.0 on beta" in str(error) for error in nodes.follow().values())


def test_other_content_of_a_file_is_named(nodes: Nodes, tmp_path: Path) -> None:
    for host in ("alpha", "beta"):
        (tmp_path / host).mkdir()
        (tmp_path / host / "texts.csv").write_text(f"text,label\n{host},1\n")
        nodes.add(host, 1, 1, "python", "train.py", "texts.csv", folder=str(tmp_path / host))
    found = nodes.follow()
    assert all("texts.csv has another content on beta (18 bytes" in str(error) for error in found.values()), found


def test_a_file_that_is_not_there_is_named_with_the_flag_that_sends_it(nodes: Nodes, tmp_path: Path) -> None:
    for host in ("alpha", "beta"):
        (tmp_path / host).mkdir()
    (tmp_path / "alpha" / "texts.csv").write_text("text,label\n")
    for host in ("alpha", "beta"):
        nodes.add(host, 1, 1, "python", "train.py", "texts.csv", folder=str(tmp_path / host))
    assert all("texts.csv is not on beta. Copy it there, or add --send_data" in str(error) for error in nodes.follow().values())


def test_send_data_copies_the_file_to_the_node_that_lacks_it(nodes: Nodes, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    for host in ("alpha", "beta"):
        (tmp_path / host).mkdir()
    (tmp_path / "alpha" / "texts").mkdir()
    (tmp_path / "alpha" / "texts" / "a.bin").write_bytes(content)
    for host in ("alpha", "beta"):
        nodes.add(host, 1, 1, "python", "train.py", "texts/a.bin", folder=str(tmp_path / host), send_data=True, job_token="secret")
    nodes.start()
    assert (tmp_path / "beta" / "texts" / "a.bin").read_bytes() == content
    assert [path.name for path in (tmp_path / "beta" / "texts").iterdir()] == ["a.bin"]
    assert any("5,120,000 bytes received" in line for line in nodes.said["beta"])


def test_send_data_writes_nothing_under_a_name_that_is_another_one(nodes: Nodes, tmp_path: Path) -> None:
    for host, name in (("alpha", "texts.csv"), ("beta", "text.csv")):
        (tmp_path / host).mkdir()
        (tmp_path / "alpha" / "texts.csv").write_text("text,label\n")
        nodes.add(host, 1, 1, "python", "train.py", name, folder=str(tmp_path / host), send_data=True)
    assert all('"texts.csv" on alpha, "text.csv" on beta' in str(error) for error in nodes.follow().values())
    assert list((tmp_path / "beta").iterdir()) == []


def test_send_data_writes_nothing_for_a_command_that_differs_elsewhere(nodes: Nodes, tmp_path: Path) -> None:
    for host, rate in (("alpha", "1"), ("beta", "2")):
        (tmp_path / host).mkdir()
        (tmp_path / "alpha" / "texts.csv").write_text("text,label\n")
        nodes.add(host, 1, 1, "python", "train.py", "texts.csv", "--lr", rate, folder=str(tmp_path / host), send_data=True)
    assert all('"1" on alpha, "2" on beta' in str(error) for error in nodes.follow().values())
    assert list((tmp_path / "beta").iterdir()) == []


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (("right", "wrong"), "The --job_token of this node is not the one of alpha"),
        (("right", None), "alpha asks for a --job_token"),
        ((None, "right"), "alpha was started without one"),
    ],
)
def test_a_wrong_token_is_turned_away_and_the_master_waits_on(nodes: Nodes, tokens: tuple[str | None, ...], words: str) -> None:
    nodes.add("alpha", 1, 1, job_token=tokens[0])
    nodes.add("beta", 1, 1, job_token=tokens[1])
    assert words in str(nodes.follow("beta")["beta"])
    nodes.add("gamma", 1, 1, job_token=tokens[0], node_rank=1)
    nodes.start("alpha", "gamma")
    assert any("turned away a connection from 127.0.0.1" in line and "--job_token" in line for line in nodes.said["alpha"])


def test_the_token_itself_never_crosses_the_network() -> None:
    greeting = wire.greeting("a secret", "alpha")
    message, nonce = door.introduction(LaunchRequest(("a.py",), job_token="a secret"), greeting)
    assert "a secret" not in json.dumps([greeting, message])
    assert wire.is_proof(message["proof"], "a secret", greeting["nonce"], nonce, "node")
    assert not wire.is_proof(message["proof"], "a secret", greeting["nonce"], nonce, "master")
    assert not wire.is_proof(message["proof"], "a secret", wire.nonce(), nonce, "node")
    assert not wire.is_proof(None, "a secret", "", "", "node")


def test_a_master_that_does_not_know_the_token_is_not_believed(nodes: Nodes) -> None:
    with socket.create_server(("127.0.0.1", nodes.port)) as server:
        nodes.add("beta", 1, 1, job_token="secret")
        connection, _ = server.accept()
        with connection:
            connection.sendall(wire.encode(wire.greeting("another", "alpha")))
            connection.recv(1 << 16)
            connection.sendall(wire.encode({"kind": "joined", "proof": "0" * 64}))
            assert "does not know the --job_token" in str(nodes.follow("beta")["beta"])


def stranger(port: int, said: bytes) -> str:
    """What a comer hears who says this."""
    with socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S) as connection:
        heard = b""
        with contextlib.suppress(OSError):
            connection.sendall(said)
        with contextlib.suppress(OSError):
            while piece := connection.recv(1 << 16):
                heard += piece
        return heard.decode()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\x04\x95\x00\x00\x00.\n",
        b'{"kind": "hello"}\n',
        b'{"kind": "hello", "protocol": 1, "hello": {"host": 7}}\n',
        b'{"kind": "fetch", "protocol": 1, "number": 1}\n',
        b"[" * 100_000 + b"\n",
        b"\n",
        b"x" * (3 * wire.LINE_LIMIT),
    ],
)
def test_a_stranger_gets_an_answer_and_the_world_forms_all_the_same(nodes: Nodes, said: bytes) -> None:
    nodes.add("alpha", 1, 1)
    time.sleep(0.2)
    assert '"refused"' in stranger(nodes.port, said) or len(said) > wire.LINE_LIMIT
    nodes.add("beta", 1, 1)
    nodes.start()


def test_half_a_line_and_silence_are_ended_after_a_time(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HELLO_WITHIN_S", 0.3)
    nodes.add("alpha", 1, 1)
    time.sleep(0.2)
    for said in (b"", b'{"kind": "hel'):
        assert "nothing was said" in stranger(nodes.port, said)
    nodes.add("beta", 1, 1)
    nodes.start()


def test_a_flood_is_not_kept_in_memory(nodes: Nodes) -> None:
    import resource

    nodes.add("alpha", 1, 1)
    time.sleep(0.2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with socket.create_connection(("127.0.0.1", nodes.port), timeout=2.0) as connection, contextlib.suppress(OSError):
        block = b"x" * (1 << 20)
        for _ in range(1024):
            connection.sendall(block)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    nodes.add("beta", 1, 1)
    nodes.start()


def test_more_strangers_than_seats_do_not_keep_a_node_out(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HELLO_WITHIN_S", 1.0)
    nodes.add("alpha", 1, 1)
    time.sleep(0.2)
    with contextlib.ExitStack() as stack:
        for _ in range(door.MOST_STRANGERS + 20):
            stack.enter_context(socket.create_connection(("127.0.0.1", nodes.port)))
        nodes.add("beta", 1, 1)
        nodes.start()


def test_a_node_that_never_comes_ends_the_wait_with_who_is_here(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 3, join_timeout_s=1.0)
    nodes.add("beta", 1, 3)
    found = nodes.follow()
    assert all(isinstance(error, Unreachable) for error in found.values()), found
    assert all("2 GPUs never came; here: alpha (1 CPU process" in str(error) for error in found.values())
    assert all("--join_timeout" in str(error) for error in found.values())


def test_a_machine_that_the_map_calls_by_an_address_of_every_machine_is_explained_when_it_never_comes(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 0, gpu_map={"alpha": 1, "127.0.0.1": 2}, node_rank=0, join_timeout_s=1.0)
    error = str(nodes.follow("alpha")["alpha"])
    assert "alpha has a name of its own in it, so 127.0.0.1 is another machine; if both are one, keep one of them" in error


def test_a_master_that_never_comes_is_told_at_once_and_given_up_at_the_deadline(nodes: Nodes) -> None:
    nodes.add("beta", 1, 1, join_timeout_s=1.0)
    began = time.monotonic()
    error = nodes.follow("beta")["beta"]
    assert isinstance(error, Unreachable)
    assert "refuses connections" in nodes.said["beta"][0]
    assert "Gave up after 1 s" in str(error)
    assert time.monotonic() - began < 10


def test_something_else_on_the_port_is_told(nodes: Nodes) -> None:
    with socket.create_server(("127.0.0.1", nodes.port)) as server:
        nodes.add("beta", 1, 1, join_timeout_s=1.0)
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
            connection.close()
            assert "it is not launch.py" in str(nodes.follow("beta")["beta"])


def test_one_node_too_many_is_told_that_the_world_is_complete(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 1)
    nodes.add("beta", 1, 1)
    nodes.start()
    nodes.add("gamma", 1, 1)
    error = str(nodes.follow("gamma")["gamma"])
    assert "is complete without gamma: alpha (1), beta (1)" in error
    assert "--master_port" in error


def test_a_node_that_leaves_while_others_wait_can_come_back(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 2)
    first = nodes.add("beta", 1, 2)
    time.sleep(0.5)
    first.close()
    del nodes.channels["beta"]
    nodes.add("beta", 1, 2)
    nodes.add("gamma", 1, 2, node_rank=2)
    nodes.start()


def test_a_second_master_on_one_machine_is_told_who_has_the_port(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 1)
    until(lambda: holder_of(nodes.port) != "")
    nodes.add("beta", 1, 1, node_rank=0, master_addr=None)
    assert f"port {nodes.port} of this machine is taken by" in str(nodes.follow("beta")["beta"])


def test_a_signal_ends_the_wait_for_other_nodes(nodes: Nodes) -> None:
    import os
    import signal

    nodes.add("alpha", 1, 1)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    error = nodes.follow("alpha")["alpha"]
    assert isinstance(error, LaunchFailed)
    assert error.exit_code == 128 + signal.SIGTERM


def test_halves_of_characters_from_a_stranger_are_answered_like_any_wrong_proof(nodes: Nodes) -> None:
    alpha = nodes.add("alpha", 1, 1, job_token="secret")
    until(lambda: holder_of(nodes.port) != "")
    hello = {"kind": "hello", "protocol": 1, "nonce": "\ud800", "proof": "\udfff"}
    with socket.create_connection(("127.0.0.1", nodes.port), WITHIN_S) as stranger, stranger.makefile("rw") as lines:
        lines.readline()
        lines.write(json.dumps(hello) + "\n")
        lines.flush()
        answer = json.loads(lines.readline())
    assert answer["kind"] == "refused"
    assert "--job_token" in answer["words"]
    nodes.add("beta", 1, 1, job_token="secret")
    nodes.start()
    assert not alpha.over


def test_a_mistake_between_nodes_that_have_all_come_waits_for_nobody(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("SETTLE_S", "LINGER_S"):
        monkeypatch.setattr(master, pause, 2 * WITHIN_S)  # following it, or closing, would take longer than the test allows
    alpha = nodes.add("alpha", 1, 1)
    nodes.add("beta", 1, 1, "train.py", "--lr", "1")
    assert all(isinstance(error, NodesDisagree) for error in nodes.follow().values())
    alpha.thread.join(WITHIN_S)
    assert not alpha.thread.is_alive()

"""Nodes of one world: a failure of one is that of all, over real sockets; restarts, losses and returns."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from bert_train_parallel.launching.plan import Failure
from bert_train_parallel.launching.world import End

from .nodes import BROKEN, HOSTS, Nodes, finish, heard


def test_a_launch_ends_when_every_node_is_done(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 1)
    nodes.add("beta", 1, 1)
    nodes.start()
    finish(nodes, alpha=0)
    time.sleep(0.2)
    assert nodes.channels["alpha"].messages() == []
    finish(nodes, beta=0)
    assert set(nodes.follow().values()) == {End(None)}


def test_a_failure_on_one_node_is_the_same_failure_on_all(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 2)
    nodes.add("beta", 1, 2)
    nodes.add("gamma", 1, 2, node_rank=2)
    nodes.start()
    nodes.channels["beta"].report(BROKEN)
    assert heard(nodes.channels["alpha"]) == heard(nodes.channels["gamma"]) == BROKEN
    nodes.channels["gamma"].report(Failure("gamma", 2, "exit", 1, "Connection closed by peer"))  # what follows from it
    finish(nodes, alpha=1, beta=7, gamma=1)
    assert set(nodes.follow().values()) == {End(BROKEN)}


def test_restarts_begin_the_whole_world_again_until_they_are_used_up(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 1, max_restarts=1)
    nodes.add("beta", 1, 1, max_restarts=1)
    first = nodes.start()["alpha"].plan
    nodes.channels["beta"].report(BROKEN)
    heard(nodes.channels["alpha"])
    finish(nodes, beta=7)
    finish(nodes, alpha=1)
    second = nodes.start()
    assert {step.plan.attempt for step in second.values()} == {1}
    assert second["beta"].plan.nodes == first.nodes
    assert second["beta"].plan.rank(1, 0).to_environ()["TORCHELASTIC_RESTART_COUNT"] == "1"
    nodes.channels["alpha"].report(replace(BROKEN, node="alpha"))
    heard(nodes.channels["beta"])
    finish(nodes, alpha=7, beta=1)
    assert set(nodes.follow().values()) == {End(replace(BROKEN, node="alpha"))}


def test_a_users_mistake_is_not_tried_again(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 1, max_restarts=5)
    nodes.add("beta", 1, 1, max_restarts=5)
    nodes.start()
    nodes.channels["beta"].report(replace(BROKEN, kind="usage", exit_code=2))
    heard(nodes.channels["alpha"])
    finish(nodes, alpha=1, beta=2)
    assert all(isinstance(step, End) for step in nodes.follow().values())


def test_a_lost_node_ends_the_others_with_its_name(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 2)
    nodes.add("beta", 1, 2)
    nodes.add("gamma", 1, 2, node_rank=2)
    nodes.start()
    nodes.vanish("beta")
    for host in ("alpha", "gamma"):
        failure = heard(nodes.channels[host])
        assert (failure.kind, failure.node) == ("lost", "beta")
        assert "lost beta (node 1)" in failure.words
    finish(nodes, alpha=1, gamma=1)
    assert all(isinstance(step, End) for step in nodes.follow("alpha", "gamma").values())


def test_an_elastic_world_goes_on_without_the_lost_node(nodes: Nodes) -> None:
    nodes.add("alpha", 2, 4, elastic=True)
    nodes.add("beta", 3, 3, elastic=True)
    nodes.add("gamma", 1, 5, node_rank=2, elastic=True)
    nodes.start()
    nodes.vanish("beta")
    assert heard(nodes.channels["alpha"]).node == "beta"
    finish(nodes, alpha=1, gamma=1)
    again = nodes.start("alpha", "gamma")
    plan = again["gamma"].plan
    assert [(node.host, node.ranks) for node in plan.nodes] == [("alpha", 2), ("gamma", 1)]
    assert (again["gamma"].node_rank, list(plan.ranks_on(1)), plan.attempt) == (1, [2], 1)
    finish(nodes, alpha=0, gamma=0)
    assert set(nodes.follow("alpha", "gamma").values()) == {End(None)}


def test_a_lost_node_that_comes_back_takes_its_place_in_the_next_attempt(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 2, max_restarts=1)
    nodes.add("beta", 1, 2, max_restarts=1)
    nodes.add("gamma", 1, 2, node_rank=2, max_restarts=1)
    nodes.start()
    nodes.vanish("beta")
    heard(nodes.channels["alpha"])
    finish(nodes, alpha=1, gamma=1)
    nodes.channels.pop("beta").close()
    nodes.add("beta", 1, 2, node_rank=1, max_restarts=1)
    again = nodes.start()
    assert [node.host for node in again["beta"].plan.nodes] == ["alpha", "beta", "gamma"]
    assert again["beta"].node_rank == 1


def test_a_wrong_node_in_place_of_a_lost_one_is_turned_away_and_the_world_waits_on(nodes: Nodes) -> None:
    for host in HOSTS[:3]:
        nodes.add(host, 1, 2, max_restarts=1)
    nodes.start()
    nodes.vanish("gamma")
    heard(nodes.channels["alpha"])
    finish(nodes, alpha=1, beta=1)
    nodes.channels.pop("gamma").close()
    nodes.add("delta", 1, 2, "train.py", "--lr", "3", max_restarts=1, node_rank=2)
    assert '"1e-5" on alpha, "3" on delta' in str(nodes.follow("delta")["delta"])
    nodes.channels.pop("delta").close()
    nodes.add("gamma", 1, 2, max_restarts=1, node_rank=2)
    assert nodes.start()["gamma"].plan.attempt == 1


def test_a_silent_node_is_lost_after_a_time(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.add("alpha", 1, 1)
    nodes.add("beta", 1, 1)
    nodes.start()
    monkeypatch.setattr(nodes.channels["beta"].link, "send", lambda message: None)
    failure = heard(nodes.channels["alpha"])
    assert "no word from it for 3 s" in failure.words


def test_a_master_that_is_stopped_ends_all_nodes(nodes: Nodes) -> None:
    nodes.add("alpha", 1, 1)
    nodes.add("beta", 1, 1)
    nodes.start()
    nodes.channels.pop("alpha").close()
    failure = heard(nodes.channels["beta"])
    assert failure.node == "alpha"
    assert "master" in failure.words


OURS = ("python", "-P", "-m", "bert_train_parallel", "leanings.csv")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (OURS, "Start the same line again with --resume on every node: training goes on where it was saved."),
        ((*OURS, "--resume"), "Start the same line again on every node: training goes on where it was saved."),
        (("train.py",), "Start the same line again on every node: a script goes on from its own checkpoints, if it keeps any."),
    ],
)
@pytest.mark.parametrize("lost", ["alpha", "beta"])
def test_a_loss_that_ends_the_launch_says_what_to_type_to_go_on(nodes: Nodes, lost: str, command: tuple[str, ...], words: str) -> None:
    nodes.add("alpha", 1, 1, *command)
    nodes.add("beta", 1, 1, *command)
    nodes.start()
    if lost == "beta":
        nodes.vanish("beta")
    else:  # its launcher is killed: what it holds of the connection closes
        loop = nodes.channels["alpha"].loop
        for writer in list(nodes.channels["alpha"].link.door.writers):  # type: ignore[union-attr]
            loop.call_soon_threadsafe(writer.transport.abort)
    failure = heard(nodes.channels["alpha" if lost == "beta" else "beta"])
    assert failure.node in (lost, "127.0.0.1")
    assert failure.words.endswith(f"went down. {words}"), failure.words


@pytest.mark.parametrize("flags", [{"max_restarts": 1}, {"elastic": True}])
def test_a_loss_after_which_the_world_starts_again_asks_for_nothing(nodes: Nodes, flags: dict[str, object]) -> None:
    for host in HOSTS[:2]:
        nodes.add(host, 1, 1, *OURS, **flags)
    nodes.start()
    nodes.vanish("beta")
    assert "--resume" not in heard(nodes.channels["alpha"]).words

"""Addresses and sentences of the network, asked of this machine alone."""

from __future__ import annotations

import errno
import socket

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

"""What comes over the wire is checked before anything is done with it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_train_parallel.launching import wire
from bert_train_parallel.launching.plan import Failure, Hello, Word

HELLO = Hello("beta", 2, 3, 1, ("GPU-1", "GPU-2"), {"torch": "2.13.0"}, (Word("a.py", "9:ab"),), problem="")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


def sent(value: object) -> object:
    return json.loads(json.dumps(value))


def test_a_hello_arrives_as_it_was_sent() -> None:
    assert wire.hello_from(sent(wire.hello_message(HELLO))) == HELLO


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", 7),
        ("host", "x" * 300),
        ("host", "alpha\x1b[2J"),
        ("ranks", "2"),
        ("ranks", True),
        ("ranks", -1),
        ("ranks", 10**9),
        ("others", 1.5),
        ("node_rank", -1),
        ("devices", "GPU-1"),
        ("devices", [1]),
        ("same", [["a", "b"]]),
        ("same", {"torch": 2}),
        ("command", ["a.py"]),
        ("command", [{"text": "a.py"}]),
        ("problem", None),
    ],
)
def test_a_hello_with_a_wrong_field_is_refused(field: str, value: object) -> None:
    with pytest.raises(wire.NotOurs):
        wire.hello_from(sent(wire.hello_message(HELLO) | {field: value}))


@given(JSON)
def test_no_json_at_all_breaks_the_reader_of_a_hello(value: object) -> None:
    for reader in (wire.hello_from, wire.failure_from):
        with pytest.raises(wire.NotOurs):
            reader(value)


@given(st.binary(max_size=200))
def test_no_bytes_at_all_break_the_reader_of_a_line(line: bytes) -> None:
    try:
        assert isinstance(wire.decode(line)["kind"], str)
    except wire.NotOurs:
        pass


def test_a_long_traceback_keeps_its_end() -> None:
    failure = Failure("beta", 1, "exit", 1, "x" * 100_000 + "KeyError")
    arrived = wire.failure_from(sent(wire.failure_message(failure)))
    assert arrived.words.endswith("KeyError")
    assert len(wire.encode({"kind": "stop", "failure": wire.failure_message(failure)})) < wire.LINE_LIMIT

"""What crosses the control channel: JSON lines of bounded size, and proofs that a token is known without sending it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
from dataclasses import asdict
from typing import Any

from bert_train_parallel.launching.plan import PROTOCOL, Failure, Hello, Node, Word, WorldPlan

NAME = "bert_train_parallel launch"
LINE_LIMIT = 1 << 18  # bytes: a command of thousands of words fits, a flood does not
WORDS_LIMIT = 16_000  # characters of a failure: the end of a traceback says what went wrong
HELLO_WITHIN_S = 5.0
BEAT_S = 1.0
LOST_AFTER_S = 3.0  # without a word, with a beat each second

Message = dict[str, Any]


class NotOurs(Exception):
    """What arrived is not a message of ours."""


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """
    >>> decode(encode({"kind": "beat"}))
    {'kind': 'beat'}

    Raises:
        NotOurs: not one whole JSON object with a kind.
    """
    if not line.endswith(b"\n"):
        raise NotOurs("the line has no end")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise NotOurs("the line is not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise NotOurs("the line is no message")
    return message


async def read(reader: asyncio.StreamReader, within_s: float) -> Message:
    """The next message.

    Raises:
        NotOurs: garbage, a line that is too long, or the end of the connection in mid line.
        TimeoutError: nothing in time.
        EOFError: the other side has gone.
    """
    try:
        line = await asyncio.wait_for(reader.readline(), within_s)
    except ValueError:
        raise NotOurs(f"the line is longer than {LINE_LIMIT} bytes") from None
    except ConnectionError:
        raise EOFError from None
    if not line:
        raise EOFError
    return decode(line)


def proof(token: str, *parts: str) -> str:
    """What only a holder of the token can say about these nonces."""
    return hmac.new(_bytes(token), _bytes("\n".join(parts)), hashlib.sha256).hexdigest()


def is_proof(said: object, token: str, *parts: str) -> bool:
    return isinstance(said, str) and hmac.compare_digest(_bytes(said), _bytes(proof(token, *parts)))


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # a stranger may send halves of characters, a command line may hold bytes that are no text


def nonce() -> str:
    return secrets.token_hex(16)


def greeting(token: str | None, host: str) -> Message:
    """The first line of a connection, from the master."""
    return {"kind": "launch", "name": NAME, "protocol": PROTOCOL, "nonce": nonce(), "token": token is not None, "host": host}


def hello_message(hello: Hello) -> Message:
    return asdict(hello)


def hello_from(fields: object) -> Hello:
    """A hello that came over the wire, with every field checked.

    >>> hello_from(json.loads(json.dumps(hello_message(Hello("beta", 2, devices=("GPU-1", "GPU-2"), command=(Word("a.py"),))))))
    Hello(host='beta', ranks=2, others=None, node_rank=None, devices=('GPU-1', 'GPU-2'), same={}, command=(Word(text='a.py', \
fingerprint=''),), store_port=0, problem='')

    Raises:
        NotOurs: a field is missing, or of another type or size.
    """
    if not isinstance(fields, dict):
        raise NotOurs("the hello is no object")
    try:
        return Hello(
            host=_name(fields["host"]),
            ranks=_number(fields["ranks"], 0, 4096),
            others=None if fields["others"] is None else _number(fields["others"], 0, 1 << 20),
            node_rank=None if fields["node_rank"] is None else _number(fields["node_rank"], 0, 1 << 20),
            devices=tuple(_text(device, 255) for device in _list(fields["devices"])),
            same={_text(name, 64): _text(value, 1 << 16) for name, value in _object(fields["same"]).items()},
            command=tuple(Word(_text(word["text"], 1 << 17), _text(word["fingerprint"], 64)) for word in _list(fields["command"])),
            problem=printable(_text(fields["problem"], 4000)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotOurs(f"the hello has a wrong field ({error})") from None


def plan_message(plan: WorldPlan) -> Message:
    return asdict(plan)


def plan_from(fields: Any) -> WorldPlan:
    """
    >>> plan = WorldPlan((Node("alpha", 1, ("GPU-1",)), Node("beta", 2)), store_port=20001, attempt=1, job="7f")
    >>> plan_from(json.loads(json.dumps(plan_message(plan)))) == plan
    True
    """
    nodes = tuple(Node(node["host"], node["ranks"], tuple(node["devices"])) for node in fields["nodes"])
    return WorldPlan(**{**fields, "nodes": nodes})


def failure_message(failure: Failure) -> Message:
    return asdict(failure) | {"words": failure.words[-WORDS_LIMIT:]}


def failure_from(fields: object) -> Failure:
    """
    Raises:
        NotOurs: a field is missing, or of another type or size.
    """
    if not isinstance(fields, dict):
        raise NotOurs("the failure is no object")
    try:
        return Failure(
            node=_name(fields["node"]),
            rank=None if fields["rank"] is None else _number(fields["rank"], 0, 1 << 24),
            kind=_text(fields["kind"], 20),
            exit_code=_number(fields["exit_code"], 0, 255),
            words=_text(fields["words"], WORDS_LIMIT),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NotOurs(f"the failure has a wrong field ({error})") from None


def _text(value: object, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise ValueError(f"{str(value)[:40]!r}")
    return value


def _name(value: object) -> str:
    name = _text(value, 255)
    if not name.isprintable():
        raise ValueError(repr(name[:40]))
    return name


def printable(text: str) -> str:
    """A text of another machine as it may reach a terminal: without control characters but line ends and tabs.

    >>> printable("a\\x1b[2Jb")
    'a?[2Jb'
    """
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)


def _number(value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{str(value)[:40]!r}")
    return value


def _object(value: object) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{str(value)[:40]!r}")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{str(value)[:40]!r}")
    return value

"""The door of the control port: who knocks is greeted, proves the token, says what it wants within a time and a size, or is turned away.

Whatever arrives there (a node of another launch, a port scanner, a flood, silence) costs a bounded amount of memory and
time, and gets an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import cast

from bert_train_parallel.launching import network, wire
from bert_train_parallel.launching.compare import maps_agree
from bert_train_parallel.launching.plan import PROTOCOL, Hello, LaunchRequest
from bert_train_parallel.launching.wire import Message

MOST_STRANGERS = 64  # connections that have not yet said who they are
BACKLOG = 1 << 22  # bytes that a node may leave unread before it counts as gone
FLUSH_S = 1.0

Send = Callable[[Message], None]
Admit = Callable[[Hello, Send, str, asyncio.StreamReader], Awaitable[None]]
Fetch = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


def peer(writer: asyncio.StreamWriter) -> str:
    """The address of the other side."""
    name = writer.get_extra_info("peername")
    return network.bare(str(name[0])) if name else ""


def own_side(writer: asyncio.StreamWriter) -> str:
    """The address by which this machine is connected."""
    return network.bare(str(cast("tuple[str, int]", writer.get_extra_info("sockname"))[0]))


def map_words(request: LaunchRequest) -> str:
    return " ".join(f"{host}={gpus}" for host, gpus in (request.gpu_map or {}).items())


class Turned(Exception):
    """Why a comer may not come in; the words are for it."""


class Door:
    """Answers connections; `admit` keeps a node, `fetch` sends a file, `rival` hears of a second master."""

    def __init__(
        self,
        request: LaunchRequest,
        host: str,
        role: str,
        admit: Admit,
        fetch: Fetch,
        rival: Callable[[str], bool],
        say: Callable[[str], None],
    ) -> None:
        self.request, self.host, self.role = request, host, role
        self.admit, self.fetch, self.rival, self.say = admit, fetch, rival, say
        self.strangers = 0
        self.writers: set[asyncio.StreamWriter] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.complained: dict[str, float] = {}  # address -> when this door last spoke of it
        self.met = ""  # the own address by which the first node came
        self.of_map: set[str] | None = None

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from greeting to end."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.writers.add(writer)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, wire.NotOurs, TimeoutError):
            pass  # it has gone, or was told why
        finally:
            await flush_and_close(writer)
            self.writers.discard(writer)
            self.tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.strangers >= MOST_STRANGERS:
            return
        self.strangers += 1
        greeting = wire.greeting(self.request.job_token, self.host) | {"role": self.role}
        try:
            writer.write(wire.encode(greeting))
            message = await wire.read(reader, wire.HELLO_WITHIN_S)
            await self._check(message, greeting, peer(writer))
            hello = wire.hello_from(message.get("hello")) if message["kind"] == "hello" else None
        except (Turned, wire.NotOurs, TimeoutError) as reason:
            words = "nothing was said" if isinstance(reason, TimeoutError) else str(reason)
            self._complain(peer(writer), words)
            writer.write(wire.encode({"kind": "refused", "error": "NodesDisagree", "words": words}))
            return
        finally:
            self.strangers -= 1
        send = self._sender(writer, message, greeting)
        if hello is not None:
            self.met = self.met or own_side(writer)
            await self.admit(hello, send, peer(writer), reader)
        elif message["kind"] == "fetch" and isinstance(message.get("number"), int):
            await self.fetch(message["number"], writer)
        elif message["kind"] == "rival":
            words = rival_words(
                (self.host, self.role, map_words(self.request)),
                _rival_said(message),
            )
            send({"kind": "rival", "host": self.host, "map": map_words(self.request), "undecided": self.rival(words), "role": self.role})

    def _sender(self, writer: asyncio.StreamWriter, message: Message, greeting: Message) -> Send:
        """Sends to one node; the first line proves that this side knows the token too."""
        token, first = self.request.job_token, True

        def send(answer: Message) -> None:
            nonlocal first
            if first and token is not None:
                answer = answer | {"proof": wire.proof(token, str(message.get("nonce")), greeting["nonce"], "master")}
            first = False
            if writer.transport.get_write_buffer_size() > BACKLOG:
                writer.transport.abort()
            elif not writer.transport.is_closing():
                writer.write(wire.encode(answer))

        return send

    async def _check(self, message: Message, greeting: Message, address: str) -> None:
        """Whether a comer may come in.

        Raises:
            Turned: it may not, and why.
        """
        token = self.request.job_token
        if message.get("protocol") != PROTOCOL:
            raise Turned(f"{self.host} runs another version of bert_train_parallel. Install one version of it on every node.")
        if token is None and message.get("proof"):
            raise Turned(f"This node has a --job_token, and {self.host} was started without one. Give all nodes the same.")
        if token is not None:
            if not message.get("proof"):
                raise Turned(f"{self.host} asks for a --job_token. Give all nodes the same (--job_token, --job_token_file).")
            if not wire.is_proof(message["proof"], token, greeting["nonce"], str(message.get("nonce")), "node"):
                raise Turned(f"The --job_token of this node is not the one of {self.host}. Give all nodes the same.")
        elif not network.is_private(address) and address not in await self._addresses_of_map():
            raise Turned(f"{address} is neither a private address nor a host of the GPU map. Give every node the same --job_token.")

    async def _addresses_of_map(self) -> set[str]:
        if self.of_map is None:
            found = await asyncio.to_thread(network.resolve_all, list(self.request.gpu_map or {}))
            self.of_map = {network.bare(address) for addresses in found.values() for address in addresses}
        return self.of_map

    def _complain(self, address: str, words: str) -> None:
        """Say who was turned away, but not a hundred times a second."""
        now = time.monotonic()
        if now - self.complained.get(address, -60.0) > 10.0 and len(self.complained) < 100:
            self.complained[address] = now
            self.say(f"turned away a connection from {address}: {words[:300]}")

    async def close(self) -> None:
        """End every connection, what was said before included."""
        for writer in list(self.writers):
            await flush_and_close(writer)
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def flush_and_close(writer: asyncio.StreamWriter) -> None:
    """Close after what is written has left, but do not wait for ever for a side that does not read."""
    with contextlib.suppress(OSError, TimeoutError):
        writer.close()
        await asyncio.wait_for(writer.wait_closed(), FLUSH_S)
    writer.transport.abort()


def introduction(request: LaunchRequest, greeting: Message) -> tuple[Message, str]:
    """What every first message of a comer holds, and its nonce."""
    nonce = wire.nonce()
    message: Message = {"protocol": PROTOCOL, "nonce": nonce}
    if request.job_token is not None:
        message["proof"] = wire.proof(request.job_token, str(greeting.get("nonce")), nonce, "node")
    return message, nonce


def rival_words(one: tuple[str, str, str], other: tuple[str, str, str]) -> str:
    """Two nodes that do not agree about who the master is: (host, master|node, map) of each.

    >>> rival_words(("alpha", "master", "alpha=1 beta=2"), ("beta", "master", "beta=2 alpha=1"))
    'alpha and beta both take themselves for the master. --gpu_map: alpha=1 beta=2 on alpha, beta=2 alpha=1 on beta. Copy one \
file to every node.'
    """
    (host, role, gpu_map), (other_host, other_role, other_map) = sorted([one, other])
    if host == other_host:
        return f"Two machines call themselves {host}. Give each its own place: the same GPU map on both, and its own name with --host."
    if role == other_role == "master":
        head = f"{host} and {other_host} both take themselves for the master."
    elif "master" in (role, other_role) and gpu_map and maps_agree(gpu_map, other_map):
        master, node = (host, other_host) if role == "master" else (other_host, host)
        return (
            f"{node} does not reach {master}, the master, although {master} reaches {node}: a firewall drops what comes to the "
            f"--master_port of {master}, or its name means another machine on {node}. Open the port, or write an address in the GPU map."
        )
    else:
        head = f"{host} and {other_host} wait for each other: neither is the master."
    if gpu_map and other_map and not maps_agree(gpu_map, other_map):
        return f"{head} --gpu_map: {gpu_map} on {host}, {other_map} on {other_host}. Copy one file to every node."
    if gpu_map or other_map:
        return f"{head} Give every node the same GPU map, with names or addresses that mean one machine each."
    return f"{head} Give all nodes the same --master_addr, and --node_rank 0 to the one that has it."


async def ask_rival(request: LaunchRequest, own_host: str, role: str, address: str, port: int) -> str:
    """The sentence for both, if the host at `address` is undecided too about who the master is; else nothing."""
    writer = None
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port, limit=wire.LINE_LIMIT), 1.0)
        greeting = await wire.read(reader, 1.0)
        return await settle_rival(request, own_host, role, greeting, reader, writer)
    except (OSError, EOFError, TimeoutError, wire.NotOurs):
        return ""  # nothing of ours answers there: it has not started yet
    finally:
        if writer is not None:
            writer.close()


async def settle_rival(
    request: LaunchRequest, own_host: str, role: str, greeting: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> str:
    message, _ = introduction(request, greeting)
    writer.write(wire.encode({"kind": "rival", "host": own_host, "role": role, "map": map_words(request), **message}))
    answer = await wire.read(reader, 1.0)
    if answer["kind"] != "rival" or not answer.get("undecided"):
        return ""
    return rival_words((own_host, role, map_words(request)), _rival_said(answer))


def _rival_said(message: Message) -> tuple[str, str, str]:
    host, role, gpu_map = (wire.printable(str(message.get(name))[:4000]) for name in ("host", "role", "map"))
    return host, role, gpu_map

"""The other nodes, as this node's launcher sees them: one object to join by, to watch, to report to and to close.

The channel itself runs beside the launcher, on an event loop in a thread of its own; only messages pass between the two.
"""

from __future__ import annotations

import asyncio
import collections
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

from bert_train_parallel.errors import BadSetting, BertTrainParallelError, LaunchFailed, NodesDisagree, NotWritable, Unreachable
from bert_train_parallel.launching import network, wire
from bert_train_parallel.launching.master import Master
from bert_train_parallel.launching.member import Member
from bert_train_parallel.launching.plan import Failure, Hello, LaunchRequest
from bert_train_parallel.launching.wire import Message
from bert_train_parallel.launching.world import End, Start
from bert_train_parallel.processes import Interrupts, signal_name

CLOSE_WITHIN_S = 5.0
NAME_SERVER_WITHIN_S = 8.0  # for saying whose name the master's is
REFUSALS: dict[str, type[BertTrainParallelError]] = {kind.__name__: kind for kind in (BadSetting, NodesDisagree, NotWritable, Unreachable)}


class NotTheMaster(BadSetting):
    """`--node_rank 0` on a machine that does not have the master's address."""


class Inbox:
    """Messages from the channel's thread to the launcher's, with a descriptor to wait on."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        os.set_blocking(self.reading, False)
        self.waiting: collections.deque[Message] = collections.deque()

    def put(self, message: Message) -> None:
        self.waiting.append(message)
        try:
            os.write(self.writing, b".")
        except BlockingIOError:
            pass  # full of wake-ups already

    def take(self) -> list[Message]:
        try:
            os.read(self.reading, 1 << 16)
        except BlockingIOError:
            pass
        taken = []
        while self.waiting:
            taken.append(self.waiting.popleft())
        return taken

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


class Channel:
    """Several nodes: this one is the master, or a member that finds its way to it."""

    def __init__(self, request: LaunchRequest, hello: Hello, say: Callable[[str], None]) -> None:
        self.request, self.say = request, say
        self.environment: dict[str, str] = {}
        self.inbox = Inbox()
        self.attempt = 0
        self.unread: collections.deque[Message] = collections.deque()
        self.over = False
        self.loop = asyncio.new_event_loop()
        try:
            master = master_address(request, say)
        except NotTheMaster as mistake:  # the master that was named waits for this node, and must hear why it does not come
            master, hello = request.master_addr, replace(hello, node_rank=None, problem=str(mistake))
        if master is None:
            self.link: Master | Member = Master(request, replace(hello, node_rank=0), self.inbox.put)
        else:
            self.link = Member(request, hello, master, self.inbox.put)
        self.thread = threading.Thread(target=self._run, name="control channel", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(self._crashed)
        try:
            self.loop.run_until_complete(self.link.run())
        except Exception:
            self.inbox.put({"kind": "crashed", "words": traceback.format_exc()})
        finally:
            self.loop.close()

    def _crashed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A mistake of ours in a callback ends the launch with its traceback: nobody would wait for it otherwise."""
        error = context.get("exception")
        words = "".join(traceback.format_exception(error)) if error else str(context.get("message"))
        self.inbox.put({"kind": "crashed", "words": words})

    def fileno(self) -> int:
        return self.inbox.reading

    def messages(self) -> list[Failure]:
        self.unread.extend(self.inbox.take())
        stops: list[Failure] = []
        later: collections.deque[Message] = collections.deque()
        while self.unread:
            message = self.unread.popleft()
            if message["kind"] == "say":
                self.say(message["words"])
            elif message["kind"] == "stop" or (message["kind"] == "end" and message["failure"]):
                stops.append(wire.failure_from(message["failure"]))
            elif message["kind"] == "crashed":
                stops.append(Failure(os.uname().nodename, None, "lost", 1, "the control channel failed."))
            if message["kind"] not in ("say", "stop"):
                later.append(message)
        self.unread = later
        return stops

    def report(self, failure: Failure) -> None:
        self._send({"kind": "failed", "failure": wire.failure_message(failure)})

    def finished(self, exit_code: int) -> None:
        self._send({"kind": "ended", "attempt": self.attempt, "exit_code": exit_code})

    def _send(self, message: Message) -> None:
        try:
            self.loop.call_soon_threadsafe(self._pass_on, message)
        except RuntimeError:
            pass  # the channel has ended, and with it the launch: nobody is left to tell

    def _pass_on(self, message: Message) -> None:
        if isinstance(self.link, Master):
            self.link.heard(self.link.own, message)
        else:
            self.link.send(message)

    def next(self, interrupts: Interrupts) -> Start | End:
        """
        Raises:
            LaunchFailed: a signal arrived while this node waited for the others.
            NodesDisagree, Unreachable, BadSetting: the world does not come about; the sentence is the same on every node.
        """
        while True:
            while self.unread:
                step = self._follow(self.unread.popleft())
                if step is not None:
                    return step
            self._wait(interrupts)
            self.unread.extend(self.inbox.take())

    def _follow(self, message: Message) -> Start | End | None:
        """What a message leads to, for a node that runs nothing."""
        match message["kind"]:
            case "say":
                self.say(message["words"])
            case "plan":
                plan = wire.plan_from(message["plan"])
                self.attempt = plan.attempt
                self.environment = self._environment()
                return Start(plan, message["node_rank"])
            case "end":
                self.over = True
                return End(wire.failure_from(message["failure"]) if message["failure"] else None)
            case "refused":
                self.over = True
                raise REFUSALS.get(message["error"], NodesDisagree)(message["words"])
            case "crashed":
                raise RuntimeError(f"the control channel failed:\n{message['words']}")
        return None

    def _wait(self, interrupts: Interrupts) -> None:
        select.select([self.inbox.reading, *interrupts.filenos()], [], [])
        for number in interrupts.read():
            if number != signal.SIGCHLD:
                raise LaunchFailed(f"stopped by {signal_name(number)} while waiting for the other nodes.", 128 + number)

    def _environment(self) -> dict[str, str]:
        """The interface of the control channel is the one for the ranks as well."""
        own = self.link.door.met if isinstance(self.link, Master) else self.link.own_side
        return network.interface_environ(own, {**os.environ, **self.request.environment}) if own else {}

    def close(self) -> None:
        if not self.over:
            self._withdraw()
        self.thread.join(CLOSE_WITHIN_S)
        if not self.thread.is_alive():
            self.inbox.close()

    def _withdraw(self) -> None:
        link = self.link
        words = f"{link.host if isinstance(link, Master) else link.hello.host} left the launch"
        try:
            if isinstance(link, Master):
                self.loop.call_soon_threadsafe(link.withdraw, f"{words}: its launcher, the master, was stopped.")
            else:
                self.loop.call_soon_threadsafe(link.withdraw)
        except RuntimeError:
            pass  # already ended

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def is_own_name(host: str, say: Callable[[str], None]) -> bool:
    """Whether a name or address is this machine's; a name server that is silent is asked again, aloud, but not for long.

    Raises:
        Unreachable: there is no such name, or the name server is silent.
    """
    deadline, is_told = time.monotonic() + NAME_SERVER_WITHIN_S, False
    while True:
        try:
            return any(map(network.is_own, network.resolve(host, "--master_addr")))
        except network.SilentNameServer as silence:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Unreachable(f"{silence}. With --node_rank on every node, none of them need ask which one that is.") from None
            if not is_told:
                is_told = True
                say(f"{silence}. Trying again for {left:.0f} s.")


def master_address(request: LaunchRequest, say: Callable[[str], None] = lambda words: None) -> str | None:
    """Where the master is; None when it is this node.

    >>> master_address(LaunchRequest(("train.py",), others=1))
    >>> master_address(LaunchRequest(("train.py",), others=1, node_rank=1, master_addr="alpha"))
    'alpha'

    Raises:
        BadSetting: flags that leave it open who the master is.
        Unreachable: a master address without an address.
    """
    if request.gpu_map:
        first = next(iter(request.gpu_map))
        if request.node_rank == 0:
            return None
        if request.master_addr is None and network.is_loopback(first):
            raise BadSetting(
                f'The GPU map begins with "{first}", the master, which every node takes for itself. '
                f"Write the master's name or address there, or give --master_addr."
            )
        return request.master_addr or first
    if request.node_rank == 0 or (request.node_rank is None and request.master_addr is None):
        if request.master_addr is not None and not is_own_name(request.master_addr, say):
            raise NotTheMaster(
                f"--master_addr {request.master_addr} is not an address of this machine, and --node_rank 0 makes it the master. "
                f"Give this node's own address ({own_in_words()}), or another --node_rank."
            )
        return None
    if request.master_addr is None:
        raise BadSetting(f"--node_rank {request.node_rank} needs --master_addr, the name or address of node 0.")
    if request.node_rank is None and is_own_name(request.master_addr, say):
        return None  # the same line on every node: the one that --master_addr names is the master
    return request.master_addr


def own_in_words() -> str:
    return ", ".join(sorted(address for address in network.own_addresses() if not network.is_loopback(address))) or "127.0.0.1"

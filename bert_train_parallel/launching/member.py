"""A node's side of the control channel: it knocks at the master until it may join, then keeps in touch to the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace

from bert_train_parallel.errors import BadSetting, BertTrainParallelError, NodesDisagree, NotWritable, Unreachable
from bert_train_parallel.launching import door, network, transfer, wire
from bert_train_parallel.launching.fate import how_to_go_on
from bert_train_parallel.launching.hello import file_of, words
from bert_train_parallel.launching.plan import PROTOCOL, Failure, Hello, LaunchRequest
from bert_train_parallel.launching.wire import Message
from bert_train_parallel.rank import DEFAULT_PORT

KNOCK_EVERY_S = 0.5
NAME_WITHIN_S = 0.5  # for the address of the master, before something is said of the name server
ANSWER_WITHIN_S = 2.0  # so that a silent address is told of within 3 s
REPEAT_S = 10.0
TELL_WITHIN_S = 2.0  # a node that cannot take part says why to a master that can be reached, and waits no longer for one that cannot


class Member:
    """Everything here runs on one event loop; `tell` hands messages to this node's launcher."""

    def __init__(self, request: LaunchRequest, hello: Hello, master: str, tell: Callable[[Message], None]) -> None:
        self.request, self.hello, self.master, self.tell = request, hello, master, tell
        self.port = request.master_port or DEFAULT_PORT
        self.writer: asyncio.StreamWriter | None = None
        self.own_side = ""  # the address by which this node reaches the master
        self.joined = self.over = False
        self.task: asyncio.Task[None] | None = None
        self.reason = ""  # why the master cannot be reached, as it was last said
        self.said_at = -REPEAT_S

    async def run(self) -> None:
        """Join, and stay until the launch is over."""
        keep = asyncio.get_running_loop().create_task(self._beat())
        doorman = await self._doorman()
        self.task = asyncio.get_running_loop().create_task(self._knock_until_joined())
        try:
            await self.task
        except asyncio.CancelledError:
            pass  # withdrawn
        except BertTrainParallelError as error:
            self._refused(type(error).__name__, str(error))
        finally:
            keep.cancel()
            if doorman:
                doorman.close()
            if self.writer:
                await door.flush_and_close(self.writer)

    def _refused(self, error: str, sentence: str) -> None:
        if not self.over:
            self.over = True
            self.tell({"kind": "refused", "error": error, "words": sentence})

    def _say(self, sentence: str) -> None:
        self.tell({"kind": "say", "words": sentence})

    async def _doorman(self) -> asyncio.Server | None:
        """While this node waits for the master, others that take this one for the master hear that it is not."""
        found = await asyncio.to_thread(network.resolve_all, [self.master], NAME_WITHIN_S)
        if any(network.is_own(address) for address in found[self.master]):
            return None  # the port belongs to the master, which is on this machine

        async def admit(hello: Hello, send: door.Send, address: str, reader: asyncio.StreamReader) -> None:
            send(
                {"kind": "refused", "error": "NodesDisagree", "words": f"{self.hello.host} is not the master: it waits for {self.master}."}
            )

        async def fetch(number: int, writer: asyncio.StreamWriter) -> None:
            return None

        def rival(sentence: str) -> bool:
            if self.joined or self.over:
                return False
            self._refused("NodesDisagree", sentence)
            return True

        there = door.Door(self.request, self.hello.host, "node", admit, fetch, rival, lambda sentence: None)
        try:
            return await asyncio.start_server(there.answer, port=self.port, limit=wire.LINE_LIMIT)
        except OSError:
            return None  # another launch has the port here: this node needs it only to explain a mistake

    async def _knock_until_joined(self) -> None:
        loop = asyncio.get_running_loop()
        patience = min(self.request.join_timeout_s, TELL_WITHIN_S) if self.hello.problem else self.request.join_timeout_s
        deadline = loop.time() + patience
        while not self.over:
            started = loop.time()
            reason = await self._knock()
            if self.over:
                return
            if self.hello.problem and loop.time() > deadline:
                raise BadSetting(self.hello.problem)
            if reason and (reason != self.reason or loop.time() - self.said_at >= REPEAT_S):  # none: files came, and it knocks anew
                left = max(0.0, deadline - loop.time())
                self._say(f"{reason}. Trying again for {left:.0f} s (--join_timeout).")
                self.reason, self.said_at = reason, loop.time()
            if reason and loop.time() > deadline:
                raise Unreachable(f"{reason}. Gave up after {self.request.join_timeout_s:g} s; --join_timeout waits longer.")
            await asyncio.sleep(max(0.0, min(KNOCK_EVERY_S, KNOCK_EVERY_S - (loop.time() - started))))

    async def _knock(self) -> str:
        """One attempt to join; returns, if the master did not take this node, why."""
        given_by = "the GPU map" if self.request.gpu_map else "--master_addr"
        try:
            addresses = await asyncio.to_thread(network.resolve, self.master, given_by, NAME_WITHIN_S)
        except network.SilentNameServer as silence:
            return str(silence)
        reason = ""
        for address in addresses:
            try:
                connected = asyncio.open_connection(address, self.port, limit=wire.LINE_LIMIT)
                reader, writer = await asyncio.wait_for(connected, ANSWER_WITHIN_S / len(addresses))
            except OSError as error:  # TimeoutError is one of them
                named = self.master if address == self.master else f"{self.master} ({address})"
                reason = network.why_unreachable(error, named, self.port)
                if network.is_own(address):
                    reason += f" ({self.master} is this machine itself; --master_addr must name the other one)"
                continue
            try:
                return await self._come_in(reader, writer, address)
            finally:
                await door.flush_and_close(writer)
        return reason

    async def _come_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> str:
        stranger = f"something answers on {self.master}, port {self.port}, but it is not launch.py: give every node another --master_port"
        try:
            greeting = await wire.read(reader, ANSWER_WITHIN_S)
        except (wire.NotOurs, TimeoutError):
            return stranger
        except EOFError:
            return network.why_unreachable(ConnectionResetError(), self.master, self.port)
        if greeting["kind"] != "launch" or greeting.get("name") != wire.NAME:
            return stranger
        if greeting.get("protocol") != PROTOCOL:
            raise NodesDisagree(f"{self.master} runs another version of bert_train_parallel. Install one version of it on every node.")
        try:
            if greeting.get("role") == "node":
                if sentence := await door.settle_rival(self.request, self.hello.host, "node", greeting, reader, writer):
                    raise NodesDisagree(sentence)
                return f"{self.master} is not the master of this launch: correct --master_addr or the GPU map"
            return await self._say_hello(greeting, reader, writer, address)
        except (wire.NotOurs, TimeoutError):
            return stranger
        except (EOFError, ConnectionError):
            return network.why_unreachable(ConnectionResetError(), self.master, self.port)

    async def _say_hello(self, greeting: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> str:
        message, nonce = door.introduction(self.request, greeting)
        writer.write(wire.encode({"kind": "hello", "hello": wire.hello_message(self.hello), **message}))
        answer = await wire.read(reader, wire.HELLO_WITHIN_S)
        token = self.request.job_token
        if answer["kind"] == "refused":
            self._refused(str(answer.get("error")), wire.printable(str(answer.get("words"))))
        elif token is not None and not wire.is_proof(answer.get("proof"), token, nonce, str(greeting.get("nonce")), "master"):
            raise NodesDisagree(f"{self.master} does not know the --job_token of this node. Give all nodes the same.")
        elif answer["kind"] == "fetch first" and self.request.send_data:
            await self._fetch(answer.get("numbers"), address)
        elif answer["kind"] == "joined":
            self.joined, self.writer, self.own_side = True, writer, door.own_side(writer)
            self._say(f"{self.master} knows this node now; waiting for the others.")
            await self._listen(reader, address)
            self.joined, self.writer = False, None
            return network.why_unreachable(ConnectionResetError(), self.master, self.port)
        else:
            raise wire.NotOurs("no answer to a hello")
        return ""

    async def _fetch(self, numbers: object, address: str) -> None:
        """Have the files sent that this node lacks, then say hello anew."""
        for number in numbers if isinstance(numbers, list) else []:
            if not (isinstance(number, int) and 0 <= number < len(self.hello.command)) or self.hello.command[number].fingerprint:
                raise wire.NotOurs("a word that is no missing file")  # the master may write nothing else here
            path = file_of(self.hello.command[number].text, self.request.folder)
            self._say(f"{path} is not here: {self.master} sends it (--send_data).")
            reader, writer = await asyncio.open_connection(address, self.port, limit=wire.LINE_LIMIT)
            try:
                message, _ = door.introduction(self.request, await wire.read(reader, ANSWER_WITHIN_S))
                writer.write(wire.encode({"kind": "fetch", "number": number, **message}))
                size = await transfer.receive_file(reader, path)
            except (NodesDisagree, NotWritable) as error:
                self.hello = replace(self.hello, problem=str(error))  # the master waits for this node, and must hear why it does not come
                return
            finally:
                await door.flush_and_close(writer)
            self._say(f"{path.name}: {size:,} bytes received.")
        command = await asyncio.to_thread(words, self.request.command, self.request.folder)
        self.hello = replace(self.hello, command=command)

    async def _listen(self, reader: asyncio.StreamReader, address: str) -> None:
        """Hear the master to the end; on the way the plan comes, and goes on with this node's view of the master's address."""
        running = False
        why = f"no word from it for {wire.LOST_AFTER_S:g} s: the machine or its network is down"
        with contextlib.suppress(TimeoutError):
            try:
                while not self.over:
                    message = await wire.read(reader, wire.LOST_AFTER_S)
                    if message["kind"] == "plan":
                        running = True
                        message["plan"]["master_addr"] = address
                    self.over = message["kind"] in ("end", "refused")
                    if message["kind"] != "beat":
                        self.tell(message)
                return
            except EOFError:
                why = "its connection ended: the launcher there was killed, or the machine went down"
            except wire.NotOurs as error:
                why = f"it said something that is no message ({error})"
        if running:  # before a plan the node just knocks again
            self.over = True
            sentence = f"lost {self.master}, the master: {why}. {how_to_go_on(self.request.command)}."
            failure = wire.failure_message(Failure(self.master, None, "lost", 1, sentence))
            self.tell({"kind": "stop", "failure": failure})
            self.tell({"kind": "end", "failure": failure})

    def withdraw(self) -> None:
        """This node's launcher leaves before the end: closing the connection tells the master."""
        self.over = True
        if self.task:
            self.task.cancel()

    async def _beat(self) -> None:
        while True:
            self.send({"kind": "beat"})
            await asyncio.sleep(wire.BEAT_S)

    def send(self, message: Message) -> None:
        """Say something to the master, if there is a connection."""
        if self.writer and not self.writer.transport.is_closing():
            if self.writer.transport.get_write_buffer_size() > door.BACKLOG:
                self.writer.transport.abort()
            else:
                self.writer.write(wire.encode(message))

"""The master's side of the control channel: it answers every comer, makes the plan, and keeps one fate for all nodes.

A world goes through gathering -> running -> stopping, and from there to running again (a restart), to gathering again
(a lost node is waited for), or to its end.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from bert_train_parallel.errors import BertTrainParallelError
from bert_train_parallel.launching import door, network, ports, transfer, wire
from bert_train_parallel.launching.compare import problems
from bert_train_parallel.launching.fate import how_to_go_on, next_step, without_lost
from bert_train_parallel.launching.hello import file_of
from bert_train_parallel.launching.plan import Failure, Hello, LaunchRequest, WorldPlan, in_node_order, make_plan, missing_ranks, roll_call
from bert_train_parallel.launching.wire import Message
from bert_train_parallel.rank import DEFAULT_PORT

SETTLE_S = 1.0  # for nodes that knock every half second: a mistake is told when all that have started are heard
LINGER_S = 1.5  # after a refusal: nodes that come late by this much still hear why
FIRST_REMINDER_S, REMIND_S = 1.5, 5.0
STUCK_AFTER_S = 30.0  # beyond the grace: a node that was told to stop and still has processes


@dataclass(slots=True, eq=False)
class Member:
    """A node of the world, or of the world to be."""

    hello: Hello
    send: Callable[[Message], None]
    address: str
    ended: bool = False  # no process of this attempt is left there


class Master:
    """Everything here runs on one event loop; `tell` hands messages to this node's own launcher."""

    def __init__(self, request: LaunchRequest, hello: Hello, tell: Callable[[Message], None]) -> None:
        self.request = request  # changes when a world goes on without lost nodes
        self.host = hello.host
        self.port = request.master_port or DEFAULT_PORT
        self.own = Member(hello, tell, "")
        self.members = [self.own]  # in order of arrival
        self.order: list[Member] = []  # by node rank, once there is a plan
        self.plan: WorldPlan | None = None
        self.phase = "gathering"  # gathering | running | stopping | over
        self.job = secrets.token_hex(4)
        self.cause: Failure | None = None  # the first failure of this attempt
        self.lost: list[Member] = []
        self.restarts = 0
        self.refusal: Message | None = None
        self.withdrawn = False  # stopped by its user
        self.over = asyncio.Event()
        self.deadline = 0.0
        self.transfers = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.door = door.Door(
            request, hello.host, "master", self._admit, self._fetch, self._rival, lambda words: tell({"kind": "say", "words": words})
        )

    async def run(self) -> None:
        """Serve until the launch is over."""
        try:
            server = await asyncio.start_server(self.door.answer, port=self.port, limit=wire.LINE_LIMIT)
        except OSError as error:
            sentence = str(ports.port_taken(self.port)) if error.errno == errno.EADDRINUSE else f"port {self.port}: {error.strerror}"
            self.own.send({"kind": "refused", "error": "BadSetting", "words": sentence})
            return
        self._gather()
        self._start(self._beat())
        self._start(self._remind())
        if self.request.gpu_map:
            self._start(self._look_for_rivals())
        await self.over.wait()
        if self.refusal and not self.withdrawn and not self._all_came():
            await asyncio.sleep(LINGER_S)
        server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.door.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            what()

        self._start(wait())

    def _broadcast(self, message: Message) -> None:
        for member in list(self.members):
            member.send(message)

    def say(self, words: str) -> None:
        """A line that every node prints."""
        self._broadcast({"kind": "say", "words": words})

    async def _beat(self) -> None:
        while True:
            self._broadcast({"kind": "beat"})
            await asyncio.sleep(wire.BEAT_S)

    # gathering

    def _gather(self) -> None:
        self.phase = "gathering"
        self.deadline = asyncio.get_running_loop().time() + self.request.join_timeout_s
        self._consider()

    @property
    def hellos(self) -> list[Hello]:
        return [member.hello for member in self.members]

    def _all_came(self) -> bool:
        """Whether no node that is here expects another one, so that nobody is left who would have to hear of a mistake."""
        if self.request.gpu_map:
            return missing_ranks(self.request, self.hellos) == 0
        return sum(hello.ranks for hello in self.hellos) >= max(hello.total or 0 for hello in self.hellos)

    def _missing(self) -> str:
        """What is still to come, in words."""
        missing = missing_ranks(self.request, self.hellos)
        if self.request.gpu_map:
            here = {hello.node_rank for hello in self.hellos}
            away = [f"{host} ({gpus})" for number, (host, gpus) in enumerate(self.request.gpu_map.items()) if number not in here]
            return f"{missing} GPU{'s' * (missing != 1)} on {', '.join(away)}"
        return f"{missing} GPU{'s' * (missing != 1)}"

    async def _remind(self) -> None:
        loop = asyncio.get_running_loop()
        said = loop.time() - REMIND_S + FIRST_REMINDER_S
        while True:
            await asyncio.sleep(0.1)
            if self.phase != "gathering" or self.refusal:
                said = loop.time() - REMIND_S + FIRST_REMINDER_S
            elif loop.time() > self.deadline and not self.transfers:
                self._give_up()
            elif loop.time() - said >= REMIND_S:
                said = loop.time()
                how = "" if self.request.gpu_map or len(self.members) > 1 else f" Other nodes come with --master_addr {self.host}."
                self.say(f"still waiting for {self._missing()} on port {self.port}; here so far: {roll_call(self.hellos)}.{how}")

    def _give_up(self) -> None:
        waited = f"Waited {self.request.join_timeout_s:g} s on {self.host}, port {self.port}"
        if self.plan is not None:  # a world that lost nodes ends for the reason for which it stopped
            self.say(f"{waited} for {self._missing()} to come back.")
            self._end(self.cause)
            return
        todo = self._map_todo() if self.request.gpu_map else f"--other_gpus ({self.request.others} on {self.host})"
        self._refuse(
            f"{waited}: {self._missing()} never came; here: {roll_call(self.hellos)}. "
            f"Start launch.py on the missing nodes, or correct {todo}; --join_timeout waits longer.",
            "Unreachable",
        )

    def _map_todo(self) -> str:
        """The GPU map, and what may be wrong in it where it names a machine by an address that every machine has."""
        hosts = list(self.request.gpu_map or {})
        here = {hello.node_rank for hello in self.hellos}
        unnamed = [host for number, host in enumerate(hosts) if number not in here and network.is_loopback(host)]
        if not unnamed:
            return "the GPU map"
        return (
            f"the GPU map ({self.host} has a name of its own in it, so {unnamed[0]} is another machine; if both are one, keep one of them)"
        )

    async def _admit(self, hello: Hello, send: Callable[[Message], None], address: str, reader: asyncio.StreamReader) -> None:
        """A node that may join has said hello: keep in touch with it until it goes."""
        if self.refusal:
            send(self.refusal)
            return
        if self.phase != "gathering":
            send({"kind": "refused", "error": "NodesDisagree", "words": self._too_late(hello)})
            return
        wanted = transfer.lacking(self.own.hello, hello)
        if wanted and not hello.problem and self.request.send_data and hello.same.get("--send_data") == "yes":
            send({"kind": "fetch first", "numbers": wanted})
            return
        if self.plan is not None and (found := problems(self.request, [*self.hellos, hello])):
            send({"kind": "refused", "error": "NodesDisagree", "words": "\n  ".join(found)})  # a world that once agreed does not end for it
            return
        names = [member.hello.host for member in self.members]
        member = Member(replace(hello, host=f"{hello.host} ({address})") if hello.host in names else hello, send, address)
        self.members.append(member)
        send({"kind": "joined"})
        self._consider()
        why = await self._listen(member, reader)
        if member in self.members:
            self._left(member, why)

    def _too_late(self, hello: Hello) -> str:
        world = ", ".join(f"{node.host} ({node.ranks})" for node in self.plan.nodes) if self.plan else ""
        return (
            f"The launch on {self.host}, port {self.port}, is complete without {hello.host}: {world}. "
            f"If it belongs to it, correct --other_gpus or the GPU map and start all nodes again; if not, use another --master_port."
        )

    def _consider(self) -> None:
        """Somebody came: refuse, start, or wait on."""
        if self.phase != "gathering" or self.refusal:
            return
        if problems(self.request, self.hellos):
            self._later(0.0 if self._all_came() else SETTLE_S, self._refuse_all)
        elif missing_ranks(self.request, self.hellos) == 0:
            try:
                self._form(self.request, self.hellos)
            except BertTrainParallelError as error:
                self._refuse(str(error), type(error).__name__)

    def _refuse_all(self) -> None:
        found = problems(self.request, self.hellos)
        if found and self.phase == "gathering" and not self.refusal:
            head = "The nodes of this launch do not agree:" if len(found) > 1 else "The nodes of this launch do not agree."
            self._refuse("\n  ".join([head, *found]) if len(found) > 1 else f"{head} {found[0]}")

    def _refuse(self, words: str, error: str = "NodesDisagree") -> None:
        self.refusal = {"kind": "refused", "error": error, "words": words}
        self.phase = "over"
        self._broadcast(self.refusal)
        self.over.set()

    async def _fetch(self, number: int, writer: asyncio.StreamWriter) -> None:
        """Send the file of a word of the command; nothing else can be asked for."""
        command = self.own.hello.command
        if not self.request.send_data or not 0 <= number < len(command) or not command[number].fingerprint:
            writer.write(wire.encode({"kind": "refused", "words": "The master sends no such file: add --send_data on every node."}))
            return
        path = file_of(command[number].text, self.request.folder)
        self.say(f"sending {path.name} to {door.peer(writer)}.")
        self.transfers += 1
        try:
            await transfer.send_file(writer, path)
        finally:
            self.transfers -= 1
            self.deadline = max(self.deadline, asyncio.get_running_loop().time() + self.request.join_timeout_s)

    def _rival(self, words: str) -> bool:
        """Another node takes itself for the master, or looks for one here in vain; whether this one was still undecided."""
        if self.phase != "gathering":
            return False
        self._later(0.0, lambda: self._refuse(words) if self.phase == "gathering" and not self.refusal else None)
        return True

    async def _look_for_rivals(self) -> None:
        """Ask the hosts of the map that are missing whether they take themselves for the master."""
        hosts = list(self.request.gpu_map or {})
        nameless = [host for host, addresses in (await asyncio.to_thread(network.resolve_all, hosts)).items() if not addresses]
        if nameless and self.phase == "gathering":
            self.say(f"{self.host} knows no address of {', '.join(nameless)}: check the spelling in the GPU map.")
        while True:
            await asyncio.sleep(1.0)
            if self.phase != "gathering":
                continue
            here = {hello.node_rank for hello in self.hellos}
            missing = [host for number, host in enumerate(hosts) if number not in here and not network.is_loopback(host)]
            asked = [door.ask_rival(self.request, self.host, "master", host, self.port) for host in missing]
            for words in filter(None, await asyncio.gather(*asked)):
                if self.phase == "gathering":
                    self._refuse(words)

    # running

    def _form(self, request: LaunchRequest, hellos: list[Hello]) -> None:
        """All are here and agree: every node gets the plan."""
        attempt = 0 if self.plan is None else self.plan.attempt + 1
        asked = request.store_port
        own = replace(hellos[0], store_port=ports.checked_port(asked, "--store_port") if asked else ports.free_port())
        plan = make_plan(request, [own, *hellos[1:]], attempt, self.job)
        self.plan = replace(plan, master_addr=self.door.met or plan.master_addr)  # each other node puts in how it reaches the master
        by_hello = {id(hello): member for hello, member in zip(hellos, self.members, strict=True)}
        self.order = [by_hello[id(hello)] for hello in in_node_order(hellos)]
        if attempt == 0 and any(hello.node_rank is None for hello in hellos[1:]):
            self.say("node ranks in order of arrival: " + ", ".join(f"{m.hello.host} {n}" for n, m in enumerate(self.order)) + ".")
        for number, member in enumerate(self.order):
            member.ended = False
            member.hello = replace(member.hello, node_rank=number)  # a node that comes back takes the place it had
            member.send({"kind": "plan", "plan": wire.plan_message(self.plan), "node_rank": number})
        self.cause, self.lost = None, []
        self.phase = "running"

    async def _listen(self, member: Member, reader: asyncio.StreamReader) -> str:
        """Hear what a node says until it goes; returns why it went."""
        try:
            while True:
                self.heard(member, await wire.read(reader, wire.LOST_AFTER_S))
        except TimeoutError:
            return f"no word from it for {wire.LOST_AFTER_S:g} s: the machine or its network is down"
        except EOFError:
            return "its connection ended: the launcher there was killed, or the machine went down"
        except wire.NotOurs as error:
            return f"it said something that is no message ({error})"

    def heard(self, member: Member, message: Message) -> None:
        """What a member says: failed, ended, or only a beat."""
        if message["kind"] == "failed":
            self._failed(wire.failure_from(message.get("failure")))
        elif message["kind"] == "ended" and message.get("attempt") == (self.plan.attempt if self.plan else None):
            member.ended = True
            code = message.get("exit_code")
            if isinstance(code, int) and code:  # its failure has been told already, unless its launcher could not
                self._failed(Failure(member.hello.host, None, "exit", code, f"{member.hello.host} ended with exit code {code}."))
            self._maybe_over()

    def _failed(self, failure: Failure) -> None:
        if self.phase != "running":
            return  # what came later follows from the first
        self.phase, self.cause = "stopping", failure
        self._broadcast({"kind": "stop", "failure": wire.failure_message(failure)})
        self._maybe_over()
        attempt = self.plan.attempt if self.plan else 0
        self._later(self.request.grace_s + STUCK_AFTER_S, lambda: self._give_up_stuck(attempt))

    def _give_up_stuck(self, attempt: int) -> None:
        if self.phase == "stopping" and self.plan and self.plan.attempt == attempt:
            for member in [member for member in self.members if not member.ended and member is not self.own]:
                self._left(member, f"its processes did not end within {self.request.grace_s + STUCK_AFTER_S:g} s")

    def _left(self, member: Member, why: str) -> None:
        """A node has gone."""
        self.members.remove(member)
        if self.phase == "gathering":
            self.say(f"{member.hello.host} left again ({why}).")
        elif self.phase != "over":
            if not (self.phase == "running" and member.ended):  # one whose ranks are all done well may go
                self.lost.append(member)
                self._failed(self._loss(member, why))
            self._maybe_over()

    def _loss(self, member: Member, why: str) -> Failure:
        failure = Failure(member.hello.host, None, "lost", 1, f"lost {member.hello.host} (node {self.order.index(member)}): {why}")
        if next_step(self.request, failure, len(self.lost), self.restarts).again:
            return failure
        return replace(failure, words=f"{failure.words}. {how_to_go_on(self.request.command)}.")

    def _maybe_over(self) -> None:
        """When no process of this attempt is left on any node: the end, or again."""
        if self.phase not in ("running", "stopping") or not all(member.ended for member in self.members):
            return
        step = next_step(self.request, self.cause, len(self.lost), self.restarts)
        self.restarts = step.restarts
        if not step.again:
            self._end(self.cause)
            return
        if self.cause:
            self.say(self.cause.headline)
        self.say(self._again_words(step.without_lost))
        if step.without_lost:
            self.members = [member for member in self.order if member in self.members]
            self.request, hellos = without_lost(self.request, self.hellos)
            for member, hello in zip(self.members, hellos, strict=True):
                member.hello = hello
        self._gather()

    def _again_words(self, smaller: bool) -> str:
        gone = ", ".join(member.hello.host for member in self.lost)
        if smaller:
            return f"starting again without {gone} (--elastic)."
        count = f"restart {self.restarts} of {self.request.max_restarts} (--max_restarts)"
        if gone:
            return f"{count}: waiting up to {self.request.join_timeout_s:g} s for {gone} to come back; start the same line there."
        return f"{count}: starting again on every node."

    def _end(self, cause: Failure | None) -> None:
        self.phase = "over"
        self._broadcast({"kind": "end", "failure": wire.failure_message(cause) if cause else None})
        self.over.set()

    def withdraw(self, words: str) -> None:
        """This node's launcher leaves before the end: the others are told, and stop."""
        self.withdrawn = True
        if self.phase == "gathering" and not self.refusal:
            self._refuse(words)
        elif self.phase != "over":
            self._end(Failure(self.host, None, "lost", 1, words))
        self.over.set()

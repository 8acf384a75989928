"""One node's ranks, from their start to their end: what they print, which fails first, and that all end together."""

from __future__ import annotations

import os
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bert_train_parallel import processes
from bert_train_parallel.errors import BadSetting, not_writable
from bert_train_parallel.launching import output
from bert_train_parallel.launching.environment import rank_environment
from bert_train_parallel.launching.plan import Failure, LaunchRequest, WorldPlan
from bert_train_parallel.launching.world import World
from bert_train_parallel.rank import Rank

if TYPE_CHECKING:
    from bert_train_parallel.launching.failures import Ended

SETTLE_S = 2.0  # how long the failure of a rank that lost its peer waits for the failure that was the cause
FAILED_GRACE_S = 1.5  # on several nodes: ranks whose peer has failed hang in a collective, with nothing to save
LAST_CHUNKS = 16  # a pipe of any usual size; a process that the rank left behind may go on writing to it
UNREAD_S = 1.0  # how long a launch that was stopped waits for a terminal that does not take what was printed
LEFTOVERS_S = 1.0  # between SIGTERM and SIGKILL for what ranks left behind when they ended well


@dataclass(frozen=True, slots=True)
class LaunchEvent:
    """Something that happened in a launch, for the program that asked for it."""

    kind: str  # planned | started | failed | restarted
    words: str


OnEvent = Callable[[LaunchEvent], None]


@dataclass(slots=True)
class _Running:
    """A rank's process and the files that it leaves."""

    rank: Rank
    process: subprocess.Popen[bytes]
    streams: list[output.RankStream]
    log: str
    error_file: str


def run_ranks(
    plan: WorldPlan,
    node_rank: int,
    world: World,
    *,
    request: LaunchRequest,
    folder: str,
    interrupts: processes.Interrupts,
    say: Callable[[str], None],
    on_event: OnEvent | None = None,
    heading: str = "",
) -> Failure | None:
    """Run this node's ranks of one attempt; when it returns, none of their processes is left.

    Args:
        world: told of the first failure here at once; brings news of failures elsewhere, which end the ranks here.
        folder: where logs and error files of the ranks go; it is there.
        heading: a line before the first that a rank prints on standard output; none where it prints nothing.
        interrupts: SIGINT, SIGTERM and the like end the ranks, with `request.grace_s` before SIGKILL.
    Returns:
        What ended the attempt; None when every rank ended well.
    Raises:
        BadSetting: the command cannot be started.
        NotWritable: the logs cannot be written.
    """
    agent = _Agent(plan, node_rank, world, request, folder, interrupts, say, heading)
    try:
        for local_rank in range(plan.nodes[node_rank].ranks):
            agent.start(local_rank)
        if on_event:
            on_event(LaunchEvent("started", f"{len(agent.ranks)} processes on {plan.nodes[node_rank].host}"))
        agent.run()
    finally:
        agent.close()
    first = agent.first_failure
    if on_event and first:
        on_event(LaunchEvent("failed", first.words))
    world.finished(first.exit_code if first else 0)
    return first


class _Agent:
    """The state of one attempt on this node."""

    def __init__(
        self,
        plan: WorldPlan,
        node_rank: int,
        world: World,
        request: LaunchRequest,
        folder: str,
        interrupts: processes.Interrupts,
        say: Callable[[str], None],
        heading: str,
    ) -> None:
        self.ranks: list[_Running] = []
        self.first_failure: Failure | None = None
        self._plan = plan
        self._node_rank = node_rank
        self._world = world
        self._request = request
        self._folder = folder
        self._interrupts = interrupts
        self._say = say
        self._sinks = (output.Sink(1, heading.encode()), output.Sink(2))
        self._selector = selectors.DefaultSelector()
        self._failed: list[Ended] = []  # in the order in which their ends were noticed
        self._decide_at: float | None = None  # when the first failure is named
        self._kill_at: float | None = None  # when the grace of those that were asked to end is over
        self._asked: set[int] = set()  # processes that were asked to end
        self._is_log_lost = False
        self._is_unread = False  # the terminal or pipe that was printed to has gone
        self._late_signal = 0  # one that came after the first failure
        self._stopped_by = 0  # the signal that ended the launch

    @property
    def _host(self) -> str:
        return self._plan.nodes[self._node_rank].host

    @property
    def _streams(self) -> list[output.RankStream]:
        return [stream for one in self.ranks for stream in one.streams]

    @property
    def _living(self) -> list[_Running]:
        return [one for one in self.ranks if one.process.returncode is None]

    def start(self, local_rank: int) -> None:
        """Start one rank, with its pipes and its log."""
        rank = self._plan.rank(self._node_rank, local_rank)
        log_path = os.path.join(self._folder, f"rank_{rank.rank}.log")
        error_file = os.path.join(self._folder, f"rank_{rank.rank}_error.json")
        log = _open_log(log_path, error_file)
        prefix = f"[rank {rank.rank}] ".encode() if rank.world_size > 1 else b""
        if prefix and os.isatty(1):
            prefix = output.ERASE + prefix
        pipes = [os.pipe(), os.pipe()]
        streams = [
            output.RankStream(pipe, sink, os.dup(log), prefix, shows_updates=local_rank == 0)
            for (pipe, _), sink in zip(pipes, self._sinks, strict=True)
        ]
        try:
            process = self._start(rank, error_file, stdout=pipes[0][1], stderr=pipes[1][1])
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        finally:
            for ours in (log, *(end for _, end in pipes)):
                os.close(ours)
        self.ranks.append(_Running(rank, process, streams, log_path, error_file))

    def _start(self, rank: Rank, error_file: str, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
        devices = self._plan.nodes[self._node_rank].devices
        environment = rank_environment(rank, self._request, devices, dict(os.environ)) | self._world.environment
        environment["TORCHELASTIC_ERROR_FILE"] = error_file
        if os.isatty(1):
            environment["BERT_TRAIN_TERMINAL"] = "1"  # our trainer writes to a pipe, and may draw its progress in place all the same
        try:
            return processes.start(
                self._request.command,
                folder=self._request.folder,
                environment=environment,
                stdin=0 if rank.rank == 0 else subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        except OSError as error:
            raise BadSetting(
                f"{self._request.command[0]} cannot be started on {self._host}: {(error.strerror or str(error)).lower()}. "
                f"Look at its first line (#!...) and at its permissions."
            ) from None

    def run(self) -> None:
        """Pass on output, signals and news of other nodes until every process has ended."""
        for number in self._interrupts.filenos():
            self._selector.register(number, selectors.EVENT_READ, self._read_signals)
        if self._world.fileno() >= 0:
            self._selector.register(self._world.fileno(), selectors.EVENT_READ, self._read_world)
        while not self._is_over():
            self._select_streams()
            for key, _ in self._selector.select(self._wait_s()):
                key.data()
            self._show()
            self._notice_ends()
            self._act_when_due()
        for stream in self._streams:
            while stream.pump():
                pass

    def close(self) -> None:
        """Leave nothing: no process, no open file, no output unseen that somebody reads."""
        stuck = processes.kill_descendants()
        for one in self.ranks:
            if one.process.poll() is None and one.process.pid not in stuck:
                one.process.wait()
        for stream in self._streams:
            stream.close()
        self._selector.close()
        self._drain()
        if self._late_signal:  # too late for this attempt: whoever waits next must hear it
            os.kill(os.getpid(), self._late_signal)

    def _drain(self) -> None:
        """Wait until what was printed is read; not for long when the launch was stopped, and no longer when it is."""
        deadline = time.monotonic() + (UNREAD_S if self._stopped_by else float("inf"))
        while waiting := [sink.descriptor for sink in self._sinks if sink.backlog]:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            if select.select(self._interrupts.filenos(), waiting, [], min(left, 60.0))[0]:
                self._read_signals()
                deadline = deadline if not self._stopped_by else min(deadline, time.monotonic() + UNREAD_S)
            self._show()

    def _show(self) -> None:
        """Pass output on; a reader that has gone (`| head`, a closed terminal) does not end a run that may have cost days."""
        for sink in self._sinks:
            sink.flush()
        if not self._is_unread and any(sink.closed for sink in self._sinks):
            self._is_unread = True
            self._say(f"{output.why_unread(self._sinks)}; the run goes on, with its output in {self._folder}")

        if not self._is_log_lost and any(stream.has_lost_log for stream in self._streams):
            self._is_log_lost = True
            self._say(f"{self._folder} cannot be written any more, a full disk perhaps; the run goes on, and its logs are incomplete")

    def _is_over(self) -> bool:
        """Whether no process of this attempt is left; what ranks that ended well left behind is asked to end."""
        if self._living or self._decide_at is not None:
            return False
        if not processes.descendants(os.getpid()):
            return True
        if self._kill_at is None:
            self._end(signal.SIGTERM, LEFTOVERS_S)
        return False

    def _select_streams(self) -> None:
        """Wait for what ranks print only while the terminal keeps up, and for the terminal only while it does not."""
        chosen = self._selector.get_map()
        for stream in self._streams:
            wanted = stream.is_open and not stream.is_held_up
            if wanted and stream.pipe not in chosen:
                self._selector.register(stream.pipe, selectors.EVENT_READ, stream.pump)
            elif not wanted and stream.pipe in chosen:
                self._selector.unregister(stream.pipe)
        for sink in self._sinks:
            if sink.backlog and sink.descriptor not in chosen:
                self._selector.register(sink.descriptor, selectors.EVENT_WRITE, sink.flush)
            elif not sink.backlog and sink.descriptor in chosen:
                self._selector.unregister(sink.descriptor)

    def _wait_s(self) -> float | None:
        """Seconds until something is due although nothing arrives; None: nothing is."""
        if self._kill_at is not None or not self._living:
            return 0.1  # a process that is not our child may end and leave others, and nothing tells us
        return None if self._decide_at is None else max(0.0, self._decide_at - time.monotonic())

    def _read_signals(self) -> None:
        for number in self._interrupts.read():
            if number == signal.SIGCHLD:
                continue
            if number == signal.SIGKILL:  # the process in front of this one has gone: for the others this node is lost, whole
                processes.kill_descendants()
                os._exit(128 + number)
            asked_before = self._stopped_by
            self._stopped_by = self._stopped_by or number
            if not asked_before and self.first_failure is not None:
                self._late_signal = number
            elif not asked_before:
                words = "stopped by Ctrl-C" if number == signal.SIGINT else f"stopped by {processes.signal_name(number)}"
                self._fail(Failure(self._host, None, "stopped", 128 + number, f"{words} on {self._host}."), is_ours=True)
            if number == asked_before == signal.SIGINT:
                self._kill_at = 0.0  # a second Ctrl-C: no grace

    def _read_world(self) -> None:
        for failure in self._world.messages():
            self._fail(failure, is_ours=False)

    def _notice_ends(self) -> None:
        from bert_train_parallel.launching.failures import Ended, is_consequence  # loaded while the ranks start

        for one in self._living:
            if one.process.poll() is None or not one.process.returncode or self._kill_at is not None:
                continue
            for stream in one.streams:
                for _ in range(LAST_CHUNKS):  # its last words may still be in the pipe
                    stream.pump()
            ended = Ended(one.rank, one.process.pid, one.process.returncode, one.log, one.error_file)
            self._failed.append(ended)
            wait_s = SETTLE_S if is_consequence(ended) else 0.0
            self._decide_at = min(self._decide_at or float("inf"), time.monotonic() + wait_s)
        processes.reap_orphans([one.process.pid for one in self._living])

    def _act_when_due(self) -> None:
        now = time.monotonic()
        alone = not self._living and len(self._plan.nodes) == 1  # nobody is left who could be the cause
        if self._decide_at is not None and (now >= self._decide_at or alone):
            from bert_train_parallel.launching.failures import describe, is_consequence

            cause = min(self._failed, key=is_consequence)  # the earliest of those that are not; min keeps the order
            self._decide_at = None
            self._fail(describe(cause, self._host), is_ours=True)
        if self._kill_at is not None and now >= self._kill_at:
            processes.kill_descendants(patience_s=0.1)
        elif self._kill_at is not None:
            self._ask_leftovers()

    def _fail(self, failure: Failure, is_ours: bool) -> None:
        """The first failure ends the attempt, here and on all nodes; later ones are what it led to."""
        if self.first_failure is not None:
            return
        self.first_failure = failure
        self._decide_at = None
        if is_ours:
            self._world.report(failure)
        grace_s = self._request.grace_s
        if failure.kind != "stopped" and not self._request.is_single_node:
            grace_s = min(grace_s, FAILED_GRACE_S)
        self._end(signal.SIGINT if self._stopped_by == signal.SIGINT else signal.SIGTERM, grace_s)

    def _end(self, number: int, grace_s: float) -> None:
        """Ask every rank to end; what is left after the grace is killed."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + grace_s
        for one in self._living:
            # Python is asked alone: its data loading workers would die under it while it saves what it has.
            # Of a shell the whole group is: it does not pass signals on.
            alone = self._request.command[0] == sys.executable
            targets = [one.process.pid] if alone else _group_of(one.process.pid)
            for pid in targets:
                processes.send(pid, number)
            self._asked.update(targets)
        if not self._living:
            self._ask_leftovers()

    def _ask_leftovers(self) -> None:
        """Ask what is not below a living rank, since its rank has gone."""
        ranks = [one.process.pid for one in self._living]
        for pid in processes.descendants(os.getpid(), without=ranks):
            if pid not in self._asked:
                processes.send(pid, signal.SIGTERM)
                self._asked.add(pid)


def _open_log(path: str, error_file: str) -> int:
    """An empty log, and no error file of an earlier launch.

    Raises:
        NotWritable: the folder takes no files.
    """
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        if os.path.exists(error_file):
            os.unlink(error_file)
    except OSError as error:
        raise not_writable(error, path) or error from error
    return log


def _group_of(leader: int) -> list[int]:
    found = [leader]
    for pid in processes.descendants(leader):
        try:
            if os.getpgid(pid) == leader:
                found.append(pid)
        except ProcessLookupError:
            continue
    return found

"""Process trees and their end: what a launch starts dies with it, whichever of its processes is killed.

Two processes watch over a launch, each the subreaper of all below it, so that on Linux even a grandchild that called
`setsid` stays a descendant of one of them. When one dies, by SIGKILL too, the other kills what is left. Ranks
also die with the process that started them (PR_SET_PDEATHSIG). Other systems have neither: there the end of a launch
reaches process groups and living chains of parents only.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NoReturn

_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def signal_name(number: int) -> str:
    """A signal's name, or its number where it has none.

    >>> signal_name(9), signal_name(40)
    ('SIGKILL', 'signal 40')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def end_with(body: Callable[[], int]) -> NoReturn:
    """Run what this process is for, and end it with the code that comes out, without Python's finalisation.

    For ranks of a world: threads of gloo may still be letting go of tensors then, and Python ends a thread that asks
    for its lock while it finalises in a way that C++ answers with abort(), so that a finished run would count as failed.
    Threads of Temporal's client do the same.
    """
    code: int | str | None = 1
    try:
        code = body()
    except SystemExit as asked:
        code = asked.code
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # its reader has gone, or it is closed
                stream.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def cores() -> int:
    """CPU cores that this process may use, a container's quota counted in."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return count if quota == "max" else max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):
        return count


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies (Linux; elsewhere nothing)."""
    if _LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def start(
    command: Sequence[str], *, folder: str, environment: dict[str, str], stdin: int, stdout: int, stderr: int
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own; on Linux it is killed when this process dies.

    Raises:
        OSError: the program cannot be started.
    """
    prctl = None
    if _LINUX:
        import ctypes

        prctl = ctypes.CDLL(None).prctl  # looked up before the fork: the child then only calls it
    parent = os.getpid()

    def die_with_parent() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def descendants(root: int, without: Collection[int] = ()) -> list[int]:
    """All living processes below `root`, parents before children; those of `without` are left out, with all below them."""
    children: dict[int, list[int]] = {}
    for pid, parent in _living():
        if pid not in without:
            children.setdefault(parent, []).append(pid)
    found: list[int] = []
    level = children.get(root, [])
    while level:
        found += level
        level = [child for pid in level for child in children.get(pid, ())]
    return found


def _living() -> Iterator[tuple[int, int]]:
    """(pid, pid of its parent) of every process of this machine that has not ended."""
    if not _LINUX:
        with subprocess.Popen(["ps", "-axo", "pid=,ppid=,stat="], stdout=subprocess.PIPE, text=True) as ps:
            listed = ps.communicate()[0]
        for line in listed.splitlines():
            pid, parent, state = line.split()[:3]
            if not state.startswith("Z") and int(pid) != ps.pid:  # it lists itself, our child, which has ended by now
                yield int(pid), int(parent)
        return
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:  # it has just ended
            continue
        threads = int(fields[17])
        if fields[0] not in (b"Z", b"X") or threads > 1:  # a main thread that ended reads Z while others live on
            yield int(name), int(fields[1])


def send(pid: int, number: int) -> None:
    """Signal a process, unless it has already gone or belongs to somebody else."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def reap_orphans(own: Sequence[int] = ()) -> bool:
    """Collect the ended children that nobody waits for; those of `own` are left for their Popen.

    Returns:
        Whether this process has children left. Of a subreaper, that says whether anything lives below it.
    """
    if own and not hasattr(os, "waitid"):  # macOS before Python 3.13, where nobody adopts orphans: there are none
        return True
    try:
        while own:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid in own:
                return True
            os.waitpid(ended.si_pid, 0)
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def kill_descendants(patience_s: float = 5.0) -> list[int]:
    """SIGKILL everything below this process until nothing is left.

    Returns:
        Processes that were still there after `patience_s`: stuck in the kernel, or of another user.
    """
    deadline = time.monotonic() + patience_s
    # the kernel is asked whether any is left: reading /proc misses a process that forks and ends meanwhile
    while reap_orphans():
        left = descendants(os.getpid())
        for pid in itertools.chain(left, _own_children()):
            send(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return left or _own_children()
        time.sleep(0.001)
    return []


def _own_children() -> list[int]:
    """Children of this process, found fast enough to catch those that live for a millisecond; none where the kernel lists them not."""
    found = []
    for name in glob.glob("/proc/self/task/*/children"):
        try:
            with open(name, "rb") as file:
                found += [int(pid) for pid in file.read().split()]
        except OSError:  # the thread has just ended
            continue
    return found


class Interrupts:
    """Signals as numbers to select on and read, so that no wait is deaf to them.

    `read()` gives the numbers that arrived: SIGINT, SIGTERM, SIGHUP and SIGQUIT (unless they were ignored from the start, as under
    nohup), SIGCHLD for a child that ended, and for each pipe of `lifelines` that has ended the number given for it.
    """

    def __init__(self, lifelines: Mapping[int, int] | None = None) -> None:
        self._lifelines = dict(lifelines or {})
        self._pipe, self._wakeup = os.pipe()
        os.set_blocking(self._pipe, False)
        os.set_blocking(self._wakeup, False)
        self._old_wakeup = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        self._old = {
            number: signal.signal(number, lambda *_: None)
            for number in (*_STOPPING, signal.SIGCHLD)
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGCHLD
        }

    def filenos(self) -> list[int]:
        """What to select on."""
        return [self._pipe, *self._lifelines]

    def read(self) -> list[int]:
        """The signals since the last call; never waits."""
        arrived = []
        for ready in select.select(self.filenos(), [], [], 0)[0]:
            data = os.read(ready, 4096)
            if ready == self._pipe:
                arrived += list(data)
            elif not data:
                arrived.append(self._lifelines.pop(ready))
        return arrived

    def close(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._pipe)
        os.close(self._wakeup)


def guarded(body: Callable[[Interrupts], int], lifeline: int | None = None) -> int:
    """Run `body` in a forked child; when either of the two processes dies, the other kills all that is left.

    The calling process stays in front: signals that it gets go on to the child, and it returns the child's exit code. The child
    has a session of its own, so that a signal to the caller's whole process group leaves it alive to clean up.
    `body` must heed SIGKILL from `Interrupts.read()`, which says that the calling process has gone.

    Args:
        lifeline: a pipe whose end counts as SIGTERM.
    Returns:
        What `body` returned, or minus the number of the signal that killed its process.
    """
    adopt_orphans()
    sys.stdout.flush()
    sys.stderr.flush()
    ends_with_us, held_by_us = os.pipe()
    passed_on = {number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN}
    mask: set[int] = set(signal.pthread_sigmask(signal.SIG_BLOCK, passed_on))  # one that comes while we fork waits for its handler
    child = os.fork()
    if child == 0:
        os.close(held_by_us)
        lifelines = {ends_with_us: int(signal.SIGKILL)} | ({} if lifeline is None else {lifeline: int(signal.SIGTERM)})
        os._exit(_run_guarded(body, lifelines, mask))
    os.close(ends_with_us)

    def pass_on(number: int, _: object) -> None:
        send(child, number)

    old = {number: signal.signal(number, pass_on) for number in passed_on}
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:  # else it has seen to it itself
        kill_descendants()
    for number, handler in old.items():
        signal.signal(number, handler)
    os.close(held_by_us)
    return code


def _run_guarded(body: Callable[[Interrupts], int], lifelines: Mapping[int, int], mask: set[int]) -> int:
    code = 1
    try:
        os.setsid()
        adopt_orphans()
        interrupts = Interrupts(lifelines)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = body(interrupts)
    except BaseException:
        import traceback

        traceback.print_exc()  # nobody above this frame would: the process ends here
    finally:
        kill_descendants()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                pass
    return code

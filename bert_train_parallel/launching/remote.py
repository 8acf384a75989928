"""`--ssh`: the same line on every host of the GPU map, by the system's OpenSSH client; all of it ends together.

Each host runs this module as a guard around its launcher. The guard's standard input is the link: when it ends, because the
launch ended here, or ssh or the network died, the guard ends its launcher. The first line on it carries the job token,
which so appears in no list of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bert_train_parallel import processes
from bert_train_parallel.errors import BadSetting, LaunchFailed, MissingPackage
from bert_train_parallel.launching import network
from bert_train_parallel.launching.gpu_map import matching_hosts
from bert_train_parallel.launching.remote_flags import add_arguments
from bert_train_parallel.processes import Interrupts, signal_name

TOKEN_VARIABLE = "BERT_TRAIN_JOB_TOKEN"
END_WITHIN_S = 15.0  # for every host to end its processes, once it was told to
OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=5",
    "ServerAliveInterval=1",
    "ServerAliveCountMax=3",
)  # no questions, and a dead link is noticed
SSH_FAILED = 255


@dataclass(frozen=True, slots=True)
class Ssh:
    """How to reach the hosts."""

    user: str | None = None
    options: tuple[str, ...] = ()  # as after ssh's -o
    folder: str = "."
    python: str = sys.executable


@dataclass(slots=True)
class _Session:
    host: str
    process: subprocess.Popen[bytes]
    rest: bytes = b""  # the begin of a line that has not ended
    last: str = ""


def settings_of(arguments: argparse.Namespace) -> Ssh:
    return Ssh(
        arguments.ssh_user,
        tuple(arguments.ssh_option),
        arguments.ssh_folder or os.getcwd(),
        arguments.ssh_python or sys.executable,
    )


def line_for(flags: Sequence[str], command: Sequence[str], gpu_map: dict[str, int], host: str) -> list[str]:
    """The launcher's line for one host: as typed, without the flags for ssh, and with the map itself for its file.

    >>> line_for(["--ssh", "--ssh_user", "me", "--gpu_map=gpus.json", "-q"], ["a.py", "--ssh"], {"beta": 2}, "beta")
    ['--gpu_map', '{"beta": 2}', '--host', 'beta', '-q', 'a.py', '--ssh']
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_arguments(parser)
    for flag in ("gpu_map", "other_gpus", "host", "job_token", "job_token_file"):
        parser.add_argument(f"--{flag}", f"--{flag.replace('_', '-')}")
    _, rest = parser.parse_known_args(list(flags))
    return ["--gpu_map", json.dumps(gpu_map), "--host", host, *rest, *command]


def ssh_command(ssh: Ssh, host: str, line: Sequence[str]) -> list[str]:
    """What to execute here so that a host runs the guard around its launcher.

    >>> ssh_command(Ssh("me", ("Port=2222",), "/work", "/usr/bin/python3"), "beta", ["-q", "a b.py"])[-5:-1]
    ['-l', 'me', '--', 'beta']
    """
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # only a checkout is not installed there; a path that does not exist on the other host does no harm
    path = f"PYTHONPATH={shlex.quote(package)} " if os.path.isfile(os.path.join(package, "setup.py")) else ""
    words = " ".join(shlex.quote(word) for word in (ssh.python, "-P", "-m", __spec__.name if __spec__ else __name__, *line))
    options = [word for option in (*OPTIONS, *ssh.options) for word in ("-o", option)]
    user = ["-l", ssh.user] if ssh.user else []
    return ["ssh", "-T", *reversed_pairs(options), *user, "--", host, f"cd {shlex.quote(ssh.folder)} && {path}exec {words}"]


def reversed_pairs(options: list[str]) -> list[str]:
    """Options with the user's first: ssh keeps the first value that it reads.

    >>> reversed_pairs(["-o", "Port=22", "-o", "Port=2222"])
    ['-o', 'Port=2222', '-o', 'Port=22']
    """
    pairs = [options[number : number + 2] for number in range(0, len(options), 2)]
    return [word for pair in reversed(pairs) for word in pair]


def launch_everywhere(
    ssh: Ssh,
    gpu_map: dict[str, int],
    flags: Sequence[str],
    command: Sequence[str],
    token: str | None,
    interrupts: Interrupts,
    say: Callable[[str], None],
) -> int:
    """Run the launcher on every host until all have ended; returns the exit code of the first that failed.

    Raises:
        MissingPackage: no ssh here.
        LaunchFailed: a host could not be reached by ssh, or a signal arrived.
    """
    own = set(matching_hosts(list(gpu_map), None, None, network.resolve_all))
    first_line = json.dumps({"token": token or secrets.token_hex(16)}).encode() + b"\n"
    sessions: list[_Session] = []
    try:
        for host in gpu_map:
            line = line_for(flags, command, gpu_map, host)
            words = [sys.executable, "-P", "-m", __name__, *line] if host in own else ssh_command(ssh, host, line)
            sessions.append(_Session(host, _start(words, first_line)))
        return _watch(sessions, interrupts, say)
    finally:
        _end(sessions)


def _start(words: Sequence[str], first_line: bytes) -> subprocess.Popen[bytes]:
    try:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    except FileNotFoundError:
        raise MissingPackage("--ssh needs OpenSSH's client. Type: apt-get install openssh-client  (or start each node by hand)") from None
    assert process.stdin is not None
    try:
        process.stdin.write(first_line)
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended already, and its output says why
    return process


def _watch(sessions: list[_Session], interrupts: Interrupts, say: Callable[[str], None]) -> int:
    """Pass the hosts' output on until all have ended."""
    code = 0
    with selectors.DefaultSelector() as selector:
        for session in sessions:
            assert session.process.stdout is not None
            os.set_blocking(session.process.stdout.fileno(), False)
            selector.register(session.process.stdout, selectors.EVENT_READ, session)
        for number in interrupts.filenos():
            selector.register(number, selectors.EVENT_READ)
        reading = len(sessions)
        while reading:
            for key, _ in selector.select():
                if key.data is None:
                    _heed(interrupts)
                    continue
                if not _pass_on(key.data):
                    selector.unregister(key.fileobj)
                    reading -= 1
                    ended = _ended(key.data, say)
                    code = code or ended
    return code


def _ended(session: _Session, say: Callable[[str], None]) -> int:
    code = session.process.wait()
    if code == SSH_FAILED:
        raise LaunchFailed(
            f"{session.host}: ssh cannot start the launch there ({session.last.strip() or 'no reason given'}). "
            f"Make this work without a password: ssh {session.host} true",
            2,
        )
    if code:
        say(f"{session.host} ended with exit code {code}.")
    return code


def _heed(interrupts: Interrupts) -> None:
    for number in interrupts.read():
        if number != signal.SIGCHLD:
            raise LaunchFailed(f"stopped by {signal_name(number)}; the launch ends on every host.", 128 + number)


def _pass_on(session: _Session) -> bool:
    """Print what a host has said, whole lines with its name in front; False at the end of its output."""
    assert session.process.stdout is not None
    try:
        read = os.read(session.process.stdout.fileno(), 1 << 16)
    except BlockingIOError:
        return True
    *lines, session.rest = (session.rest + read).split(b"\n")
    if not read and session.rest:
        lines, session.rest = [session.rest], b""
    for line in lines:
        session.last = line.decode(errors="replace")
        sys.stdout.write(f"[{session.host}] {session.last}\n")
    sys.stdout.flush()
    return bool(read)


def _end(sessions: list[_Session]) -> None:
    """End what still runs: the guards hear it from their standard input."""
    for session in sessions:
        assert session.process.stdin is not None
        try:
            session.process.stdin.close()
        except BrokenPipeError:
            pass
    deadline = time.monotonic() + END_WITHIN_S
    for session in sessions:
        try:
            session.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            session.process.kill()
            session.process.wait()
        assert session.process.stdout is not None
        session.process.stdout.close()


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < 4096 and (read := os.read(0, 1)):
        line += read
    return line


def guard(argv: Sequence[str]) -> int:
    """Run the launcher on this host for as long as standard input lasts."""
    try:
        token = json.loads(_first_line())["token"]
    except (ValueError, KeyError, TypeError):
        raise BadSetting("this module is started by launch.py --ssh, which says more on standard input.") from None
    launcher = processes.start(
        [sys.executable, "-P", "-m", "bert_train_parallel.launching", *argv],
        folder=".",
        environment={**os.environ, TOKEN_VARIABLE: token},
        stdin=subprocess.DEVNULL,
        stdout=1,
        stderr=2,
    )

    def end_with_link() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock, held here when the interpreter ends, would abort it
            pass
        launcher.terminate()
        time.sleep(END_WITHIN_S - 5.0)
        launcher.kill()

    threading.Thread(target=end_with_link, daemon=True).start()
    return launcher.wait()


if __name__ == "__main__":
    from bert_train_parallel.errors import run_command

    sys.exit(run_command("launch", lambda: guard(sys.argv[1:])))

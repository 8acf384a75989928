"""Several hosts on one machine: network namespaces with names and addresses of their own, on one bridge."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FLEETS = itertools.count()  # several fleets of one process are apart from each other
NAMES = ("alpha", "beta", "gamma", "delta")


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def why_not() -> str:
    """Why there can be no hosts here; empty where there can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            return f"no `{program}` here (Debian package {package})"
    try:
        ip("netns", "add", "bert-probe")
        ip("netns", "delete", "bert-probe")
    except OSError as error:
        return f"no network namespaces here: {error}"
    return ""


@dataclass
class Run:
    """One launcher on one host."""

    host: Host
    process: subprocess.Popen[bytes]
    output: Path
    began: float

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait(self, within_s: float = 30.0) -> int:
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.host.name} still runs after {within_s} s:\n{self.text}") from None

    def wait_for(self, words: str, within_s: float = 30.0) -> None:
        until(
            lambda: words in self.text or self.process.poll() is not None, within_s, lambda: f"{words!r} on {self.host.name}:\n{self.text}"
        )
        assert words in self.text, f"no {words!r} on {self.host.name}:\n{self.text}"


def until(what: Callable[[], bool], within_s: float, words: Callable[[], str]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, f"waited {within_s} s in vain for {words()}"
        time.sleep(0.02)


@dataclass
class Host:
    """A machine of the fleet."""

    name: str
    space: str  # its network namespace
    hub: str
    address: str
    folder: Path = Path()
    runs: list[Run] = field(default_factory=list)

    def start(self, *command: str, environment: dict[str, str] | None = None) -> Run:
        """Start a program there, in the host's folder; its output goes to a file."""
        output = self.folder / f"output_{len(self.runs)}.txt"
        inside = ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name, *command]
        with open(output, "wb") as file:
            process = subprocess.Popen(
                inside,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            )
        run = Run(self, process, output, time.monotonic())
        self.runs.append(run)
        return run

    def launch(self, *words: str, environment: dict[str, str] | None = None) -> Run:
        """Start the launcher there."""
        return self.start(sys.executable, str(ROOT / "launch.py"), *words, environment=environment)

    def script(self, text: str, name: str = "script.py") -> str:
        (self.folder / name).write_text(text)
        return name

    def pids(self) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.space).split()]

    def kill(self) -> None:
        """SIGKILL of every process there, as if the power had gone."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cut(self) -> None:
        """Pull its cable."""
        ip("-n", self.hub, "link", "set", f"to-{self.name}", "down")

    def mend(self) -> None:
        ip("-n", self.hub, "link", "set", f"to-{self.name}", "up")

    @contextlib.contextmanager
    def mute(self, first: int, last: int) -> Iterator[None]:
        """Whoever talks to these TCP ports there gets no answer, as behind a firewall that drops messages."""
        rule = ["ipproto", "tcp", "sport", f"{first}-{last}", "blackhole", "priority", "1"]
        for version in ("-4", "-6"):
            ip("-n", self.space, version, "rule", "add", *rule)
        try:
            yield
        finally:
            for version in ("-4", "-6"):
                ip("-n", self.space, version, "rule", "delete", *rule)

    def bytes_sent(self) -> int:
        """What left its network interface so far."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.space, "cat", "/proc/net/dev"], capture_output=True, text=True, check=True
        ).stdout
        return int(next(line for line in done.splitlines() if "eth0:" in line).split(":")[1].split()[8])


@contextlib.contextmanager
def fleet(names: Sequence[str] = NAMES) -> Iterator[list[Host]]:
    """Hosts that reach each other by name and address, and nothing else."""
    mark = f"bert{os.getpid()}n{next(FLEETS)}"
    hub = f"{mark}-hub"
    hosts = [Host(name, f"{mark}-{name}", hub, f"10.77.0.{number}") for number, name in enumerate(names, 1)]
    known = "127.0.0.1 localhost\n::1 localhost\n" + "".join(
        f"{host.address} {host.name}\nfd77::{number} {host.name}-6\n" for number, host in enumerate(hosts, 1)
    )
    try:
        ip("netns", "add", hub)
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for number, host in enumerate(hosts, 1):
            settings = Path("/etc/netns", host.space)  # `ip netns exec` puts these files over those of /etc
            settings.mkdir(parents=True)
            (settings / "hosts").write_text(known)
            ip("netns", "add", host.space)
            ip("-n", host.space, "link", "add", "eth0", "type", "veth", "peer", "name", f"to-{host.name}", "netns", hub)
            ip("-n", hub, "link", "set", f"to-{host.name}", "master", "bridge", "up")
            ip("-n", host.space, "address", "add", f"{host.address}/24", "dev", "eth0")
            with contextlib.suppress(OSError):  # a kernel without IPv6
                ip("-n", host.space, "address", "add", f"fd77::{number}/64", "dev", "eth0", "nodad")
            for link in ("lo", "eth0"):
                ip("-n", host.space, "link", "set", link, "up")
        yield hosts
    finally:
        for host in hosts:
            with contextlib.suppress(OSError):
                host.kill()
            with contextlib.suppress(OSError):
                ip("netns", "delete", host.space)
            shutil.rmtree(Path("/etc/netns", host.space), ignore_errors=True)
        with contextlib.suppress(OSError):
            ip("netns", "delete", hub)

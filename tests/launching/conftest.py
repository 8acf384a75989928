"""Real launches for tests: each is marked by an environment variable, so that any process that it leaves behind is found."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bert_train_parallel.launching import master
from bert_train_parallel.processes import Interrupts

from .nodes import WITHIN_S, Nodes

ROOT = Path(__file__).parent.parent.parent
MARK = "LAUNCH_TEST_MARK"


def until(what: Callable[[], bool], within_s: float = 20.0) -> bool:
    """Wait until something is so; whether it came to be."""
    deadline = time.monotonic() + within_s
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def living(mark: str) -> list[int]:
    """Every living process of a launch, whoever its parent is now."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            ours = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
            if ours and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@dataclass
class Launch:
    """A launcher at work."""

    process: subprocess.Popen[bytes]
    folder: Path
    mark: str

    @property
    def out(self) -> str:
        return (self.folder / "stdout").read_text(errors="replace")

    @property
    def err(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    def wait(self, within_s: float = 30.0) -> int:
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {within_s} s:\n{self.out}\n{self.err}") from None

    def wait_for(self, words: str, times: int = 1) -> None:
        """Until the ranks have printed something."""
        assert until(lambda: self.out.count(words) >= times or self.process.poll() is not None), f"no {words!r}:\n{self.out}\n{self.err}"
        assert self.out.count(words) >= times, f"ended without {words!r}:\n{self.out}\n{self.err}"

    def pids(self) -> list[int]:
        return living(self.mark)


@dataclass
class Launcher:
    """Starts launches in a folder of its own."""

    folder: Path
    launches: list[Launch] = field(default_factory=list)

    def script(self, text: str, name: str = "script.py") -> str:
        """Write a file for the ranks to run."""
        (self.folder / name).write_text(text)
        return name

    def start(self, *words: str, stdin: int = subprocess.DEVNULL, folder: str = "", **environment: str) -> Launch:
        mark = secrets.token_hex(8)
        streams = self.folder / f"streams-{mark}"
        streams.mkdir()
        with open(streams / "stdout", "wb") as out, open(streams / "stderr", "wb") as err:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "launch.py"), *words],
                cwd=self.folder / folder,
                env={**os.environ, "TMPDIR": str(self.folder), **environment, MARK: mark},
                stdin=stdin,
                stdout=out,
                stderr=err,
            )
        self.launches.append(Launch(process, streams, mark))
        return self.launches[-1]

    def run(self, *words: str, **environment: str) -> Launch:
        launch = self.start(*words, **environment)
        launch.wait()
        return launch


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    """A launcher whose launches must all have ended without a trace when the test does."""
    made = Launcher(tmp_path)
    yield made
    for launch in made.launches:
        left = launch.pids() if launch.process.poll() is not None else []
        for pid in launch.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        launch.process.wait()
        assert not left, f"processes survived: {left}\n{launch.out}\n{launch.err}"


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setattr(master, "LINGER_S", 0.3)
    monkeypatch.setattr(master, "SETTLE_S", 0.3)
    interrupts = Interrupts()
    made = Nodes(interrupts)
    yield made
    closing = [threading.Thread(target=channel.close) for channel in made.channels.values()]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(WITHIN_S)
    interrupts.close()

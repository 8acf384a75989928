"""One machine, one command: the embedded server and a worker as children, seen after until the work is done."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bert_train_parallel import processes
from bert_train_parallel.errors import LaunchFailed
from bert_train_parallel.sweeps.server import Address, EmbeddedServer, connect_when_ready
from bert_train_parallel.sweeps.starts import Starts

if TYPE_CHECKING:
    from temporalio.client import Client

_LOOK_S = 0.3


@dataclass(slots=True)
class Local:
    """The server and the worker of this process."""

    client: Client
    server: EmbeddedServer
    worker: WorkerProcess

    @property
    def page(self) -> str:
        return self.server.keep_up().page

    def keep_up(self) -> None:
        """Start again what has died."""
        self.worker.keep_up(self.server.keep_up())


class WorkerProcess:
    """A worker as a child that dies with this process."""

    def __init__(self, folder: Path, trials: int, cores_each: int | None) -> None:
        self._folder = folder
        self._trials = trials
        self._cores_each = cores_each
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = Starts()

    def keep_up(self, address: Address) -> None:
        """
        Raises:
            LaunchFailed: it ends as soon as it is started.
        """
        if self._process is not None and self._process.poll() is None:
            return
        if not self._starts.may_begin():
            raise LaunchFailed(f"the worker ends as soon as it is started; see {self._folder / 'worker.log'}", 1)
        command = [sys.executable, "-P", "-m", "bert_train_parallel.sweeps", "worker", "--address", address.grpc, "--namespace", "default"]
        command += ["--output_dir", str(self._folder), "--trials", str(self._trials), "--queue", "training", "--queue", "eval"]
        command += ["--cores", str(self._cores_each)] if self._cores_each else []
        with open(self._folder / "worker.log", "ab") as log:
            self._process = processes.start(
                command,
                folder=os.getcwd(),
                environment=dict(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log.fileno(),
                stderr=log.fileno(),
            )

    def stop(self, grace_s: float) -> None:
        """End it and its trials, which save what they can."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its trials' launchers notice, and end their processes
            self._process.wait()


@contextlib.asynccontextmanager
async def local(folder: Path, trials: int, grace_s: float = 15.0, cores_each: int | None = None) -> AsyncIterator[Local]:
    """A client of the folder's embedded server, with a worker for `trials` at a time; both end with the block.

    `cores_each` is as in `worker.work`. What dies meanwhile is started again. SIGTERM and SIGHUP end the block as Ctrl-C does.

    Raises:
        LaunchFailed: the worker cannot be kept up.
    """
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    folder = folder.resolve()
    server, worker = EmbeddedServer(folder), WorkerProcess(folder, trials, cores_each)
    caretaker: asyncio.Task[None] | None = None
    try:
        found = Local(await connect_when_ready(server), server, worker)
        caretaker = asyncio.create_task(_take_care(found))
        caretaker.add_done_callback(lambda ended: ended.cancelled() or task.cancel())
        yield found
    except asyncio.CancelledError:
        if caretaker is not None and caretaker.done() and not caretaker.cancelled():
            caretaker.result()  # the reason why the block was ended
        raise
    finally:
        if caretaker is not None:
            caretaker.cancel()
        worker.stop(grace_s)
        server.stop()


async def _take_care(found: Local) -> None:
    while True:
        found.keep_up()
        await asyncio.sleep(_LOOK_S)

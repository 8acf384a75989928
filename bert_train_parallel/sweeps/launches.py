"""A launch beside an asyncio program: started, followed, ended; when it is over none of its processes is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from bert_train_parallel.launching.library import answer, launcher_command, launcher_environment
from bert_train_parallel.launching.plan import LaunchRequest, LaunchResult
from bert_train_parallel.progress import Event

TICK_S = 1.0  # between looks at the progress file, and so between heartbeats
_AFTER_GRACE_S = 3.0  # the launcher ends its ranks after their grace; should it hang itself, this is when it is killed


async def launch(
    request: LaunchRequest,
    output: Path,
    on_tick: Callable[[], None],
    *,
    held: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> LaunchResult:
    """Run a launch to its end, calling `on_tick` about once a second until the last process has gone.

    A cancel, and an exception from `on_tick`, end it: SIGTERM, `request.grace_s`, SIGKILL; then the exception goes on. When this
    process dies, the launcher ends its ranks and itself.

    Args:
        output: file to which the output of launcher and ranks is added.
        held: open files that the launcher inherits, so that their locks last as long as any of its processes.
        environment: for the launcher, on top of this process's own.
    Raises:
        BertTrainParallelError: the launch did not come about.
    """
    reading, writing = os.pipe()
    lines = os.fdopen(reading, "rb")
    try:
        with open(output, "ab") as log:
            launcher = await asyncio.create_subprocess_exec(
                *launcher_command(writing),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing, *held),
                env=launcher_environment() | dict(environment or {}),
                start_new_session=True,
            )
    except BaseException:
        lines.close()
        raise
    finally:
        os.close(writing)
    said = await _lines_of(lines)
    assert launcher.stdin is not None
    try:
        launcher.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
        await _until_over(launcher, on_tick)
    except BaseException:
        await _end(launcher, request.grace_s, on_tick)
        raise
    finally:
        launcher.stdin.close()
    return answer(_last_message(await said.read()), launcher.returncode)


async def _until_over(process: asyncio.subprocess.Process, on_tick: Callable[[], None]) -> None:
    ended = asyncio.ensure_future(process.wait())
    while not ended.done():
        await asyncio.wait({ended}, timeout=TICK_S)
        on_tick()


async def _end(process: asyncio.subprocess.Process, grace_s: float, on_tick: Callable[[], None]) -> None:
    """End a process that was told to stop or is to be told; heartbeats go on meanwhile."""

    def tick() -> None:
        with contextlib.suppress(Exception):  # what on_tick has to say was said already: the process ends in any case
            on_tick()

    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    deadline = asyncio.get_running_loop().time() + grace_s + _AFTER_GRACE_S
    ended = asyncio.ensure_future(process.wait())
    while not ended.done():
        with contextlib.suppress(asyncio.CancelledError):  # a second cancel must not leave processes behind
            await asyncio.wait({ended}, timeout=min(TICK_S, 0.2))
        tick()
        if asyncio.get_running_loop().time() > deadline:
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # its guardian then kills all that is below
    await ended


async def _lines_of(pipe: BinaryIO) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


def _last_message(written: bytes) -> dict[str, Any]:
    """The last whole JSON line.

    >>> _last_message(b'{"event": {}}\\n{"result": {"exit_code": 0}}\\n{"resu')
    {'result': {'exit_code': 0}}
    """
    said: dict[str, Any] = {}
    for line in written.splitlines():
        with contextlib.suppress(ValueError):  # the launcher was killed while it wrote
            said = json.loads(line)
    return said


class Tail:
    """New events of a progress file, each time it is asked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[Event]:
        """The complete lines since the last call; a damaged one is passed over."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, TypeError):
                events.append(Event.from_json(line.decode()))
        return events

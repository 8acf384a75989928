"""Launches for a Python program: the launcher runs beside it, so that its threads, signals and children are left alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import IO, Any

from bert_train_parallel import errors
from bert_train_parallel.launching.agent import LaunchEvent, OnEvent
from bert_train_parallel.launching.command import checkout_path
from bert_train_parallel.launching.plan import Failure, LaunchRequest, LaunchResult, Node, WorldPlan

Output = int | IO[bytes] | None


def launch(request: LaunchRequest, on_event: OnEvent | None = None, *, stdout: Output = None, stderr: Output = None) -> LaunchResult:
    """Run this node's part of a launch until it is over; when this returns or raises, none of its processes is left.

    Args:
        on_event: called in this thread for what happens meanwhile.
        stdout, stderr: where the ranks' output goes, as in `subprocess`; None: to the caller's own.
    Raises:
        BertTrainParallelError: the launch did not come about; which kind, as in `bert_train_parallel.errors`. A rank that
            fails is a result, not an error.
    """
    reading, writing = os.pipe()
    with open(reading, "rb") as lines:
        try:
            launcher = subprocess.Popen(
                launcher_command(writing),
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(writing,),
                env=launcher_environment(),
                start_new_session=True,
                bufsize=0,
            )
        finally:
            os.close(writing)
        assert launcher.stdin is not None
        try:
            # standard input stays open: its end tells the launcher that this process has gone
            with contextlib.suppress(BrokenPipeError):  # it has ended already; its exit code follows below
                launcher.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
            said: dict[str, Any] = {}
            for line in lines:
                said = json.loads(line)
                if "event" in said and on_event:
                    on_event(LaunchEvent(**said["event"]))
        finally:
            launcher.stdin.close()
            launcher.wait()
    return answer(said, launcher.returncode)


def launcher_command(events: int) -> list[str]:
    """The launcher beside a program: it reads one line, a `LaunchRequest` as JSON, and writes JSON lines to this open file.

    Its standard input stays open while the launch is wanted: the end of it counts as SIGTERM.
    """
    return [sys.executable, "-P", "-m", __name__, str(events)]


def launcher_environment() -> dict[str, str]:
    return {**os.environ, **checkout_path(dict(os.environ))}


def answer(said: dict[str, Any], returncode: int | None) -> LaunchResult:
    """What the launcher's last line says; raises as `launch` does."""
    if "result" in said:
        return _result_from(said["result"])
    if "error" in said:
        raise _error_from(said)
    raise errors.LaunchFailed(f"the launcher ended with exit code {returncode} and no result.", returncode or 1)


def _result_from(fields: dict[str, Any]) -> LaunchResult:
    plan = fields["plan"]
    nodes = tuple(Node(node["host"], node["ranks"], tuple(node["devices"])) for node in plan["nodes"])
    failure = fields["first_failure"] and Failure(**fields["first_failure"])
    return LaunchResult(**{**fields, "plan": WorldPlan(**{**plan, "nodes": nodes}), "first_failure": failure})


def _error_from(said: dict[str, Any]) -> errors.BertTrainParallelError:
    kind = getattr(errors, said["error"])
    return errors.LaunchFailed(said["words"], said["exit_code"]) if kind is errors.LaunchFailed else kind(said["words"])


def serve(events: int) -> int:
    """The other side of `launch`: a request on standard input, events and the result on `events`."""
    from bert_train_parallel import gpus
    from bert_train_parallel.launching.launcher import launch_node
    from bert_train_parallel.processes import Interrupts, guarded

    os.set_inheritable(events, False)
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(0, 1 << 16)
        if not read:
            return 128 + signal.SIGTERM
        line += read
    lifeline = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    fields = json.loads(line)
    request = LaunchRequest(**{**fields, "command": tuple(fields["command"]), "devices": tuple(fields["devices"])})

    def tell(message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the caller has gone; the end of standard input ends the launch
            os.write(events, json.dumps(message).encode() + b"\n")

    def body(interrupts: Interrupts) -> int:
        try:
            result = launch_node(
                request, claim, interrupts, say=_nothing, warn=_nothing, on_event=lambda event: tell({"event": asdict(event)})
            )
        except errors.BertTrainParallelError as error:
            tell(_as_message(error))
            return error.exit_code
        tell({"result": asdict(result)})
        return result.exit_code

    try:
        claim = gpus.claim(request.here, request.device, request.devices)
    except errors.BertTrainParallelError as error:
        tell(_as_message(error))
        return error.exit_code
    return guarded(body, lifeline)


def _nothing(words: str) -> None:
    """The caller has it all in the events and the result."""


def _as_message(error: errors.BertTrainParallelError) -> dict[str, Any]:
    return {"error": type(error).__name__, "words": str(error), "exit_code": error.exit_code}


if __name__ == "__main__":
    sys.exit(serve(int(sys.argv[1])))

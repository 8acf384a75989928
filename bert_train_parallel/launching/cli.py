"""The command `launch.py`: words to a request, and a request to processes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from bert_train_parallel.errors import run_command
from bert_train_parallel.launching.command import resolve_command
from bert_train_parallel.launching.plan import LaunchRequest

NAME = "launch"


def main(argv: Sequence[str] | None = None) -> int:
    """Start this machine's share of a training run: one process per GPU, on one node or many."""
    return run_command(NAME, lambda: launch(read_arguments(sys.argv[1:] if argv is None else argv)))


def launch(arguments: argparse.Namespace) -> int:
    from bert_train_parallel import gpus
    from bert_train_parallel.processes import Interrupts, guarded, signal_name

    request = read_request(arguments)
    claim = gpus.claim(request.here, request.device, request.devices, locked=not arguments.dry_run)
    if arguments.dry_run:
        return 0

    def body(interrupts: Interrupts) -> int:
        return run_command(NAME, lambda: _launch_node(request, claim, interrupts, arguments.quiet))

    code = guarded(body)
    if code < 0:
        say(f"the process that watched over the ranks was killed by {signal_name(-code)}; all that it had started was ended.")
        return 128 - code
    return code


def _launch_node(request: LaunchRequest, claim: Any, interrupts: Any, quiet: bool) -> int:
    from bert_train_parallel.launching.launcher import launch_node

    result = launch_node(request, claim, interrupts, (lambda words: None) if quiet else say)
    if result.first_failure:
        say(result.first_failure.words)
    return result.exit_code


def say(words: str) -> None:
    print(f"{NAME}: {words}", file=sys.stderr, flush=True)


def read_request(arguments: argparse.Namespace) -> LaunchRequest:
    """What this node was asked to launch.

    Raises:
        BadSetting, BadGpuMap: flags that cannot be, or that contradict each other.
    """
    command = resolve_command(arguments.command, module=arguments.module, no_python=arguments.no_python)
    return LaunchRequest(
        command=command,
        folder=os.getcwd(),
        here=arguments.here_gpus,
        device=arguments.device,
        master_port=arguments.master_port,
        log_dir=arguments.log_dir,
        grace_s=arguments.grace,
    )


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch.py", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--here_gpus", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--master_port", type=int)
    parser.add_argument("--log_dir")
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("-m", "--module", action="store_true")
    parser.add_argument("--no_python", action="store_true")
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser.parse_args(argv)

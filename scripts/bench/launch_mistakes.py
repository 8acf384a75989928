#!/usr/bin/env python3
"""The same mistakes and accidents with this launcher, torchrun and accelerate, on two hosts made of network namespaces.

    sudo scripts/bench/launch_mistakes.py --cap 60 --record

Every case starts the launchers of two hosts (alpha, the master, and beta), makes one mistake, and measures from the moment
the last one was started, or the accident happened:
  told   until any launcher or rank prints a line that could lead its user to the mistake (the line is shown, to be judged);
  ended  until no process is left on either host;
up to the cap. What was still running then is marked `capped`: how long it would have gone on was not measured.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from common import record  # noqa: E402
from hosts.fleet import Host, Run, fleet, why_not  # noqa: E402

PORT = 29511
SCRIPT = """
import os, signal, time
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
def fail(*_):
    raise KeyError("no such label")

signal.signal(signal.SIGUSR1, fail)
print("running", os.environ["RANK"], flush=True)
for step in range(3000):
    values = torch.ones(10)
    dist.all_reduce(values)
    time.sleep(0.05)
"""


@dataclass(frozen=True)
class Case:
    """One mistake: how each host's launcher is told wrong things, or what happens once all ranks run."""

    name: str
    looks_like: str  # a line that could lead a user to the mistake
    alpha: dict[str, str] | None = field(default_factory=dict)  # overrides; None: not started
    beta: dict[str, str] | None = field(default_factory=dict)
    before: Callable[[list[Host]], Run] | None = None
    accident: Callable[[list[Host], list[Run]], None] | None = None


@dataclass
class Outcome:
    """What was measured; None where the cap came first."""

    case: str
    launcher: str
    told_s: float | None = None
    said: str = ""
    ended_s: float | None = None
    exit_codes: list[int | None] = field(default_factory=list)
    cap_s: float = 0.0


def ours(settings: dict[str, str]) -> list[str]:
    rank = ["--node_rank", settings["node_rank"], "--master_addr", settings["master"]]
    others = str(int(settings["nodes"]) - 1)
    return [sys.executable, str(ROOT / "launch.py"), "--here_gpus", "1", "--other_gpus", others, *rank, "--master_port", settings["port"]]


def torchrun(settings: dict[str, str]) -> list[str]:
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", "--nnodes", settings["nodes"]),
        *("--node_rank", settings["node_rank"], "--master_addr", settings["master"], "--master_port", settings["port"]),
    ]


def accelerate(settings: dict[str, str]) -> list[str]:
    # --multi_gpu: without it several machines without GPUs get no RANK at all
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--num_machines", settings["nodes"], "--num_processes", settings["nodes"], "--machine_rank", settings["node_rank"]),
        *("--main_process_ip", settings["master"], "--main_process_port", settings["port"]),
    ]


LAUNCHERS = {"launch.py": ours, "torchrun": torchrun, "accelerate": accelerate}


def signal_rank_of_beta(number: int) -> Callable[[list[Host], list[Run]], None]:
    def send(hosts: list[Host], runs: list[Run]) -> None:
        for pid in hosts[1].pids():
            if b"LOCAL_RANK=" in Path(f"/proc/{pid}/environ").read_bytes():
                os.kill(pid, number)

    return send


def hold_port(hosts: list[Host]) -> Run:
    run = hosts[0].start(sys.executable, "-m", "http.server", str(PORT))
    run.wait_for("Serving")
    return run


ADDRESS = r"10\.77\.0\.\d+|alpha|beta"
CASES = [
    Case("a node that never comes", r"waiting for|missing|not (yet )?(joined|started)|timed? ?out", beta=None),
    Case("the master has not started", rf"(refuse|waiting|connect).*({ADDRESS})|({ADDRESS}).*(refuse|waiting|connect)", alpha=None),
    Case("a master address that nobody has", r"10\.77\.0\.99", alpha=None, beta={"master": "10.77.0.99"}),
    Case("a master name that does not resolve", r"no-such-host", alpha=None, beta={"master": "no-such-host"}),
    Case("the master port is taken by another program", r"(?i)port.*(taken|use)|address already in use", before=hold_port),
    Case(
        "the nodes disagree about their number", r"(?i)disagree|do not agree|mismatch|nnodes|other_gpus|num_machines", beta={"nodes": "3"}
    ),
    Case(
        "both nodes have one node rank",
        r"(?i)both node|node_rank 0|same.*rank|duplicate|port.*(taken|use)|already in use",
        beta={"node_rank": "0"},
    ),
    Case("an argument of the script differs", r"differ", alpha={"argument": "--lr=1"}, beta={"argument": "--lr=2"}),
    Case("a rank fails on beta", r"no such label", accident=signal_rank_of_beta(signal.SIGUSR1)),
    Case("a rank is killed on beta", r"SIGKILL|[Ss]ignal 9|-9", accident=signal_rank_of_beta(signal.SIGKILL)),
    Case("beta loses power", rf"(lost|dead|gone|closed|reset|refused).*({ADDRESS})", accident=lambda hosts, runs: hosts[1].kill()),
    Case("beta's cable is cut", rf"(lost|dead|gone|closed|reset).*({ADDRESS})", accident=lambda hosts, runs: hosts[1].cut()),
    Case("the master loses power", rf"(lost|dead|gone|closed|reset|refused).*({ADDRESS})", accident=lambda hosts, runs: hosts[0].kill()),
    Case("beta's launcher is killed", rf"(lost|stopped|closed|reset).*({ADDRESS})", accident=lambda hosts, runs: runs[1].process.kill()),
]


def measure(case: Case, launcher: str, cap_s: float) -> Outcome:
    outcome = Outcome(case.name, launcher, cap_s=cap_s)
    with fleet(("alpha", "beta")) as hosts, tempfile.TemporaryDirectory() as folder:
        for host in hosts:
            host.folder = Path(folder, host.name)
            host.folder.mkdir()
        held = case.before(hosts) if case.before else None
        runs = []
        for number, (host, overrides) in enumerate(zip(hosts, (case.alpha, case.beta), strict=True)):
            if overrides is not None:
                settings = {"nodes": "2", "node_rank": str(number), "master": "alpha", "port": str(PORT), "argument": "", **overrides}
                arguments = [settings["argument"]] if settings["argument"] else []
                runs.append(host.start(*LAUNCHERS[launcher](settings), host.script(SCRIPT), *arguments))
        if case.accident:
            for run in runs:
                run.wait_for("running", 120)
        began = time.monotonic()
        if case.accident:
            case.accident(hosts, runs)
        watch(case, outcome, hosts, runs, began, held)
        if held:
            held.process.kill()
        for host in hosts:
            host.kill()
        for run in [*runs, *([held] if held else [])]:
            run.process.wait()
    return outcome


def watch(case: Case, outcome: Outcome, hosts: list[Host], runs: list[Run], began: float, held: Run | None) -> None:
    """Look at output and processes until all has ended, or the cap."""
    looks_like = re.compile(case.looks_like)
    spared = {held.process.pid} if held else set()
    while True:
        after = time.monotonic() - began
        if outcome.told_s is None:
            lines = [line for run in runs for line in run.text.splitlines() if looks_like.search(line) and "all_reduce" not in line]
            if lines:
                outcome.told_s, outcome.said = round(after, 2), lines[-1].strip()
        ended = all(run.process.poll() is not None for run in runs) and not any(set(host.pids()) - spared for host in hosts)
        if ended or after > outcome.cap_s:
            outcome.ended_s = round(after, 2) if ended else None
            outcome.exit_codes = [run.process.poll() for run in runs]
            return
        time.sleep(0.02)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown, one line per case and launcher."""

    def seconds(value: float | None, cap_s: float) -> str:
        return f"{value:.1f} s" if value is not None else f"capped at {cap_s:g} s"

    lines = ["| case | launcher | told after | all ended after | exit codes | the line |", "| --- | --- | --- | --- | --- | --- |"]
    for one in outcomes:
        said = one.said.replace("|", "\\|")
        codes = ", ".join("running" if code is None else str(code) for code in one.exit_codes)
        told = seconds(one.told_s, one.cap_s) if one.told_s is not None or one.ended_s is None else "never"
        lines.append(f"| {one.case} | {one.launcher} | {told} | {seconds(one.ended_s, one.cap_s)} | {codes} | {said[:160]} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cap", type=float, default=60.0, help="seconds that a launcher is waited for (60)")
    parser.add_argument("--launchers", nargs="+", choices=list(LAUNCHERS), default=list(LAUNCHERS))
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--together", type=int, default=1, help="cases measured at the same time; more than 1 blurs short times")
    parser.add_argument("--record", action="store_true", help="append the figures to results.jsonl")
    arguments = parser.parse_args()
    if reason := why_not():
        print(f"launch_mistakes: {reason}", file=sys.stderr)
        return 2
    work = [(case, launcher) for launcher in arguments.launchers for case in CASES if arguments.cases in case.name]
    with ThreadPoolExecutor(arguments.together) as pool:
        outcomes = []
        for outcome in pool.map(lambda one: measure(*one, arguments.cap), work):
            outcomes.append(outcome)
            print(f"{len(outcomes)} of {len(work)}: {outcome.launcher}, {outcome.case}", file=sys.stderr)
    order = [case.name for case in CASES]
    outcomes.sort(key=lambda one: order.index(one.case))
    print(table(outcomes))
    if arguments.record:
        record("launch_mistakes", {"cap_s": arguments.cap, "outcomes": [asdict(one) for one in outcomes]})
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Random kills, cuts and freezes of launches on several hosts: nothing hangs, nothing survives, no file is damaged.

CHAOS_ROUNDS=200 CHAOS_SEED=7 pytest tests/chaos/test_launch_chaos.py       the long version
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts.fleet import Host, Run, fleet, until, why_not

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "4"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
END_WITHIN_S = 60.0
# each rank keeps writing a file, as a trainer writes checkpoints, and is done after a moment
SCRIPT = """
import os, sys, time
from pathlib import Path
from bert_train_parallel.run_files import write_json
began = time.monotonic()
while time.monotonic() - began < 1.5:
    write_json(Path(f"state_{os.environ['RANK']}.json"), {"attempt": os.environ["TORCHELASTIC_RESTART_COUNT"], "filler": "x" * 20_000})
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Host]]:
    if reason := why_not():
        pytest.skip(reason)
    with fleet() as hosts:
        yield hosts


def start(hosts: list[Host], counts: list[int], flags: list[str]) -> list[Run]:
    runs = []
    for number, (host, count) in enumerate(zip(hosts, counts, strict=True)):
        place = ["--node_rank", str(number), "--master_addr", "alpha"] if number else []
        words = ["--here_gpus", str(count), "--other_gpus", str(sum(counts) - count), *place, "--join_timeout", "8", *flags]
        runs.append(host.launch(*words, host.script(SCRIPT)))
    return runs


def disturb(host: Host, run: Run, what: str, rng: random.Random) -> None:
    """One thing that can happen to a machine."""
    pids = host.pids()
    if what == "kill one process" and pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(pids), signal.SIGKILL)
    elif what == "kill the launcher":
        run.process.kill()
    elif what == "kill all":
        host.kill()
    elif what == "stop":
        run.process.terminate()
    elif what == "cut":
        host.cut()
    elif what == "cut and mend":
        host.cut()
        time.sleep(rng.uniform(0.1, 5.0))
        host.mend()
    elif what == "freeze":
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(rng.uniform(0.1, 5.0) if number == signal.SIGSTOP else 0.0)


HAPPENINGS = ["kill one process", "kill the launcher", "kill all", "stop", "cut", "cut and mend", "freeze"]


@pytest.mark.slow
@pytest.mark.timeout(60 + 90 * ROUNDS)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_whatever_happens_all_ends_and_nothing_is_left(machines: list[Host], tmp_path: Path, number: int) -> None:
    rng = random.Random(f"{SEED} {number}")
    hosts = machines[: rng.randint(2, 4)]
    for host in hosts:
        host.folder, host.runs = tmp_path / host.name, []
        host.folder.mkdir()
    counts = [rng.randint(1, 2) for _ in hosts]
    flags = rng.choice([[], ["--elastic"], ["--max_restarts", "2"], ["--elastic", "--max_restarts", "1"]])
    story = [f"seed {SEED} round {number}: {counts} {' '.join(flags)}"]
    runs = start(hosts, counts, flags)
    try:
        for _ in range(rng.randint(1, 2)):
            time.sleep(rng.uniform(0.0, 2.0))
            victim, what = rng.randrange(len(hosts)), rng.choice(HAPPENINGS)
            story.append(f"{what} on {hosts[victim].name}")
            disturb(hosts[victim], runs[victim], what, rng)

        def told() -> str:
            return "\n".join([*story, *(f"--- {run.host.name} {run.process.poll()}\n{run.text}" for run in runs)])

        until(lambda: all(run.process.poll() is not None for run in runs), END_WITHIN_S, told)
        until(lambda: not any(host.pids() for host in hosts), 10.0, lambda: f"no survivors: {[host.pids() for host in hosts]}\n{told()}")
        assert not any("Traceback" in run.text and "launching/" in run.text for run in runs), told()
        for host in hosts:
            for path in host.folder.glob("state_*.json"):
                assert len(json.loads(path.read_text())["filler"]) == 20_000, f"{path} is damaged\n{told()}"
    finally:
        for host in hosts:
            host.mend()
            host.kill()
        for run in runs:
            run.process.wait()

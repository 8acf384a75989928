#!/usr/bin/env python3
"""From the command to the first line of user code, for two CPU processes: launch.py, torchrun and accelerate in turns.

    scripts/bench/launch_overhead.py                 # 20 rounds of all three
    scripts/bench/launch_overhead.py --rounds 5

The script that is launched imports nothing but the time. `started` is when the last process runs its first line, `ended` when the
command has returned. A bare interpreter that runs the same script is measured along: no launcher can be sooner.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import record

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = 'import os, time\nopen("started_" + os.environ.get("RANK", "0"), "w").write(str(time.time()))\n'
PROCESSES = 2
LAUNCHERS = {
    "python alone": [sys.executable],
    "launch.py": [sys.executable, str(ROOT / "launch.py"), "-q", "--here_gpus", str(PROCESSES)],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(PROCESSES)],
    # without --multi_gpu accelerate starts one process; the script uses no GPU either way
    "accelerate": [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(PROCESSES)),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    ],
}


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds until the last process has started, and until the command has ended."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "script.py").write_text(SCRIPT)
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # it would have every start compile every module
        began = time.time()
        done = subprocess.run([*command, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False)
        ended = time.time()
        started = [float(path.read_text()) for path in Path(folder).glob("started_*")]
    if done.returncode or len(started) not in (1, PROCESSES):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode} and {len(started)} processes:\n{done.stderr}")
    return max(started) - began, ended - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    for command in LAUNCHERS.values():
        measure(command)  # compiled modules and warm disk caches for everyone
    measured = {name: [] for name in LAUNCHERS}  # type: dict[str, list[tuple[float, float]]]
    for _ in range(rounds):
        for name, command in LAUNCHERS.items():
            measured[name].append(measure(command))
    figures = {
        name: {
            "started_s": round(statistics.median(started for started, _ in times), 4),
            "ended_s": round(statistics.median(ended for _, ended in times), 4),
            "started_min_s": round(min(started for started, _ in times), 4),
        }
        for name, times in measured.items()
    }
    ours = figures["launch.py"]
    print(f"{'':14}{'started':>10}{'least':>10}{'ended':>10}{'started / launch.py':>22}")
    for name, one in figures.items():
        ratio = one["started_s"] / ours["started_s"]
        print(f"{name:14}{one['started_s']:8.3f} s{one['started_min_s']:8.3f} s{one['ended_s']:8.3f} s{ratio:20.1f} x")
    record("launch_overhead", {"processes": PROCESSES, "rounds": rounds, "load": round(os.getloadavg()[0], 2), "launchers": figures})


if __name__ == "__main__":
    main()

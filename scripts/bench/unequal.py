#!/usr/bin/env python3
"""One of two ranks at a third of the speed: what `--shares auto` makes of it, against `--shares equal`.

    sudo scripts/bench/unequal.py                        # the demo's tweets, MiniLM, global batch 256, 50 steps
    scripts/bench/unequal.py --source texts.csv --model minilm --steps 30

Both worlds are started by launch.py. Rank 1 is slowed by a CPU quota of a third of a core (cgroup, version 1 or 2, which needs root);
where there is none, it sleeps twice as long as it has computed, before its clock of the step is stopped. Each rank has one thread.

Of each step the bench notes what the ranks tell each other anyway: the seconds that each has computed, without waiting, and its tokens.
  speed alone          tokens/s of a rank computing, with nothing else on the machine: a world of that rank alone, as slow
  share                of the tokens of a step
  compute throughput   tokens of the steps over the seconds of the rank that computed longest in each: what the shares decide
  end to end           tokens of the steps over the time they took, averaging of gradients and optimizer included
The first steps are left out of throughput (--skip).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import record

ROOT = Path(__file__).resolve().parent.parent.parent
NOTES, SLEEPS = "BENCH_UNEQUAL_NOTES", "BENCH_UNEQUAL_SLEEPS"
PERIOD_US = 20_000  # short against a step, so that the quota slows every part of it alike


# the slow rank


def quota_folder() -> Path | None:
    """Where a CPU quota can be had: a new folder of cgroup version 2 or 1; None where it cannot."""
    name = f"bert-unequal-{os.getpid()}"
    for place, file, words in (
        (Path("/sys/fs/cgroup"), "cpu.max", f"{PERIOD_US // 3} {PERIOD_US}"),
        (Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us", f"{PERIOD_US // 3}"),
        (Path("/sys/fs/cgroup/cpu,cpuacct"), "cpu.cfs_quota_us", f"{PERIOD_US // 3}"),
    ):
        folder = place / name
        try:
            folder.mkdir()
        except OSError:
            continue
        if not (folder / file).exists():  # no cgroup is mounted there, or it does not give out the CPU
            folder.rmdir()
            continue
        try:
            if file != "cpu.max":
                (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (folder / file).write_text(words)
            return folder
        except OSError:
            folder.rmdir()
    return None


@contextlib.contextmanager
def quota() -> Iterator[Path | None]:
    folder = quota_folder()
    try:
        yield folder
    finally:
        if folder is not None:
            folder.rmdir()


def slow_down(folder: Path, launcher: subprocess.Popen[bytes]) -> None:
    """Put rank 1 under the quota as soon as it is there, before it has loaded anything."""
    while launcher.poll() is None:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "environ").read_bytes().split(b"\0")
                if f"{NOTES}={os.environ[NOTES]}".encode() in words and b"RANK=1" in words:
                    (folder / "cgroup.procs").write_text(entry.name)
                    return
        time.sleep(0.01)


# the rank: the trainer as it is, with a note of what the ranks tell each other


def rank_main(arguments: list[str]) -> int:
    from bert_train_parallel.training import cli

    rank = os.environ.get("RANK", "0")
    note_messages(rank, os.environ[NOTES])
    if os.environ.get(SLEEPS) == rank:
        sleep_twice_as_long()
    return cli.main(arguments)


def note_messages(rank: str, notes: str) -> None:
    """From now on this process notes what it tells the others of each step, and rank 0 its clock."""
    from bert_train_parallel.training.pace import Pace

    send, receive = Pace.send, Pace.receive

    def note(name: str, what: Any) -> None:
        with open(f"{notes}.{name}", "a") as file:
            file.write(json.dumps(what) + "\n")

    def noting_send(self: Pace, stop: bool, seconds: float, tokens: int, *more: Any) -> None:
        note(rank, [seconds, tokens])
        send(self, stop, seconds, tokens, *more)

    def noting_receive(self: Pace) -> tuple[bool, float]:
        found = receive(self)
        if rank == "0":
            note("clock", found[1])
        return found

    Pace.send, Pace.receive = noting_send, noting_receive


def sleep_twice_as_long() -> None:
    """From now on this process sleeps twice as long as it computes, in a step and when ranks are timed before the first one."""
    from bert_train_parallel.training.data_parallel import DataParallel
    from bert_train_parallel.training.stopwatch import Stopwatch

    start, stop, attempt = Stopwatch.start, Stopwatch.stop, DataParallel._try
    began = 0.0  # of the step; none before the first one

    def noting_start(self: Stopwatch) -> None:
        nonlocal began
        start(self)
        began = time.perf_counter()

    def slow_stop(self: Stopwatch) -> None:
        if began:
            time.sleep(2 * (time.perf_counter() - began))
        stop(self)

    def slow_attempt(self: DataParallel, numbers: Any) -> None:
        before = time.perf_counter()
        attempt(self, numbers)
        time.sleep(2 * (time.perf_counter() - before))

    Stopwatch.start, Stopwatch.stop, DataParallel._try = noting_start, slow_stop, slow_attempt


# the worlds


def run_world(name: str, batch_size: int, steps: int, folder: Path | None, args: argparse.Namespace, work: Path, shares: str) -> list[Any]:
    """Launch a world of two whose rank 1 is slow; what the ranks told each other in each step."""
    notes = work / f"{name}.notes"
    os.environ[NOTES] = str(notes)
    trainer = ["texts.csv", "--model", args.model, "--batch_size", str(batch_size), "--max_steps", str(steps), "--epochs", "1000"]
    trainer += ["--shares", shares, "--threads", "1", "--max_eval_samples", "64", "--run", name, "--no_export", "--dtype", args.dtype]
    command = [sys.executable, str(ROOT / "launch.py"), "--here_gpus", "2", "--device", "cpu", __file__, "--rank", *trainer]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)} | ({} if folder else {SLEEPS: "1"})
    with open(work / f"{name}.txt", "w") as output:
        launcher = subprocess.Popen(command, cwd=work, stdout=output, stderr=subprocess.STDOUT, env=environment)
        if folder is not None:
            slow_down(folder, launcher)
        code = launcher.wait()
    if code:
        sys.exit(f"{' '.join(command)} failed:\n{(work / f'{name}.txt').read_text()[-3000:]}")
    clocks, *told = ([json.loads(line) for line in Path(f"{notes}.{name}").read_text().splitlines()] for name in ("clock", "0", "1"))
    each = [dict(zip(("seconds", "tokens"), zip(*of_step, strict=True), strict=True)) for of_step in zip(*told, strict=True)]
    return [{"clock": clock, **step} for clock, step in zip(clocks, each, strict=False)]  # the last message may be nobody's to receive


def speed(notes: list[Any], rank: int) -> float:
    """Tokens per second of a rank while it computes."""
    return float(sum(note["tokens"][rank] for note in notes) / sum(note["seconds"][rank] for note in notes))


def throughput(notes: list[Any], skip: int) -> tuple[float, float]:
    """Tokens per second of the whole world: while the busiest rank computes, and end to end."""
    counted = notes[skip:]
    tokens = sum(sum(note["tokens"]) for note in counted)
    busiest = sum(max(note["seconds"]) for note in counted)
    passed = notes[-1]["clock"] - notes[skip - 1]["clock"]
    return tokens / busiest, tokens / passed


def figures_of(found: dict[str, list[Any]], skip: int) -> dict[str, Any]:
    """What the notes of the four worlds say."""
    alone = [speed(found["fast alone"][skip:], 0), speed(found["slow alone"][skip:], 1)]
    (auto, auto_end), (equal, equal_end) = (throughput(found[name], skip) for name in ("auto", "equal"))
    first, last = found["auto"][-1]["tokens"]
    return {
        "speeds_alone_tokens_per_s": [round(one) for one in alone],
        "share_at_last_step": round(first / last, 3),
        "compute_tokens_per_s": {"auto": round(auto), "equal": round(equal)},
        "auto_of_sum_of_speeds": round(auto / sum(alone), 3),
        "auto_over_equal": round(auto / equal, 3),
        "end_to_end_tokens_per_s": {"auto": round(auto_end), "equal": round(equal_end)},
        "end_to_end_auto_over_equal": round(auto_end / equal_end, 3),
    }


def main() -> int:
    if sys.argv[1:2] == ["--rank"]:
        return rank_main(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a CSV with the columns text and label (default: the demo's tweets)")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50, help="of the two worlds that are compared (50)")
    parser.add_argument("--alone_steps", type=int, default=20, help="of each rank alone (20)")
    parser.add_argument("--skip", type=int, default=5, help="steps at the begin that are not counted (5)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, quota() as slow:
        work = Path(folder)
        if args.source:
            shutil.copyfile(args.source, work / "texts.csv")
        else:
            subprocess.run([sys.executable, str(ROOT / "scripts" / "demo_text.py"), str(work / "texts.csv")], check=True)
        how = "cgroup quota of a third of a core" if slow else "sleeps twice as long as it computed"
        print(f"rank 1: {how}", flush=True)
        worlds = {  # batches of ranks alone: about what each gets in the world of both
            "fast alone": (args.batch_size * 3 // 4, args.alone_steps, "1,0"),
            "slow alone": (args.batch_size // 4, args.alone_steps, "0,1"),
            "auto": (args.batch_size, args.steps, "auto"),
            "equal": (args.batch_size, args.steps, "equal"),
        }
        found = {}
        for name, (batch_size, steps, shares) in worlds.items():
            found[name] = run_world(name.replace(" ", "-"), batch_size, steps, slow, args, work, shares)
            print(f"{name}: {len(found[name])} steps", flush=True)
    figures = figures_of(found, args.skip)
    print(json.dumps(figures, indent=1))
    settings = {name: getattr(args, name) for name in ("model", "dtype", "batch_size", "steps")}
    record("unequal", {**settings, "slowed_by": how, "load": round(os.getloadavg()[0], 2), **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())

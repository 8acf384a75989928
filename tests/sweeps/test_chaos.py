"""kill -9 of anything at any time, over sweeps of real trainings: the same leaderboard, every trial once, no process left.

`LONG_CHAOS=1` makes it thirty kills over twelve trials, and prints how soon trials went on; CHAOS_SEED draws other kills.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from bert_train_parallel.progress import read_events
from bert_train_parallel.sweeps import lease
from bert_train_parallel.sweeps.cli import main

from .seen import leaderboard, left_over

LONG = bool(os.environ.get("LONG_CHAOS"))
TRIALS, KILLS = (12, 30) if LONG else (3, 4)
KINDS = ("worker", "server", "launcher", "rank", "command", "all")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if LONG else 280)]


def sweep_file(folder: Path, source: Path, model: Path) -> Path:
    tuned = {"model_name": str(model), "dataset_name": str(source), "num_epochs": 3, "batch_size": 8, "use_gpu": False}
    settings = {"checkpoint_every": 4, "log_every": 1, "export": False, "keep_checkpoints": 1}
    content = {
        "experiment_id": "chaos",
        "base": {"fine_tune_config": tuned | {"settings": settings}},
        "space": {"learning_rate": [1e-4, 1e-2], "weight_decay": {"low": 0.0, "high": 0.1}},
        "num_trials": TRIALS,
        "max_concurrency": 2,
        "launch": {"grace_s": 2},
    }
    path = folder / "chaos.json"
    path.write_text(json.dumps(content))
    return path


def start(path: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "bert_train_parallel.sweeps", "run", str(path), "--output_dir", str(folder)]
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": os.getcwd()})


def kind_of(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    if "start-dev" in words:
        return "server"
    if "bert_train_parallel.sweeps worker" in words:
        return "worker"
    if "launching.library" in words:
        return "launcher"
    return "rank" if "bert_train_parallel" in words else ""


def below(process: subprocess.Popen[bytes]) -> dict[str, list[psutil.Process]]:
    """The processes of a sweep by what they are."""
    found: dict[str, list[psutil.Process]] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found.setdefault(kind_of(child), []).append(child)
    return found


@dataclass
class Disturbed:
    """A sweep under kills; `times` says when what was killed."""

    path: Path
    folder: Path
    rng: random.Random
    times: list[tuple[str, float]] = field(default_factory=list)

    def run(self, kills: int) -> None:
        process = start(self.path, self.folder)
        try:
            while process.poll() is None or process.returncode != 0:
                if process.poll() is not None:
                    assert process.returncode == -signal.SIGKILL, self.folder.with_suffix(".log").read_text()[-2000:]
                    process = start(self.path, self.folder)
                self._wait(process, self.rng.uniform(1.0, 6.0))
                if process.poll() is None and len(self.times) < kills:
                    self._kill(process)
        finally:
            process.kill()
            process.wait()

    def _wait(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        kind = self.rng.choice(KINDS)
        known = below(process)
        victims: list[Any] = [process] if kind in ("command", "all") else []
        if kind == "all":
            victims += [one for found in known.values() for one in found]
        elif kind != "command":
            victims = [self.rng.choice(known[kind])] if known.get(kind) else []
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.kill()
        if victims:
            self.times.append((kind, time.time()))
        if kind in ("command", "all"):
            process.wait()


def spans(run: Path) -> Iterator[tuple[int, list[int]]]:
    """For each attempt that trained: the step at which it began, and the steps that it did."""
    begun: tuple[int, list[int]] | None = None
    for event in read_events(next(run.glob("*_progress.jsonl"))):
        if event.kind in ("start", "resume"):
            if begun:
                yield begun
            begun = (event.step, [])
        elif event.kind == "step" and begun:
            begun[1].append(event.step)
    if begun:
        yield begun


def check_steps(run: Path, planned: int) -> int:
    """Steps trained over all attempts, less those that were trained again, are the steps planned; gives what was trained again."""
    trained = again = reached = 0
    for first, steps in spans(run):
        assert first <= reached, f"{run}: an attempt began at step {first}, and only {reached} were done"
        assert steps == list(range(first + 1, first + 1 + len(steps))), f"{run}: two attempts wrote at a time"
        trained += len(steps)
        again += reached - first
        reached = first + len(steps)
    assert reached == planned
    assert trained - again == planned
    return again


def test_a_sweep_under_kills_finds_what_an_undisturbed_one_finds(tiny_model: Path, write_csv: Callable[..., Path], tmp_path: Path) -> None:
    path = sweep_file(tmp_path, write_csv(120), tiny_model)
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    began = time.monotonic()
    process = start(path, calm)
    assert process.wait(600) == 0, calm.with_suffix(".log").read_text()[-3000:]
    calm_s = time.monotonic() - began
    disturbed = Disturbed(path, rough, random.Random(int(os.environ.get("CHAOS_SEED", "1"))))
    disturbed.run(KILLS)
    assert disturbed.times, "the sweep was over before anything was killed"
    assert leaderboard(rough / "chaos") == leaderboard(calm / "chaos")
    again = 0
    for row in leaderboard(rough / "chaos"):
        again += check_steps(rough / "bert_runs" / row["run_id"], int(row["steps"]))
        one, other = ((folder / "bert_runs" / row["run_id"]) for folder in (calm, rough))
        assert next(one.glob("*_predictions.csv")).read_bytes() == next(other.glob("*_predictions.csv")).read_bytes()
    deadline = time.monotonic() + 15
    while left_over(rough) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left_over(rough) == []
    Path(json.loads(path.read_text())["base"]["fine_tune_config"]["dataset_name"]).unlink()
    assert main(["rerun", "chaos", "0", "--output_dir", str(rough)]) == 0  # the same predictions, from history and snapshot alone
    if LONG:
        report(disturbed, calm_s, time.monotonic() - began - calm_s, again)


def report(disturbed: Disturbed, calm_s: float, rough_s: float, again: int) -> None:
    """What a run of the long version measured."""
    waits: list[float] = []
    begun = sorted(one.began for run in (disturbed.folder / "bert_runs").iterdir() for one in lease.attempts(run) if one.began)
    for kind, at in disturbed.times:
        later = [began - at for began in begun if began > at]
        if kind == "worker" and later:
            waits.append(later[0])
    kinds = {kind: sum(kind == one for one, _ in disturbed.times) for kind in KINDS}
    print(f"\n{len(disturbed.times)} kills {kinds}; {calm_s:.0f} s undisturbed, {rough_s:.0f} s under kills; {again} steps trained again")
    print("from the kill of a worker to the next attempt's start:", ", ".join(f"{wait:.1f} s" for wait in sorted(waits)))

"""kill -9 of anything at any time, over sweeps of real trainings: the same leaderboard, every trial once, no process left.

`LONG_CHAOS=1` makes it thirty kills over twelve trials, and prints and bounds how soon trials went on; CHAOS_SEED draws other kills.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
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
from bert_train_parallel.sweeps.launches import Tail
from bert_train_parallel.sweeps.training import HEARTBEAT

from .seen import leaderboard, left_over

LONG = bool(os.environ.get("LONG_CHAOS"))
TRIALS, KILLS = (12, 30) if LONG else (3, 4)
ROWS, EPOCHS = (300, 6) if LONG else (120, 3)
MOMENT_S = 1.0 if LONG else 0.2  # after a step that a kill has waited for, at most
KINDS = ("worker", "server", "launcher", "rank", "command", "all")
PROGRESS = "bert_runs/*/*_progress.jsonl"
AGAIN_S = HEARTBEAT.total_seconds() + 2  # from a kill to the next attempt's start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if LONG else 280)]


def sweep_file(folder: Path, source: Path, model: Path) -> Path:
    tuned = {"model_name": str(model), "dataset_name": str(source), "num_epochs": EPOCHS, "batch_size": 8, "use_gpu": False}
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


def runs_of(process: psutil.Process) -> set[str]:
    """The runs that a process, and all below it, train."""
    found: set[str] = set()
    with contextlib.suppress(psutil.Error):
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                found |= set(re.findall(r"/bert_runs/([^/ ]+)/settings", " ".join(one.cmdline())))
    return found


@dataclass(frozen=True)
class Kill:
    """What was killed when, after which event of a training, and the trainings that ended with it."""

    kind: str
    at: float  # seconds since 1970
    after: str  # empty: at a random time
    interrupted: tuple[str, ...]


@dataclass
class Disturbed:
    """A sweep under kills: two of three wait until a training is in mid course, the third comes at a random time."""

    path: Path
    folder: Path
    rng: random.Random
    kills: list[Kill] = field(default_factory=list)

    def run(self, kills: int) -> None:
        process = start(self.path, self.folder)
        try:
            while process.poll() is None or process.returncode != 0:
                if process.poll() is not None:
                    assert process.returncode == -signal.SIGKILL, self.folder.with_suffix(".log").read_text()[-2000:]
                    process = start(self.path, self.folder)
                if len(self.kills) == kills or len(self.kills) % 3 == 2:
                    after = self._wait(process, self.rng.uniform(1.0, 6.0))
                else:
                    after = self._wait_for_a_step(process)
                if process.poll() is None and len(self.kills) < kills:
                    self._kill(process, after)
        finally:
            process.kill()
            process.wait()

    def _wait(self, process: subprocess.Popen[bytes], seconds: float) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return ""

    def _wait_for_a_step(self, process: subprocess.Popen[bytes]) -> str:
        """Until all that was interrupted has begun again, and a training has done a step, and a moment longer; says which one."""
        deadline = time.monotonic() + 60
        tails = {path: Tail(path) for path in self.folder.glob(PROGRESS)}
        for tail in tails.values():
            tail.read()
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
            for path in self.folder.glob(PROGRESS):
                steps = [event.step for event in tails.setdefault(path, Tail(path)).read() if event.kind == "step"]
                if steps and not self._has_to_begin_again():
                    time.sleep(self.rng.uniform(0.0, MOMENT_S))
                    return f"{path.parent.name} step {steps[-1]}"
        return ""

    def _has_to_begin_again(self) -> bool:
        runs = {run: kill.at for kill in self.kills for run in kill.interrupted}
        return any(next_start(self.folder, run, at) is None and not is_finished(self.folder, run) for run, at in runs.items())

    def _kill(self, process: subprocess.Popen[bytes], after: str) -> None:
        kind = self.rng.choice(KINDS)
        known = below(process)
        victims: list[Any] = [process] if kind in ("command", "all") else []
        if kind == "all":
            victims += [one for found in known.values() for one in found]
        elif kind != "command":
            found = known.get(kind, [])
            of_this_training = [one for one in found if after.partition(" ")[0] in runs_of(one)] if kind in ("launcher", "rank") else []
            victims = [self.rng.choice(of_this_training or found)] if found else []
        ended = {"server": [], "launcher": victims, "rank": victims}.get(kind, known.get("rank", []))
        interrupted = {run for one in ended for run in runs_of(one)}
        at = time.time()
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.kill()
        if victims:
            self.kills.append(Kill(kind, at, after, tuple(sorted(interrupted))))
        if kind in ("command", "all"):
            process.wait()


def is_finished(folder: Path, run: str) -> bool:
    return any((folder / "bert_runs" / run).glob("*_RESULT.json"))


def next_start(folder: Path, run: str, at: float) -> float | None:
    """When the first attempt after a moment began."""
    return min((one.began for one in lease.attempts(folder / "bert_runs" / run) if one.began > at), default=None)


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
    path = sweep_file(tmp_path, write_csv(ROWS), tiny_model)
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    began = time.monotonic()
    process = start(path, calm)
    assert process.wait(600) == 0, calm.with_suffix(".log").read_text()[-3000:]
    calm_s = time.monotonic() - began
    disturbed = Disturbed(path, rough, random.Random(int(os.environ.get("CHAOS_SEED", "1"))))
    disturbed.run(KILLS)
    rough_s = time.monotonic() - began - calm_s
    assert len(disturbed.kills) >= (KILLS if LONG else 1), "the sweep was over before all kills"
    assert 2 * sum(bool(kill.after) for kill in disturbed.kills) >= len(disturbed.kills), disturbed.kills
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
    report(disturbed, calm_s, rough_s, again)
    if LONG:
        assert max(seconds for seconds, _ in waits_of(disturbed).values()) <= AGAIN_S


def waits_of(disturbed: Disturbed) -> dict[tuple[Kill, str], tuple[float, int]]:
    """For each kill and training that ended with it: seconds to its next start from the last kill before that, and that one's number."""
    found = {}
    for kill in disturbed.kills:
        for run in kill.interrupted:
            begun = next_start(disturbed.folder, run, kill.at)
            if begun is not None:
                last = max(number for number, other in enumerate(disturbed.kills) if other.at < begun)
                found[kill, run] = begun - disturbed.kills[last].at, last + 1
    return found


def report(disturbed: Disturbed, calm_s: float, rough_s: float, again: int) -> None:
    """What was measured: a long version has enough of it to say something."""
    waits = waits_of(disturbed)
    longest = max((seconds for seconds, _ in waits.values()), default=0.0)
    kinds = {kind: sum(kind == kill.kind for kill in disturbed.kills) for kind in KINDS}
    print(f"\n{len(disturbed.kills)} kills {kinds}, {sum(bool(kill.after) for kill in disturbed.kills)} of them after a step of a training")
    print(f"{calm_s:.0f} s undisturbed, {rough_s:.0f} s under kills; {again} steps trained again")
    print(f"{len(waits)} times from a kill to the next attempt's start, at most {longest:.1f} s (bound {AGAIN_S:g} s):")
    for number, kill in enumerate(disturbed.kills, 1):
        shown = []
        for run in kill.interrupted:
            seconds, last = waits.get((kill, run), (0.0, 0))
            since = f" after kill {last}, which came first" if last != number else ""
            shown.append(f"{run} {seconds:.1f} s{since}" if last else f"{run} had finished")
        print(f"{number:3} {kill.kind:8} {kill.after or 'at a random time':24} {', '.join(shown) or 'no training ended'}")

#!/usr/bin/env python3
"""What a sweep costs beside its trainings: trials that do nothing, through a real embedded server with a history file.

    scripts/bench/sweep_throughput.py                    # all parts: 3 rounds of 1,000 trials, 20 launches, 20 seeds
    scripts/bench/sweep_throughput.py trials --count 10000 --rounds 1
    scripts/bench/sweep_throughput.py children | launches | cancel | tpe

trials      no-op trials as activities of the sweep, as `bert_sweep` runs them; and the worker's memory
children    the same number of trials as child workflows, the shape that a sweep does not have
launches    a trial that is a launch of a program that does nothing, alone and one after the other in a sweep on the server,
            beside the bare launch of the same
cancel      from asking a sweep to stop until the last process of a trial is gone that does not hear SIGTERM
tpe         60 proposals of TPE against 60 draws on a known quadratic
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from common import record
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps import trial as trial_module
from bert_train_parallel.sweeps.activities import Activities
from bert_train_parallel.sweeps.draw import draw_random
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.server import EmbeddedServer, connect_when_ready
from bert_train_parallel.sweeps.space import SweepSpace
from bert_train_parallel.sweeps.suggest import propose
from bert_train_parallel.sweeps.trials import Trials
from bert_train_parallel.sweeps.workflows import CheckpointedBertTrainingWorkflow, SweepWorkflow

HEARTBEAT = timedelta(seconds=1)  # as bert_sweep's own workers
CONFIG = m.BertFineTuneConfig(dataset_name="leanings.csv", use_gpu=False)
SNAPSHOT = m.DatasetSnapshotResult(
    snapshot_id="s",
    dataset_name="s",
    num_train_samples=1,
    data_hash="0",
    snapshot_timestamp="",
    snapshot_path="s",
    files={"train": "s.csv"},
)


@activity.defn(name="fine_tune_bert")
async def no_op(request: m.BertFineTuneRequest) -> m.BertFineTuneResult:
    return m.BertFineTuneResult(run_id=request.run_id, config=request.config, score=0.5, eval_metrics={"accuracy": 0.5})


@activity.defn(name="check_dataset_snapshot")
async def no_check(snapshot: m.DatasetSnapshotResult) -> None:
    return None


@activity.defn(name="export_sweep")
async def no_export(request: m.ExportRequest) -> str:
    return ""


@workflow.defn(name="ChildrenWorkflow", sandboxed=False)
class ChildrenWorkflow:
    """One child workflow for each trial, eight at a time."""

    @workflow.run
    async def run(self, count: int) -> int:
        room = asyncio.Semaphore(8)

        async def one(number: int) -> None:
            async with room:
                request = m.BertFineTuneRequest(run_id=f"c{number}", config=CONFIG, dataset_snapshot=SNAPSHOT)
                place = f"{workflow.info().workflow_id}/{number}"
                await workflow.execute_child_workflow(CheckpointedBertTrainingWorkflow.run, request, id=place, task_queue=m.TRAINING_QUEUE)

        await asyncio.gather(*(one(number) for number in range(count)))
        return count


async def served(body: Callable[[Client], Awaitable[float]], trains: bool = False) -> float:
    """Run something beside a server and its workers; trials do nothing unless they are to be launches of PRETEND."""
    with tempfile.TemporaryDirectory() as place:
        server = EmbeddedServer(Path(place))
        try:
            client = await connect_when_ready(server)
            activities = Activities(SharedFolder(Path(place)))
            train = activities.fine_tune_bert if trains else no_op
            put_data(Path(place))
            short = [activities.record_trials, activities.clean_up, no_check, no_export]
            async with (
                Worker(client, task_queue=m.EVAL_QUEUE, workflows=[SweepWorkflow, ChildrenWorkflow], activities=short),
                Worker(
                    client,
                    task_queue=m.TRAINING_QUEUE,
                    workflows=[CheckpointedBertTrainingWorkflow],
                    activities=[train],
                    max_heartbeat_throttle_interval=HEARTBEAT,
                    default_heartbeat_throttle_interval=HEARTBEAT,
                ),
            ):
                return await body(client)
        finally:
            server.stop()


def put_data(folder: Path) -> None:
    """What SNAPSHOT says is there."""
    (folder / "s").mkdir()
    (folder / "s" / "s.csv").write_text("text,label\n")


def request_of(count: int, **changes: Any) -> m.SweepRequest:
    base = {"fine_tune_config": CONFIG.model_dump(), "dataset_snapshot": SNAPSHOT.model_dump()}
    given = {"experiment_id": "bench", "base": base, "num_trials": count, "max_concurrency": 8, "metric": "accuracy"}
    return m.SweepRequest.model_validate(given | changes)


def sweep_of(count: int) -> Callable[[Client], Awaitable[float]]:
    request = request_of(count)

    async def body(client: Client) -> float:
        began = time.perf_counter()
        handle = await client.start_workflow(SweepWorkflow.run, request, id=f"bench-{uuid.uuid4()}", task_queue=m.EVAL_QUEUE)
        result = await handle.result()
        assert result.trials == count, result
        return count / (time.perf_counter() - began)

    return body


def children_of(count: int) -> Callable[[Client], Awaitable[float]]:
    async def body(client: Client) -> float:
        began = time.perf_counter()
        await client.execute_workflow(ChildrenWorkflow.run, count, id=f"bench-{uuid.uuid4()}", task_queue=m.EVAL_QUEUE)
        return count / (time.perf_counter() - began)

    return body


def bench_trials(count: int, rounds: int) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rates = [asyncio.run(served(sweep_of(count))) for _ in range(rounds)]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count} no-op trials as activities: median {statistics.median(rates):.1f} /s; peak memory {before:.0f} -> {after:.0f} MiB")
    return {"trials_per_s": statistics.median(rates), "rounds": rates, "count": count, "memory_mib": after}


def bench_children(count: int, rounds: int) -> dict[str, Any]:
    rates = [asyncio.run(served(children_of(count))) for _ in range(rounds)]
    print(f"{count} no-op trials as child workflows: median {statistics.median(rates):.1f} /s")
    return {"children_per_s": statistics.median(rates), "rounds": rates, "count": count}


GRACE_S = 1.0


async def stop_in_training(client: Client) -> float:
    """Seconds from asking a sweep of one trial to end at once, until no process of the trial is left."""
    request = request_of(1, launch={"grace_s": GRACE_S})
    handle = await client.start_workflow(SweepWorkflow.run, request, id=f"bench-{uuid.uuid4()}", task_queue=m.EVAL_QUEUE)
    while not trainers():
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    began = time.perf_counter()
    await handle.execute_update("stop", True)
    while trainers():
        await asyncio.sleep(0.02)
    seconds = time.perf_counter() - began
    await handle.result()
    return seconds


def trainers() -> list[psutil.Process]:
    """Processes that train, or pretend to, below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if str(PRETEND) in process.cmdline() and "--preponly" not in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def bench_cancel(rounds: int) -> dict[str, Any]:
    trial_module.TRAINER = (sys.executable, str(PRETEND))  # type: ignore[assignment]
    os.environ |= {"PRETEND_STEPS": "100000", "PRETEND_STEP_S": "0.05", "PRETEND_DEAF": "1"}
    seconds = [asyncio.run(served(stop_in_training, trains=True)) for _ in range(rounds)]
    print(f"from stop to the last process gone, grace {GRACE_S:g} s: median {statistics.median(seconds):.2f} s, most {max(seconds):.2f} s")
    return {"grace_s": GRACE_S, "gone_s": statistics.median(seconds), "gone_most_s": max(seconds), "rounds": rounds}


PRETEND = Path(__file__).resolve().parents[2] / "tests" / "sweeps" / "pretend_trainer.py"


def launches_of(count: int) -> Callable[[Client], Awaitable[float]]:
    """Seconds of each trial of a sweep, from its start to its end, where trials follow one another."""

    async def body(client: Client) -> float:
        request = request_of(count, max_concurrency=1)
        began = time.perf_counter()
        result = await client.execute_workflow(SweepWorkflow.run, request, id=f"bench-{uuid.uuid4()}", task_queue=m.EVAL_QUEUE)
        seconds = (time.perf_counter() - began) / count
        assert result.trials == result.states.get("finished") == count, result
        return seconds

    return body


def bench_launches(rounds: int) -> dict[str, Any]:
    """The same program by launch.py and as a trial, in turns; then as the trials of sweeps."""
    trial_module.TRAINER = (sys.executable, str(PRETEND))  # type: ignore[assignment]
    bare, as_trial = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = SharedFolder(Path(place))
        put_data(folder.root)
        own = Trials(folder, "bench")
        for number in range(rounds + 1):
            work = folder.root / f"bare{number}"
            work.mkdir()
            (work / "settings.json").write_text('{"learning_rate": 0.1}')
            command = [
                sys.executable,
                "-m",
                "bert_train_parallel.launching",
                "-q",
                "--device",
                "cpu",
                str(PRETEND),
                "s.csv",
                "--config",
                "settings.json",
            ]
            began = time.perf_counter()
            subprocess.run(command, cwd=work, check=True, capture_output=True)
            bare.append(time.perf_counter() - began)
            config = CONFIG.with_values({"learning_rate": 0.001 * (number + 1)}).model_copy(update={"use_gpu": False})
            request = m.BertFineTuneRequest(run_id=f"t{number}", config=config, dataset_snapshot=SNAPSHOT)
            began = time.perf_counter()
            asyncio.run(own.run(request, lambda progress: None))
            as_trial.append(time.perf_counter() - began)
    of_sweep = [asyncio.run(served(launches_of(rounds), trains=True)) for _ in range(3)]
    alone, trial, swept = statistics.median(bare[1:]), statistics.median(as_trial[1:]), statistics.median(of_sweep)
    print(f"a launch {alone:.2f} s; as a trial {trial - alone:.2f} s more; as one of a sweep, with the server, {swept - alone:.2f} s more")
    return {"bare_s": alone, "trial_s": trial, "added_s": trial - alone, "sweep_s": swept, "added_by_sweep_s": swept - alone}


def bench_tpe(seeds: int) -> dict[str, Any]:
    space = SweepSpace(
        learning_rate=(1e-6, 1e-2),
        dropout={"low": 0.0, "high": 0.9},
        warmup={"low": 0.0, "high": 1.0},
        weight_decay={"low": 0.0, "high": 1.0},
        batch_size={"low": 1, "high": 64},
    )

    def hill(values: dict[str, Any]) -> float:
        bowl = (math.log10(values["learning_rate"]) + 4) ** 2 / 4 + ((values["batch_size"] - 32) / 32) ** 2
        bowl += 4 * (values["dropout"] - 0.3) ** 2 + 4 * (values["warmup"] - 0.6) ** 2 + 4 * (values["weight_decay"] - 0.2) ** 2
        return -bowl

    won = 0
    for seed in range(seeds):
        known: list[m.TrialResult] = []
        for number in range(60):  # four at a time: the last three are not known yet
            values = propose(space, known[: max(0, number - 3)], [one.values for one in known[-3:]], seed=seed, number=number)[0]
            known.append(m.TrialResult(number=number, run_id="t", values=values, score=hill(values)))
        best = max(one.score for one in known if one.score is not None)
        won += best > max(hill(draw_random(space, seed, number)) for number in range(60))
    print(f"60 proposals of TPE beat 60 draws in {won} of {seeds} seeds")
    return {"won": won, "seeds": seeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("trials", "children", "launches", "cancel", "tpe"))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "trials": lambda: bench_trials(arguments.count, arguments.rounds),
        "children": lambda: bench_children(max(arguments.count // 10, 20), arguments.rounds),
        "launches": lambda: bench_launches(20),
        "tpe": lambda: bench_tpe(20),
        "cancel": lambda: bench_cancel(arguments.rounds),
    }
    for name, part in parts.items():
        if arguments.part in (None, name):
            record(f"sweep_{name}", part())


if __name__ == "__main__":
    main()

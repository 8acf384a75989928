"""Nodes with unequal GPUs: workers as processes, each with an NVML of its own, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_nvml
import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from bert_train_parallel.errors import BadSetting
from bert_train_parallel.sweeps import fleet, lease, reservations, run, status, watching
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.activities import Activities
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.server import connect
from bert_train_parallel.sweeps.snapshots import take_snapshot

Ask = Callable[..., m.SweepRequest]


class Workers:
    """Workers of nodes that share a folder, each a process with as many GPUs as it is told to have."""

    def __init__(self, address: str, place: Path, namespace: str) -> None:
        self._address, self._place, self._namespace = address, place, namespace
        self._processes: list[subprocess.Popen[bytes]] = []
        self.folder = place / "shared"
        self.folder.mkdir()

    def start(self, host: str, gpus: int, *queues: str, folder: Path | None = None) -> subprocess.Popen[bytes]:
        own = self._place / host
        own.mkdir()
        seen = [{"uuid": f"GPU-{host}-{number}", "bus": f"00000000:0{number}:00.0", "used": 0, "busy": 0} for number in range(gpus)]
        command = [sys.executable, str(Path(__file__).with_name("pretend_worker.py")), "worker", "--host", host, "--address", self._address]
        command += ["--namespace", self._namespace, "--output_dir", str(folder or self.folder)]
        command += [word for queue in queues or ("node",) for word in ("--queue", queue)]
        with open(own / "log", "wb") as log:
            environment = {**os.environ, **fake_nvml.install(own, seen)}
            environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
            self._processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return self._processes[-1]

    def end(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(30)


@pytest.fixture
def workers(server: str, tmp_path: Path) -> Iterator[Workers]:
    """In a namespace of their own, since the queues have the same names in every test."""
    namespace = f"fleet-{uuid.uuid4().hex[:8]}"

    async def make_namespace() -> None:
        from google.protobuf.duration_pb2 import Duration
        from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
        from temporalio.service import RPCError

        client = await connect(server)
        kept = Duration(seconds=24 * 3600)
        await client.workflow_service.register_namespace(
            RegisterNamespaceRequest(namespace=namespace, workflow_execution_retention_period=kept)
        )
        own = await connect(server, namespace)
        while True:  # a new namespace is not known everywhere at once
            with contextlib.suppress(RPCError):
                await fleet.nodes(own)
                return
            await asyncio.sleep(0.2)

    asyncio.run(asyncio.wait_for(make_namespace(), 60))
    made = Workers(server, tmp_path, namespace)
    yield made
    made.end()


@pytest.fixture
def ask(workers: Workers) -> Ask:
    (workers.folder / "leanings.csv").write_text("text,label\nfine,good\n")
    snapshot = take_snapshot(
        m.DatasetSnapshotRequest(run_id="mine", dataset_name=str(workers.folder / "leanings.csv")), SharedFolder(workers.folder)
    )

    def asked(**changes: Any) -> m.SweepRequest:
        base = {"fine_tune_config": {"dataset_name": "leanings.csv"}, "dataset_snapshot": snapshot.model_dump()}
        given: dict[str, Any] = {
            "experiment_id": "mine",
            "base": base,
            "space": {"learning_rate": [1e-3, 1e-2]},
            "num_trials": 3,
            "max_concurrency": 3,
        }
        given["metric"] = "accuracy"  # a pretended store does not say of which task it is
        return m.SweepRequest.model_validate(given | {"launch": {"here_gpus": 2, "grace_s": 1}} | changes)

    return asked


async def seen(workers: Workers, server: str, words: str) -> None:
    """Wait until `status` says so."""
    client = await connect(server, workers._namespace)
    deadline = time.monotonic() + 60
    while True:
        text = " ".join("\n".join(status.views.lines_of(await watching.look(client, "mine"), 400)).split())
        if words in text:
            return
        assert time.monotonic() < deadline, text
        await asyncio.sleep(0.2)


def test_a_trial_is_given_to_no_node_with_too_few_gpus_and_the_sweep_says_what_it_waits_for(
    workers: Workers, server: str, ask: Ask
) -> None:
    async def go() -> m.SweepResult:
        client = await connect(server, workers._namespace)
        await run.start(client, ask())
        workers.start("alpha", 1, "eval", "node")
        await seen(
            workers,
            server,
            "no node has the 2 GPUs that launch.here_gpus asks for (alpha has 1 GPU): type bert_sweep worker --queue node on one that "
            "has, or bert_sweep stop mine, and start another sweep with here_gpus 1",
        )
        workers.start("beta", 3)
        result: m.SweepResult = await watching.sweep_handle(client, "mine").result()
        assert await fleet.nodes(client) == {"alpha": 1, "beta": 3}
        async for event in watching.sweep_handle(client, "mine").fetch_history_events():  # alpha has not even turned one down
            assert event.activity_task_started_event_attributes.attempt <= 1
        return result

    result = asyncio.run(asyncio.wait_for(go(), 200))
    assert result.states == {"finished": 3}
    for number in range(3):
        (attempt,) = lease.attempts(workers.folder / "bert_runs" / f"mine-t{number:04d}")  # it cost no attempt either
        assert attempt.worker.startswith("beta/")


def test_a_node_that_has_too_few_gpus_for_what_it_was_given_spends_no_attempt_and_leaves_it_to_others(
    workers: Workers, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a sweep asks that began when no node had GPUs, or under an earlier version: at the queue that every node reads."""
    monkeypatch.setattr(reservations, "count_here", lambda: 1)
    request, folder = ask(), SharedFolder(workers.folder)
    base = request.base
    asked = m.BertFineTuneRequest(
        run_id="mine", config=base.fine_tune_config, dataset_snapshot=base.dataset_snapshot, launch=request.launch
    )
    with pytest.raises(ApplicationError, match=r"launch\.here_gpus 2, and this machine has 1 GPU") as error:
        asyncio.run(ActivityEnvironment().run(Activities(folder).fine_tune_bert, asked))
    assert (error.value.type, error.value.non_retryable) == ("TooFewGpus", False)
    assert lease.attempts(folder.run("mine")) == []


def test_a_node_with_another_folder_burns_no_trial_and_is_named_until_a_good_one_comes(workers: Workers, server: str, ask: Ask) -> None:
    async def go() -> m.SweepResult:
        client = await connect(server, workers._namespace)
        await run.start(client, ask(launch={"grace_s": 1}))
        workers.start("alpha", 0, "node", folder=workers.folder.parent / "elsewhere")
        workers.start("gamma", 0, "eval")
        await seen(workers, server, "runs no trial of this sweep: ")
        await seen(workers, server, "waiting for a node with the sweep's folder")
        workers.start("beta", 0)
        result: m.SweepResult = await watching.sweep_handle(client, "mine").result()
        return result

    result = asyncio.run(asyncio.wait_for(go(), 200))
    assert result.states == {"finished": 3}
    for number in range(3):
        (attempt,) = lease.attempts(workers.folder / "bert_runs" / f"mine-t{number:04d}")
        assert attempt.worker.startswith("beta/")
    assert "runs no trial of this sweep" in (workers.folder.parent / "alpha" / "log").read_text()


def test_a_worker_that_is_asked_to_end_asks_its_trials_at_once_and_they_go_on_elsewhere(
    workers: Workers, server: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_STEPS", "60")
    monkeypatch.setenv("PRETEND_STEP_S", "0.1")  # 6 s in all: a worker that let it finish would finish it
    trial = workers.folder / "bert_runs" / "mine-t0000"

    async def go() -> m.SweepResult:
        client = await connect(server, workers._namespace)
        await run.start(client, ask(launch={"grace_s": 1}, num_trials=1))
        workers.start("gamma", 0, "eval")
        alpha = workers.start("alpha", 0, "node")
        while not any(attempt.last_step > 2 for attempt in lease.attempts(trial)):
            await asyncio.sleep(0.1)
        alpha.terminate()
        assert await asyncio.to_thread(alpha.wait, 30) == 0
        workers.start("beta", 0)
        result: m.SweepResult = await watching.sweep_handle(client, "mine").result()
        return result

    result = asyncio.run(asyncio.wait_for(go(), 200))
    assert result.states == {"finished": 1}
    first, second = lease.attempts(trial)
    assert (first.outcome, second.outcome, second.worker.split("/")[0]) == ("cancelled", "finished", "beta")
    assert second.first_step >= first.saved_step > 0


def test_run_says_at_once_that_this_machine_has_too_few_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reservations, "count_here", lambda: 1)
    content: dict[str, Any] = {"base": {"fine_tune_config": {"dataset_name": "leanings.csv"}}, "launch": {"here_gpus": 2}}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BadSetting, match=r"launch.here_gpus 2, and this machine has 1 GPU to use. Write 1 or less, or run the sweep on"):
        run.run(path, tmp_path / "out")
    content["launch"] = {"gpu_map": {"alpha": 2}}
    path.write_text(json.dumps(content))
    with pytest.raises(BadSetting, match="bert_sweep worker --queue node --host NAME on each node"):
        run.run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("launch", "nodes", "words"),
    [
        ({"here_gpus": 2}, {"alpha": 1, "beta": 0}, "asks for (alpha has 1 GPU, beta has 0 GPUs)"),
        ({"here_gpus": 1}, {"beta": 0}, "start another sweep with use_gpu false"),
        ({"here_gpus": 1}, {}, "no worker that runs trials is up: type bert_sweep worker"),
        ({"gpu_map": {"alpha": 2, "gamma": 1}}, {"alpha": 1}, "alpha, of which it asks 2 GPUs, has 1; no worker of gamma is up"),
        ({"gpu_map": {"alpha": 2}}, {"alpha": 0}, ""),  # processes on its CPU
        ({"here_gpus": 2}, {"alpha": 1, "beta": 2}, ""),
    ],
)
def test_what_trials_wait_for_is_one_sentence_with_what_to_type(launch: dict[str, Any], nodes: dict[str, int], words: str) -> None:
    said = fleet.shortage(m.LaunchSettings.model_validate(launch), True, nodes, "mine")
    assert words in said
    assert bool(words) == bool(said)


def test_a_map_of_one_node_gives_the_number_of_processes() -> None:
    assert m.LaunchSettings(gpu_map={"alpha": 2}).on_one_node == 2
    assert m.LaunchSettings(here_gpus=3).on_one_node == 3

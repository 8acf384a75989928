"""The embedded server of a folder, and which server a command means."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps import run
from bert_train_parallel.sweeps.cli import main
from bert_train_parallel.sweeps.requests import read_configurations
from bert_train_parallel.sweeps.server import EmbeddedServer, connect_when_ready, read_address
from bert_train_parallel.sweeps.workflows import CoordinatorWorkflow

from .simulated import sweep

BASE = {"fine_tune_config": {"dataset_name": "leanings.csv", "use_gpu": False}}


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedServer]:
    """A folder's server, in an environment that names another one, with TLS and a key."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("TEMPORAL_NAMESPACE", "elsewhere")
    monkeypatch.setenv("TEMPORAL_TLS", "true")
    monkeypatch.setenv("TEMPORAL_API_KEY", "secret")
    server = EmbeddedServer(tmp_path / "out")
    try:
        yield server
    finally:
        server.stop()


def test_a_folders_server_is_reached_without_tls_and_key_and_keeps_its_histories(
    embedded: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest

    async def kept_s() -> int:
        client = await connect_when_ready(embedded)
        found = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace="default"))
        return int(found.config.workflow_execution_retention_ttl.seconds)

    assert asyncio.run(kept_s()) > 365 * 24 * 3600
    address = read_address(tmp_path / "out")
    assert address
    out = ["--output_dir", str(tmp_path / "out")]
    for named in ([], ["--address", address.grpc]):
        assert main(["pause", "nobody", *out, *named]) == 2
        assert "There is no sweep nobody that runs on this server" in capsys.readouterr().err
    assert main(["pause", "nobody", "--output_dir", str(tmp_path / "elsewhere")]) == 2
    assert "No Temporal server answers at 127.0.0.1:9" in capsys.readouterr().err  # where the folder has none, the environment's
    embedded.stop()
    assert main(["pause", "nobody", *out]) == 2
    assert "No Temporal server answers at 127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TEMPORAL_CONFIG_FILE", "bad.toml"),
        ("TEMPORAL_PROFILE", "nosuch"),
        ("TEMPORAL_TLS_CLIENT_CERT_PATH", "nowhere.pem"),
    ],
)
def test_what_cannot_be_read_of_temporals_environment_is_one_line_that_names_the_variable(
    name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text("this is [not toml")
    monkeypatch.setenv("TEMPORAL_API_KEY", "secret")
    monkeypatch.setenv(name, value)
    assert main(["pause", "mine"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{name} {value}: " in said
    assert "secret" not in said


def test_a_second_sweep_is_told_that_it_shares_its_cores(embedded: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "count_here", lambda: 0)

    async def go() -> list[list[str]]:
        client = await connect_when_ready(embedded)
        notes = []
        for request in (sweep(experiment_id="one"), sweep(experiment_id="two")):
            await run.start(client, request)
            notes.append(await run.notes_on_others(client, request, 1))
        for _ in range(50):  # what runs is listed a moment after its start
            if notes[-1]:
                break
            await asyncio.sleep(0.1)
            notes[-1] = await run.notes_on_others(client, sweep(experiment_id="two"), 1)
        return notes

    first, second = asyncio.run(go())
    assert first == []
    assert len(second) == 1
    assert second[0].startswith("one is under way in this folder too: each trial here takes 1 of the ")


def test_a_sweep_is_handed_over_once_waits_for_a_worker_and_its_name_is_not_given_to_another(
    embedded: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(connect_when_ready(embedded))
    path, out = tmp_path / "mine.json", ["--output_dir", str(tmp_path / "out")]

    def start(**changes: Any) -> int:
        path.write_text(json.dumps({"base": BASE, **changes}))
        return main(["start", str(path), *out])

    assert start() == 0
    assert "mine is started; bert_sweep watch mine" in capsys.readouterr().out
    assert (tmp_path / "out" / "mine" / "request.json").is_file()  # by which status knows it
    assert start() == 0
    assert "mine is already running" in capsys.readouterr().out
    for words in (["pause", "mine"], ["status", "mine"], ["export", "mine"]):  # nobody serves it
        began = time.monotonic()
        assert main([*words, *out]) == 2
        assert "No worker answers for mine" in capsys.readouterr().err
        assert time.monotonic() - began < 8
    assert start(seed=7) == 2
    assert "seed (was 42, is now 7)" in capsys.readouterr().err
    (tmp_path / "out" / "mine" / "request.json").unlink()
    assert start(seed=7) == 2
    assert "The server has another sweep of this name, which differs in seed (was 42, is now 7)" in capsys.readouterr().err


def test_configurations_under_way_are_not_taken_for_those_of_an_edited_file(
    embedded: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "leanings.csv").write_text("text,label\na,b\n")
    path = tmp_path / "runs.json"

    def write(**changes: Any) -> None:
        path.write_text(json.dumps({"configs": [{"run_id": "mine", "fine_tune_config": BASE["fine_tune_config"] | changes}]}))

    write()

    async def begin() -> None:
        client = await connect_when_ready(embedded)
        given = read_configurations(path)
        await client.start_workflow(CoordinatorWorkflow.run, given, id="bert-coordinate-runs", task_queue=m.EVAL_QUEUE)

    asyncio.run(begin())
    write(learning_rate=0.25)
    assert main(["coordinate", str(path), "--output_dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "configs.0.fine_tune_config.learning_rate (was 5e-05, is now 0.25)" in said
    assert "give the new file another name" in said
    assert said.count("\n") == 1

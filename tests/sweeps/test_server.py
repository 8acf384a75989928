"""The embedded server of a folder, and which server a command means."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bert_train_parallel import processes
from bert_train_parallel.errors import BadRun
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps import run
from bert_train_parallel.sweeps.cli import main
from bert_train_parallel.sweeps.requests import read_configurations
from bert_train_parallel.sweeps.server import EmbeddedServer, connect_when_ready, read_address, running_server
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


def test_temporals_configuration_file_at_its_usual_place_counts_where_the_folders_server_is_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, place in (("HOME", tmp_path), ("XDG_CONFIG_HOME", tmp_path / ".config")):
        monkeypatch.setenv(name, str(place))
    file = tmp_path / (".config" if sys.platform != "darwin" else "Library/Application Support") / "temporalio" / "temporal.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[profile.default]\naddress = "127.0.0.1:9"\n')
    (tmp_path / "server.json").write_text(json.dumps({"grpc": "127.0.0.1:8", "page": "http://127.0.0.1:8"}))
    assert main(["pause", "mine", "--output_dir", str(tmp_path)]) == 2
    assert "No Temporal server answers at 127.0.0.1:9" in capsys.readouterr().err
    file.write_text("this is [not toml")
    assert main(["pause", "mine", "--output_dir", str(tmp_path)]) == 2
    assert "Temporal's configuration file temporalio/temporal.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TEMPORAL_TLS": "true"}, "it does not speak TLS, which TEMPORAL_TLS"),
        ({"TEMPORAL_NAMESPACE": "nowhere"}, "has no namespace nowhere. Name another with --namespace."),
        ({"TEMPORAL_ADDRESS": "http://127.0.0.1:9"}, "http://127.0.0.1:9: a Temporal server is named HOST:PORT"),
        ({"TEMPORAL_CONFIG_FILE": "gone.toml"}, "TEMPORAL_CONFIG_FILE gone.toml: there is no such file"),
    ],
)
def test_a_server_that_is_asked_in_another_way_than_it_answers_is_one_line(
    environment: dict[str, str],
    words: str,
    server: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ({"TEMPORAL_ADDRESS": server} | environment).items():
        monkeypatch.setenv(name, value)
    assert main(["status", "mine", "--output_dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("ip", ["localhost", "127.0.0.2", "::1"])
def test_a_server_for_this_machine_alone_listens_on_loopback_alone(ip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(processes, "start", lambda command, **_: commands.append(command))
    found = EmbeddedServer(tmp_path, ip).keep_up()
    (command,) = commands
    assert command[command.index("--ip") + 1] == command[command.index("--ui-ip") + 1] == "127.0.0.1"
    assert found.grpc.startswith("127.0.0.1:")


@pytest.mark.parametrize("ip", ["192.0.2.77", "0.0.0.0", "nosuch.invalid", "2001:db8::7"])
def test_an_address_that_this_machine_has_not_is_refused_at_once(ip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["server", "--ip", ip, "--output_dir", str(tmp_path)]) == 2
    assert re.search(f"--ip {ip} is no address of this machine|'{ip}' has no address|name server does not answer", capsys.readouterr().err)


def test_a_copied_folder_does_not_speak_to_the_server_of_the_original(
    embedded: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ADDRESS", "NAMESPACE", "TLS", "API_KEY"):
        monkeypatch.delenv(f"TEMPORAL_{name}")
    asyncio.run(connect_when_ready(embedded))
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    (tmp_path / "link").symlink_to("out")
    assert read_address(tmp_path / "link") == read_address(tmp_path / "out") != read_address(tmp_path / "copy") is None
    (tmp_path / "copy" / "mine").mkdir()
    (tmp_path / "copy" / "mine" / "request.json").touch()
    assert main(["pause", "mine", "--output_dir", str(tmp_path / "copy")]) == 2
    assert f"The server of {tmp_path / 'copy'} does not run" in capsys.readouterr().err


def test_a_server_that_has_the_port_since_the_folders_own_was_down_is_not_taken_for_it(embedded: EmbeddedServer, tmp_path: Path) -> None:
    asyncio.run(connect_when_ready(embedded))
    other = tmp_path / "other"
    other.mkdir()
    found = read_address(tmp_path / "out")
    assert found == running_server(tmp_path / "out")
    assert found
    (other / "server.json").write_text(json.dumps(asdict(replace(found, folder=str(other)))))
    (other / "server.lock").touch()
    assert read_address(other)
    assert running_server(other) is None


@pytest.mark.parametrize("content", ["5", "{}", '{"grpc": 5}', '{"grpc": "127.0.0.1:99999", "page": "http://127.0.0.1:1"}', '{"grpc": "a'])
def test_a_damaged_address_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(content)
    assert read_address(tmp_path) is None


def test_a_damaged_history_is_told_as_soon_as_the_server_has_ended_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*_: Any, stdout: int, **__: Any) -> Any:
        os.write(stdout, b"Error: unable to create SQLite admin DB: file is not a database (26)\n")
        return SimpleNamespace(poll=lambda: 1)

    monkeypatch.setattr(processes, "start", ends)
    with pytest.raises(BadRun, match=r"temporal-[\d.]+\.db, the history of this folder's sweeps, is damaged"):
        asyncio.run(connect_when_ready(EmbeddedServer(tmp_path)))


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

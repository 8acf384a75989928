"""What people who look on are told of a sweep, on a real server with simulated trials."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio import activity
from temporalio.exceptions import ApplicationError

from bert_train_parallel.sweeps import board, views, watching
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.results import as_csv, leaderboard_rows
from bert_train_parallel.sweeps.run import show, start
from bert_train_parallel.sweeps.server import connect

from .simulated import Simulated, served, sweep


def test_each_trial_that_ends_has_its_line_whether_it_failed_or_is_not_among_the_best(
    server: str, simulated: Simulated, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "KEPT", 2)
    monkeypatch.setattr(watching, "LOOK_S", 0.1)
    request = sweep(experiment_id="told", num_trials=6, max_concurrency=2)

    async def one_fails(asked: m.BertFineTuneRequest) -> m.BertFineTuneResult | None:
        found = m.BertFineTuneResult(run_id=asked.run_id, config=asked.config, state="oom", error="No room.")
        return found if asked.run_id.endswith("3") else None

    simulated.answers = one_fails

    async def go() -> None:
        async with served(server, simulated) as client:
            await start(client, request)
            await watching.follow(client, "told")

    asyncio.run(asyncio.wait_for(go(), 60))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial ")]
    assert sorted(line.split()[1] for line in lines) == [f"t{number:04d}" for number in range(6)]
    assert [line.split("  ")[1] for line in lines if line.startswith("trial t0003")] == ["oom: No room."]


def test_the_end_says_why_some_trials_have_no_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = m.TrialResult(number=0, run_id="mine-t0000", score=0.5)
    bad = [m.TrialResult(number=number, run_id=f"mine-t{number:04d}", state="oom", error="No room.") for number in (1, 2)]
    result = m.SweepResult(experiment_id="mine", trials=3, states={"finished": 1, "oom": 2}, best_run_id="mine-t0000", leaderboard=[good])
    place = tmp_path / "mine"
    place.mkdir()
    (place / "leaderboard.csv").write_text(as_csv(leaderboard_rows([good, *bad])))
    (place / "RESULT.json").write_text(json.dumps({"request": sweep().model_dump(mode="json"), "result": result.model_dump(mode="json")}))
    assert show(result, sweep(), tmp_path) == 0
    assert capsys.readouterr().out.endswith("without a score: 2 trials\n  2 oom: No room.\n")


def test_a_trial_whose_worker_is_lost_is_shown_as_such_with_what_it_waits_for(server: str, simulated: Simulated) -> None:
    async def is_lost(asked: m.BertFineTuneRequest) -> m.BertFineTuneResult | None:
        then = time.time() - 40
        activity.heartbeat(
            m.TrialProgress(
                run_id=asked.run_id,
                phase="training",
                host="alpha",
                worker="alpha/1",
                attempt=1,
                step=3,
                steps=9,
                gpu_seconds=7200,
                time=then,
            )
        )
        raise ApplicationError("lost", next_retry_delay=timedelta(hours=1))

    simulated.answers = is_lost

    async def go() -> str:
        async with served(server, simulated) as client:
            await start(client, sweep(experiment_id="lost", num_trials=1))
            while not (found := await watching.look(client, "lost")).lost:
                await asyncio.sleep(0.05)
            await watching.sweep_handle(client, "lost").terminate()
            return "\n".join(views.lines_of(found, 400))

    shown = asyncio.run(asyncio.wait_for(go(), 60))
    assert re.search(r"] 3/9  lost its worker 4\d s ago", shown), shown
    assert ", 2 GPU-hours; as of" in shown  # what its attempts have cost, and no more as time goes by
    assert "no worker that runs trials is up: type bert_sweep worker" in shown


def test_who_watches_a_sweep_that_nobody_serves_is_told_so_and_sees_its_end(
    server: str, simulated: Simulated, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LOOK_S", 0.1)
    monkeypatch.setattr(watching, "PATIENCE", timedelta(seconds=0.5))

    async def go() -> m.SweepResult:
        client = await connect(server)
        await start(client, sweep(experiment_id="unserved", num_trials=1))
        watcher = asyncio.create_task(watching.follow(client, "unserved"))
        await asyncio.sleep(1.5)
        monkeypatch.setattr(watching, "PATIENCE", timedelta(seconds=20))
        async with served(server, simulated):
            return await watcher

    assert asyncio.run(asyncio.wait_for(go(), 60)).trials == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "No worker answers for unserved, though the server does; trials under way go on"
    assert any(line.startswith("trial t0000  accuracy ") for line in said)

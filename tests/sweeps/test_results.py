"""What a sweep leaves for people, while it runs and at its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bert_train_parallel.errors import BadRun
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.results import SO_FAR, export, leaderboard
from bert_train_parallel.sweeps.run import start
from bert_train_parallel.sweeps.server import connect
from bert_train_parallel.sweeps.status import export_now
from bert_train_parallel.sweeps.watching import sweep_handle

from .seen import leaderboard as rows_of
from .simulated import Simulated, served, sweep


def test_a_running_sweep_is_written_out_as_it_is_and_goes_on(server: str, simulated: Simulated, tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def the_third_waits(asked: m.BertFineTuneRequest) -> m.BertFineTuneResult | None:
        if asked.run_id.endswith("t0001"):
            return m.BertFineTuneResult(run_id=asked.run_id, config=asked.config, state="nan", error="The loss is no number.")
        if asked.run_id.endswith("t0002"):
            await go_on.wait()
        return None

    simulated.answers = the_third_waits

    def with_client(body: Callable[[Any], Awaitable[Any]]) -> Any:
        async def call() -> Any:
            return await body(await connect(server))

        return asyncio.run(call())

    async def go() -> tuple[str, list[dict[str, str]], m.SweepResult]:
        async with served(server, simulated) as client:
            await start(client, sweep(experiment_id="exported", num_trials=3, max_concurrency=1))
            while not any(asked.run_id.endswith("t0002") for asked in simulated.asked):
                await asyncio.sleep(0.02)
            page = await asyncio.to_thread(export_now, tmp_path, "exported", with_client)
            rows = rows_of(tmp_path / "exported")
            go_on.set()
            return page, rows, await sweep_handle(client, "exported").result()

    page, rows, result = asyncio.run(asyncio.wait_for(go(), 60))
    assert [(row["run_id"], row["state"]) for row in rows] == [("exported-t0000", "finished"), ("exported-t0001", "nan")]
    assert page == str(tmp_path / "exported" / "report" / "report.html")
    assert "exported-t0001" in Path(page).read_text()
    assert not (tmp_path / "exported" / "RESULT.json").exists()  # it is not over
    assert json.loads((tmp_path / "exported" / SO_FAR).read_text())["result"]["trials"] == 2
    assert result.states == {"finished": 2, "nan": 1}


def test_the_leaderboard_is_the_same_as_csv_as_parquet_and_in_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    trials = [
        m.TrialResult(number=0, run_id="mine-t0000", score=0.5, values={"warmup": 0, "schedule": "linear"}, figures={"accuracy": 0.5}),
        m.TrialResult(number=1, run_id="mine-t0001", score=0.75, values={"warmup": 0.25, "schedule": "linear"}, figures={"accuracy": 0.75}),
        m.TrialResult(number=2, run_id="mine-t0002", state="oom", error='No room, "none".', values={"schedule": True}),
    ]
    request = sweep(space={"schedule": ["linear", "constant"], "warmup": {"low": 0, "high": 0.5}})
    result = m.SweepResult(experiment_id="mine", trials=3, leaderboard=trials, best_run_id="mine-t0001", best_score=0.75)
    asyncio.run(export(m.ExportRequest(request=request, result=result), SharedFolder(tmp_path), lambda: None))
    read = leaderboard(tmp_path / "mine")
    stored = pandas.read_parquet(tmp_path / "mine" / "leaderboard.parquet")
    for table in (read, stored):
        assert list(table["run_id"]) == ["mine-t0001", "mine-t0000", "mine-t0002"]
        assert list(table["rank"].dropna()) == [1, 2]
        assert list(table["value.warmup"].dropna()) == [0.25, 0]
        assert list(table["value.schedule"].astype(str)) == ["linear", "linear", "True"]  # of several kinds: as text
        assert table["error"][2] == 'No room, "none".'
    assert list(read.columns) == list(stored.columns)
    with pytest.raises(BadRun, match="Name the folder of a sweep that has ended"):
        leaderboard(tmp_path / "nosuch")

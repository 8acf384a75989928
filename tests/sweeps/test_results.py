"""What a sweep leaves for people, while it runs and at its end."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bert_train_parallel.errors import BadRun
from bert_train_parallel.launching.plan import Failure, LaunchRequest, LaunchResult, WorldPlan
from bert_train_parallel.sweeps import launches
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.cli import main
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.results import PAGE, RESULT, SO_FAR, export, leaderboard, read_result
from bert_train_parallel.sweeps.run import start
from bert_train_parallel.sweeps.server import connect
from bert_train_parallel.sweeps.status import export_now
from bert_train_parallel.sweeps.watching import sweep_handle

from .seen import leaderboard as rows_of
from .simulated import BASE, Simulated, served, sweep


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


def test_a_sweep_is_over_only_when_its_page_is_drawn_and_a_page_that_cannot_be_drawn_is_told_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, over_meanwhile = tmp_path / "mine", []

    async def without_charts(request: LaunchRequest, output: Path, tick: Callable[[], None]) -> LaunchResult:
        over_meanwhile.append((place / RESULT).exists())
        with open(output, "a") as log:
            print("sweep_page: Charts need matplotlib.\nlaunch: rank 0 failed with exit code 2.", file=log)
        return LaunchResult(WorldPlan(()), 2, Failure("alpha", 0, "exit", 2, "rank 0 failed with exit code 2."))

    async def with_charts(request: LaunchRequest, output: Path, tick: Callable[[], None]) -> LaunchResult:
        (place / PAGE).parent.mkdir()
        (place / PAGE).touch()
        return LaunchResult(WorldPlan(()), 0)

    monkeypatch.setattr(launches, "launch", without_charts)
    trial = m.TrialResult(number=0, run_id="mine-t0000", score=0.5)
    result = m.SweepResult(experiment_id="mine", trials=1, leaderboard=[trial], best_run_id="mine-t0000", best_score=0.5)
    asyncio.run(export(m.ExportRequest(request=sweep(), result=result), SharedFolder(tmp_path), lambda: None))
    assert over_meanwhile == [False]
    out = ["--output_dir", str(tmp_path)]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"base": BASE, "space": sweep().space.model_dump(mode="json")}))
    for words in (["status", "mine"], ["watch", "mine"], ["run", str(path)]):
        assert main([*words, *out]) == 0
        assert "page: none: Charts need matplotlib\n" in capsys.readouterr().out
    assert main(["export", "mine", *out]) == 0
    assert capsys.readouterr().out == f"{place / 'leaderboard.csv'}\nno page: Charts need matplotlib\n"
    monkeypatch.setattr(launches, "launch", with_charts)
    assert main(["run", str(path), *out]) == 0
    said = capsys.readouterr().out
    assert "its page is missing, and is drawn now" in said
    assert f"page: {place / PAGE}" in said


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"request": {}, "result": 5}'])
def test_a_damaged_result_is_one_line_that_says_what_to_do(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / RESULT).write_text(content)
    (place / "request.json").touch()
    with pytest.raises(BadRun, match=r"RESULT\.json is damaged, or of another version\. Remove it, and run the sweep again"):
        read_result(place)
    assert main(["status", "--output_dir", str(tmp_path)]) == 0  # in the list it has its line, beside others
    assert capsys.readouterr().out.startswith(f"mine: {place / RESULT} is damaged")


@pytest.mark.parametrize("by_flag", [True, False])
def test_status_lists_the_sweeps_of_the_server_that_it_was_told_of(
    by_flag: bool,
    server: str,
    simulated: Simulated,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "here"
    result = m.SweepResult(experiment_id="earlier", trials=8)
    (here / "earlier").mkdir(parents=True)
    found = {"request": sweep(experiment_id="earlier").model_dump(mode="json"), "result": result.model_dump(mode="json")}
    (here / "earlier" / RESULT).write_text(json.dumps(found))

    def status(address: str, folder: Path = here) -> tuple[int, str]:
        monkeypatch.setenv("TEMPORAL_ADDRESS", "" if by_flag else address)
        code = main(["status", "--output_dir", str(folder), *(["--address", address] if by_flag else [])])
        said = capsys.readouterr()
        return code, said.out + said.err

    async def go() -> None:
        async with served(server, simulated) as client:
            await start(client, sweep(experiment_id="over-there", num_trials=1))
            await sweep_handle(client, "over-there").result()

    asyncio.run(asyncio.wait_for(go(), 60))
    for _ in range(50):  # what was begun is listed a moment later
        code, said = status(server)
        if "over-there" in said:
            break
        time.sleep(0.1)
    assert code == 0
    assert re.search("^over-there: ended, 1 trial, best accuracy 0\\.", said, re.MULTILINE)
    assert ("earlier: ended, 8 trials" in said) is not by_flag
    assert "No Temporal server answers at 127.0.0.1:9" in status("127.0.0.1:9")[1]
    assert status("127.0.0.1:9", tmp_path)[0] == 2

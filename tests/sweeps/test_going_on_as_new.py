"""Long histories: workflows that go on as new on a real server, their activities simulated."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bert_train_parallel.sweeps import board
from bert_train_parallel.sweeps import messages as m

from .simulated import Simulated, run_sweep, sweep


def test_a_long_sweep_goes_on_as_new_and_loses_nothing(server: str, simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "EVENTS_A_RUN", 60)
    runs = set()

    async def story(handle: Any) -> None:
        while not runs or len(runs) < 2:
            runs.add((await handle.describe()).run_id)
            await asyncio.sleep(0.01)

    result = run_sweep(server, simulated, sweep(num_trials=60, max_concurrency=4), story)
    assert result.trials == 60
    assert result.states == {"finished": 60}
    assert sorted(request.run_id for request in simulated.asked) == [f"mine-t{number:04d}" for number in range(60)]
    assert result.history is not None
    assert result.history.count == 60


def test_a_long_ladder_goes_on_as_new_and_finds_the_same(server: str, simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [{"epochs": 1, "keep": 6, "new": 30}, {"epochs": 2, "keep": 3, "new": 10}, {"epochs": 4}]
    request = sweep(num_trials=30, ladder={"stages": stages}, compare=True)

    def found(result: m.SweepResult) -> Any:
        assert result.history is not None
        return (
            result.history.count,
            result.comparison,
            [(one.run_id, one.values, one.score, one.promoted_from) for one in result.leaderboard],
        )

    short = run_sweep(server, simulated, request)
    asked, cleaned = len(simulated.asked), sorted(set(simulated.cleaned[0].among) - set(simulated.cleaned[0].keep))
    simulated.asked.clear()
    simulated.cleaned.clear()
    monkeypatch.setattr(board, "EVENTS_A_RUN", 60)
    monkeypatch.setattr(board, "RECORD_EVERY", 7)
    runs: list[str] = []

    async def story(handle: Any) -> None:
        while not simulated.exported[1:]:
            run = str((await handle.describe()).run_id)
            runs.extend([run] if run not in runs else [])
            await asyncio.sleep(0.01)

    long = run_sweep(server, simulated, request, story)
    assert len(runs) >= 3
    assert found(long) == found(short)
    assert len(simulated.asked) == len({one.run_id for one in simulated.asked}) == asked
    assert sorted(set(simulated.cleaned[0].among) - set(simulated.cleaned[0].keep)) == cleaned


def test_many_random_trials_to_compare_with_go_on_as_new_and_find_the_same(
    server: str, simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [{"epochs": 1, "keep": 1, "new": 40}, {"epochs": 2}]
    request = sweep(num_trials=40, ladder={"stages": stages}, compare=True, space={"learning_rate": [1e-5, 1e-3]}, budget_gpu_hours=10.0)
    short = run_sweep(server, simulated, request)
    randoms = [f"mine-random{number:04d}" for number in range(41 * 150 // 300)]  # each sees an epoch's 150 rows twice
    best = short.comparison and short.comparison.random_best

    def asked_and_left() -> tuple[list[str], set[str]]:
        """Random trials that were asked for, and those that keep their checkpoints."""
        asked = sorted(one.run_id for one in simulated.asked if "random" in one.run_id)
        return asked, set(asked) - {run_id for one in simulated.cleaned for run_id in set(one.among) - set(one.keep)}

    assert asked_and_left() == (randoms, {best})
    simulated.asked.clear()
    simulated.cleaned.clear()
    monkeypatch.setattr(board, "EVENTS_A_RUN", 40)
    runs: list[str] = []

    async def story(handle: Any) -> None:
        while not simulated.exported[1:]:
            run = str((await handle.describe()).run_id)
            if simulated.asked and "random" in simulated.asked[-1].run_id and run not in runs:
                runs.append(run)
            await asyncio.sleep(0.01)

    long = run_sweep(server, simulated, request, story)
    assert len(runs) >= 2
    assert asked_and_left() == (randoms, {best})
    assert long.comparison == short.comparison
    assert (long.gpu_hours, long.stopped, long.best_run_id) == (short.gpu_hours, "", short.best_run_id)
    assert [one.run_id for one in long.leaderboard] == [one.run_id for one in short.leaderboard]

"""People who look on and steer: sweeps on a real server, their activities simulated."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from bert_train_parallel.sweeps import board, history
from bert_train_parallel.sweeps import messages as m

from .simulated import Simulated, run_sweep, sweep, until


def test_a_rung_waits_for_approval_where_that_is_asked_for(server: str, simulated: Simulated) -> None:
    stages = [{"epochs": 1, "keep": 1, "new": 3}, {"epochs": 2}]

    async def story(handle: Any) -> None:
        while not (await handle.query("progress", result_type=m.ProgressAnswer)).waiting_for:
            await asyncio.sleep(0.02)
        assert len(simulated.asked) == 3
        assert await handle.execute_update("approve") == "rung 2 of 2 begins"

    run_sweep(server, simulated, sweep(num_trials=3, ladder={"stages": stages}, approval=True), story)
    assert len(simulated.asked) == 4


def test_people_can_look_on_and_steer(server: str, simulated: Simulated) -> None:
    simulated.seconds = 0.1
    seen: dict[str, Any] = {}

    async def story(handle: Any) -> None:
        await until(lambda: len(simulated.asked) >= 2)
        await handle.execute_update("pause")
        await until(lambda: simulated.at_once == 0)
        seen["paused"] = await handle.query("progress", result_type=m.ProgressAnswer)
        with pytest.raises(WorkflowUpdateFailedError) as error:
            await handle.execute_update("pause")
        seen["twice"] = str(error.value.cause)
        await handle.execute_update("set_concurrency", 4)
        await handle.execute_update("add_trials", 2)
        await handle.execute_update("resume")
        await until(lambda: simulated.at_once >= 3)
        seen["running"] = await handle.query("progress", result_type=m.ProgressAnswer)
        seen["budget"] = await handle.query("budget", result_type=m.BudgetAnswer)
        seen["trial"] = await handle.query("trial", 0, result_type=m.TrialAnswer)

    result = run_sweep(server, simulated, sweep(num_trials=8, max_concurrency=2), story)
    assert seen["paused"].paused
    assert not seen["paused"].running
    assert "paused already" in seen["twice"]
    assert len(seen["running"].running) >= 3
    assert seen["budget"].finished_gpu_hours > 0
    assert [trial.number for trial in seen["trial"].ended] == [0]
    assert result.trials == 10
    assert seen["paused"].as_of.startswith("20")


def test_one_trial_can_be_stopped_and_the_others_go_on(server: str, simulated: Simulated) -> None:
    async def answers(request: m.BertFineTuneRequest) -> m.BertFineTuneResult | None:
        from temporalio import activity

        if request.run_id != "mine-t0001":
            return None
        try:
            while True:
                activity.heartbeat()
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            return m.BertFineTuneResult(run_id=request.run_id, config=request.config, state="stopped", gpu_seconds=30)

    simulated.answers = answers

    async def story(handle: Any) -> None:
        await until(lambda: len(simulated.asked) >= 3)
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("stop_trial", 77)
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("set_concurrency", m.MOST_AT_ONCE + 1)
        await handle.execute_update("stop_trial", 1)

    result = run_sweep(server, simulated, sweep(num_trials=4, max_concurrency=2), story)
    assert result.states == {"finished": 3, "stopped": 1}
    assert result.gpu_hours == pytest.approx((3 * 60 + 30) / 3600)


def test_a_trial_that_ends_while_no_worker_has_it_keeps_what_its_attempts_cost(server: str, simulated: Simulated) -> None:
    async def answers(request: m.BertFineTuneRequest) -> m.BertFineTuneResult | None:
        if request.run_id == "mine-t0001":
            raise ApplicationError("its node is gone", next_retry_delay=timedelta(hours=1))
        if request.run_id == "mine-t0002":
            raise ApplicationError("it cannot be", non_retryable=True)
        return None

    simulated.answers = answers

    async def story(handle: Any) -> None:
        await until(lambda: len(simulated.asked) >= 4)
        await handle.execute_update("stop_trial", 1)

    run_sweep(server, simulated, sweep(num_trials=4, max_concurrency=2), story)
    (found,) = simulated.exported
    assert found.result.states == {"finished": 2, "stopped": 1, "failed": 1}
    assert found.result.gpu_hours == pytest.approx((2 * 60 + 2 * 30) / 3600)
    ended = {trial.number: trial for trial in history.read_history(found.result.history, simulated.folder)}
    assert [(ended[number].state, ended[number].error, ended[number].steps, ended[number].host) for number in (1, 2)] == [
        ("stopped", "stopped by a person", 5, "alpha"),
        ("failed", "it cannot be", 5, "alpha"),
    ]


def test_tpe_says_how_many_trials_its_knowledge_allows_at_a_time(server: str, simulated: Simulated) -> None:
    simulated.seconds = 0.1

    async def story(handle: Any) -> None:
        assert await handle.execute_update("set_concurrency", 2) == "2 trials at a time"
        assert (await handle.execute_update("set_concurrency", 6)).startswith("6 trials at a time; at most 2, twice the max_concurrency")

    run_sweep(server, simulated, sweep(num_trials=3, max_concurrency=1, sampler="tpe"), story)


def test_a_sweep_that_is_stopped_says_what_it_found(server: str, simulated: Simulated) -> None:
    simulated.seconds = 0.1

    async def story(handle: Any) -> None:
        await until(lambda: len(simulated.asked) >= 3)
        await handle.execute_update("stop", False)

    result = run_sweep(server, simulated, sweep(num_trials=50, max_concurrency=2), story)
    assert result.stopped == "stopped by a person"
    assert 3 <= result.trials < 50
    assert result.best_run_id


@pytest.mark.parametrize("kind", ["suggest", "record"])
@pytest.mark.parametrize("asked", [("stop", True), ("pause", None)])
def test_no_trial_begins_when_the_sweep_is_stopped_or_paused_while_its_values_are_sought(
    server: str, simulated: Simulated, monkeypatch: pytest.MonkeyPatch, kind: str, asked: tuple[str, bool | None]
) -> None:
    monkeypatch.setattr(board, "RECORD_EVERY", 2)  # a ladder writes down what has ended between two trials
    is_under_way, go_on = asyncio.Event(), asyncio.Event()

    async def meanwhile(what: str) -> None:
        if what == kind and len(simulated.asked) == 2:
            is_under_way.set()
            await go_on.wait()

    simulated.meanwhile = meanwhile
    update, now = asked

    async def story(handle: Any) -> None:
        await is_under_way.wait()
        await handle.execute_update(update, args=[] if now is None else [now])
        go_on.set()
        if update == "pause":
            await asyncio.sleep(0.3)
            assert len(simulated.asked) == 2
            await handle.execute_update("resume")

    ladder = {"stages": [{"epochs": 1, "keep": 1, "new": 4}, {"epochs": 2}]} if kind == "record" else None
    request = sweep(num_trials=4, max_concurrency=1, sampler="tpe", ladder=ladder)
    result = run_sweep(server, simulated, request, story)
    assert result.trials == len(simulated.asked) == (2 if now else 4 + bool(ladder))


def test_no_trial_begins_when_the_budget_is_spent(server: str, simulated: Simulated) -> None:
    result = run_sweep(server, simulated, sweep(num_trials=50, max_concurrency=2, budget_gpu_hours=5 * 60 / 3600))
    assert 5 <= result.trials <= 6  # the one that was under way ends
    assert "budget" in result.stopped

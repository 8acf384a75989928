"""Sweeps and ladders as workflows on a real server, their activities simulated."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError

from bert_train_parallel.sweeps import board, draw, history, training, watching
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.draw import draw_random
from bert_train_parallel.sweeps.snapshots import take_snapshot
from bert_train_parallel.sweeps.space import SweepSpace
from bert_train_parallel.sweeps.workflows import SweepWorkflow

from .simulated import BASE, Simulated, run_sweep, served, sweep, until


def test_a_random_sweep_runs_every_trial_once_with_the_values_that_its_seed_draws(server: str, simulated: Simulated) -> None:
    result = run_sweep(server, simulated, sweep(num_trials=7, max_concurrency=3))
    drawn = [draw_random(sweep().space, 42, number) for number in range(7)]
    assert sorted(request.run_id for request in simulated.asked) == [f"mine-t{number:04d}" for number in range(7)]
    assert {trial.number: trial.values for trial in result.leaderboard} == dict(enumerate(drawn))
    assert result.best_score == max(trial.score or 0 for trial in result.leaderboard)
    assert result.states == {"finished": 7}
    configs = {trial.number: trial.fine_tune_config for trial in result.leaderboard}
    assert {number: config and config.learning_rate for number, config in configs.items()} == {
        number: values["learning_rate"] for number, values in enumerate(drawn)
    }
    assert result.gpu_hours == pytest.approx(7 * 60 / 3600)
    assert len(simulated.exported) == 1


def test_many_trials_are_drawn_with_pauses_lest_their_sweep_is_taken_for_stuck(
    server: str, simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(space: SweepSpace, seed: int, number: int, again: int = 0) -> dict[str, Any]:
        time.sleep(0.1)
        return draw_random(space, seed, number, again)

    monkeypatch.setattr(draw, "draw_random", slowly)
    monkeypatch.setattr(board, "DRAWS_AT_ONCE", 5)
    ladder = {"stages": [{"epochs": 1, "keep": 1, "new": 26}, {"epochs": 2}]}
    result = run_sweep(server, simulated, sweep(num_trials=26, max_concurrency=13, ladder=ladder))
    begun = {trial.number: trial.values for trial in result.leaderboard if trial.rung == 0}
    assert begun == {number: draw_random(sweep().space, 42, number) for number in range(26)}


def test_never_more_trials_at_a_time_than_asked_for(server: str, simulated: Simulated) -> None:
    simulated.seconds = 0.05
    run_sweep(server, simulated, sweep(num_trials=9, max_concurrency=3))
    assert simulated.most_at_once == 3


def test_a_grid_runs_every_combination(server: str, simulated: Simulated) -> None:
    space = {"learning_rate": {"values": [1e-4, 1e-5]}, "batch_size": [8, 16, 32]}
    result = run_sweep(server, simulated, sweep(num_trials=100, sampler="grid", space=space))
    assert len({(trial.values["learning_rate"], trial.values["batch_size"]) for trial in result.leaderboard}) == result.trials == 6


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_sweep_whose_space_is_used_up_ends_with_fewer_trials_and_says_so(server: str, simulated: Simulated, sampler: str) -> None:
    request = sweep(num_trials=40, sampler=sampler, space={"batch_size": [8, 16, 32], "weight_decay": {"values": [0.0, 0.1]}})

    async def story(handle: Any) -> None:
        await until(lambda: bool(simulated.asked))
        simulated.seconds = 0.02

    result = run_sweep(server, simulated, request, story)
    assert len({str(sorted(trial.values.items())) for trial in result.leaderboard}) == result.trials == 6
    assert result.note == "the space holds 6 configurations, and none is trained twice"
    assert sorted(one.run_id for one in simulated.asked) == [f"mine-t{number:04d}" for number in range(6)]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_rung_whose_space_is_used_up_begins_fewer_trials(server: str, simulated: Simulated, sampler: str) -> None:
    stages = [{"epochs": 1, "keep": 1, "new": 4}, {"epochs": 2, "keep": 1, "new": 4}, {"epochs": 4}]
    space = {"batch_size": [8, 16, 32], "weight_decay": {"values": [0.0, 0.1]}}
    result = run_sweep(server, simulated, sweep(num_trials=4, sampler=sampler, space=space, ladder={"stages": stages}, compare=True))
    by_rung = [[trial for trial in result.leaderboard if trial.rung == rung] for rung in range(3)]
    assert [len(rung) for rung in by_rung] == [4, 3, 1]
    new = [trial for trial in result.leaderboard if not trial.promoted_from]
    assert len({str(sorted(trial.values.items())) for trial in new}) == len(new) == 6
    assert "6 configurations" in result.note
    assert not result.stopped
    assert result.comparison


def test_a_trial_that_fails_is_a_result_and_the_sweep_goes_on(server: str, simulated: Simulated) -> None:
    async def answers(request: m.BertFineTuneRequest) -> m.BertFineTuneResult | None:
        state = {"mine-t0001": "oom", "mine-t0002": "failed"}.get(request.run_id)
        return m.BertFineTuneResult(run_id=request.run_id, config=request.config, state=state, error="no room") if state else None

    simulated.answers = answers
    result = run_sweep(server, simulated, sweep(num_trials=5))
    assert result.states == {"finished": 3, "oom": 1, "failed": 1}
    assert len(result.leaderboard) == 3


@pytest.mark.parametrize("ladder", [None, {"stages": [{"epochs": 1, "keep": 1, "new": 3}, {"epochs": 2}]}])
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_trial_whose_values_clash_with_a_setting_of_base_fails_and_says_why(
    server: str, simulated: Simulated, ladder: dict[str, Any] | None, at_once: int
) -> None:
    base = {"fine_tune_config": {"dataset_name": "leanings.csv", "settings": {"stride": 40}}}
    space = {"max_seq_length": [32, 128, 256]}
    seen: list[m.ProgressAnswer] = []

    async def story(handle: Any) -> None:
        simulated.seconds = 0.1
        await until(lambda: len(simulated.asked) >= 2)
        seen.append(await handle.query("progress", result_type=m.ProgressAnswer))

    result = run_sweep(server, simulated, sweep(num_trials=3, max_concurrency=at_once, ladder=ladder, base=base, space=space), story)
    assert result.states == {"finished": 2 + bool(ladder), "failed": 1}
    assert result.trials == 3 + bool(ladder)
    assert result.history is not None
    [failed] = [one for one in history.read_history(result.history, simulated.folder) if one.state == "failed"]
    assert failed.values == {"sequence_len": 32}
    assert failed.error.startswith("--stride 40 leaves no room for new tokens in rows of 32")
    assert all(one.values["sequence_len"] != 32 for one in seen[0].running)


def test_a_mistake_of_ours_ends_a_trial_or_the_sweep_with_its_words(
    server: str, simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def train(request: m.BertFineTuneRequest, on_gpus: bool) -> m.BertFineTuneResult:
        raise KeyError("no such trial")

    async def clean_up(request: m.CleanUpRequest) -> int:
        raise KeyError("no such folder")

    monkeypatch.setattr(training, "train", train)
    result = run_sweep(server, simulated, sweep(num_trials=3, max_concurrency=1))
    assert result.states == {"failed": 3}
    assert result.history is not None
    assert {one.error for one in history.read_history(result.history, simulated.folder)} == {"KeyError: 'no such trial'"}

    async def go() -> None:
        async with served(server, simulated, workflow_failure_exception_types=[]) as client:
            await client.execute_workflow(SweepWorkflow.run, sweep(num_trials=3), id=f"test-{uuid.uuid4()}", task_queue=m.EVAL_QUEUE)

    monkeypatch.setattr(training, "clean_up", clean_up)
    with pytest.raises(WorkflowFailureError) as error:
        asyncio.run(asyncio.wait_for(go(), 20))
    assert "no such folder" in str(watching.sentence_of(error.value))


@pytest.mark.parametrize("change", ["", "more,good\n"])
def test_a_snapshot_that_a_sweep_names_is_looked_at_before_its_first_trial(server: str, simulated: Simulated, change: str) -> None:
    (simulated.folder.root / "leanings.csv").write_text("text,label\nfine,good\n")
    asked = m.DatasetSnapshotRequest(run_id="mine", dataset_name=str(simulated.folder.root / "leanings.csv"))
    taken = take_snapshot(asked, simulated.folder)
    with open(simulated.folder.root / taken.snapshot_path / "leanings.csv", "a") as file:
        file.write(change)
    request = sweep(num_trials=2, base={**BASE, "dataset_snapshot": taken.model_dump()})
    if not change:
        assert run_sweep(server, simulated, request).states == {"finished": 2}
        assert [one.dataset_snapshot for one in simulated.asked] == [taken, taken]
        return
    with pytest.raises(WorkflowFailureError) as error:
        run_sweep(server, simulated, request)
    assert "has changed since the snapshot was taken" in str(watching.sentence_of(error.value))
    assert not simulated.asked


def test_the_same_seed_gives_the_same_trials_whichever_ends_first(server: str, simulated: Simulated) -> None:
    request = sweep(num_trials=16, max_concurrency=4, sampler="tpe")

    async def slow_then_fast(asked: m.BertFineTuneRequest) -> None:
        await asyncio.sleep(0.15 if asked.run_id.endswith(("2", "5")) else 0.0)

    async def fast_then_slow(asked: m.BertFineTuneRequest) -> None:
        await asyncio.sleep(0.1 if asked.run_id.endswith(("0", "3", "7")) else 0.01)

    boards = []
    for answers in (slow_then_fast, fast_then_slow):
        simulated.answers = answers
        result = run_sweep(server, simulated, request)
        boards.append([(trial.number, trial.values, trial.score) for trial in result.leaderboard])
    assert len(boards[0]) == 16
    assert boards[0] == boards[1]
    assert any(request.recent for request in simulated.suggested)


def test_a_ladder_promotes_the_best_of_each_rung_and_goes_on_from_their_runs(server: str, simulated: Simulated) -> None:
    stages = [
        {"epochs": 1, "max_train_samples": 100, "keep": 2, "new": 6},
        {"epochs": 2, "max_train_samples": 200, "keep": 1, "new": 2},
        {"epochs": 4},
    ]
    result = run_sweep(server, simulated, sweep(num_trials=6, ladder={"stages": stages}))
    by_rung = [[trial for trial in result.leaderboard if trial.rung == rung] for rung in range(3)]
    assert [len(rung) for rung in by_rung] == [6, 4, 1]
    assert {trial.number for trial in by_rung[1]} == {trial.number for trial in by_rung[0][:2]} | {6, 7}
    assert by_rung[2][0].number == by_rung[1][0].number
    assert by_rung[2][0].promoted_from == by_rung[1][0].run_id
    assert by_rung[2][0].first_step > 0
    assert result.best_run_id == by_rung[2][0].run_id
    epochs = {request.run_id: (request.config.num_epochs, request.config.max_train_samples) for request in simulated.asked}
    assert epochs[by_rung[2][0].run_id] == (4, None)
    promoted = {trial.run_id for trial in by_rung[0][:2]}
    assert set(simulated.cleaned[0].keep) == promoted


def test_a_ladder_that_compares_runs_random_trials_of_as_many_rows(server: str, simulated: Simulated) -> None:
    stages = [{"epochs": 1, "keep": 1, "new": 4}, {"epochs": 2}]
    request = sweep(num_trials=4, ladder={"stages": stages}, compare=True, space={"learning_rate": [1e-5, 1e-3]})
    result = run_sweep(server, simulated, request)
    assert result.comparison is not None
    assert result.comparison.rows_seen == (4 * 10 + 10) * 15
    assert result.comparison.random_trials == 2
    assert result.comparison.random_best is not None
    randoms = {f"mine-random{number:04d}" for number in range(2)}
    assert result.comparison.random_best in randoms
    assert result.gpu_hours == pytest.approx((5 + 2) * 60 / 3600)
    kept = history.read_history(result.comparison.randoms, simulated.folder)
    assert {trial.run_id for trial in kept} == randoms
    assert all(trial.score is not None and trial.values for trial in kept)
    own = history.read_history(result.history, simulated.folder)
    assert not randoms & {trial.run_id for trial in own}
    losers = [set(request.among) - set(request.keep) for request in simulated.cleaned if randoms & set(request.among)]
    assert losers == [randoms - {result.comparison.random_best}]


def test_random_trials_to_compare_with_spend_of_the_same_budget_and_are_shown_as_such(server: str, simulated: Simulated) -> None:
    stages = [{"epochs": 1, "keep": 1, "new": 4}, {"epochs": 2}]
    request = sweep(
        num_trials=4,
        max_concurrency=1,
        ladder={"stages": stages},
        compare=True,
        budget_gpu_hours=6 * 60 / 3600,
        space={"learning_rate": [1e-5, 1e-3]},
    )
    seen: list[Any] = []

    async def answers(asked: m.BertFineTuneRequest) -> m.BertFineTuneResult | None:
        if "random" in asked.run_id:
            await asyncio.sleep(0.3)
            return m.BertFineTuneResult(run_id=asked.run_id, config=asked.config, state="failed", error="no room", gpu_seconds=70)
        return None

    simulated.answers = answers

    async def story(handle: Any) -> None:
        await until(lambda: simulated.asked[-1:] != [] and "random" in simulated.asked[-1].run_id)
        seen.append(await handle.query("progress", result_type=m.ProgressAnswer))
        seen.append(await handle.query("budget", result_type=m.BudgetAnswer))
        seen.append(await handle.query("so_far", result_type=m.ExportRequest))

    result = run_sweep(server, simulated, request, story)
    progress, budget, so_far = seen
    assert (progress.comparing, progress.experiment_id, progress.trials) == (True, "mine", 2)
    assert budget.finished_gpu_hours == pytest.approx(5 * 60 / 3600)
    assert so_far.request.ladder is not None  # what is written out meanwhile is the ladder
    assert {trial.run_id for trial in so_far.result.leaderboard} >= {"mine-t0000-r0"}
    assert result.comparison is not None
    assert (result.comparison.random_trials, result.comparison.random_planned) == (1, 2)
    assert result.gpu_hours == pytest.approx((5 * 60 + 70) / 3600)  # what failed is in it
    assert "budget" in result.stopped

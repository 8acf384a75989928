"""Trials as process trees: real launches of a trainer that only pretends to train."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.data.preparation import prepare
from bert_train_parallel.errors import NotWritable
from bert_train_parallel.sweeps import again, launches, lease, trial, trials
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.activities import Activities
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.keys import LaunchRefused
from bert_train_parallel.sweeps.snapshots import take_snapshot
from bert_train_parallel.sweeps.trial import Trial
from bert_train_parallel.sweeps.trials import Fenced, Trials, TryAgain

PRETEND = (sys.executable, str(Path(__file__).with_name("pretend_trainer.py")))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedFolder:
    monkeypatch.setattr(trial, "TRAINER", PRETEND)
    monkeypatch.setattr("bert_train_parallel.sweeps.launches.TICK_S", 0.1)
    (tmp_path / "leanings.csv").write_text("text,label\nfine,good\n")
    return SharedFolder(tmp_path)


@pytest.fixture
def ask(folder: SharedFolder) -> Callable[..., m.BertFineTuneRequest]:
    snapshot = take_snapshot(m.DatasetSnapshotRequest(run_id="mine", dataset_name=str(folder.root / "leanings.csv")), folder)

    def asked(run_id: str = "mine", learning_rate: float = 0.1, **changes: object) -> m.BertFineTuneRequest:
        config = m.BertFineTuneConfig(learning_rate=learning_rate, dataset_name="leanings.csv", use_gpu=False)
        launch = m.LaunchSettings(grace_s=1)
        given = {"run_id": run_id, "config": config, "dataset_snapshot": snapshot, "metric": "accuracy", "launch": launch}
        return m.BertFineTuneRequest.model_validate(given | changes)

    return asked


def run(folder: SharedFolder, request: m.BertFineTuneRequest, beats: list[m.TrialProgress] | None = None) -> m.BertFineTuneResult:
    return asyncio.run(Trials(folder, "tester").run(request, (beats if beats is not None else []).append))


def test_a_trial_becomes_a_launch_and_its_result_holds_no_test_figure(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest]
) -> None:
    beats: list[m.TrialProgress] = []
    result = run(folder, ask(), beats)
    assert (result.state, result.score, result.steps, result.attempts) == ("finished", 0.6, 4, 1)
    assert result.gpu_seconds > 0
    assert result.rows_seen == 40 + 16  # of batches of 16 an epoch's third has 8
    assert beats[-1].checkpoint is not None
    assert (folder.run("mine") / "leanings.sqlite").resolve() == next(folder.root.glob("data_stores/*/leanings.sqlite")).resolve()


def test_a_trial_that_has_a_result_is_never_trained_again(folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest]) -> None:
    first = run(folder, ask())
    again = run(folder, ask())
    assert again == first
    assert len(lease.attempts(folder.run("mine"))) == 1


def test_the_ranks_of_a_trial_without_a_gpu_share_its_cores(folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest]) -> None:
    seen: list[dict[str, str] | None] = []

    async def launched(*given: Any, environment: dict[str, str] | None = None, **more: Any) -> Any:
        seen.append(environment)
        return await launches.launch(*given, environment=environment, **more)

    own = Trials(folder, "tester", launch=launched, cores_each=4)
    asyncio.run(own.run(ask(launch={"here_gpus": 2, "grace_s": 1}), lambda beat: None))
    assert seen == [None, {"OMP_NUM_THREADS": "2"}]  # the store is made first, by one process


def test_a_checkpoint_to_go_on_from_is_one_of_the_same_run(folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest]) -> None:
    newest = run(folder, ask("one")).checkpoint
    assert newest
    assert run(folder, ask("one", resume_from_checkpoint=newest.path)).state == "finished"
    with pytest.raises(LaunchRefused, match="name that run as from_run"):
        run(folder, ask("two", resume_from_checkpoint=newest.path, learning_rate=0.2))


def test_two_trials_that_ask_for_the_same_are_trained_once(folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest]) -> None:
    first, same, other = run(folder, ask("one")), run(folder, ask("two")), run(folder, ask("three", learning_rate=0.2))
    assert same.same_as == "one"
    assert same.score == first.score
    assert same.gpu_seconds == 0
    assert other.same_as is None
    assert not (folder.run("two") / "attempts").exists()


@pytest.mark.parametrize(("end", "state"), [("nan", "nan"), ("oom", "oom"), ("usage", "failed")])
def test_what_another_attempt_would_not_mend_is_a_result_at_once(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch, end: str, state: str
) -> None:
    monkeypatch.setenv("PRETEND_END", end)
    result = run(folder, ask())
    assert (result.state, result.error, result.score) == (state, f"ended by {end}", None)
    assert run(folder, ask()).state == state
    assert len(lease.attempts(folder.run("mine"))) == 2  # the second one only read what the first had found


def test_a_trial_of_its_own_fails_three_times_at_most(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_END", "crash")
    for _ in range(2):
        with pytest.raises(TryAgain):
            run(folder, ask())
    result = run(folder, ask())
    assert result.state == "failed"
    assert result.error.startswith("failed 3 times")


def test_a_full_disk_is_waited_out_however_often_and_said(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[m.TrialProgress] = []

    def full(*given: object) -> str:
        raise NotWritable("no space left on device")

    async def go() -> timedelta | None:
        environment = ActivityEnvironment()
        environment.on_heartbeat = beats.append
        with pytest.raises(ApplicationError, match="no space left on device") as error:
            await environment.run(Activities(folder, "tester").fine_tune_bert, ask())
        assert not error.value.non_retryable
        assert beats[-1].phase == "waiting for room on a full disk"
        return error.value.next_retry_delay

    with monkeypatch.context() as patched:
        patched.setenv("PRETEND_END", "full")  # the trainer says it
        assert [asyncio.run(go()) for _ in range(4)] == [timedelta(seconds=5)] * 4
        patched.setenv("PRETEND_END", "crash")  # or found no room to say it
        patched.setattr(trials, "no_room", lambda folder: "no space left on device")
        asyncio.run(go())
        patched.setattr(trial, "home_of_key", full)  # or there was none for an attempt
        asyncio.run(go())
    result = run(folder, ask())
    assert (result.state, result.score) == ("finished", 0.6)
    assert [attempt.outcome for attempt in lease.attempts(folder.run("mine"))] == [*["full"] * 5, "finished"]


def test_a_training_goes_on_while_its_attempts_file_finds_no_room(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    note = lease.Lease.note

    def noted(self: lease.Lease, **changes: Any) -> None:
        if "last_step" in changes and "outcome" not in changes:
            refused.append("")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        note(self, **changes)

    monkeypatch.setattr(lease.Lease, "note", noted)
    monkeypatch.setenv("PRETEND_STEP_S", "0.05")
    assert run(folder, ask()).state == "finished"
    assert refused


def test_what_nobody_foresaw_counts_as_a_failure_of_the_trial(folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest]) -> None:
    async def broken(*given: Any, **more: Any) -> Any:
        raise KeyError("no such thing")

    own = Trials(folder, "tester", launch=broken)
    for _ in range(2):
        with pytest.raises(TryAgain):
            asyncio.run(own.run(ask(), lambda beat: None))
    result = asyncio.run(own.run(ask(), lambda beat: None))
    assert (result.state, result.error) == ("failed", "failed 3 times; the last time: KeyError: 'no such thing'")


def test_a_trial_that_comes_to_no_attempt_is_given_up_after_three_errors(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*given: Any) -> Any:
        raise KeyError("no such thing")

    own = Trials(folder, "tester")
    monkeypatch.setattr(own, "run", broken)
    activities = Activities(folder, trials=own)

    async def go(request: m.BertFineTuneRequest) -> bool:
        with pytest.raises(ApplicationError, match="KeyError: 'no such thing'") as error:
            await ActivityEnvironment().run(activities.fine_tune_bert, request)
        return error.value.non_retryable

    requests = [ask(run_id) for run_id in ("one", "one", "other", "one")]
    assert [asyncio.run(go(request)) for request in requests] == [False, False, False, True]


@pytest.mark.parametrize(("labels", "metric"), [(("good", "bad"), "accuracy"), (("0.5", "1.25"), "pearson")])
def test_what_trials_are_compared_by_chooses_their_best_epochs_too_where_nobody_has_named_it(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], tiny_tokenizer: Path, labels: tuple[str, str], metric: str
) -> None:
    source = folder.root / "many.csv"
    lines = "".join(f"dog {number},{labels[number % 2]}{number if metric == 'pearson' else ''}\n" for number in range(40))
    source.write_text("text,label\n" + lines)
    store = prepare(TrainConfig(model=str(tiny_tokenizer), sequence_len=32), str(source), None, lambda sentence: None)

    def chosen_by(run_id: str, **changes: object) -> str | None:
        request = ask(run_id, metric=None, **changes)
        Trial(folder, request, "tester", lambda progress: None, "").training(store.path)
        settings: dict[str, str] = json.loads((folder.run(run_id) / "settings.json").read_text())
        return settings.get("metric")

    assert chosen_by("mine", by_score=True) == metric
    assert chosen_by("earlier") is None  # a trial of a sweep that an earlier version began
    named = m.BertFineTuneConfig(dataset_name="leanings.csv", use_gpu=False, settings={"metric": "macro_f1"})
    assert chosen_by("named", by_score=True, config=named) == "macro_f1"


def test_a_metric_that_the_task_has_not_is_refused_in_words(folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest]) -> None:
    config = m.BertFineTuneConfig(dataset_name="leanings.csv", use_gpu=False, task_type="regression")
    with pytest.raises(LaunchRefused, match="mine: --metric accuracy is not a figure of a regression"):
        run(folder, ask(config=config))


def test_a_trial_that_is_killed_goes_on_and_gives_up_when_it_never_gets_further(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_END", "kill")
    monkeypatch.setattr("bert_train_parallel.sweeps.outcomes.MOST_KILLS", 2)
    for _ in range(2):
        with pytest.raises(TryAgain):
            run(folder, ask())
    assert run(folder, ask()).error.startswith("killed 2 times without getting further")
    assert [attempt.first_step for attempt in lease.attempts(folder.run("mine"))] == [0, 4, 4]


def test_a_cancel_asks_waits_and_leaves_no_process(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_STEPS", "1000")
    monkeypatch.setenv("PRETEND_STEP_S", "0.05")
    monkeypatch.setenv("PRETEND_DEAF", "1")
    seconds = 0.0
    beats: list[m.TrialProgress] = []

    async def go() -> None:
        nonlocal seconds
        task = asyncio.create_task(Trials(folder, "tester").run(ask(), beats.append))
        while not any(beat.step > 2 for beat in beats):
            await asyncio.sleep(0.02)
        began, before = time.monotonic(), len(beats)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        seconds = time.monotonic() - began
        assert len(beats) > before + 2  # heartbeats went on during the grace

    asyncio.run(go())
    assert seconds < 1 + 3  # the grace of a trainer that is deaf, and what it takes to end it
    assert not alive()
    assert lease.attempts(folder.run("mine"))[-1].outcome == "cancelled"


def alive() -> list[str]:
    """What still runs below this process."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and "pretend_trainer" in " ".join(child.cmdline()):
                found.append(" ".join(child.cmdline()))
    return found


def test_a_newer_attempt_takes_over_and_the_older_one_ends(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_STEPS", "40")
    monkeypatch.setenv("PRETEND_STEP_S", "0.05")
    beats: list[m.TrialProgress] = []

    async def go() -> tuple[BaseException | m.BertFineTuneResult, ...]:
        older = asyncio.create_task(Trials(folder, "older").run(ask(), beats.append))
        while not any(beat.step > 4 for beat in beats):
            await asyncio.sleep(0.02)
        newer = asyncio.create_task(Trials(folder, "newer").run(ask(), lambda beat: None))
        return tuple(await asyncio.gather(older, newer, return_exceptions=True))

    older, newer = asyncio.run(go())
    assert isinstance(older, Fenced)
    assert isinstance(newer, m.BertFineTuneResult)
    assert newer.steps == 40
    first, second = lease.attempts(folder.run("mine"))
    assert second.first_step > 0
    assert second.first_step >= first.saved_step  # nothing was lost, and nothing was trained by both at a time


def test_two_trials_at_a_time_that_ask_for_the_same_are_trained_once(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_STEPS", "30")
    monkeypatch.setenv("PRETEND_STEP_S", "0.03")
    waiting: list[m.TrialProgress] = []

    async def go() -> list[m.BertFineTuneResult]:
        first = asyncio.create_task(Trials(folder, "one").run(ask("one"), lambda beat: None, "a sweep"))
        await asyncio.sleep(0.3)
        others = [("two", "a sweep"), ("one", "another sweep")]
        return await asyncio.gather(first, *(Trials(folder, "x").run(ask(run_id), waiting.append, owner) for run_id, owner in others))

    first, same, elsewhere = asyncio.run(asyncio.wait_for(go(), 60))
    assert (first.state, first.steps, first.attempts) == ("finished", 30, 1)
    assert (same.same_as, same.gpu_seconds, same.rows_seen) == ("one", 0, 0)
    assert (elsewhere.state, elsewhere.score, elsewhere.same_as) == ("finished", first.score, None)
    assert len(lease.attempts(folder.run("one"))) == 1
    assert {beat.phase for beat in waiting} == {"waiting for the same in one"}


def test_a_trial_that_is_repeated_twice_at_once_is_trained_once(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_STEP_S", "0.2")
    request = ask("mine-again1", again=1)

    async def twice() -> list[m.BertFineTuneResult]:
        return list(await asyncio.gather(again._train(request, folder), again._train(request, folder)))

    assert [result.state for result in asyncio.run(twice())] == ["finished"] * 2
    assert len(lease.attempts(folder.run("mine-again1"))) == 1


def test_a_trial_that_waits_for_the_same_can_be_cancelled_and_trains_it_when_the_other_is_stopped(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_STEPS", "40")
    monkeypatch.setenv("PRETEND_STEP_S", "0.05")
    beats: list[m.TrialProgress] = []

    async def go() -> m.BertFineTuneResult:
        first = asyncio.create_task(Trials(folder, "one").run(ask("one"), beats.append))
        while not any(beat.step > 4 for beat in beats):
            await asyncio.sleep(0.02)
        tired, patient = (asyncio.create_task(Trials(folder, run_id).run(ask(run_id), lambda beat: None)) for run_id in ("two", "three"))
        await asyncio.sleep(0.3)
        tired.cancel()
        with pytest.raises(asyncio.CancelledError):
            await tired
        assert not first.done()
        assert Trials(folder, "two").ended(ask("two"), "", "stopped", "").gpu_seconds == 0  # what the other spends is not this one's
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await patient

    result = asyncio.run(asyncio.wait_for(go(), 60))
    assert (result.state, result.steps, result.same_as) == ("finished", 40, "one")
    stopped, finished = lease.attempts(folder.run("one"))
    assert (stopped.outcome, finished.outcome, finished.owner) == ("cancelled", "finished", "/three")
    assert finished.first_step > 0
    assert result.gpu_seconds == pytest.approx(finished.seconds)


def test_another_request_under_a_runs_name_is_refused(folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest]) -> None:
    run(folder, ask("mine"))
    with pytest.raises(LaunchRefused, match=r"mine is of another run .* differs in learning_rate \(was 0.1, is now 0.2\)\. Give"):
        run(folder, ask("mine", learning_rate=0.2))
    assert run(folder, ask("other", learning_rate=0.2)).same_as is None  # and the refused one has not taken its place
    folder.asked("mine").unlink()  # trained by a version that did not write it down
    assert run(folder, ask("mine")).score == 0.6
    folder.asked("mine").unlink()
    with pytest.raises(LaunchRefused, match="trained with other settings or data"):
        run(folder, ask("mine", learning_rate=0.3))
    with pytest.raises(LaunchRefused, match="from_run"):
        run(folder, ask("new", resume_from_checkpoint="bert_runs/mine/step_3"))


def test_a_training_that_tells_nothing_any_more_is_ended_and_has_failed(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_STEP_S", "60")
    began = time.monotonic()
    with pytest.raises(TryAgain, match=r"launch\.no_progress_s"):
        run(folder, ask(launch={"grace_s": 1, "no_progress_s": 2}))
    assert time.monotonic() - began < 30
    assert [attempt.outcome for attempt in lease.attempts(folder.run("mine"))] == ["failed"]
    assert not alive()


def test_a_training_that_takes_longer_than_it_may_fails_as_any_other_failure_of_its_own(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_STEPS", "1000")
    monkeypatch.setenv("PRETEND_STEP_S", "0.05")
    monkeypatch.setattr("bert_train_parallel.sweeps.outcomes.MOST_FAILURES", 2)
    request = ask(launch={"grace_s": 1, "max_hours": 1 / 3600})
    with pytest.raises(TryAgain, match=r"training took longer than launch\.max_hours, which is 0\.000277778"):
        run(folder, request)
    assert not alive()
    result = run(folder, request)
    assert (result.state, result.error.split(";")[0]) == ("failed", "failed 2 times")
    assert "launch.max_hours" in result.error
    assert [attempt.outcome for attempt in lease.attempts(folder.run("mine"))] == ["failed"] * 2


def test_a_node_without_the_sweeps_folder_leaves_a_trial_to_others_however_often_it_is_asked(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = SharedFolder(folder.root / "elsewhere")
    elsewhere.root.mkdir()
    activities, beats = Activities(elsewhere, "alpha/7"), list[m.TrialProgress]()

    async def go() -> timedelta | None:
        environment = ActivityEnvironment()
        environment.on_heartbeat = beats.append
        with pytest.raises(ApplicationError, match=r"alpha/7 runs no trial of this sweep: .*elsewhere.* is not there") as error:
            await environment.run(activities.fine_tune_bert, ask())
        assert (error.value.type, error.value.non_retryable) == ("WrongFolder", False)
        return error.value.next_retry_delay

    assert [asyncio.run(go()) for _ in range(4)] == [timedelta(seconds=2)] * 4
    assert {beat.phase for beat in beats} == {m.NO_FOLDER}
    assert len(caplog.messages) == 1  # in the worker's output
    assert list(elsewhere.root.iterdir()) == []
    hold = m.HoldRequest(run_id="mine", gpus=1, dataset_snapshot=ask().dataset_snapshot)
    with pytest.raises(ApplicationError, match="alpha/7 runs no trial of this sweep"):
        asyncio.run(ActivityEnvironment().run(activities.hold_gpus, hold))
    assert run(folder, ask()).attempts == 1


def test_a_trial_that_ended_while_no_worker_had_it_is_accounted_for_by_its_attempts(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def account(request: m.BertFineTuneRequest) -> m.BertFineTuneResult:
        asked = m.AccountRequest(trial=request, state="stopped", error="stopped by a person")
        return asyncio.run(ActivityEnvironment().run(Activities(folder).account_for_trial, asked))

    monkeypatch.setenv("PRETEND_END", "kill")
    with pytest.raises(TryAgain):
        run(folder, ask())
    found = account(ask())
    assert (found.state, found.error, found.steps, found.attempts) == ("stopped", "stopped by a person", 4, 1)
    assert found.gpu_seconds > 0
    assert found.host
    never = account(ask("never", learning_rate=0.3))
    assert (never.state, never.gpu_seconds, never.attempts) == ("stopped", 0, 0)
    assert not folder.run("never").exists()
    refused = account(ask("mine", learning_rate=0.3))  # another request under a run's name
    assert (refused.gpu_seconds, refused.attempts) == (0, 0)


def test_the_lock_of_a_run_is_free_only_when_no_process_of_its_attempt_is_left(tmp_path: Path) -> None:
    async def go() -> None:
        held = lease.Lease(tmp_path, "one", 1)
        await held.take(lambda: None)
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE, pass_fds=(held.lock,))
        held.release()
        ticks = 0

        def tick() -> None:
            nonlocal ticks
            ticks += 1
            if ticks == 5:
                child.kill()

        await lease.Lease(tmp_path, "two", 1).take(tick)
        assert ticks >= 5
        await child.wait()

    asyncio.run(go())


def test_an_older_attempt_that_waits_gives_way_to_a_newer_one(tmp_path: Path) -> None:
    async def go() -> None:
        holder = lease.Lease(tmp_path, "holder", 1)
        await holder.take(lambda: None)
        waiting = asyncio.create_task(lease.Lease(tmp_path, "older", 1).take(lambda: None))
        await asyncio.sleep(0.05)
        newest = asyncio.create_task(lease.Lease(tmp_path, "newer", 1).take(lambda: None))
        with pytest.raises(Fenced):
            await waiting
        with pytest.raises(Fenced):
            holder.check()
        holder.release()
        await newest

    asyncio.run(go())


def test_a_promoted_trial_is_told_where_to_go_on(folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest]) -> None:
    run(folder, ask("first"))
    run(folder, ask("second", from_run="first", rung=1))
    assert f'"from_run": "{folder.run("first") / "leanings_checkpoints"}"' in (folder.run("second") / "settings.json").read_text()


def test_an_activity_calls_its_core_once_tells_heartbeats_and_hears_a_cancel(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_STEPS", "1000")
    monkeypatch.setenv("PRETEND_STEP_S", "0.05")
    calls, beats = 0, []
    inner = launches.launch

    async def counted(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        return await inner(*args, **options)  # type: ignore[arg-type]

    async def go() -> m.BertFineTuneResult:
        environment = ActivityEnvironment()
        environment.on_heartbeat = lambda *details: beats.append(details)
        own = Trials(folder, "tester", launch=counted)  # type: ignore[arg-type]
        running = asyncio.ensure_future(environment.run(Activities(folder, trials=own).fine_tune_bert, ask()))
        while not any(details and details[0].step > 2 for details in beats):
            await asyncio.sleep(0.02)
        from temporalio.activity import ActivityCancellationDetails

        environment.cancel(cancellation_details=ActivityCancellationDetails(cancel_requested=True))
        return await running

    result = asyncio.run(go())
    assert result.state == "stopped"
    assert result.gpu_seconds > 0
    assert calls == 2  # the store, and the training
    assert not alive()


def test_a_workflow_that_asks_for_it_is_told_when_a_training_begins(
    folder: SharedFolder, ask: Callable[..., m.BertFineTuneRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_STEP_S", "0.1")
    signals: list[tuple[str, str]] = []

    class Told:
        """Stands in for a client and for its handle of a workflow; the first signal is lost."""

        def get_workflow_handle(self, workflow_id: str) -> Told:
            return self

        async def signal(self, name: str, content: str) -> None:
            signals.append((name, content))
            if len(signals) == 1:
                raise ConnectionError

    activities = Activities(folder, client=Told())  # type: ignore[arg-type]
    asyncio.run(ActivityEnvironment().run(activities.fine_tune_bert, ask(signal_start=True)))
    assert signals == [("trial_began", "mine")] * 2
    asyncio.run(ActivityEnvironment().run(activities.fine_tune_bert, ask("other", learning_rate=0.2)))
    assert len(signals) == 2


def test_gpus_are_passed_on_to_the_launcher_with_their_locks(tmp_path: Path) -> None:
    from bert_train_parallel import gpus
    from bert_train_parallel.sweeps.reservations import launch_environment

    lock = os.open(tmp_path / "GPU-1", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    found = launch_environment(gpus.Claim(1, ("GPU-1",), [lock]))
    assert found == {"CUDA_VISIBLE_DEVICES": "GPU-1", gpus.HELD_VARIABLE: f"GPU-1={lock}"}
    os.close(lock)

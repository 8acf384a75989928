"""Which run a command means, and who gets a name."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.errors import BadCheckpoint, BadRun
from bert_train_parallel.rank import Rank
from bert_train_parallel.run_files import RunFiles, write_json
from bert_train_parallel.training import runs

NEW, RESUME = TrainConfig(), TrainConfig(resume=True)


@pytest.fixture
def named(tmp_path: Path) -> RunFiles:
    return RunFiles(tmp_path, "leanings")


def test_a_new_run_takes_the_first_free_name(named: RunFiles) -> None:
    assert runs.choose_run(named, NEW, Rank()) == runs.Choice(named)
    runs.claim(named, {})
    choice = runs.choose_run(named, NEW, Rank())
    assert (choice.files.stem, choice.goes_on) == ("leanings-2", False)
    assert "leanings was not finished" in choice.note


def test_resume_means_the_newest_run_or_a_first_one(named: RunFiles) -> None:
    assert not runs.choose_run(named, RESUME, Rank()).goes_on
    runs.claim(named, {})
    runs.claim(named, {})
    assert runs.choose_run(named, RESUME, Rank()) == runs.Choice(RunFiles(named.folder, "leanings-2"), goes_on=True)


def test_a_restarted_world_means_the_run_of_its_job(named: RunFiles) -> None:
    runs.claim(named, {"job": "one"})
    runs.claim(named, {"job": "two"})
    assert runs.choose_run(named, NEW, Rank(job="one", attempt=1)).files == named
    assert not runs.choose_run(named, NEW, Rank(job="three", attempt=1)).goes_on


def test_of_many_processes_that_take_a_name_at_once_each_gets_its_own(named: RunFiles) -> None:
    got: list[str] = []
    threads = [threading.Thread(target=lambda: got.append(runs.claim(named, {}).stem)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(["leanings", *(f"leanings-{number}" for number in range(2, 13))])


def test_a_name_is_free_again_after_a_run_that_left_nothing(named: RunFiles) -> None:
    files = runs.claim(named, {})
    runs.give_up_claim(files)
    assert not named.has_begun
    runs.claim(named, {})
    (named.checkpoints / "step_00000001").mkdir()
    runs.give_up_claim(named)
    assert named.has_begun


def test_a_run_is_trained_by_one_process_at_a_time(named: RunFiles) -> None:
    with (
        runs.held(named),
        pytest.raises(BadRun, match=r"leanings_checkpoints: another process trains this run now.*leave --resume out"),
        runs.held(named, patience=0.0),
    ):
        pass
    with runs.held(named, patience=0.0):
        pass


def test_a_run_waits_for_a_process_that_is_about_to_end(named: RunFiles) -> None:
    with contextlib.ExitStack() as first:
        first.enter_context(runs.held(named))
        timer = threading.Timer(0.3, first.pop_all().close)
        timer.start()
        with runs.held(named, patience=60.0):
            pass
        timer.join()


def test_the_result_of_other_settings_is_refused_and_a_damaged_one_too(named: RunFiles) -> None:
    write_json(named.result, {"asked": {"seed": 0, "data": "ab"}, "key": "k"})
    assert runs.finished_result(named, {"seed": 0, "data": "ab"}) == {"asked": {"seed": 0, "data": "ab"}, "key": "k"}
    with pytest.raises(BadCheckpoint, match=r"seed \(was 0, is now 1\)"):
        runs.finished_result(named, {"seed": 1, "data": "ab"})
    with pytest.raises(BadCheckpoint, match="differs in the data"):
        runs.finished_result(named, {"seed": 0, "data": "cd"})
    named.result.write_text("{")
    with pytest.raises(BadRun, match="cannot be read"):
        runs.finished_result(named, {"seed": 0, "data": "ab"})


def test_an_earlier_run_is_named_by_any_of_its_files(named: RunFiles) -> None:
    place = named.checkpoints / "step_00000010"
    place.mkdir(parents=True)
    for name in (named.result, named.stats, named.checkpoints, named.folder / "leanings"):
        assert runs.earlier_run(str(name)) == named.checkpoints
    assert runs.earlier_run(str(place)) == place
    with pytest.raises(BadCheckpoint, match="--from_run"):
        runs.earlier_run(str(named.folder / "other_RESULT.json"))


def test_the_key_of_a_run_that_went_on_from_another_tells_from_where() -> None:
    keys = {runs.run_key("k", origin) for origin in (None, {"key": "a", "step": 1}, {"key": "a", "step": 2}, {"key": "b", "step": 1})}
    assert len(keys) == 4

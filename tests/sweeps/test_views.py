"""What a terminal shows of a sweep."""

from __future__ import annotations

import pytest

from bert_train_parallel.sweeps import again
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.results import as_csv, leaderboard_rows, ordered
from bert_train_parallel.sweeps.trials import TrialProgress
from bert_train_parallel.sweeps.views import View, leaderboard_lines, lines_of, result_lines


def trial(number: int, score: float | None, rung: int = 0, **more: object) -> m.TrialResult:
    given = {"number": number, "rung": rung, "run_id": f"mine-t{number:04d}", "score": score, "values": {"learning_rate": 1e-4}, **more}
    return m.TrialResult.model_validate(given)


def progress(**changes: object) -> m.ProgressAnswer:
    running = [m.RunningAnswer(number=5, rung=0, run_id="mine-t0005", values={"learning_rate": 3e-5}, seconds=12)]
    given = {"as_of": "2026-01-01T00:00:00", "experiment_id": "mine", "trials": 8, "ended": 5, "states": {"finished": 4, "oom": 1}}
    given |= {"running": running, "concurrency": 2, "paused": False, "stopped": "", "waiting_for": "", "over": False}
    return m.ProgressAnswer.model_validate(given | changes)


def test_the_table_says_how_far_each_trial_is_and_never_breaks_a_line() -> None:
    beat = TrialProgress(
        run_id="mine-t0005", phase="training", host="alpha", worker="alpha/1", attempt=2, step=120, steps=480, epoch=1, loss=0.431, time=0.0
    )
    view = View(progress(), [trial(3, 0.9)], beats={"mine-t0005": beat}, page="http://127.0.0.1:1/x")
    lines = lines_of(view, 200)
    assert lines[0] == "mine: 5 of 8 trials (4 finished, 1 oom), 1 running"
    assert "[######                  ] 120/480  epoch 1  loss 0.431  attempt 2" in lines[1]
    assert any(line.startswith("1  t0003  0.9000") for line in lines)
    assert all(len(line) < 60 for line in lines_of(view, 60))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"waiting_for": "rung 2 of 3"}, "bert_sweep approve mine"),
        ({"paused": True}, "; paused"),
        ({"stopped": "stopped by a person"}, "stopped by a person"),
    ],
)
def test_the_first_line_says_what_a_sweep_waits_for(changes: dict[str, object], words: str) -> None:
    assert words in lines_of(View(progress(**changes)), 200)[0]


def test_a_trial_without_a_score_is_on_the_leaderboard_with_its_reason() -> None:
    rows = leaderboard_rows(ordered([trial(0, None, state="nan", error="no number"), trial(1, 0.5), trial(2, 0.7)], maximise=True))
    assert [(row["rank"], row["number"], row["state"]) for row in rows] == [(1, 2, "finished"), (2, 1, "finished"), (None, 0, "nan")]
    assert as_csv(rows).splitlines()[0].startswith("rank,number,rung,run_id,state,score,value.learning_rate")


def test_less_loss_is_better() -> None:
    assert [one.number for one in ordered([trial(0, 0.4), trial(1, 0.1)], maximise=False)] == [1, 0]


def test_a_promoted_trial_says_where_it_began() -> None:
    assert leaderboard_lines([trial(1, 0.5, rung=1, promoted_from="mine-t0001-r0")], "accuracy")[1].endswith("from mine-t0001-r0")


def test_the_end_says_the_best_and_why_it_came_early() -> None:
    result = m.SweepResult(
        experiment_id="mine", trials=3, states={"finished": 3}, stopped="the budget is spent", leaderboard=[trial(1, 0.5)]
    )
    words = "\n".join(result_lines(result, {"page": "there"}))
    assert "It ended early: the budget is spent." in words
    assert "best: mine-t0001, accuracy 0.5000, learning_rate 0.0001" in words
    assert words.endswith("page: there")


def test_a_trial_is_repeated_with_all_that_it_went_on_from() -> None:
    config = m.BertFineTuneConfig()
    asked = [
        m.BertFineTuneRequest(run_id="a-t0001-r0", config=config),
        m.BertFineTuneRequest(run_id="a-t0001-r1", config=config, rung=1, from_run="a-t0001-r0"),
        m.BertFineTuneRequest(run_id="a-random-t0001", config=config),
    ]
    run_id = again.run_named(asked, 1, None)
    assert [request.run_id for request in again.chain_of(asked, run_id)] == ["a-t0001-r0", "a-t0001-r1"]
    with pytest.raises(Exception, match="no trial 7"):
        again.run_named(asked, 7, None)

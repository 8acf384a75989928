"""What a terminal shows of a sweep."""

from __future__ import annotations

import pytest

from bert_train_parallel.errors import BadRun
from bert_train_parallel.sweeps import again
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.results import as_csv, leaderboard_rows, ordered
from bert_train_parallel.sweeps.views import View, comparison_lines, ended_line, leaderboard_lines, lines_of, result_lines


def trial(number: int, score: float | None, rung: int = 0, **more: object) -> m.TrialResult:
    given = {"number": number, "rung": rung, "run_id": f"mine-t{number:04d}", "score": score, "values": {"learning_rate": 1e-4}, **more}
    return m.TrialResult.model_validate(given)


def progress(**changes: object) -> m.ProgressAnswer:
    running = [m.RunningAnswer(number=5, rung=0, run_id="mine-t0005", values={"learning_rate": 3e-5}, seconds=12)]
    given = {"as_of": "2026-01-01T00:00:00", "experiment_id": "mine", "trials": 8, "ended": 5, "states": {"finished": 4, "oom": 1}}
    given |= {"running": running, "concurrency": 2, "paused": False, "stopped": "", "waiting_for": "", "over": False}
    return m.ProgressAnswer.model_validate(given | changes)


def test_the_table_says_how_far_each_trial_is_and_never_breaks_a_line() -> None:
    beat = m.TrialProgress(
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


def test_the_first_line_says_how_old_its_figures_are() -> None:
    assert lines_of(View(progress(), age_s=190.0), 200)[0].endswith("1 running; as of 3 min ago")


def test_a_trial_without_a_score_is_on_the_leaderboard_with_its_reason() -> None:
    rows = leaderboard_rows(ordered([trial(0, None, state="nan", error="no number"), trial(1, 0.5), trial(2, 0.7)], maximise=True))
    assert [(row["rank"], row["number"], row["state"]) for row in rows] == [(1, 2, "finished"), (2, 1, "finished"), (None, 0, "nan")]
    assert as_csv(rows).splitlines()[0].startswith("rank,number,rung,run_id,state,score,value.learning_rate")


def test_random_trials_to_compare_with_stand_below_those_of_the_ladder_without_a_rank() -> None:
    random = m.TrialResult(number=0, run_id="mine-random0000", score=0.9, values={"batch_size": 8})
    rows = leaderboard_rows([trial(0, 0.5), trial(1, None, state="nan")], [random])
    assert [(row["rank"], row["run_id"], row["value.batch_size"]) for row in rows] == [
        (1, "mine-t0000", None),
        (None, "mine-t0001", None),
        (None, "mine-random0000", 8),
    ]


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
        m.BertFineTuneRequest(run_id="a-random0001", config=config),
        m.BertFineTuneRequest(run_id="a-t00010-r0", config=config),
    ]
    run_id = again.run_named(asked, "a", 1, None)
    assert [request.run_id for request in again.chain_of(asked, run_id)] == ["a-t0001-r0", "a-t0001-r1"]
    with pytest.raises(BadRun, match="no trial 7"):
        again.run_named(asked, "a", 7, None)
    with pytest.raises(BadRun, match=r"The sweep a has not ended.* name one by its number"):
        again.run_named(asked, "a", None, None)
    with pytest.raises(BadRun, match=r"No trial of a has a score.* name one by its number"):
        again.run_named(asked, "a", None, m.SweepResult(experiment_id="a", trials=3))
    with pytest.raises(BadRun, match="There is no sweep nosuch"):
        again.run_named(asked, "nosuch", None, None)


def test_a_trial_of_a_sweep_with_random_in_its_name_is_found() -> None:
    asked = [m.BertFineTuneRequest(run_id="leanings-random-t0000", config=m.BertFineTuneConfig())]
    assert again.run_named(asked, "leanings-random", 0, None) == "leanings-random-t0000"


def test_random_trials_to_compare_with_are_told_from_those_of_the_ladder() -> None:
    running = [m.RunningAnswer(number=0, rung=0, run_id="mine-random0000", values={}, seconds=1)]
    lines = lines_of(View(progress(comparing=True, running=running, trials=3, ended=1), [trial(1, 0.5, run_id="mine-random0001")]), 200)
    assert lines[0].startswith("mine: 1 of 3 random trials to compare with")
    assert lines[1].startswith("  random0000  ")
    assert any(line.startswith("1  random0001") for line in lines)
    assert ended_line(trial(0, 0.5), "accuracy", False).startswith("trial t0000 ")
    assert ended_line(trial(0, 0.5, run_id="mine-random0000"), "accuracy", False).startswith("trial random0000 ")


def test_one_is_not_many() -> None:
    result = m.SweepResult(experiment_id="mine", trials=1, states={"finished": 1}, leaderboard=[trial(0, 0.5)])
    assert result_lines(result, {})[0].startswith("mine: 1 trial (1 finished)")
    assert lines_of(View(progress(trials=1, ended=0, states={})), 200)[0].startswith("mine: 0 of 1 trial (none ended)")


def test_what_random_trials_cost_and_how_many_were_left_out_is_said() -> None:
    found = m.Comparison(
        rows_seen=900,
        random_trials=1,
        random_planned=3,
        winner="mine-t0000-r1",
        winner_figures={"accuracy": 0.9},
        random_best="mine-random0000",
        random_figures={"accuracy": 0.8},
        metric="accuracy",
        random_rows_seen=300,
        random_gpu_hours=0.5,
    )
    assert comparison_lines(found)[1] == (
        "  best of 1 random trial of 3 planned (300 rows), 0.5 of the GPU-hours: accuracy 0.8000 with mine-random0000"
    )

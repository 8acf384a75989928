"""Rungs of a ladder, budgets, and the state of a sweep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_train_parallel.sweeps.board import Board, Planned
from bert_train_parallel.sweeps.messages import TrialResult
from bert_train_parallel.sweeps.rungs import Ladder, LadderStage, promoted, rungs_of, trials_on

from .simulated import sweep


def ladder(*stages: dict[str, int]) -> Ladder:
    return Ladder(stages=tuple(LadderStage.model_validate(stage) for stage in stages))


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"epochs": 2}, {"epochs": 2}], "each stage trains longer"),
        ([{"epochs": 1, "max_train_samples": 500}, {"epochs": 2, "max_train_samples": 100}], "fewer samples"),
        ([{"epochs": 1}, {"epochs": 2, "max_train_samples": 100}], "fewer samples"),
        ([{"epochs": 1, "new": 0}], "begins no trial"),
    ],
)
def test_a_ladder_that_does_not_climb_is_refused(stages: list[dict[str, int]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rungs_of(ladder(*stages), 8)


@given(trials=st.integers(1, 500))
def test_the_usual_ladder_ends_with_one_winner_for_any_number_of_trials(trials: int) -> None:
    rungs = rungs_of(Ladder(), trials)
    assert [rung.epochs for rung in rungs] == [1, 2, 4, 8]
    assert rungs[-1].keep == 1
    assert all(rung.keep >= 1 for rung in rungs)
    assert all(trials_on(rungs, rung.number) >= rung.keep or rung.number == 3 for rung in rungs)


@given(scores=st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=30), keep=st.integers(1, 10), maximise=st.booleans())
def test_nobody_who_is_promoted_is_worse_than_one_who_is_not(scores: list[float | None], keep: int, maximise: bool) -> None:
    numbered = list(enumerate(scores))
    best = promoted(numbered, keep, maximise)
    scored = [number for number, score in numbered if score is not None]
    assert len(best) == min(keep, len(scored))
    sign = 1 if maximise else -1
    for number in best:
        for other in set(scored) - set(best):
            assert sign * (scores[number] or 0) >= sign * (scores[other] or 0)


def test_failed_attempts_and_trials_under_way_are_in_the_spending() -> None:
    board = Board(sweep(budget_gpu_hours=1.0, launch={"here_gpus": 2}))
    board.begin(Planned(0, {}), now=0.0)
    board.end(TrialResult(number=0, run_id="mine-t0000", state="failed", gpu_seconds=1800))
    assert board.may_begin(0.0)
    board.begin(Planned(1, {}), now=0.0)
    assert board.spending(600).running == 1200
    assert board.may_begin(600)
    assert board.look_again_after(600) == pytest.approx(300)
    assert not board.may_begin(900)
    assert board.why_over(900) == ""
    board.end(TrialResult(number=1, run_id="mine-t0001", score=0.5, gpu_seconds=1800))
    assert "budget" in board.why_over(900)


def test_a_trial_that_waits_for_a_node_spends_nothing() -> None:
    board = Board(sweep(budget_gpu_hours=1.0))
    board.waiting_is_free = True
    board.begin(Planned(0, {}), now=0.0)
    assert (board.spending(7200).running, board.may_begin(7200), board.look_again_after(7200)) == (0, True, None)
    board.costs("mine-t0000", 7200)
    board.costs("mine-t0000", 7500)  # another attempt
    assert board.spending(9000).running == 1800
    assert board.look_again_after(9000) == pytest.approx(1800)


def test_the_leaderboard_puts_a_later_rung_first_and_equal_scores_by_number() -> None:
    board = Board(sweep())
    for number, rung, score in [(3, 0, 0.9), (1, 0, 0.9), (1, 1, 0.5), (2, 0, None)]:
        board.end(
            TrialResult(
                number=number, rung=rung, run_id=f"mine-t{number}-r{rung}", score=score, state="nan" if score is None else "finished"
            )
        )
    assert [(trial.number, trial.rung) for trial in board.state.best] == [(1, 1), (1, 0), (3, 0)]

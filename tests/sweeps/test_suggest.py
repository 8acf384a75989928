"""TPE: the same answer in every process, and a better one than chance."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from bert_train_parallel.sweeps import history
from bert_train_parallel.sweeps.draw import Values, draw_random, key_of
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.messages import RecordRequest, SuggestRequest, TrialResult, TrialValues
from bert_train_parallel.sweeps.space import SweepSpace
from bert_train_parallel.sweeps.suggest import importance, propose

SPACE = SweepSpace(
    learning_rate=(1e-6, 1e-2),
    schedule=["linear", "constant"],
    warmup={"low": 0.0, "high": 1.0, "when": {"schedule": "linear"}},
    batch_size={"low": 8, "high": 64, "step": 8},
)


def hill(values: Values) -> float:
    """A quadratic with its top at 1e-4, linear, warmup 0.3, batch 32."""
    score = -((math.log10(float(values["learning_rate"])) + 4) ** 2) / 4 - ((float(values["batch_size"]) - 32) / 32) ** 2
    return score - (float(values["warmup"]) - 0.3) ** 2 * 4 if "warmup" in values else score - 0.5


def trial(number: int, values: Values) -> TrialResult:
    return TrialResult(number=number, run_id=f"t{number}", values=values, score=hill(values))


def ended(count: int) -> list[TrialResult]:
    return [trial(number, draw_random(SPACE, 1, number)) for number in range(count)]


def test_the_order_in_which_trials_ended_does_not_matter() -> None:
    known = ended(20)
    assert propose(SPACE, known, [], seed=5, number=20) == propose(SPACE, known[::-1], [], seed=5, number=20)


def test_another_process_gives_the_same_proposal() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r});"
        "from sweeps.test_suggest import SPACE, ended, propose; print(propose(SPACE, ended(15), [], seed=5, number=15, count=2))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert said == str(propose(SPACE, ended(15), [], seed=5, number=15, count=2))


def test_proposals_made_together_differ_since_each_counts_as_running_for_the_next() -> None:
    found = propose(SPACE, ended(20), [], seed=5, number=20, count=4)
    assert len({str(values) for values in found}) == 4


def test_results_from_a_number_on_count_as_running_though_they_have_ended(tmp_path: Path) -> None:
    folder = SharedFolder(tmp_path)
    known = ended(16)

    def ask(recent: list[TrialResult], running: list[TrialResult]) -> object:
        asked = [TrialValues(number=one.number, values=one.values) for one in running]
        request = SuggestRequest(space=SPACE, seed=3, number=16, known=13, recent=tuple(recent), running=tuple(asked))
        return history.suggest(request, folder)

    assert ask(known, []) == ask(known[:13], known[13:]) == ask(known[:15][::-1], known[15:])


def test_what_was_written_to_the_history_counts_like_what_is_still_in_memory(tmp_path: Path) -> None:
    folder = SharedFolder(tmp_path)
    known = ended(16)
    written = history.record(RecordRequest(experiment_id="mine", ended=tuple(known[:7])), folder)
    written = history.record(RecordRequest(experiment_id="mine", history=written, ended=tuple(known[7:12])), folder)
    one = SuggestRequest(space=SPACE, seed=3, number=16, history=written, recent=tuple(known[12:]))
    assert written.count == 12
    assert history.suggest(one, folder) == history.suggest(SuggestRequest(space=SPACE, seed=3, number=16, recent=tuple(known)), folder)


def test_a_sweep_leaves_the_history_of_another_whose_name_begins_like_its_own(tmp_path: Path) -> None:
    folder = SharedFolder(tmp_path)
    one = two = None
    for count in (3, 4, 5):
        two = history.record(RecordRequest(experiment_id="mine-2", history=two, ended=tuple(ended(count))), folder)
        one = history.record(RecordRequest(experiment_id="mine", history=one, ended=tuple(ended(count))), folder)
    assert (len(history.read_history(one, folder)), len(history.read_history(two, folder))) == (12, 12)
    left = ["mine-000007.jsonl", "mine-000012.jsonl", "mine-2-000007.jsonl", "mine-2-000012.jsonl"]
    assert sorted(path.name for path in (tmp_path / "histories").iterdir()) == left  # the newest of each, and the one before


def test_a_history_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = SharedFolder(tmp_path)
    written = history.record(RecordRequest(experiment_id="mine", ended=tuple(ended(3))), folder)
    path = folder.inside(written.path)
    path.write_text(path.read_text().replace("t1", "t9"))
    with pytest.raises(Exception, match="has changed since it was written"):
        history.read_history(written, folder)


def test_tpe_stays_away_from_where_the_loss_was_no_number() -> None:
    known = [
        one if float(one.values["learning_rate"]) < 1e-4 else one.model_copy(update={"score": None, "state": "nan"}) for one in ended(40)
    ]
    found = propose(SPACE, known, [], seed=1, number=40, count=12)
    assert sum(float(values["learning_rate"]) < 1e-3 for values in found) >= 9


def test_tpe_proposes_each_configuration_of_a_small_space_once_and_then_none() -> None:
    space = SweepSpace(batch_size=[8, 16, 32], epochs={"low": 1, "high": 4})
    for count in (1, 5):
        known: list[TrialResult] = []
        while (number := len(known)) < 20:
            found = propose(space, known, [], seed=5, number=number, count=count, taken=[one.values for one in known])
            assert found == propose(space, known[::-1], [], seed=5, number=number, count=count, taken=[one.values for one in known])
            if not found:
                break
            known += [
                TrialResult(number=number + place, run_id="a", values=values, score=-float(values["epochs"]))
                for place, values in enumerate(found)
            ]
        assert len({key_of(one.values) for one in known}) == len(known) == 12
    again = propose(space, known, [], seed=5, number=12, count=4)
    assert len(again) == 4  # a sweep of an earlier version is given what it was


def test_a_trial_on_another_rung_or_still_running_is_not_proposed_again(tmp_path: Path) -> None:
    space = SweepSpace(batch_size=[8, 16], epochs=[1, 2])
    values = [{"batch_size": size, "epochs": epochs} for size in (8, 16) for epochs in (1, 2)]
    ended = (
        TrialResult(number=0, run_id="a", values=values[0], score=0.5),
        TrialResult(number=1, rung=1, run_id="b", values=values[1], state="failed"),
    )
    running = (TrialValues(number=2, values=values[2]),)
    asked = SuggestRequest(space=space, seed=3, number=3, count=3, recent=ended, running=running, rung=1, distinct=True)
    assert history.suggest(asked, SharedFolder(tmp_path)).values == (values[3],)


@pytest.mark.slow
def test_sixty_proposals_beat_sixty_draws_in_most_seeds() -> None:
    won = 0
    for seed in range(5):
        known: list[TrialResult] = []
        for number in range(60):
            values = propose(SPACE, known[: max(0, number - 3)], [one.values for one in known[-3:]], seed=seed, number=number)[0]
            known.append(trial(number, values))
        drawn = max(hill(draw_random(SPACE, seed, number)) for number in range(60))
        won += max(one.score or -9 for one in known) > drawn
    assert won >= 4


def test_importance_finds_what_the_score_depends_on() -> None:
    known = [one.model_copy(update={"score": -((math.log10(float(one.values["learning_rate"])) + 4) ** 2)}) for one in ended(60)]
    found = importance(SPACE, known, maximise=True)
    assert next(iter(found)) == "learning_rate"
    assert "warmup" not in found

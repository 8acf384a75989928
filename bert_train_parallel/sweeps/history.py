"""Trials that have ended, in files: written whole, read with their hash checked, and what is asked of them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from typing import Any

from bert_train_parallel.errors import BadRun
from bert_train_parallel.run_files import write_text
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.keys import home_of
from bert_train_parallel.sweeps.messages import (
    CleanUpRequest,
    CompareRequest,
    Comparison,
    HistoryReference,
    Proposals,
    RecordRequest,
    SuggestRequest,
    TrialResult,
)
from bert_train_parallel.sweeps.outcomes import metric_of


def record(request: RecordRequest, folder: SharedFolder) -> HistoryReference:
    """Add trials to those of an earlier file, in a new one; the earlier one goes."""
    earlier = read_history(request.history, folder)
    trials = [*earlier, *request.ended]
    text = "".join(trial.model_dump_json(exclude_defaults=True) + "\n" for trial in trials)
    name = request.experiment_id + ("+random" if request.beside else "")  # no sweep has a name with a plus
    path = folder.history(name, len(trials))
    write_text(path, text)
    if request.history:
        old = folder.inside(request.history.path)
        ours = re.compile(re.escape(name) + r"-\d{6,}\.jsonl")  # and not of "mine-2" where this one is "mine"
        for stale in old.parent.glob("*.jsonl"):
            if ours.fullmatch(stale.name) and stale not in (old, path):  # the one before stays: this very request may be made again
                stale.unlink(missing_ok=True)
    return HistoryReference(path=folder.relative(path), count=len(trials), sha256=hashlib.sha256(text.encode()).hexdigest())


def read_history(reference: HistoryReference | None, folder: SharedFolder) -> list[TrialResult]:
    """The trials of a history file, in the order in which they ended.

    Raises:
        BadRun: the file is missing or not what was written.
    """
    if reference is None:
        return []
    path = folder.inside(reference.path)
    try:
        written = path.read_bytes()
    except OSError as error:
        raise BadRun(f"{path}, the record of {reference.count:,} trials, cannot be read: {error.strerror}. Copy it back.") from None
    if hashlib.sha256(written).hexdigest() != reference.sha256:
        raise BadRun(f"{path} has changed since it was written. Copy it back.")
    return [TrialResult.model_validate_json(line) for line in written.splitlines()]


def suggest(request: SuggestRequest, folder: SharedFolder) -> Proposals:
    """Proposals from what counts as known, whatever else has ended meanwhile."""
    from bert_train_parallel.sweeps.suggest import STARTUP, propose

    ended = [*read_history(request.history, folder), *request.recent]
    running = {trial.number: trial.values for trial in request.running}
    taken = [*(trial.values for trial in ended), *running.values()]
    if request.known is not None:
        running |= {trial.number: trial.values for trial in ended if trial.number >= request.known}
        ended = [trial for trial in ended if trial.number < request.known]
    if request.rung is not None:
        ended = of_best_fidelity(ended, request.rung, STARTUP)
    values = propose(
        request.space,
        ended,
        [running[number] for number in sorted(running)],
        seed=request.seed,
        number=request.number,
        count=request.count,
        maximise=request.maximise,
        taken=taken if request.distinct else None,
    )
    return Proposals(values=tuple(values))


def of_best_fidelity(ended: Iterable[TrialResult], rung: int, enough: int) -> list[TrialResult]:
    """The results of the highest rung up to `rung` that has enough of them: scores of different rungs are not compared.

    >>> trials = [TrialResult(number=number, rung=rung, run_id="a", score=0.5) for rung, number in [(0, 1), (0, 2), (1, 1)]]
    >>> [trial.rung for trial in of_best_fidelity(trials, 1, 2)]
    [0, 0]
    """
    found: list[TrialResult] = []
    ended = list(ended)
    for level in range(rung, -1, -1):
        found = [trial for trial in ended if trial.rung == level]
        if sum(trial.score is not None for trial in found) >= enough:
            break
    return found


def clean_up(request: CleanUpRequest, folder: SharedFolder) -> int:
    """Remove checkpoints and models; RESULT, figures and predictions stay."""
    keep = {home_of(folder, run_id) for run_id in request.keep}
    gone = 0
    for run_id in request.among:
        if home_of(folder, run_id) in keep or run_id in keep:
            continue
        files = folder.finished_files(run_id)
        if files is None:
            continue
        for place in (files.checkpoints, files.model_folder):
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
                gone += 1
        if files.saved_model.exists():
            files.saved_model.unlink(missing_ok=True)
            gone += 1
    return gone


def compare_on_test(request: CompareRequest, folder: SharedFolder) -> Comparison:
    """The winner's test figures beside those of the best of the random trials, which validation chose."""
    scored = [trial for trial in request.randoms if trial.score is not None]
    best = scored[0].run_id if scored else None
    winner = test_figures(request.winner, folder)
    rows_seen, gpu_hours = (sum(trial.rows_seen for trial in request.randoms), sum(trial.gpu_seconds for trial in request.randoms) / 3600)
    return Comparison(
        rows_seen=request.winner_rows,
        random_trials=len(request.randoms) if request.random_trials is None else request.random_trials,
        winner=request.winner,
        winner_figures=winner,
        random_best=best,
        random_figures=test_figures(best, folder) if best else {},
        metric=metric_of(dict(winner), request.metric),
        random_rows_seen=rows_seen if request.random_rows_seen is None else request.random_rows_seen,
        random_gpu_hours=gpu_hours if request.random_gpu_hours is None else request.random_gpu_hours,
    )


def test_figures(run_id: str, folder: SharedFolder) -> dict[str, float]:
    """What a finished run says of the test split; an interval as two figures."""
    files = folder.finished_files(home_of(folder, run_id))
    if files is None:
        raise BadRun(f"{folder.run(run_id)} has no RESULT.")
    found: dict[str, float] = {}
    for name, value in json.loads(files.result.read_text(encoding="utf-8"))["figures"]["test"].items():
        found |= _numbers(name, value)
    return found


def _numbers(name: str, value: Any) -> dict[str, float]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {name: value}
    if isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value):
        return {f"{name}_low": value[0], f"{name}_high": value[1]}
    return {}

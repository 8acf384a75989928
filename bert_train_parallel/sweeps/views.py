"""A sweep as lines for a terminal: pure, from what a workflow says and what heartbeats say."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bert_train_parallel.sweeps.messages import Comparison, ProgressAnswer, RunningAnswer, SweepResult, TrialProgress, TrialResult, counted

_BAR = 24


@dataclass(frozen=True, slots=True)
class View:
    """What can be seen of a sweep at one moment."""

    progress: ProgressAnswer
    best: Sequence[TrialResult] = ()
    metric: str = "accuracy"
    beats: Mapping[str, TrialProgress] = field(default_factory=dict)  # by run id
    budget: str = ""
    page: str = ""  # Temporal's own
    age_s: float | None = None  # since the sweep last had something to do: so old its figures are; bars are those of heartbeats
    newest: Sequence[TrialResult] = ()  # those that ended last, in whatever state
    shortage: str = ""  # why trials wait for a node, in one sentence
    lost: Mapping[str, float] = field(default_factory=dict)  # of trials whose worker is gone, by run id: seconds since they said something


def lines_of(view: View, width: int, rows: int = 8) -> list[str]:
    """The live table: what runs, how far it is, and the best so far."""
    progress = view.progress
    states = ", ".join(f"{count} {state}" for state, count in progress.states.items()) or "none ended"
    which = "random trials to compare with" if progress.comparing else "trials" if progress.trials != 1 else "trial"
    head = (
        f"{progress.experiment_id}: {progress.ended} of {progress.trials} {which} ({states}), {len(progress.running)} running{view.budget}"
    )
    if view.age_s is not None:
        head += f"; as of {ago(view.age_s)}"
    if progress.waiting_for:
        head += f"; waits for approval of {progress.waiting_for}: bert_sweep approve {progress.experiment_id}"
    elif progress.paused:
        head += "; paused"
    elif progress.stopped and not progress.over:
        head += f"; {progress.stopped}"
    lines = [head, *textwrap.wrap(view.shortage, max(width - 3, 40), initial_indent="  ", subsequent_indent="  ")]
    for one in progress.running:
        beat = view.beats.get(one.run_id)
        lines.append(f"  {_name(one)}  {course(beat, view.lost.get(one.run_id))}  {values_in_words(one.values)}")
    if view.best:
        lines += ["", *leaderboard_lines(view.best[:rows], view.metric)]
    if view.page:
        lines += ["", f"Temporal's page: {view.page}"]
    return [line[: max(width - 1, 40)] for line in lines]


def course(beat: TrialProgress | None, lost_s: float | None = None) -> str:
    """How far a trial is, in a width that does not change.

    Args:
        lost_s: of one whose worker is gone, seconds since it said something.

    >>> course(None)
    '[                        ] waiting to begin                   '
    """
    lost = "" if lost_s is None else f"lost its worker {ago(lost_s)}"
    if beat is None or not beat.steps:
        phase = "waiting to begin" if beat is None else lost or beat.phase
        return f"[{' ' * _BAR}] {phase:<35}"
    done = int(_BAR * min(beat.step / beat.steps, 1))
    shown = f"{beat.step}/{beat.steps}  {lost or f'epoch {beat.epoch}'}"
    if beat.loss is not None and not lost:
        shown += f"  loss {beat.loss:.3f}"
    if beat.attempt > 1 and not lost:
        shown += f"  attempt {beat.attempt}"
    return f"[{'#' * done}{' ' * (_BAR - done)}] {shown:<35}"


def ago(seconds: float) -> str:
    """
    >>> ago(0.4), ago(75), ago(7300)
    ('now', '1 min ago', '2 h ago')
    """
    if seconds < 1:
        return "now"
    return f"{seconds:.0f} s ago" if seconds < 60 else f"{seconds // 60:.0f} min ago" if seconds < 3600 else f"{seconds // 3600:.0f} h ago"


def leaderboard_lines(trials: Sequence[TrialResult], metric: str) -> list[str]:
    """A table of trials, the best first."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    header = ["#", "trial", metric, *names, "steps", "note"]
    table = [header]
    for place, trial in enumerate(trials, 1):
        score = "" if trial.score is None else f"{trial.score:.4f}"
        cells = [str(place), _name(trial), score]
        cells += [in_words(trial.values[name]) if name in trial.values else "" for name in names]
        note = f"from {trial.promoted_from}" if trial.promoted_from else f"same as {trial.same_as}" if trial.same_as else ""
        table.append([*cells, str(trial.steps), note or (trial.state if trial.state != "finished" else "")])
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def ended_line(trial: TrialResult, metric: str, is_best: bool) -> str:
    """One line for a trial that has ended, where lines cannot be drawn over."""
    shown = (
        f"{metric} {trial.score:.4f}{' (best so far)' if is_best else ''}"
        if trial.score is not None
        else f"{trial.state}: {trial.error}".removesuffix(": ")
    )
    return f"trial {_name(trial)}  {shown}  {values_in_words(trial.values)}"


def result_lines(result: SweepResult, places: Mapping[str, str]) -> list[str]:
    """What a sweep found, for its end."""
    states = ", ".join(f"{count} {state}" for state, count in result.states.items())
    lines = [f"{result.experiment_id}: {counted(result.trials, 'trial')} ({states}), {result.gpu_hours:.3g} GPU-hours"]
    if result.stopped:
        lines.append(f"It ended early: {result.stopped}.")
    if result.note:
        lines.append(f"It has fewer trials than were asked for: {result.note}.")
    if result.leaderboard:
        lines += ["", *leaderboard_lines(result.leaderboard[:10], result.metric), ""]
        best = result.leaderboard[0]
        lines.append(f"best: {best.run_id}, {result.metric} {best.score:.4f}, {values_in_words(best.values)}")
    else:
        lines += ["No trial has a score; the leaderboard says why each ended."]
    if result.comparison:
        lines += comparison_lines(result.comparison)
    return lines + [f"{name}: {place}" for name, place in places.items()]


def comparison_lines(found: Comparison) -> list[str]:
    """The ladder against random trials, on the test split."""

    def shown(figures: Mapping[str, float]) -> str:
        if found.metric not in figures:
            return "no figure"
        ends = [figures.get(f"{found.metric}_interval_{end}") for end in ("low", "high")]
        interval = f" (95 %: {ends[0]:.4f} to {ends[1]:.4f})" if None not in ends else ""
        return f"{found.metric} {figures[found.metric]:.4f}{interval}"

    planned = f" of {found.random_planned} planned" if found.random_planned > found.random_trials else ""
    randoms = f"best of {counted(found.random_trials, 'random trial')}{planned} ({found.random_rows_seen:,} rows)"
    randoms += f", {found.random_gpu_hours:.3g} of the GPU-hours" if found.random_gpu_hours else ""
    return [
        f"on the test split, at {found.rows_seen:,} rows seen: ladder {shown(found.winner_figures)} with {found.winner}",
        f"  {randoms}: {shown(found.random_figures)} with {found.random_best}",
    ]


def values_in_words(values: Mapping[str, Any]) -> str:
    """
    >>> values_in_words({"learning_rate": 3.1e-05, "schedule": "linear"})
    'learning_rate 3.1e-05, schedule linear'
    """
    return ", ".join(f"{name} {in_words(value)}" for name, value in values.items())


def in_words(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _name(trial: TrialResult | RunningAnswer) -> str:
    """
    >>> _name(TrialResult(number=3, rung=1, run_id="mine-t0003-r1")), _name(TrialResult(number=3, run_id="mine-random0003"))
    ('t0003-r1', 'random0003')
    """
    letters = "random" if trial.run_id.endswith(f"-random{trial.number:04d}") else "t"
    return f"{letters}{trial.number:04d}" + (f"-r{trial.rung}" if trial.rung else "")

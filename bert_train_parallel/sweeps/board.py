"""What a sweep knows at each moment: trials running and ended, the best, what was spent. No clock, no side effects."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from bert_train_parallel.sweeps import budget
from bert_train_parallel.sweeps.draw import Values
from bert_train_parallel.sweeps.messages import (
    HistoryReference,
    SweepRequest,
    SweepResult,
    SweepState,
    TrialResult,
)
from bert_train_parallel.sweeps.rungs import best_first

KEPT = 100  # of the best trials, in memory and in messages; all are in the history file
NEWEST = 200  # trials that ended last, in memory alone: whoever looks each second sees every one
RECORD_EVERY = 50  # trials: their results are then in that file, and no longer in messages
DRAWS_AT_ONCE = 5_000  # some tenths of a second; Temporal takes a workflow that computes for 2 s for one that is stuck
EVENTS_A_RUN = 10_000  # of the 51,200 that a workflow's history may have; then the sweep goes on in a new run


@dataclass(frozen=True, slots=True)
class Planned:
    """A trial that is to run: its number, rung and values, and the run that it goes on from."""

    number: int
    values: Values
    rung: int = 0
    from_run: str | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A trial under way since `began`, in seconds of the workflow's clock, and in training since `costs`: None for one that waits."""

    trial: Planned
    run_id: str
    began: float
    costs: float | None = None


class Board:
    """The state of a sweep; every change goes through a method."""

    def __init__(self, request: SweepRequest, letters: str = "t") -> None:
        """`letters` stand before a trial's number in its name: those that a ladder is compared with are no trials of the ladder."""
        self.request = request.model_copy(update={"so_far": None})
        self._letters = letters
        self.waiting_is_free = False  # False for sweeps of earlier versions, whose trials do not say when their training begins
        self.state = request.so_far or SweepState(
            trials=request.num_trials, concurrency=request.max_concurrency, budget_gpu_hours=request.budget_gpu_hours
        )
        self.running: dict[tuple[int, int], Running] = {}
        self.newest: tuple[TrialResult, ...] = self.state.recent  # in whatever state, the latest last

    def update(self, **changes: object) -> None:
        self.state = self.state.model_copy(update=changes)

    def run_id(self, trial: Planned) -> str:
        """
        >>> base = {"fine_tune_config": {}}
        >>> Board(SweepRequest(experiment_id="mine", base=base)).run_id(Planned(7, {}))
        'mine-t0007'
        """
        rung = f"-r{trial.rung}" if self.request.ladder else ""
        return f"{self.request.experiment_id}-{self._letters}{trial.number:04d}{rung}"

    def begin(self, trial: Planned, now: float) -> Running:
        running = Running(trial, self.run_id(trial), now, costs=None if self.waiting_is_free else now)
        self.running[trial.number, trial.rung] = running
        return running

    def costs(self, run_id: str, now: float) -> None:
        """The training of a trial has begun; of further attempts nothing is to be told."""
        for place, one in self.running.items():
            if one.run_id == run_id and one.costs is None:
                self.running[place] = replace(one, costs=now)

    def end(self, result: TrialResult) -> None:
        """A trial has ended, in whatever state."""
        self.running.pop((result.number, result.rung), None)
        self.newest = (*self.newest, result)[-NEWEST:]
        state = self.state
        counts = Counter(state.states)
        counts[result.state] += 1
        self.update(
            spent_s=state.spent_s + result.gpu_seconds,
            rows_seen=state.rows_seen + result.rows_seen,
            ended=state.ended + 1,
            states=dict(counts),
            best=self._with(result),
            recent=(*state.recent, result),
            uncleaned=(*state.uncleaned, result.run_id),
        )

    def _with(self, result: TrialResult) -> tuple[TrialResult, ...]:
        """The leaderboard with one more; the last rung first, then by score, then by number."""
        found = [*self.state.best, result] if result.score is not None else list(self.state.best)
        ordered = []
        for rung in sorted({trial.rung for trial in found}, reverse=True):
            on_rung = {trial.number: trial for trial in found if trial.rung == rung}
            scores = [(number, trial.score) for number, trial in on_rung.items()]
            ordered += [on_rung[number] for number in best_first(scores, self.request.maximise)]
        return tuple(ordered[:KEPT])

    @property
    def best(self) -> TrialResult | None:
        return self.state.best[0] if self.state.best else None

    def spending(self, now: float) -> budget.Spending:
        gpus = self.request.launch.gpus
        running = [budget.Running(max(now - trial.costs, 0.0), gpus) for trial in self.running.values() if trial.costs is not None]
        return budget.spending(self.state.spent_s, running, self.state.budget_gpu_hours)

    def may_begin(self, now: float) -> bool:
        """Whether one more trial may begin now."""
        state = self.state
        return not state.paused and not state.stopped and len(self.running) < state.concurrency and self.spending(now).may_begin

    def look_again_after(self, now: float) -> float | None:
        """Seconds until running trials have spent the budget; None where nothing but an event can change what may begin."""
        costly = sum(trial.costs is not None for trial in self.running.values())
        if self.state.budget_gpu_hours is None or not costly or not self.spending(now).may_begin:
            return None
        left = self.state.budget_gpu_hours * 3600 - self.spending(now).finished - self.spending(now).running
        return max(left / (costly * self.request.launch.gpus), 1.0)

    def why_over(self, now: float) -> str:
        """Why no further trial will ever begin; empty while one may."""
        if self.state.stopped:
            return self.state.stopped
        if not self.spending(now).may_begin and not self.running:
            return f"the budget of {self.state.budget_gpu_hours:g} GPU-hours is spent"
        return ""

    def recorded(self, history: HistoryReference) -> None:
        """The oldest of the recent trials are in the file now."""
        written = history.count - (self.state.history.count if self.state.history else 0)
        self.update(history=history, recent=self.state.recent[written:])

    def result(self, stopped: str = "") -> SweepResult:
        """What the sweep found so far."""
        state, best = self.state, self.best
        metric = self.request.metric or ("pearson" if best and "accuracy" not in best.figures else "accuracy")
        return SweepResult(
            experiment_id=self.request.experiment_id,
            metric=metric,
            best_run_id=best.run_id if best else None,
            best_score=best.score if best else None,
            best_values=best.values if best else {},
            leaderboard=list(state.best),
            trials=state.ended,
            states=state.states,
            gpu_hours=state.spent_s / 3600,
            stopped=stopped,
            note=state.note,
            history=state.history,
        )

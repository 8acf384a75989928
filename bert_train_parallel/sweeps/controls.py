"""What people can ask of a sweep while it runs, and what they can tell it: the same for every kind of sweep."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import bert_train_parallel.sweeps.messages as m
    from bert_train_parallel.sweeps.board import Board


class Controls:
    """Queries and updates over the board of a sweep. Every answer says how old its figures are."""

    def __init__(self, request: m.SweepRequest) -> None:
        self.board = Board(request)
        self.own = self.board  # that of the sweep itself, while another one is shown: that of the trials which it is compared with
        self.to_stop: set[int] = set()  # trials, by number
        self.over = False
        self.waiting_for = ""  # approval of this rung

    @workflow.signal
    def trial_began(self, run_id: str) -> None:
        """A worker says that it trains a trial now: waiting for a node costs nothing."""
        self.board.costs(run_id, clock())

    @workflow.query
    def progress(self) -> m.ProgressAnswer:
        state = self.board.state
        return m.ProgressAnswer(
            as_of=_now(),
            experiment_id=self.board.request.experiment_id,
            trials=state.trials,
            ended=state.ended,
            states=state.states,
            running=[
                m.RunningAnswer(number=key[0], rung=key[1], run_id=one.run_id, values=one.trial.values, seconds=clock() - one.began)
                for key, one in sorted(self.board.running.items())
            ],
            concurrency=state.concurrency,
            paused=state.paused,
            stopped=state.stopped,
            waiting_for=self.waiting_for,
            over=self.over,
            comparing=self.board is not self.own,
            launch=self.own.request.launch,
            on_gpus=self.own.state.on_gpus,
        )

    @workflow.query
    def leaderboard(self, most: int = 20) -> m.LeaderboardAnswer:
        return m.LeaderboardAnswer(
            as_of=_now(),
            metric=self.board.result().metric,
            trials=list(self.board.state.best[:most]),
            newest=list(self.board.newest),
        )

    @workflow.query
    def best(self) -> m.LeaderboardAnswer:
        return m.LeaderboardAnswer(as_of=_now(), metric=self.board.result().metric, trials=list(self.board.state.best[:1]))

    @workflow.query
    def trial(self, number: int) -> m.TrialAnswer:
        """A trial by its number: running, or ended and still in memory; older ones are in the history file."""
        ended = [one for one in (*self.board.state.best, *self.board.state.recent) if one.number == number]
        rungs = {one.rung: one for one in ended}
        return m.TrialAnswer(
            as_of=_now(),
            running=any(key[0] == number for key in self.board.running),
            ended=[rungs[rung] for rung in sorted(rungs)],
            history=self.board.state.history,
        )

    @workflow.query
    def budget(self) -> m.BudgetAnswer:
        spending = self.board.spending(clock())
        return m.BudgetAnswer(
            as_of=_now(),
            finished_gpu_hours=spending.finished / 3600,
            running_gpu_hours=spending.running / 3600,
            budget_gpu_hours=self.board.state.budget_gpu_hours,
            may_begin=spending.may_begin,
            gpus_each=self.board.request.launch.gpus,
        )

    @workflow.query
    def so_far(self) -> m.ExportRequest:
        """What there is to write out now; trials that are neither among the best nor in the history file yet come later."""
        recent = [one for one in self.own.state.recent if one not in self.own.state.best]
        result = self.own.result()
        result = result.model_copy(update={"leaderboard": [*result.leaderboard, *recent]})
        return m.ExportRequest(request=self.own.request, result=result, snapshot=self.own.state.snapshot)

    @workflow.update
    def pause(self) -> str:
        self.board.update(paused=True)
        return "no further trial begins; those under way go on"

    @pause.validator
    def _check_pause(self) -> None:
        self._not_over()
        _refuse(self.board.state.paused, "the sweep is paused already")

    @workflow.update
    def resume(self) -> str:
        self.board.update(paused=False)
        return "goes on"

    @resume.validator
    def _check_resume(self) -> None:
        self._not_over()
        _refuse(not self.board.state.paused, "the sweep is not paused")

    @workflow.update
    def approve(self) -> str:
        rung, self.waiting_for = self.waiting_for, ""
        return f"{rung} begins"

    @approve.validator
    def _check_approve(self) -> None:
        self._not_over()
        _refuse(not self.waiting_for, "nothing waits for approval")

    @workflow.update
    def stop(self, now: bool = False) -> str:
        self.board.update(stopped="stopped by a person", paused=False)
        self.waiting_for = ""
        if now:
            self.to_stop |= {number for number, _ in self.board.running}
        return "ends" + (" now" if now else " when the trials under way have")

    @stop.validator
    def _check_stop(self, now: bool = False) -> None:
        self._not_over()

    @workflow.update
    def stop_trial(self, number: int) -> str:
        self.to_stop.add(number)
        return f"trial {number} ends"

    @stop_trial.validator
    def _check_stop_trial(self, number: int) -> None:
        self._not_over()
        running = sorted(key[0] for key in self.board.running)
        these = f"these are: {', '.join(map(str, running))}" if running else "none is"
        _refuse(number not in running, f"trial {number} is not running; {these}")

    @workflow.update
    def add_trials(self, count: int) -> str:
        self.board.update(trials=self.board.state.trials + count)
        return m.counted(self.board.state.trials, "trial")

    @add_trials.validator
    def _check_add_trials(self, count: int) -> None:
        self._not_over()
        _refuse(count < 1, f"{m.counted(count, 'trial')}: a number from 1 up is expected")
        _refuse(self.board.request.ladder is not None, "the rungs of a ladder say how many trials there are")
        _refuse(self.board.request.chosen_sampler == "grid", "a grid has the trials that it has")
        _refuse(bool(self.board.state.stopped), "the sweep is stopping")
        _refuse(bool(self.board.state.note), self.board.state.note)

    @workflow.update
    def set_budget(self, gpu_hours: float | None) -> str:
        self.board.update(budget_gpu_hours=gpu_hours)
        return "no limit" if gpu_hours is None else f"{gpu_hours:g} GPU-hours"

    @set_budget.validator
    def _check_budget(self, gpu_hours: float | None) -> None:
        self._not_over()
        _refuse(gpu_hours is not None and not gpu_hours > 0, f"{gpu_hours} GPU-hours: a number above 0 is expected")

    @workflow.update
    def set_concurrency(self, count: int) -> str:
        self.board.update(concurrency=count)
        request = self.board.request
        most = 2 * request.max_concurrency
        held = ""
        if request.chosen_sampler == "tpe" and request.ladder is None and count > most:
            held = f"; at most {most}, twice the max_concurrency it began with: on that depends which results TPE knows when it proposes"
        return f"{m.counted(count, 'trial')} at a time{held}"

    @set_concurrency.validator
    def _check_concurrency(self, count: int) -> None:
        self._not_over()
        _refuse(not 1 <= count <= m.MOST_AT_ONCE, f"{m.counted(count, 'trial')} at a time: a number from 1 to {m.MOST_AT_ONCE} is expected")

    def _not_over(self) -> None:
        _refuse(self.over, "the sweep is over")

    async def approved(self, what: str) -> None:
        """Wait until a person approves, or stops the sweep."""
        self.waiting_for = what
        await workflow.wait_condition(lambda: not self.waiting_for)


def _refuse(wrong: bool, sentence: str) -> None:
    if wrong:
        raise ValueError(sentence)


def clock() -> float:
    return workflow.now().timestamp()


def _now() -> str:
    return workflow.now().isoformat(timespec="seconds")

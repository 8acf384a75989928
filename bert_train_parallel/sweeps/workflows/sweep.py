"""What all kinds of sweep share: running one trial, keeping the record, going on as new, ending."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from typing import Any

from pydantic import ValidationError
from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    import bert_train_parallel.sweeps.board as limits
    import bert_train_parallel.sweeps.messages as m
    import bert_train_parallel.sweeps.rungs as rungs
    import bert_train_parallel.sweeps.training as training
    from bert_train_parallel.sweeps.board import Planned
    from bert_train_parallel.sweeps.controls import Controls, clock
    from bert_train_parallel.sweeps.draw import Values, draw_random, draws, why_no_more
    from bert_train_parallel.sweeps.outcomes import STOPPED
    from bert_train_parallel.sweeps.workflows.failures import MISTAKES, first_words, results_of


class Sweep(Controls):
    """What both kinds of sweep share: running one trial, keeping the record, ending."""

    async def begin(self) -> None:
        """See that there is a snapshot of the data."""
        request = self.board.request
        self.board.waiting_is_free = workflow.patched("waiting-costs-nothing")
        if self.board.state.snapshot is None:
            snapshot = await training.snapshot_of(
                request.base.dataset_snapshot, training.snapshot_request(request.base.fine_tune_config, request.experiment_id)
            )
            self.board.update(snapshot=snapshot, by_score=workflow.patched("best-epochs-by-score"))
        config, launch = request.base.fine_tune_config, request.launch
        if self.board.state.on_gpus is None and training.may_use_gpus(config, launch) and workflow.patched("trials-by-gpus"):
            looking = asyncio.create_task(training.needs_gpus(config))
            await workflow.wait_condition(lambda: looking.done() or bool(self.board.state.stopped))
            if looking.done():
                self.board.update(on_gpus=looking.result())
            else:  # there is no node yet, and nobody waits for one any more
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)

    def request_of(self, trial: Planned, rung: rungs.Rung | None = None) -> m.BertFineTuneRequest:
        """The launch of a trial, on a rung with its epochs and samples."""
        request = self.board.request
        config = request.base.fine_tune_config.with_values(trial.values)
        if rung is not None:
            config = config.model_copy(update={"num_epochs": rung.epochs, "max_train_samples": rung.max_train_samples})
        return m.BertFineTuneRequest(
            run_id=self.board.run_id(trial),
            config=config,
            dataset_snapshot=self.board.state.snapshot,
            from_run=trial.from_run,
            rung=trial.rung,
            metric=request.metric,
            by_score=self.board.state.by_score,
            launch=request.launch,
            signal_start=self.board.waiting_is_free,
        )

    def whole(self, found: m.TrialResult) -> m.TrialResult:
        """A trial with its whole config, for those who do not know the base."""
        request = self.board.request
        rung = rungs.rungs_of(request.ladder, request.num_trials)[found.rung] if request.ladder else None
        planned = Planned(found.number, found.values, found.rung, found.promoted_from)
        return found.model_copy(update={"fine_tune_config": self.request_of(planned, rung).config})

    def start(self, trial: Planned, rung: rungs.Rung | None = None) -> asyncio.Task[m.TrialResult]:
        """Begin a trial, to be awaited."""
        self.board.begin(trial, clock())
        return asyncio.create_task(self._run_trial(trial, rung))

    async def _run_trial(self, trial: Planned, rung: rungs.Rung | None) -> m.TrialResult:
        """One trial from beginning to end; whatever happens to it, the sweep goes on."""
        board = self.board
        training_task = asyncio.create_task(self._train(trial, rung))
        try:
            await workflow.wait_condition(lambda: training_task.done() or trial.number in self.to_stop)
        finally:
            if not training_task.done():
                training_task.cancel()
        result = m.TrialResult(number=trial.number, rung=trial.rung, run_id=board.run_id(trial), values=trial.values, state="stopped")
        result = result.model_copy(update={"error": STOPPED})
        try:
            result = trial_result(trial, await training_task)
        except asyncio.CancelledError:
            if trial.number not in self.to_stop:
                raise  # the sweep itself is cancelled
            result = await self._accounted(trial, rung, result)
        except ActivityError as error:
            if not is_cancelled_exception(error):
                result = result.model_copy(update={"state": "failed", "error": first_words(error)})
            result = await self._accounted(trial, rung, result)
        except ValidationError as error:  # what was drawn does not go together with a setting of base
            result = result.model_copy(update={"state": "failed", "error": m.first_problem(error)})
        except MISTAKES as error:  # of ours: a trial that never ended would be waited for
            workflow.logger.exception("%s failed", result.run_id)
            result = result.model_copy(update={"state": "failed", "error": f"{type(error).__name__}: {error}"})
        board.end(result)
        return result

    async def _accounted(self, trial: Planned, rung: rungs.Rung | None, result: m.TrialResult) -> m.TrialResult:
        """The result of a trial that no activity told of, with what its attempts cost; as it is where that cannot be known."""
        if not workflow.patched("attempts-are-accounted-for"):
            return result
        request = m.AccountRequest(trial=self.request_of(trial, rung), state=result.state, error=result.error)
        try:
            return trial_result(trial, await training.account_for(request))
        except ActivityError:
            return result

    async def _train(self, trial: Planned, rung: rungs.Rung | None) -> m.BertFineTuneResult:
        return await training.train(self.request_of(trial, rung), bool(self.board.state.on_gpus))

    async def drawn(self, seed: int, first: int, until: int) -> list[Values]:
        """The values of some trials of a random sweep, by their numbers; fewer where the space has no others."""
        space = self.board.request.space
        if not workflow.patched("no-configuration-twice"):
            return [draw_random(space, seed, number) for number in range(first, until)]
        found = (await taken_from(draws(space, seed), until))[first:]
        if len(found) < until - first:
            self.own.update(note=why_no_more(space))
        return found

    async def room(self) -> bool:
        """Wait until one more trial may begin; False when none ever will."""
        board = self.board
        while not board.may_begin(clock()) and not board.why_over(clock()):
            try:
                await workflow.wait_condition(
                    lambda: board.may_begin(clock()) or bool(board.why_over(clock())), timeout=board.look_again_after(clock())
                )
            except TimeoutError:  # the trials under way have spent the budget
                continue
        return not board.why_over(clock())

    async def still_room(self) -> bool:
        """Ask again after something else was waited for: meanwhile a person may have paused or stopped the sweep."""
        if self.board.may_begin(clock()) or not workflow.patched("room-is-asked-for-again"):
            return True
        return await self.room()

    async def keep_record(self, at_least: int | None = None) -> None:
        """Write ended trials to the history file, and remove what losers leave behind."""
        state = self.board.state
        if len(state.recent) < (at_least or limits.RECORD_EVERY):
            return
        # some may end meanwhile: they stay for the next time
        request = m.RecordRequest(experiment_id=self.board.request.experiment_id, history=state.history, ended=state.recent)
        self.board.recorded(await training.record(request))

    async def clean(self, keep: tuple[str, ...]) -> None:
        if self.board.request.keep_checkpoints:
            return
        among = self.board.state.uncleaned
        if set(among) - set(keep):
            await training.clean_up(m.CleanUpRequest(among=among, keep=keep))
        rest = self.board.state.uncleaned[len(among) :]
        self.board.update(uncleaned=tuple(run_id for run_id in among if run_id in keep) + rest)

    async def finish(self, result: m.SweepResult) -> m.SweepResult:
        """Write everything out; from here on nothing can be changed."""
        self.over = True
        result = result.model_copy(update={"leaderboard": [self.whole(trial) for trial in result.leaderboard]})
        await self.clean((result.best_run_id,) if result.best_run_id else ())
        request = self.board.request
        await training.export(m.ExportRequest(request=request, result=result, snapshot=self.board.state.snapshot))
        await workflow.wait_condition(workflow.all_handlers_finished)
        return result

    async def go_on_as_new(self, under_way: Collection[asyncio.Task[Any]], climbing: Callable[[], m.RungState] | None = None) -> None:
        """A new run with a short history, when the trials under way have ended; a ladder says then where on it it is."""
        await results_of(under_way)
        await self.keep_record(at_least=1)
        await workflow.wait_condition(workflow.all_handlers_finished)
        state = self.board.state.model_copy(update={"climbing": climbing() if climbing else None})
        workflow.continue_as_new(self.board.request.model_copy(update={"so_far": state}))

    def history_is_long(self) -> bool:
        info = workflow.info()
        return info.is_continue_as_new_suggested() or info.get_current_history_length() > limits.EVENTS_A_RUN


async def taken_from(drawn: Iterator[Values], count: int) -> list[Values]:
    """The next of what is drawn, with a pause now and then; fewer where there are no others."""
    found: list[Values] = []
    at_once = limits.DRAWS_AT_ONCE if count > limits.DRAWS_AT_ONCE and workflow.patched("draws-with-pauses") else count
    while True:
        some = list(itertools.islice(drawn, min(at_once, count - len(found))))
        found += some
        if len(some) < at_once or len(found) == count:
            return found
        await workflow.sleep(timedelta(milliseconds=1))


def trial_result(trial: Planned, found: m.BertFineTuneResult) -> m.TrialResult:
    """What a sweep keeps of a launch's result."""
    return m.TrialResult(
        number=trial.number,
        rung=trial.rung,
        run_id=found.run_id,
        values=trial.values,
        score=found.score if found.state == "finished" else None,
        state=found.state,
        error=found.error,
        figures=found.eval_metrics or {},
        gpu_seconds=found.gpu_seconds,
        rows_seen=found.rows_seen,
        first_step=found.first_step,
        steps=found.steps,
        attempts=found.attempts,
        promoted_from=trial.from_run,
        same_as=found.same_as,
        host=found.host,
        eval_result=found.eval_result and found.eval_result.model_copy(update={"figures": {}}),
    )

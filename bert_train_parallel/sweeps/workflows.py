"""The two kinds of sweep, as stories: what is trained next, and when it is over. All side effects are in activities."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, ChildWorkflowError, is_cancelled_exception

# by full names: what is imported "from bert_train_parallel.sweeps" is loaded a second time inside the sandbox
with workflow.unsafe.imports_passed_through():
    import bert_train_parallel.sweeps.board as limits
    import bert_train_parallel.sweeps.messages as m
    import bert_train_parallel.sweeps.rungs as rungs
    import bert_train_parallel.sweeps.training as training
    from bert_train_parallel.sweeps.board import Board, Planned
    from bert_train_parallel.sweeps.controls import Controls, clock
    from bert_train_parallel.sweeps.draw import Values, draw_random, draws, grid, why_no_more


class _Sweep(Controls):
    """What both kinds of sweep share: running one trial, keeping the record, ending."""

    async def begin(self) -> None:
        """See that there is a snapshot of the data."""
        request = self.board.request
        if self.board.state.snapshot is None:
            snapshot = request.base.dataset_snapshot or await training.take_snapshot(
                training.snapshot_request(request.base.fine_tune_config, request.experiment_id)
            )
            self.board.update(snapshot=snapshot)
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
            launch=request.launch,
        )

    def start(self, trial: Planned, rung: rungs.Rung | None = None) -> asyncio.Task[m.TrialResult]:
        """Begin a trial, to be awaited."""
        self.board.begin(trial, clock())
        return asyncio.create_task(self._run_trial(trial, rung))

    async def _run_trial(self, trial: Planned, rung: rungs.Rung | None) -> m.TrialResult:
        """One trial from beginning to end; whatever happens to it, the sweep goes on."""
        board = self.board
        training_task = asyncio.create_task(training.train(self.request_of(trial, rung), bool(board.state.on_gpus)))
        try:
            await workflow.wait_condition(lambda: training_task.done() or trial.number in self.to_stop)
        finally:
            if not training_task.done():
                training_task.cancel()
        result = m.TrialResult(number=trial.number, rung=trial.rung, run_id=board.run_id(trial), values=trial.values, state="stopped")
        try:
            result = trial_result(trial, await training_task)
        except asyncio.CancelledError:
            if trial.number not in self.to_stop:
                raise  # the sweep itself is cancelled
        except ActivityError as error:
            if not is_cancelled_exception(error):
                result = result.model_copy(update={"state": "failed", "error": first_words(error)})
        board.end(result)
        return result

    def drawn(self, seed: int, first: int, until: int) -> list[Values]:
        """The values of some trials of a random sweep, by their numbers; fewer where the space has no others."""
        space = self.board.request.space
        if not workflow.patched("no-configuration-twice"):
            return [draw_random(space, seed, number) for number in range(first, until)]
        found = list(itertools.islice(draws(space, seed), first, until))
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

    async def keep_record(self, at_least: int = limits.RECORD_EVERY) -> None:
        """Write ended trials to the history file, and remove what losers leave behind."""
        state = self.board.state
        if len(state.recent) < at_least:
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
        await self.clean((result.best_run_id,) if result.best_run_id else ())
        request = self.board.request
        await training.export(m.ExportRequest(request=request, result=result, snapshot=self.board.state.snapshot))
        await workflow.wait_condition(workflow.all_handlers_finished)
        return result

    async def go_on_as_new(self, under_way: Collection[asyncio.Task[Any]], climbing: Callable[[], m.RungState] | None = None) -> None:
        """A new run with a short history, when the trials under way have ended; a ladder says then where on it it is."""
        if under_way:
            await workflow.wait(under_way)
        await self.keep_record(at_least=1)
        await workflow.wait_condition(workflow.all_handlers_finished)
        state = self.board.state.model_copy(update={"climbing": climbing() if climbing else None})
        workflow.continue_as_new(self.board.request.model_copy(update={"so_far": state}))

    def history_is_long(self) -> bool:
        info = workflow.info()
        return info.is_continue_as_new_suggested() or info.get_current_history_length() > limits.EVENTS_A_RUN


@workflow.defn
class SweepWorkflow(_Sweep):
    """Draw trials, at random, from a grid or by TPE, and run so many at a time until all have ended."""

    @workflow.init
    def __init__(self, request: m.SweepRequest) -> None:
        super().__init__(request)
        self._grid = list(itertools.islice(grid(request.space), request.num_trials)) if request.chosen_sampler == "grid" else []
        if self._grid:
            self.board.update(trials=len(self._grid))
        self._draws: Iterator[Values] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._is_recording = False

    @workflow.run
    async def run(self, request: m.SweepRequest) -> m.SweepResult:
        await self.begin()
        while await self._another():
            if self.history_is_long():
                await self.go_on_as_new(self._under_way)
            number = self.board.state.number
            values = await self._draw(number)
            if values is None:
                self.board.update(trials=number, note=why_no_more(request.space))
                continue
            self.board.update(number=number + 1)
            self._under_way.add(asyncio.create_task(self._until_ended(self.start(Planned(number, values)))))
        await self.keep_record(at_least=1)
        return await self.finish(self.board.result(self.board.why_over(clock()) if self._has_more else ""))

    @property
    def _has_more(self) -> bool:
        return self.board.state.number < self.board.state.trials

    async def _another(self) -> bool:
        """Wait until another trial may begin; False when all have ended and none is left. Meanwhile some may be added."""
        while True:
            self._under_way = {task for task in self._under_way if not task.done()}
            if self._has_more and not self.board.why_over(clock()):
                if await self.room() and await self._what_counts_is_known():
                    return True
            elif not self._under_way:
                return False
            else:
                await workflow.wait_condition(
                    lambda: all(task.done() for task in self._under_way) or (self._has_more and not self.board.why_over(clock()))
                )

    @property
    def _known(self) -> int:
        """Results of trials below this number are known to TPE.

        It must not depend on which of the running trials ends first, lest the same seed gives other trials.
        """
        return self.board.state.number - (2 * self.board.request.max_concurrency - 1)

    async def _what_counts_is_known(self) -> bool:
        if self.board.request.chosen_sampler == "tpe":
            await workflow.wait_condition(lambda: all(number >= self._known for number, _ in self.board.running))
        return not self.board.why_over(clock())

    async def _draw(self, number: int) -> Values | None:
        """The values of the next trial; None where every configuration of the space has been trained."""
        request, state = self.board.request, self.board.state
        if request.chosen_sampler == "grid":
            return self._grid[number]
        is_distinct = workflow.patched("no-configuration-twice")
        if request.chosen_sampler == "random" and not is_distinct:
            return draw_random(request.space, request.seed, number)
        if request.chosen_sampler == "random":
            if self._draws is None:
                self._draws = itertools.islice(draws(request.space, request.seed), number, None)
            return next(self._draws, None)
        running = [m.TrialValues(number=key[0], values=one.trial.values) for key, one in sorted(self.board.running.items())]
        proposals = await training.suggest(
            m.SuggestRequest(
                space=request.space,
                seed=request.seed,
                number=number,
                maximise=request.maximise,
                history=state.history,
                recent=state.recent,
                known=self._known,
                running=tuple(running),
                distinct=is_distinct,
            )
        )
        return proposals[0] if proposals else None

    async def _until_ended(self, trial: asyncio.Task[m.TrialResult]) -> None:
        """Wait for a trial; now and then write down what has ended."""
        await trial
        if len(self.board.state.recent) >= limits.RECORD_EVERY and not self._is_recording:
            self._is_recording = True
            await self.keep_record()
            await self.clean((self.board.best.run_id,) if self.board.best else ())
            self._is_recording = False


Between = Callable[[int, list[asyncio.Task[m.TrialResult]]], Awaitable[None]]


@workflow.defn
class LadderSweepWorkflow(_Sweep):
    """Train many trials a little, keep the best, train those longer, with new ones beside them; rung by rung."""

    @workflow.init
    def __init__(self, request: m.SweepRequest) -> None:
        super().__init__(request)

    @workflow.run
    async def run(self, request: m.SweepRequest) -> m.SweepResult:
        await self.begin()
        assert request.ladder is not None
        ladder = rungs.rungs_of(request.ladder, request.num_trials)
        if request.so_far is None:
            self.board.update(trials=sum(rungs.trials_on(ladder, rung.number) for rung in ladder))
        winner = self.board.state.winner  # of the run before this one, which was comparing it
        why_over = ""
        if winner is None:
            best = await self._to_the_top(ladder)
            winner, why_over = best[0] if best else None, self._why_over()
        result = self.board.result(why_over)
        if request.compare and winner and not result.stopped:
            comparison, why_over = await self._compare(winner, ladder[-1])
            state = self.board.state
            spent = {"gpu_hours": state.spent_s / 3600, "stopped": why_over, "note": state.note}
            result = result.model_copy(update={"comparison": comparison, **spent})
        return await self.finish(result)

    async def _to_the_top(self, ladder: tuple[rungs.Rung, ...]) -> list[m.TrialResult]:
        """Run all rungs; gives the best of the last, and none where the ladder ends before."""
        request = self.board.request
        climbing = self.board.state.climbing  # of the run before this one, which ended on this rung
        going_on: list[m.TrialResult] = []
        for rung in ladder[climbing.rung if climbing else 0 :]:
            if climbing is None and rung.number and request.approval and not self._why_over():
                await self.approved(f"rung {rung.number + 1} of {len(ladder)}")
            if self._why_over() and climbing is None:
                break
            if climbing is None:
                planned = [Planned(one.number, one.values, rung.number, one.run_id) for one in going_on] + await self._begin_new(rung)
                earlier: list[m.TrialResult] = []
            else:
                planned = [Planned(one.number, one.values, rung.number, one.from_run) for one in climbing.waiting]
                earlier = [self._result_of(one, rung) for one in climbing.best]
                climbing = None
            results = [*earlier, *await self._climb(planned, rung, functools.partial(self._between, rung, planned, earlier))]
            going_on = self._best_of(results, rung)
            await self.keep_record(at_least=1)
            await self.clean(tuple(one.run_id for one in going_on))
            if not going_on:
                break
        return going_on

    def _why_over(self) -> str:
        return self.board.why_over(clock())

    async def _begin_new(self, rung: rungs.Rung) -> list[Planned]:
        """The trials that begin on this rung: TPE knows all rungs below, and models the highest that has enough results."""
        request, state = self.board.request, self.board.state
        first = state.number
        if not rung.new:
            return []
        self.board.update(number=first + rung.new)  # of trials that the space has no values for too
        if request.chosen_sampler == "random" or rung.number == 0:
            values = self.drawn(request.seed, first, first + rung.new)
        else:
            values = await training.suggest(
                m.SuggestRequest(
                    space=request.space,
                    seed=request.seed,
                    number=first,
                    count=rung.new,
                    maximise=request.maximise,
                    history=state.history,
                    recent=state.recent,
                    rung=rung.number - 1,
                    distinct=workflow.patched("no-configuration-twice"),
                )
            )
        if len(values) < rung.new:
            self.board.update(trials=self.board.state.trials - (rung.new - len(values)), note=why_no_more(request.space))
        return [Planned(first + place, one, rung.number) for place, one in enumerate(values)]

    async def _climb(self, planned: list[Planned], rung: rungs.Rung, between: Between) -> list[m.TrialResult]:
        """Run trials as a rung says, so many at a time; those that may not begin any more are left out.

        Args:
            between: called before each of them, with its place and those that have begun.
        """
        tasks: list[asyncio.Task[m.TrialResult]] = []
        for place, trial in enumerate(planned):
            if not await self.room():
                break
            await between(place, tasks)
            tasks.append(self.start(trial, rung))
        if tasks:
            await workflow.wait(tasks)
        return [task.result() for task in tasks]

    async def _between(
        self,
        rung: rungs.Rung,
        planned: list[Planned],
        earlier: list[m.TrialResult],
        place: int,
        begun: list[asyncio.Task[m.TrialResult]],
    ) -> None:
        """Between two trials of a rung, keep messages and history short."""
        if len(self.board.state.recent) >= limits.RECORD_EVERY and workflow.patched("ladders-record-on-rungs"):
            await self.keep_record()
        if self.history_is_long() and workflow.patched("ladders-go-on-as-new"):
            await self.go_on_as_new(begun, functools.partial(self._climbing, rung, planned[place:], earlier, begun))

    def _climbing(
        self, rung: rungs.Rung, waiting: list[Planned], earlier: list[m.TrialResult], ended: list[asyncio.Task[m.TrialResult]]
    ) -> m.RungState:
        best = self._best_of([*earlier, *(task.result() for task in ended)], rung)
        return m.RungState(
            rung=rung.number,
            waiting=tuple(m.Climber(number=one.number, values=one.values, from_run=one.from_run) for one in waiting),
            best=tuple(
                m.Climber(number=one.number, values=one.values, from_run=one.promoted_from, score=one.score, steps=one.steps)
                for one in best
            ),
        )

    def _result_of(self, one: m.Climber, rung: rungs.Rung) -> m.TrialResult:
        """What the ladder has to know of a trial that ended in an earlier run of the workflow."""
        return m.TrialResult(
            number=one.number,
            rung=rung.number,
            run_id=self.board.run_id(Planned(one.number, one.values, rung.number)),
            values=one.values,
            score=one.score,
            steps=one.steps,
            promoted_from=one.from_run,
        )

    def _best_of(self, results: list[m.TrialResult], rung: rungs.Rung) -> list[m.TrialResult]:
        by_number = {one.number: one for one in results}
        best = rungs.promoted([(one.number, one.score) for one in results], rung.keep, self.board.request.maximise)
        return [by_number[number] for number in best]

    async def _compare(self, winner: m.TrialResult, last: rungs.Rung) -> tuple[m.Comparison, str]:
        """Random trials that together see as many rows as the ladder did, each trained as long as the winner.

        They spend of the same budget. Gives the comparison, and why fewer of them were run than that.
        """
        request = self.board.request
        batch_size = request.base.fine_tune_config.with_values(winner.values).batch_size
        rows_seen, rows_of_one = self.board.state.rows_seen, max(winner.steps, 1) * batch_size
        count = rungs.random_trials_at_equal_rows(rows_seen, rows_of_one)
        own, is_paid_for = self.board.state, workflow.patched("random-trials-named-and-paid-for")
        if is_paid_for:
            # no sweep has trials of this name, whatever its experiment_id
            beside = Board(request.model_copy(update={"ladder": None, "so_far": own.randoms}), "random")
        else:
            beside = Board(request.model_copy(update={"experiment_id": f"{request.experiment_id}-random", "ladder": None}))
        if is_paid_for and own.randoms is None:
            beside.update(spent_s=own.spent_s, budget_gpu_hours=own.budget_gpu_hours, paused=own.paused)
            self.to_stop.clear()  # numbers begin again
        if own.randoms is None:
            beside.update(snapshot=own.snapshot, concurrency=own.concurrency, trials=count, on_gpus=own.on_gpus)
        self.board = beside  # people now see, and steer, the random trials
        first = beside.state.number
        planned = [Planned(first + place, one) for place, one in enumerate(self.drawn(request.seed + 1, first, count))]
        beside.update(trials=first + len(planned))

        async def between(place: int, begun: list[asyncio.Task[m.TrialResult]]) -> None:
            if is_paid_for and self.history_is_long() and workflow.patched("random-trials-go-on-as-new"):
                await self._go_on_comparing(winner, planned[place].number, begun)

        await self._climb(planned, last, between)
        randoms = beside.state
        why_over = beside.why_over(clock()) if randoms.ended < count else randoms.stopped
        spent_s = randoms.spent_s - (own.spent_s if is_paid_for else 0.0)
        self.board = self.own
        self.board.update(spent_s=own.spent_s + spent_s)
        found = await training.compare(
            m.CompareRequest(
                winner=winner.run_id,
                winner_rows=rows_seen,
                randoms=randoms.best[:1],
                metric=request.metric,
                random_trials=randoms.ended,
                random_rows_seen=randoms.rows_seen,
                random_gpu_hours=spent_s / 3600,
            )
        )
        if workflow.patched("clean-up-after-comparison") and not request.keep_checkpoints:
            keep = (winner.run_id, *([found.random_best] if found.random_best else []))
            await training.clean_up(m.CleanUpRequest(among=randoms.uncleaned, keep=keep))
        return found.model_copy(update={"random_planned": count}), why_over

    async def _go_on_comparing(self, winner: m.TrialResult, number: int, under_way: list[asyncio.Task[m.TrialResult]]) -> None:
        """A new run with a short history, which goes on with this random trial; of those before, it knows the best and what all cost."""
        if under_way:
            await workflow.wait(under_way)
        await self.clean((self.board.best.run_id,) if self.board.best else ())
        await workflow.wait_condition(workflow.all_handlers_finished)
        randoms = self.board.state.model_copy(update={"number": number, "recent": ()})
        state = self.own.state.model_copy(update={"climbing": None, "winner": winner, "randoms": randoms})
        workflow.continue_as_new(self.own.request.model_copy(update={"so_far": state}))


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
    )


@workflow.defn
class CheckpointedBertTrainingWorkflow:
    """One training: a snapshot of its data, then a launch that goes on from its checkpoints whatever dies meanwhile."""

    def __init__(self) -> None:
        self._latest: m.CheckpointInfo | None = None

    @workflow.signal
    def update_checkpoint(self, info: m.CheckpointInfo) -> None:
        if self._latest is None or info.step >= self._latest.step:
            self._latest = info

    @workflow.query
    def get_latest_checkpoint(self) -> m.CheckpointInfo | None:
        """The newest checkpoint, while it trains (some seconds old) and afterwards."""
        return self._latest

    @workflow.run
    async def run(self, request: m.BertFineTuneConfig | m.BertFineTuneRequest) -> m.BertFineTuneResult:
        if isinstance(request, m.BertFineTuneConfig):
            run_id = request.run_id or f"bert-{workflow.info().workflow_id}"[:100]
            request = m.BertFineTuneRequest(run_id=run_id, config=request, signal_checkpoints=True)
        snapshot = request.dataset_snapshot or await training.take_snapshot(training.snapshot_request(request.config, request.run_id))
        on_gpus = (
            training.may_use_gpus(request.config, request.launch)
            and workflow.patched("trials-by-gpus")
            and await training.needs_gpus(request.config)
        )
        result = await training.train(request.model_copy(update={"dataset_snapshot": snapshot}), on_gpus)
        if result.checkpoint:
            self.update_checkpoint(result.checkpoint)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return result.model_copy(update={"dataset_snapshot": snapshot})


@workflow.defn
class BertEvalWorkflow:
    """Measure a trained model."""

    @workflow.run
    async def run(self, request: m.BertEvalRequest) -> m.BertEvalResult:
        if request.dataset_name and request.dataset_snapshot is None:
            snapshot = await training.take_snapshot(
                m.DatasetSnapshotRequest(
                    run_id=request.run_id or "evaluation", dataset_name=request.dataset_name, dataset_config=request.dataset_config_name
                )
            )
            request = request.model_copy(update={"dataset_snapshot": snapshot})
        return await training.evaluate(request)


@workflow.defn
class BertInferenceWorkflow:
    """Labels for some texts, by a run's model."""

    @workflow.run
    async def run(self, request: m.BertInferenceRequest) -> m.BertInferenceResult:
        return await training.infer(request)


@workflow.defn
class CoordinatorWorkflow:
    """Train all of some given configurations, and evaluate each as soon as its training ends; results in their order."""

    @workflow.run
    async def run(self, given: m.CoordinatorWorkflowInput) -> list[m.BertEvalResult]:
        tasks = [asyncio.create_task(self._train_and_evaluate(config, number)) for number, config in enumerate(given.configs)]
        await workflow.wait(tasks)
        return [task.result() for task in tasks]

    async def _train_and_evaluate(self, config: m.CoordinatorWorkflowConfig, number: int) -> m.BertEvalResult:
        run_id, evaluation = normalised(config, f"{workflow.info().workflow_id}-{number}"[-100:])
        request = m.BertFineTuneRequest(
            run_id=run_id,
            config=config.fine_tune_config,
            dataset_snapshot=config.dataset_snapshot,
            launch=config.launch,
            signal_checkpoints=True,
        )
        place = f"{workflow.info().workflow_id}/{run_id}"
        failed = m.BertEvalResult(run_id=run_id, dataset_name=config.fine_tune_config.dataset_name, split=evaluation.split, num_examples=0)
        try:
            trained = await workflow.execute_child_workflow(
                CheckpointedBertTrainingWorkflow.run, request, id=f"{place}/training", task_queue=m.TRAINING_QUEUE
            )
            if trained.state != "finished":
                return failed.model_copy(update={"error": f"{trained.state}: {trained.error}"})
            return await workflow.execute_child_workflow(
                BertEvalWorkflow.run, evaluation, id=f"{place}/evaluation", task_queue=m.EVAL_QUEUE
            )
        except ChildWorkflowError as error:
            return failed.model_copy(update={"error": first_words(error)})


def normalised(config: m.CoordinatorWorkflowConfig, run_id: str) -> tuple[str, m.BertEvalRequest]:
    """One run id for a configuration and all in it, and the evaluation of the model that will lie there.

    >>> config = m.CoordinatorWorkflowConfig(fine_tune_config={"run_id": "mine"})
    >>> normalised(config, "other")[0], normalised(config, "other")[1].model_path
    ('mine', 'bert_runs/mine')
    """
    evaluation = config.evaluation_config
    found = config.run_id or config.fine_tune_config.run_id or evaluation.run_id or run_id
    same_data = evaluation.dataset_name in (None, config.fine_tune_config.dataset_name)
    return found, evaluation.model_copy(
        update={
            "run_id": found,
            "model_path": evaluation.model_path or f"bert_runs/{found}",
            "dataset_name": None if same_data else evaluation.dataset_name,
        }
    )


def first_words(error: BaseException) -> str:
    """The sentence at the bottom of a chain of Temporal's errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error.message if isinstance(error, ApplicationError) else str(error)


WORKFLOWS = (
    SweepWorkflow,
    LadderSweepWorkflow,
    CheckpointedBertTrainingWorkflow,
    BertEvalWorkflow,
    BertInferenceWorkflow,
    CoordinatorWorkflow,
)

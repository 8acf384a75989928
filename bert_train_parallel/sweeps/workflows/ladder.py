"""A ladder, as a story: what is trained on each rung, who goes on, and what the winner is compared with."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import bert_train_parallel.sweeps.board as limits
    import bert_train_parallel.sweeps.messages as m
    import bert_train_parallel.sweeps.rungs as rungs
    import bert_train_parallel.sweeps.training as training
    from bert_train_parallel.sweeps.board import Board, Planned
    from bert_train_parallel.sweeps.controls import clock
    from bert_train_parallel.sweeps.draw import why_no_more
    from bert_train_parallel.sweeps.workflows.failures import MISTAKES, results_of
    from bert_train_parallel.sweeps.workflows.sweep import Sweep


Between = Callable[[int, list[asyncio.Task[m.TrialResult]]], Awaitable[None]]


@workflow.defn(failure_exception_types=MISTAKES)
class LadderSweepWorkflow(Sweep):
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
            values = await self.drawn(request.seed, first, first + rung.new)
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
            if not await self.still_room():
                break
            tasks.append(self.start(trial, rung))
        return await results_of(tasks)

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
                m.Climber(
                    number=one.number,
                    values=one.values,
                    from_run=one.promoted_from,
                    score=one.score,
                    first_step=one.first_step,
                    steps=one.steps,
                    rows_seen=one.rows_seen,
                )
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
            first_step=one.first_step,
            steps=one.steps,
            rows_seen=one.rows_seen,
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
        rows_seen, rows_of_one = self.board.state.rows_seen, winner.steps * batch_size
        if workflow.patched("rows-really-trained"):
            rows_of_one = rungs.rows_of_whole(winner.steps, winner.first_step, winner.rows_seen, batch_size)
        count = rungs.random_trials_at_equal_rows(rows_seen, rows_of_one)
        own, is_paid_for = self.board.state, workflow.patched("random-trials-named-and-paid-for")
        if is_paid_for:
            # no sweep has trials of this name, whatever its experiment_id
            beside = Board(request.model_copy(update={"ladder": None, "so_far": own.randoms}), "random")
        else:
            beside = Board(request.model_copy(update={"experiment_id": f"{request.experiment_id}-random", "ladder": None}))
        beside.waiting_is_free = self.own.waiting_is_free
        if is_paid_for and own.randoms is None:
            beside.update(spent_s=own.spent_s, budget_gpu_hours=own.budget_gpu_hours, paused=own.paused)
            self.to_stop.clear()  # numbers begin again
        if own.randoms is None:
            beside.update(snapshot=own.snapshot, concurrency=own.concurrency, trials=count, on_gpus=own.on_gpus, by_score=own.by_score)
        self.board = beside  # people now see, and steer, the random trials
        first = beside.state.number
        planned = [Planned(first + place, one) for place, one in enumerate(await self.drawn(request.seed + 1, first, count))]
        beside.update(trials=first + len(planned))

        async def between(place: int, begun: list[asyncio.Task[m.TrialResult]]) -> None:
            if is_paid_for and self.history_is_long() and workflow.patched("random-trials-go-on-as-new"):
                await self._go_on_comparing(winner, planned[place].number, begun)

        await self._climb(planned, last, between)
        randoms = beside.state
        why_over = beside.why_over(clock()) if randoms.ended < count else randoms.stopped
        spent_s = randoms.spent_s - (own.spent_s if is_paid_for else 0.0)
        kept = await self._keep_randoms()
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
        return found.model_copy(update={"random_planned": count, "randoms": kept}), why_over

    async def _keep_randoms(self) -> m.HistoryReference | None:
        """Write down the random trials that have ended: the leaderboard has them below its own."""
        beside, state = self.board, self.board.state
        if state.recent and workflow.patched("random-trials-are-kept"):
            ended = tuple(sorted(state.recent, key=lambda trial: trial.number))
            request = m.RecordRequest(experiment_id=beside.request.experiment_id, history=state.history, ended=ended, beside=True)
            beside.recorded(await training.record(request))
        return beside.state.history

    async def _go_on_comparing(self, winner: m.TrialResult, number: int, under_way: list[asyncio.Task[m.TrialResult]]) -> None:
        """A new run with a short history, which goes on with this random trial; of those before, it knows the best and what all cost."""
        await results_of(under_way)
        await self.clean((self.board.best.run_id,) if self.board.best else ())
        await self._keep_randoms()
        await workflow.wait_condition(workflow.all_handlers_finished)
        randoms = self.board.state.model_copy(update={"number": number, "recent": ()})
        state = self.own.state.model_copy(update={"climbing": None, "winner": winner, "randoms": randoms})
        workflow.continue_as_new(self.own.request.model_copy(update={"so_far": state}))

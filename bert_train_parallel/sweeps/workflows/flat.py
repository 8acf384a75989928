"""A sweep without rungs, as a story: trials at random, from a grid or by TPE, each trained once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import bert_train_parallel.sweeps.board as limits
    import bert_train_parallel.sweeps.messages as m
    import bert_train_parallel.sweeps.training as training
    from bert_train_parallel.sweeps.board import Planned
    from bert_train_parallel.sweeps.controls import clock
    from bert_train_parallel.sweeps.draw import Values, draw_random, draws, grid, why_no_more
    from bert_train_parallel.sweeps.workflows.failures import MISTAKES
    from bert_train_parallel.sweeps.workflows.sweep import Sweep, taken_from


@workflow.defn(failure_exception_types=MISTAKES)
class SweepWorkflow(Sweep):
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
            if not await self.still_room():
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
            ended = [task for task in self._under_way if task.done()]
            self._under_way.difference_update(ended)
            for task in ended:
                task.result()  # what went wrong in it ends the sweep, and is not lost
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
                self._draws = draws(request.space, request.seed)
                await taken_from(self._draws, number)
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

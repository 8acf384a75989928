"""The random sweep as a later version might have it: the change is marked, so that sweeps under way can go on with it."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import bert_train_parallel.sweeps.messages as m
    import bert_train_parallel.sweeps.training as training
    from bert_train_parallel.sweeps.workflows import SweepWorkflow


@workflow.defn(name="SweepWorkflow")
class ChangedSweepWorkflow(SweepWorkflow):
    """Cleans up once more at the end, which the version before did not."""

    @workflow.init
    def __init__(self, request: m.SweepRequest) -> None:
        super().__init__(request)

    @workflow.run
    async def run(self, request: m.SweepRequest) -> m.SweepResult:
        return await super().run(request)

    async def finish(self, result: m.SweepResult) -> m.SweepResult:
        if workflow.patched("clean-once-more-at-the-end"):
            await training.clean_up(m.CleanUpRequest(among=("marked",), keep=()))
        return await super().finish(result)

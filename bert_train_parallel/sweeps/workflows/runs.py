"""One run at a time: a training, an evaluation, an inference."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import bert_train_parallel.sweeps.messages as m
    import bert_train_parallel.sweeps.training as training
    from bert_train_parallel.sweeps.workflows.failures import MISTAKES


@workflow.defn(failure_exception_types=MISTAKES)
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
            run_id = request.run_id or m.run_id_of(f"bert-{workflow.info().workflow_id}"[:100])
            request = m.BertFineTuneRequest(run_id=run_id, config=request, signal_checkpoints=True)
        snapshot = await training.snapshot_of(request.dataset_snapshot, training.snapshot_request(request.config, request.run_id))
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


@workflow.defn(failure_exception_types=MISTAKES)
class BertEvalWorkflow:
    """Measure a trained model."""

    @workflow.run
    async def run(self, request: m.BertEvalRequest) -> m.BertEvalResult:
        if request.dataset_name or request.dataset_snapshot:
            snapshot = await training.snapshot_of(
                request.dataset_snapshot,
                m.DatasetSnapshotRequest(
                    run_id=request.run_id or "evaluation",
                    dataset_name=request.dataset_name or "",
                    dataset_config=request.dataset_config_name,
                ),
            )
            request = request.model_copy(update={"dataset_snapshot": snapshot})
        return await training.evaluate(request)


@workflow.defn(failure_exception_types=MISTAKES)
class BertInferenceWorkflow:
    """Labels for some texts, by a run's model."""

    @workflow.run
    async def run(self, request: m.BertInferenceRequest) -> m.BertInferenceResult:
        return await training.infer(request)

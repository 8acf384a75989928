"""Several given configurations: each is trained, and evaluated as soon as its training ends."""

from __future__ import annotations

import asyncio

from temporalio import workflow
from temporalio.exceptions import ChildWorkflowError

with workflow.unsafe.imports_passed_through():
    import bert_train_parallel.sweeps.messages as m
    from bert_train_parallel.sweeps.workflows.runs import BertEvalWorkflow, CheckpointedBertTrainingWorkflow
    from bert_train_parallel.sweeps.workflows.sweep import first_words


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

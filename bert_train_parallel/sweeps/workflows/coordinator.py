"""Several given configurations: each is trained, and evaluated as soon as its training ends."""

from __future__ import annotations

import asyncio

from temporalio import workflow
from temporalio.exceptions import ChildWorkflowError

with workflow.unsafe.imports_passed_through():
    import bert_train_parallel.sweeps.messages as m
    from bert_train_parallel.sweeps.workflows.failures import MISTAKES, first_words, results_of
    from bert_train_parallel.sweeps.workflows.runs import BertEvalWorkflow, CheckpointedBertTrainingWorkflow


@workflow.defn(failure_exception_types=MISTAKES)
class CoordinatorWorkflow:
    """Train all of some given configurations, and evaluate each as soon as its training ends; results in their order."""

    @workflow.run
    async def run(self, given: m.CoordinatorWorkflowInput) -> list[m.BertEvalResult]:
        tasks = [asyncio.create_task(self._train_and_evaluate(config, number)) for number, config in enumerate(given.configs)]
        return await results_of(tasks)

    async def _train_and_evaluate(self, config: m.CoordinatorWorkflowConfig, number: int) -> m.BertEvalResult:
        run_id, evaluation = normalised(config, m.run_id_of(f"{workflow.info().workflow_id}-{number}"))
        request = m.BertFineTuneRequest(
            run_id=run_id,
            config=config.fine_tune_config,
            dataset_snapshot=config.dataset_snapshot,
            launch=config.launch,
            signal_checkpoints=True,
        )
        place = f"{workflow.info().workflow_id}/{run_id}"
        data = config.evaluation_config.dataset_name or config.fine_tune_config.dataset_name  # as its author wrote it, however it ends
        failed = m.BertEvalResult(
            run_id=run_id,
            dataset_name=data,
            dataset_config_name=evaluation.dataset_config_name,
            split=evaluation.split,
            num_examples=0,
        )
        try:
            trained = await workflow.execute_child_workflow(
                CheckpointedBertTrainingWorkflow.run, request, id=f"{place}/training", task_queue=m.TRAINING_QUEUE
            )
            if trained.state != "finished":
                return failed.model_copy(update={"error": f"{trained.state}: {trained.error}"})
            found = await workflow.execute_child_workflow(
                BertEvalWorkflow.run, evaluation, id=f"{place}/evaluation", task_queue=m.EVAL_QUEUE
            )
            return found.model_copy(update={"dataset_name": data, "dataset_config_name": evaluation.dataset_config_name})
        except ChildWorkflowError as error:
            return failed.model_copy(update={"error": first_words(error)})


def normalised(config: m.CoordinatorWorkflowConfig, run_id: str) -> tuple[str, m.BertEvalRequest]:
    """One run id for a configuration and all in it, and the evaluation of the model that will lie there.

    >>> config = m.CoordinatorWorkflowConfig(fine_tune_config={"run_id": "mine"})
    >>> normalised(config, "other")[0], normalised(config, "other")[1].model_path
    ('mine', 'bert_runs/mine')
    >>> tuned = {"dataset_name": "glue", "dataset_config_name": "sst2"}
    >>> for measured in ({"dataset_name": "glue"}, {"dataset_config_name": "mrpc"}, {"dataset_name": "imdb"}):
    ...     config = m.CoordinatorWorkflowConfig(fine_tune_config=tuned, evaluation_config=measured)
    ...     print(normalised(config, "other")[1].dataset_name, normalised(config, "other")[1].dataset_config_name)
    None sst2
    glue mrpc
    imdb None
    """
    training, evaluation = config.fine_tune_config, config.evaluation_config
    found = config.named or run_id
    same_name = evaluation.dataset_name in (None, training.dataset_name)
    same_data = same_name and evaluation.dataset_config_name in (None, training.dataset_config_name)
    return found, evaluation.model_copy(
        update={
            "run_id": found,
            "model_path": evaluation.model_path or f"bert_runs/{found}",
            "dataset_name": None if same_data else evaluation.dataset_name or training.dataset_name,
            "dataset_config_name": training.dataset_config_name if same_data else evaluation.dataset_config_name,
        }
    )

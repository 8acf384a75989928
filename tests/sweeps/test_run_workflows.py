"""Workflows of given runs, one or several, on a real server, their activities simulated."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.workflows import CheckpointedBertTrainingWorkflow, CoordinatorWorkflow

from .simulated import Simulated, served


def test_configurations_are_evaluated_as_their_training_ends_and_told_in_their_order(server: str, simulated: Simulated) -> None:
    async def answers(request: m.BertFineTuneRequest) -> m.BertFineTuneResult | None:
        await asyncio.sleep({"slow": 0.3}.get(request.run_id, 0))
        if request.run_id == "bad":
            return m.BertFineTuneResult(run_id="bad", config=request.config, state="failed", error="no such column")
        return None

    simulated.answers = answers
    configs = [
        m.CoordinatorWorkflowConfig(fine_tune_config=m.BertFineTuneConfig(dataset_name="data/leanings.csv", run_id=name))
        for name in ("slow", "bad", "quick")
    ]

    async def go() -> list[m.BertEvalResult]:
        async with served(server, simulated) as client:
            given = m.CoordinatorWorkflowInput(configs=configs)
            return list(await client.execute_workflow(CoordinatorWorkflow.run, given, id=f"test-{uuid.uuid4()}", task_queue=m.EVAL_QUEUE))

    results = asyncio.run(asyncio.wait_for(go(), 60))
    assert [result.run_id for result in results] == ["slow", "bad", "quick"]
    assert [result.accuracy for result in results] == [0.5, None, 0.5]
    assert results[1].error == "failed: no such column"
    assert [result.dataset_name for result in results] == ["data/leanings.csv"] * 3


@pytest.mark.parametrize("name", ["my runs", "-" * 120, "läufe/2", "x" * 94 + "-.-."])
def test_a_run_without_a_name_gets_one_that_a_folder_may_have(server: str, simulated: Simulated, name: str) -> None:
    config = m.BertFineTuneConfig(dataset_name="leanings.csv")

    async def go() -> tuple[m.BertFineTuneResult, list[m.BertEvalResult]]:
        async with served(server, simulated, workflow_failure_exception_types=[]) as client:
            given, unique = m.CoordinatorWorkflowInput(configs=[m.CoordinatorWorkflowConfig(fine_tune_config=config)]), uuid.uuid4()
            coordinated = CoordinatorWorkflow.run, given
            found = await client.execute_workflow(*coordinated, id=f"{unique}{name}", task_queue=m.EVAL_QUEUE)
            run = CheckpointedBertTrainingWorkflow.run
            return await client.execute_workflow(run, config, id=f"{name}{unique}", task_queue=m.TRAINING_QUEUE), found

    trained, evaluated = asyncio.run(asyncio.wait_for(go(), 20))
    assert (trained.state, evaluated[0].error) == ("finished", "")
    assert trained.run_id.startswith("bert-")
    assert len({request.run_id for request in simulated.asked}) == 2


def test_a_training_tells_its_newest_checkpoint_while_it_runs_and_afterwards(server: str, simulated: Simulated) -> None:
    seen: list[m.CheckpointInfo | None] = []
    go_on = asyncio.Event()

    async def answers(request: m.BertFineTuneRequest) -> m.BertFineTuneResult:
        await go_on.wait()
        newest = m.CheckpointInfo(epoch=2, step=20, path="bert_runs/mine/step_20")
        return m.BertFineTuneResult(run_id=request.run_id, config=request.config, checkpoint=newest)

    simulated.answers = answers

    async def go() -> None:
        async with served(server, simulated) as client:
            run = CheckpointedBertTrainingWorkflow
            config = m.BertFineTuneConfig(dataset_name="leanings.csv", run_id="mine")
            handle = await client.start_workflow(run.run, config, id=f"test-{uuid.uuid4()}", task_queue=m.TRAINING_QUEUE)
            seen.append(await handle.query(run.get_latest_checkpoint))
            await handle.signal(run.update_checkpoint, m.CheckpointInfo(epoch=1, step=10, path="bert_runs/mine/step_10"))
            seen.append(await handle.query(run.get_latest_checkpoint))
            go_on.set()
            await handle.result()
            seen.append(await handle.query(run.get_latest_checkpoint))

    asyncio.run(asyncio.wait_for(go(), 60))
    assert [info and info.step for info in seen] == [None, 10, 20]

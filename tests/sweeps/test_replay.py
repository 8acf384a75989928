"""Histories that were saved by this version or an earlier one: the code of today must still make the same decisions.

`SAVE_HISTORIES=1 pytest tests/sweeps/test_replay.py` writes them anew, after a change that is meant to break them.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.workflows import WORKFLOWS, CoordinatorWorkflow, LadderSweepWorkflow, SweepWorkflow

from .changed import ChangedSweepWorkflow
from .simulated import Simulated, served, sweep

HISTORIES = Path(__file__).parent / "histories"
STAGES = [{"epochs": 1, "keep": 2, "new": 4}, {"epochs": 2, "keep": 1, "new": 1}, {"epochs": 4}]
CONFIGS = [m.CoordinatorWorkflowConfig(fine_tune_config=m.BertFineTuneConfig(dataset_name="leanings.csv", run_id=name)) for name in "ab"]
STORIES = {
    "random": (SweepWorkflow, sweep(num_trials=5, max_concurrency=2)),
    "tpe": (SweepWorkflow, sweep(num_trials=5, max_concurrency=2, sampler="tpe")),
    "grid": (SweepWorkflow, sweep(num_trials=4, sampler="grid", space={"batch_size": [8, 16]})),
    "ladder": (LadderSweepWorkflow, sweep(num_trials=4, ladder={"stages": STAGES}, compare=True)),
    "compared": (LadderSweepWorkflow, sweep(num_trials=4, ladder={"stages": STAGES}, compare=True, budget_gpu_hours=1.0)),
    "coordinator": (CoordinatorWorkflow, m.CoordinatorWorkflowInput(configs=CONFIGS)),
}


@pytest.mark.parametrize("name", STORIES)
def test_a_saved_history_replays(name: str, server: str, simulated: Simulated) -> None:
    path = HISTORIES / f"{name}.json"
    if os.environ.get("SAVE_HISTORIES"):
        path.write_text(asyncio.run(played(name, server, simulated)) + "\n")

    async def replay() -> None:
        replayer = Replayer(workflows=list(WORKFLOWS), data_converter=pydantic_data_converter)
        await replayer.replay_workflow(WorkflowHistory.from_json(f"saved-{name}", path.read_text()))

    asyncio.run(replay())


async def played(name: str, server: str, simulated: Simulated) -> str:
    kind, request = STORIES[name]
    async with served(server, simulated) as client:
        handle = await client.start_workflow(kind.run, request, id=f"saved-{name}", task_queue=m.EVAL_QUEUE)
        await handle.result()
        return str((await handle.fetch_history()).to_json())


def test_a_sweep_whose_workers_are_killed_is_finished_by_changed_code(server: str, simulated: Simulated) -> None:
    simulated.seconds = 0.05
    request = sweep(num_trials=8, max_concurrency=2)
    name = f"changed-{uuid.uuid4()}"

    async def before() -> None:
        async with served(server, simulated) as client:
            await client.start_workflow(SweepWorkflow.run, request, id=name, task_queue=m.EVAL_QUEUE)
            while len(simulated.asked) < 3:
                await asyncio.sleep(0.01)

    async def after() -> m.SweepResult:
        workflows = [ChangedSweepWorkflow, *WORKFLOWS[1:]]
        async with served(server, simulated, workflows=workflows) as client:
            return await client.get_workflow_handle(name, result_type=m.SweepResult).result()

    asyncio.run(asyncio.wait_for(before(), 30))
    result = asyncio.run(asyncio.wait_for(after(), 60))
    assert result.trials == 8
    assert result.states == {"finished": 8}
    assert [request.among for request in simulated.cleaned].count(("marked",)) == 1  # the new code ran
    assert sorted({request.run_id for request in simulated.asked}) == [f"mine-t{number:04d}" for number in range(8)]


def test_workflows_load_none_of_the_packages_that_their_sandbox_cannot_bear() -> None:
    code = "import sys, bert_train_parallel.sweeps.workflows; print(*{'torch', 'numpy', 'optuna', 'pandas'} & sys.modules.keys())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == ""

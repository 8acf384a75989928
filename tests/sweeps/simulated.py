"""A sweep's activities that start nothing and write down what they are asked."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

from bert_train_parallel.errors import BadSource
from bert_train_parallel.sweeps import history
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.snapshots import check_snapshot

Story = Callable[[Any], Awaitable[None]]  # of a workflow's handle
_OFTEN = timedelta(seconds=0.2)
BASE = {"fine_tune_config": {"dataset_name": "leanings.csv"}}


def sweep(**changes: Any) -> m.SweepRequest:
    """A small request, with changes."""
    given = {"experiment_id": "mine", "base": BASE, "space": {"learning_rate": [1e-5, 1e-3], "batch_size": [16, 32]}, **changes}
    return m.SweepRequest.model_validate(given)


def quality(values: dict[str, Any]) -> float:
    """A score that a learning rate of 1e-4 makes best."""
    return 1 - 0.1 * (math.log10(values.get("learning_rate", 1e-3)) + 4) ** 2


class Simulated:
    """Activities without launches: each trial scores by its learning rate and epochs, and is written down."""

    def __init__(self, folder: SharedFolder, seconds: float = 0.0) -> None:
        self.folder = folder
        self.seconds = seconds
        self.asked: list[m.BertFineTuneRequest] = []
        self.suggested: list[m.SuggestRequest] = []
        self.cleaned: list[m.CleanUpRequest] = []
        self.exported: list[m.ExportRequest] = []
        self.most_at_once = self.at_once = 0
        self.meanwhile: Callable[[str], Awaitable[None]] | None = None  # before trials are proposed, or written down
        self.answers: Callable[[m.BertFineTuneRequest], Awaitable[m.BertFineTuneResult | None]] | None = None

    @property
    def all(self) -> list[Any]:
        from temporalio import activity
        from temporalio.exceptions import ApplicationError

        @activity.defn
        async def create_dataset_snapshot(request: m.DatasetSnapshotRequest) -> m.DatasetSnapshotResult:
            return m.DatasetSnapshotResult(
                snapshot_id="s",
                dataset_name=request.dataset_name,
                num_train_samples=100,
                data_hash="0",
                snapshot_timestamp="",
                snapshot_path="s",
            )

        @activity.defn
        async def check_dataset_snapshot(snapshot: m.DatasetSnapshotResult) -> None:
            try:
                check_snapshot(snapshot, self.folder)
            except BadSource as error:
                raise ApplicationError(str(error), type="BadSource", non_retryable=True) from None

        @activity.defn
        async def fine_tune_bert(request: m.BertFineTuneRequest) -> m.BertFineTuneResult:
            self.asked.append(request)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                return await self._train(request)
            finally:
                self.at_once -= 1

        @activity.defn
        async def evaluate_bert_model(request: m.BertEvalRequest) -> m.BertEvalResult:
            return m.BertEvalResult(
                run_id=request.run_id or "", dataset_name="leanings.csv", split=request.split, num_examples=10, accuracy=0.5
            )

        @activity.defn
        async def suggest_trials(request: m.SuggestRequest) -> m.Proposals:
            self.suggested.append(request)
            if self.meanwhile:
                await self.meanwhile("suggest")
            return history.suggest(request, self.folder)

        @activity.defn
        async def record_trials(request: m.RecordRequest) -> m.HistoryReference:
            if self.meanwhile:
                await self.meanwhile("record")
            return history.record(request, self.folder)

        @activity.defn
        async def clean_up(request: m.CleanUpRequest) -> int:
            self.cleaned.append(request)
            return 0

        @activity.defn
        async def export_sweep(request: m.ExportRequest) -> str:
            self.exported.append(request)
            return ""

        @activity.defn
        async def compare_on_test(request: m.CompareRequest) -> m.Comparison:
            best = next((trial.run_id for trial in request.randoms if trial.score is not None), None)
            return m.Comparison(
                rows_seen=request.winner_rows,
                random_trials=request.random_trials or 0,
                random_rows_seen=request.random_rows_seen or 0,
                random_gpu_hours=request.random_gpu_hours or 0,
                winner=request.winner,
                winner_figures={},
                random_best=best,
                random_figures={},
                metric="accuracy",
            )

        @activity.defn
        async def account_for_trial(request: m.AccountRequest) -> m.BertFineTuneResult:
            return m.BertFineTuneResult(
                run_id=request.trial.run_id,
                config=request.trial.config,
                state=request.state,
                error=request.error,
                gpu_seconds=30.0,
                steps=5,
                host="alpha",
            )

        @activity.defn
        async def look_for_nodes() -> m.Fleet:
            return m.Fleet(nodes={"alpha": 0})

        return [
            create_dataset_snapshot,
            check_dataset_snapshot,
            fine_tune_bert,
            evaluate_bert_model,
            suggest_trials,
            record_trials,
            clean_up,
            export_sweep,
            compare_on_test,
            look_for_nodes,
            account_for_trial,
        ]

    async def _train(self, request: m.BertFineTuneRequest) -> m.BertFineTuneResult:
        await asyncio.sleep(self.seconds)
        found = await self.answers(request) if self.answers else None
        config = request.config
        steps = config.num_epochs * 10
        first = steps // 2 if request.from_run else 0
        return found or m.BertFineTuneResult(
            run_id=request.run_id,
            config=config,
            score=quality({"learning_rate": config.learning_rate}) - 0.01 / config.num_epochs,
            eval_metrics={"accuracy": 0.5},
            gpu_seconds=60.0,
            first_step=first,
            steps=steps,
            rows_seen=(steps - first) * (config.batch_size - 1),  # as if the last batch of an epoch were a smaller one
        )


@contextlib.asynccontextmanager
async def served(address: str, simulated: Simulated, **options: Any) -> AsyncIterator[Any]:
    """A client, with workers for all queues that do simulated work."""
    from temporalio.worker import Worker

    from bert_train_parallel.sweeps.server import connect
    from bert_train_parallel.sweeps.workflows import WORKFLOWS

    client = await connect(address)
    activities = simulated.all
    options.setdefault("workflow_failure_exception_types", [Exception])  # a mistake ends a test, where a sweep would wait for its repair
    async with (
        Worker(
            client,
            task_queue=m.EVAL_QUEUE,
            workflows=options.pop("workflows", WORKFLOWS),
            activities=activities,
            **options,
        ),
        Worker(client, task_queue=m.TRAINING_QUEUE, workflows=WORKFLOWS, activities=activities, max_heartbeat_throttle_interval=_OFTEN),
    ):
        yield client


def run_sweep(server: str, simulated: Simulated, request: m.SweepRequest, story: Story | None = None) -> m.SweepResult:
    """A sweep from beginning to end, with what people do meanwhile."""
    from bert_train_parallel.sweeps.workflows import LadderSweepWorkflow, SweepWorkflow

    async def go() -> m.SweepResult:
        async with served(server, simulated) as client:
            kind: Any = LadderSweepWorkflow if request.ladder else SweepWorkflow
            handle = await client.start_workflow(kind.run, request, id=f"test-{uuid.uuid4()}", task_queue=m.EVAL_QUEUE)
            if story:
                await story(handle)
            return await handle.result()

    return asyncio.run(asyncio.wait_for(go(), 60))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)

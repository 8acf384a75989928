"""Everything a sweep does outside of its workflows. Heavy packages are loaded where they are used, not with this module."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError, TemporalError

from bert_train_parallel.errors import BertTrainParallelError, NotWritable, Unreachable
from bert_train_parallel.sweeps import fleet
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.outcomes import MOST_FAILURES, STOPPED, tells_of_a_full_disk
from bert_train_parallel.sweeps.reservations import Reservations, TooFewGpus
from bert_train_parallel.sweeps.trial import check_folder
from bert_train_parallel.sweeps.trials import Busy, Fenced, Trials, TryAgain, WrongFolder

SIGNAL_EVERY_S = 30.0  # a workflow takes 10,000 signals at most, and each is kept for ever
ELSEWHERE = timedelta(seconds=2)  # after which another node may take a trial that this one cannot run
_FULL_DISK, _LONGEST = timedelta(seconds=5), timedelta(minutes=1)  # between looks at it: longer each time
_TICK_S = 1.0

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Activities:
    """The activities of one worker, over the folder that all workers share."""

    def __init__(
        self,
        folder: SharedFolder,
        worker: str = "worker",
        client: Client | None = None,
        trials: Trials | None = None,
        cores_each: int | None = None,
    ) -> None:
        self._folder = folder
        self._worker = worker
        self._client = client
        self._reservations = Reservations()
        self._said: set[str] = set()  # of this node's faults
        self._failures: Counter[tuple[str, str]] = Counter()  # of trials that came to no attempt, by workflow and run
        self._trials = trials or Trials(folder, worker, self._reservations, cores_each=cores_each)

    @activity.defn
    async def create_dataset_snapshot(self, request: m.DatasetSnapshotRequest) -> m.DatasetSnapshotResult:
        """Keep a data set as it is now."""
        from bert_train_parallel.sweeps.snapshots import take_snapshot

        return await _in_thread(lambda: take_snapshot(request, self._folder))

    @activity.defn
    async def check_dataset_snapshot(self, snapshot: m.DatasetSnapshotResult) -> None:
        """See that a snapshot which a person named is there, whole and as it was."""
        from bert_train_parallel.sweeps.snapshots import check_snapshot

        await _in_thread(lambda: check_snapshot(snapshot, self._folder))

    @activity.defn
    async def fine_tune_bert(self, request: m.BertFineTuneRequest) -> m.BertFineTuneResult:
        """Train one trial as a launch; a trial that fails for good is a result."""
        owner = activity.info().workflow_id or ""
        signals = _Signals(self._client, request)

        def beat(progress: m.TrialProgress) -> None:
            activity.heartbeat(progress)
            signals.look(progress)

        try:
            return await self._trials.run(request, beat, owner)
        except asyncio.CancelledError:
            details = activity.cancellation_details()
            if details and details.cancel_requested:  # not a worker that shuts down: there the trial goes on elsewhere
                return self._trials.ended(request, owner, "stopped", STOPPED)
            raise
        except TryAgain as error:
            if error.kind == "full":
                raise self._told_of_a_full_disk(str(error), request, beat) from error
            delay = timedelta(seconds=0.3 if error.kind == "killed" else 2)
            raise ApplicationError(str(error), type=f"Trial{error.kind.capitalize()}", next_retry_delay=delay) from error
        except (Fenced, Busy) as error:
            raise ApplicationError(str(error), type=type(error).__name__) from error
        except WrongFolder as error:
            beat(self._waiting(request, m.NO_FOLDER))
            raise self._told_of_a_wrong_folder(error) from error
        except TooFewGpus as error:  # it was asked for when no node had any, or by an earlier version
            raise ApplicationError(str(error), type=type(error).__name__, next_retry_delay=ELSEWHERE) from error
        except Exception as error:
            told = _told(error)
            if told.non_retryable:
                raise told from error
            if tells_of_a_full_disk(str(error)):
                raise self._told_of_a_full_disk(str(error), request, beat) from error
            # A lost worker is followed by any number of others: what a living one says again and again comes to an end.
            self._failures[owner, request.run_id] += 1
            is_last = self._failures[owner, request.run_id] >= MOST_FAILURES
            raise ApplicationError(told.message, type=told.type, non_retryable=is_last, next_retry_delay=ELSEWHERE) from error

    def _told_of_a_full_disk(self, words: str, request: m.BertFineTuneRequest, beat: Callable[[m.TrialProgress], None]) -> ApplicationError:
        """Nothing that the trial did: it is tried again until there is room, and said meanwhile."""
        beat(self._waiting(request, m.FULL_DISK))
        return ApplicationError(words, type="TrialFull", next_retry_delay=min(_FULL_DISK * activity.info().attempt, _LONGEST))

    def _told_of_a_wrong_folder(self, error: WrongFolder) -> ApplicationError:
        """Nothing that the trial did either: another node takes it, or this one when its folder is there."""
        if str(error) not in self._said:
            self._said.add(str(error))
            _log.warning("%s", error)
        return ApplicationError(str(error), type=type(error).__name__, next_retry_delay=ELSEWHERE)

    def _waiting(self, request: m.BertFineTuneRequest, phase: str) -> m.TrialProgress:
        attempt, host = activity.info().attempt, socket.gethostname()
        return m.TrialProgress(run_id=request.run_id, phase=phase, host=host, worker=self._worker, attempt=attempt, time=time.time())

    @activity.defn
    async def account_for_trial(self, request: m.AccountRequest) -> m.BertFineTuneResult:
        """What the attempts of a trial say that ended without its activity's telling: stopped while it waited for a node, or refused."""
        owner = activity.info().workflow_id or ""
        try:
            return self._trials.ended(request.trial, owner, request.state, request.error)
        except BertTrainParallelError:  # its name is that of another run, whose attempts are not its own; or the folder cannot be used
            return m.BertFineTuneResult(
                run_id=request.trial.run_id, config=request.trial.config, state=request.state, error=request.error, attempts=0
            )

    @activity.defn
    async def evaluate_bert_model(self, request: m.BertEvalRequest) -> m.BertEvalResult:
        """Measure a run's model by samples of a split."""
        from bert_train_parallel.sweeps.evaluation import evaluate

        return await _telling(evaluate(request, self._folder, _tick))

    @activity.defn
    async def run_bert_inference(self, request: m.BertInferenceRequest) -> m.BertInferenceResult:
        """Labels for texts, by a run's model."""
        from bert_train_parallel.sweeps.evaluation import infer

        return await _telling(infer(request, self._folder, _tick))

    @activity.defn
    async def suggest_trials(self, request: m.SuggestRequest) -> m.Proposals:
        """Values for new trials, by TPE."""
        from bert_train_parallel.sweeps.history import suggest

        return await _in_thread(lambda: suggest(request, self._folder))

    @activity.defn
    async def record_trials(self, request: m.RecordRequest) -> m.HistoryReference:
        """Add trials that ended to the history file."""
        from bert_train_parallel.sweeps.history import record

        return await _in_thread(lambda: record(request, self._folder))

    @activity.defn
    async def clean_up(self, request: m.CleanUpRequest) -> int:
        """Remove checkpoints and models of trials that lost; how many folders and files went."""
        from bert_train_parallel.sweeps.history import clean_up

        return await _in_thread(lambda: clean_up(request, self._folder))

    @activity.defn
    async def compare_on_test(self, request: m.CompareRequest) -> m.Comparison:
        """Look at test figures, which nothing before has looked at."""
        from bert_train_parallel.sweeps.history import compare_on_test

        return await _in_thread(lambda: compare_on_test(request, self._folder))

    @activity.defn
    async def export_sweep(self, request: m.ExportRequest) -> str:
        """Write leaderboard, RESULT and page; where they are."""
        from bert_train_parallel.sweeps.results import export

        return await _telling(export(request, self._folder, _tick))

    @activity.defn
    async def look_for_nodes(self) -> m.Fleet:
        """The nodes that run trials, as soon as there is one."""
        assert self._client is not None
        while not (found := await fleet.nodes(self._client)):
            activity.heartbeat()
            await asyncio.sleep(_TICK_S)
        return m.Fleet(nodes=found)

    @property
    def short(self) -> list[Callable[..., Awaitable[object]]]:
        """All but those that need a node's GPUs."""
        return [
            self.create_dataset_snapshot,
            self.check_dataset_snapshot,
            self.account_for_trial,
            self.evaluate_bert_model,
            self.run_bert_inference,
            self.suggest_trials,
            self.record_trials,
            self.clean_up,
            self.compare_on_test,
            self.export_sweep,
            self.look_for_nodes,
        ]

    @property
    def of_a_node(self) -> list[Callable[..., Awaitable[object]]]:
        """Those that one node's worker does for launches on several nodes."""
        return [self.fine_tune_bert, self.hold_gpus, self.give_back_gpus]

    @activity.defn
    async def hold_gpus(self, request: m.HoldRequest) -> str:
        """Hold GPUs of this node for a launch on several nodes; gives the name of the reservation."""
        if request.dataset_snapshot is not None:
            try:
                check_folder(self._folder, request.dataset_snapshot, self._worker)
            except WrongFolder as error:
                raise self._told_of_a_wrong_folder(error) from error
        return await _telling(self._reservations.hold(request.gpus, "auto" if request.use_gpu else "cpu", _tick))

    @activity.defn
    async def give_back_gpus(self, reservation: str) -> None:
        self._reservations.give_back(reservation)


class _Signals:
    """Tells the workflow of a trial what it asked to be told: that the training has begun, and new checkpoints, some time apart."""

    def __init__(self, client: Client | None, request: m.BertFineTuneRequest) -> None:
        workflow_id = activity.info().workflow_id
        self._handle = client.get_workflow_handle(workflow_id) if client and workflow_id else None
        self._request = request
        self._has_begun: asyncio.Task[None] | None = None
        self._told = -1
        self._time = 0.0
        self._sending: asyncio.Task[None] | None = None

    def look(self, progress: m.TrialProgress) -> None:
        if self._handle is None:
            return
        is_lost = self._has_begun is not None and self._has_begun.done() and not _is_sent(self._has_begun)
        if self._request.signal_start and progress.phase == "training" and (self._has_begun is None or is_lost):
            self._has_begun = self._send(self._handle, "trial_began", self._request.run_id)
        found = progress.checkpoint
        if self._request.signal_checkpoints and found and found.step > self._told and time.monotonic() - self._time >= SIGNAL_EVERY_S:
            self._told, self._time = found.step, time.monotonic()
            self._sending = self._send(self._handle, "update_checkpoint", found)  # a lost one is made up by the next

    def _send(self, handle: WorkflowHandle[Any, Any], name: str, content: object) -> asyncio.Task[None]:
        sending = asyncio.create_task(handle.signal(name, content))
        sending.add_done_callback(_is_sent)
        return sending


def _is_sent(signal: asyncio.Task[None]) -> bool:
    return not signal.cancelled() and signal.exception() is None


def _tick() -> None:
    activity.heartbeat()


async def _in_thread(body: Callable[[], Result]) -> Result:
    """Work that blocks, in a thread, with heartbeats from here."""

    async def work() -> Result:
        working = asyncio.ensure_future(asyncio.to_thread(body))
        while not working.done():
            await asyncio.wait({working}, timeout=_TICK_S)
            activity.heartbeat()
        return await working

    return await _telling(work())


async def _telling(work: Awaitable[Result]) -> Result:
    try:
        return await work
    except BertTrainParallelError as error:
        raise _told(error) from error
    except (OSError, TemporalError):  # of a file system or a server: it may pass
        raise
    except Exception as error:
        told = _told(error)
        raise ApplicationError(told.message, type=told.type, non_retryable=activity.info().attempt >= MOST_FAILURES) from error


def _told(error: Exception) -> ApplicationError:
    """An error for Temporal: a user's mistake stays one however often it is tried; a full disk, a lost node or a surprise may not."""
    is_ours = isinstance(error, BertTrainParallelError)
    words = str(error) if is_ours else f"{type(error).__name__}: {error}"
    return ApplicationError(words, type=type(error).__name__, non_retryable=is_ours and not isinstance(error, NotWritable | Unreachable))

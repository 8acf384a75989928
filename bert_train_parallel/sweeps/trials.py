"""One trial on this machine: its key, its lease, its store, its launch, and what came out."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import ValidationError

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.errors import BertTrainParallelError, LaunchFailed, NotWritable, Unreachable, not_writable
from bert_train_parallel.launching.plan import LaunchRequest, LaunchResult
from bert_train_parallel.run_files import RunFiles, store_stem, write_json
from bert_train_parallel.sweeps import launches, outcomes
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.keys import LaunchRefused, home_of, home_of_key, is_of_run, keep_asked, store_key, trial_key
from bert_train_parallel.sweeps.lease import Fenced, Lease, attempts, gpu_seconds
from bert_train_parallel.sweeps.messages import (
    BertFineTuneRequest,
    BertFineTuneResult,
    State,
    TrialProgress,
    first_problem,
)
from bert_train_parallel.sweeps.outcomes import Course, Verdict
from bert_train_parallel.sweeps.reservations import Hold, Reservations, check_can_run, launch_environment, wait_for_gpus
from bert_train_parallel.sweeps.snapshots import files_of

_log = logging.getLogger(__name__)

TRAINER = (sys.executable, "-P", "-m", "bert_train_parallel")
# how a source is read is a matter of its store: the trainer is given the store
_READING = {"text", "text_pair", "label", "encoding", "delimiter", "quoting", "header", "dataset_config"}
_READING |= {"validation_file", "test_file", "max_cell_bytes", "max_bad_rows"}
_ROOM = 1 << 16  # bytes; a disk without room for so little is full
_MOST_HELD_S = 60.0  # for which GPUs of several nodes are held while another trial of the same is under way


class TryAgain(Exception):
    """An attempt failed, and another one may do better."""

    def __init__(self, words: str, kind: str) -> None:
        super().__init__(words)
        self.kind = kind  # failed | killed | full


class Busy(Exception):
    """Another trial does what this one asks for; the GPUs that are held for it meanwhile are to be given back."""


class _Hung(Exception):
    """A training says nothing any more."""


Beat = Callable[[TrialProgress], None]
Launch = Callable[..., Awaitable[LaunchResult]]


class Trials:
    """Runs trials on this machine, each as a launch; `launch` can be replaced to see what is asked of it."""

    def __init__(
        self,
        folder: SharedFolder,
        worker: str,
        reservations: Reservations | None = None,
        launch: Launch = launches.launch,
        cores_each: int | None = None,
    ) -> None:
        """`cores_each`: CPU cores for a trial without a GPU; None: all, as for any launch."""
        self._cores_each = cores_each
        self._folder = folder
        self._worker = worker
        self._reservations = reservations or Reservations()
        self._launch = launch

    async def run(self, request: BertFineTuneRequest, beat: Beat, owner: str = "") -> BertFineTuneResult:
        """Train, or give the result that is there. A trial that failed for good is a result too.

        Where another trial that asks for the same is at work, its result is waited for.

        Args:
            owner: the workflow that asks. An attempt ends an earlier one of the same workflow and run, and no other.
        Raises:
            TryAgain: another attempt may do better.
            Fenced: a newer attempt has taken over.
            Busy: it held GPUs while another trial of the same did not end.
            TooFewGpus: this node has fewer than it needs, and was not named for it. That is no attempt.
            BertTrainParallelError: the folder or the snapshot cannot be used.
        """
        trial = _Trial(self._folder, request, self._worker, beat, owner)
        done = trial.finished()
        if done:
            return done
        if not request.launch.gpu_map:
            check_can_run(request.launch.here_gpus, trial.config.device)
        lease = trial.lease
        began = time.monotonic()

        def is_settled() -> bool:
            if request.reservation and time.monotonic() - began > _MOST_HELD_S:
                raise Busy(f"{trial.home_id} asked for the same as {request.run_id}, and is under way")
            return bool(trial.finished() or trial.hopeless())

        try:
            await lease.take(trial.tell_of_waiting, is_settled)
            done = trial.finished() or trial.hopeless()
            return done or await self._attempt(trial)
        finally:
            lease.release()

    def stopped(self, request: BertFineTuneRequest, owner: str = "") -> BertFineTuneResult:
        """What there is to tell of a trial that a person has stopped."""
        trial = _Trial(self._folder, request, self._worker, lambda progress: None, owner)
        return trial.failed("stopped", "stopped by a person")

    async def _attempt(self, trial: _Trial) -> BertFineTuneResult:
        try:
            found = await self._train(trial)
        except asyncio.CancelledError:
            trial.lease.note(outcome="cancelled")
            raise
        except Fenced:
            raise
        except (Unreachable, LaunchFailed) as error:  # the launcher was killed, or a node did not come
            found = Verdict("killed" if isinstance(error, LaunchFailed) else "failed", str(error))
        except (NotWritable, _Hung) as error:
            found = Verdict("failed", str(error))
        except BertTrainParallelError as error:
            found = Verdict("failed", str(error), final=True)
        except Exception as error:  # not foreseen: it counts as a failure, or it would be tried again for ever
            _log.exception("%s failed", trial.home_id)
            found = Verdict("failed", f"{type(error).__name__}: {error}")
        if found.outcome == "failed":
            # the trainer may have found no room for its last words either
            full = found.words if outcomes.tells_of_a_full_disk(found.words) else no_room(trial.home)
            found = Verdict("full", full) if full else found
        trial.look()
        try:
            trial.lease.note(outcome=found.outcome, error=found.words, final=found.final, **trial.steps())
        except OSError as error:  # the attempt then reads as one whose worker was lost
            raise not_writable(error, trial.home) or error from error
        done = trial.finished() if found.outcome == "finished" else trial.hopeless()
        if done:
            return done
        if request_is_part(trial.request) and found.final:
            raise LaunchRefused(found.words)
        raise TryAgain(found.words, found.outcome)

    async def _train(self, trial: _Trial) -> Verdict:
        request, config = trial.request, trial.config
        store = await self._store(trial)
        if not store.is_file():
            return Verdict("failed", f"{store} was not made; see {trial.output}")
        hold = await self._hold(trial)
        try:
            trial.lease.begin()
            trial.moved = time.monotonic()
            return outcomes.verdict(
                await self._launch(
                    launch_request(request, trial.command(store), str(trial.home), config.device),
                    trial.output,
                    lambda: trial.tick("training"),
                    held=(trial.lease.lock, *hold.claim.locks),
                    environment=launch_environment(hold.claim, self._cores_each),
                )
            )
        finally:
            hold.release()

    async def _hold(self, trial: _Trial) -> Hold:
        if trial.request.reservation:
            return self._reservations.take(trial.request.reservation)
        return await wait_for_gpus(trial.request.launch.on_one_node, trial.config.device, lambda: trial.tick("waiting for GPUs"))

    async def _store(self, trial: _Trial) -> Path:
        """The store for the trial's sequence length and model, made by the first trial that needs it."""
        store = trial.store
        if store.is_file():
            return store
        store.parent.mkdir(parents=True, exist_ok=True)
        settings = store.with_suffix(".json")
        write_json(settings, trial.source_config.model_dump(mode="json", exclude_defaults=True))
        command = (*TRAINER, str(trial.source), "--preponly", "--config", str(settings), "--output_dir", str(store.parent))
        request = LaunchRequest(command=command, folder=str(trial.home), device="cpu", here=1, log_dir=str(trial.home / "logs"))
        result = await self._launch(request, trial.output, lambda: trial.tick("preparing"), held=(trial.lease.lock,))
        found = outcomes.verdict(result)
        if found.final:
            raise LaunchRefused(found.words)
        if found.outcome == "full":
            raise NotWritable(found.words)
        return store


class _Trial:
    """What is known of a trial: its places and its course so far."""

    def __init__(self, folder: SharedFolder, request: BertFineTuneRequest, worker: str, beat: Beat, owner: str) -> None:
        if request.resume_from_checkpoint and not is_of_run(request.resume_from_checkpoint, request.run_id, folder):
            raise LaunchRefused(
                f"{request.run_id}: resume_from_checkpoint {request.resume_from_checkpoint} is of another run, and this one goes on from "
                "its own newest checkpoint; to go on from another run's, name that run as from_run."
            )
        if request.dataset_snapshot is None:
            raise LaunchRefused(f"{request.run_id} has no snapshot of its data; it is made before a launch.")
        self.request = request
        self._folder, self._worker, self._beat = folder, worker, beat
        snapshot = request.dataset_snapshot
        files = files_of(snapshot, folder)
        self.source = files.pop("train")
        given = {f"{split}_file": str(path) for split, path in files.items()}
        self.source_config = request.config.train_config().model_copy(update={"validation_file": None, "test_file": None} | given)
        self.config = trainer_config(request, folder)
        stem = store_stem(self.source.name)
        self.store = folder.store(store_key(self.source_config, snapshot), stem)
        key = trial_key(self.source_config, request, folder)
        keep_asked(folder, key, request)
        self.home_id = home_of_key(folder, key, request.run_id)
        self.home = folder.run(self.home_id)
        self.files = RunFiles(self.home, stem)
        is_part = request_is_part(request)
        own = self.home / f"node_{request.node_rank}" if is_part else self.home
        own.mkdir(parents=True, exist_ok=True)
        self.output = own / "output.log"
        gpus = 0 if is_part else request.launch.gpus  # the first node counts for the whole fleet
        self.lease = Lease(own, worker, gpus, f"{owner}/{request.run_id}")
        self.moved = time.monotonic()  # when the training last said something
        self.course = Course()
        self._tail = launches.Tail(self.files.progress)
        self.look()

    def look(self) -> None:
        events = self._tail.read()
        if events:
            self.moved = time.monotonic()
        self.course.add(events)

    def tick(self, phase: str) -> None:
        """Look what has happened, write it down and tell it; raises Fenced, and _Hung of a training that says nothing any more."""
        self.lease.check()
        self.look()
        try:
            self.lease.note(**self.steps())
        except OSError as error:  # of a full disk the training may have no need; the next look writes the same
            if not outcomes.tells_of_a_full_disk(str(error)):
                raise
        self.tell(phase)
        bound = self.request.launch.no_progress_s
        if phase == "training" and time.monotonic() - self.moved > bound:
            raise _Hung(f"the training told no step, epoch or checkpoint for {bound:g} s, which is the limit launch.no_progress_s")

    def tell_of_waiting(self) -> None:
        self.tell("waiting for an earlier attempt" if self.lease.token else f"waiting for the same in {self.home_id}")

    def steps(self) -> dict[str, int]:
        course = self.course
        saved = course.checkpoint.step if course.checkpoint else -1
        return {"first_step": course.attempt_step, "last_step": course.step, "saved_step": saved}

    def tell(self, phase: str) -> None:
        course = self.course
        self._beat(
            TrialProgress(
                run_id=self.request.run_id,
                phase=phase,
                host=self.lease.attempt.host,
                worker=self._worker,
                attempt=self.lease.token,
                step=course.step,
                steps=course.steps,
                epoch=course.epoch,
                loss=course.loss,
                figures={name: value for name, value in (course.figures or {}).items() if isinstance(value, int | float)} or None,
                checkpoint=course.checkpoint,
                time=time.time(),
            )
        )

    def finished(self) -> BertFineTuneResult | None:
        """The result, if it is there, whoever trained it."""
        files = self._folder.finished_files(self.home_id)
        if request_is_part(self.request):  # the first node says how it went
            is_over = self.lease.attempt.outcome == "finished" or (files is not None and not self.lease.token)
            return BertFineTuneResult(run_id=self.request.run_id, config=self.request.config) if is_over else None
        if files is None:
            return None
        self.look()
        return self._ours(outcomes.result_of(self.request, files, self.course))

    def hopeless(self) -> BertFineTuneResult | None:
        """The result of a trial that failed for good; of several nodes, the first one says that."""
        if request_is_part(self.request):
            return None
        failure = outcomes.final_failure(attempts(self.lease.folder))
        return self.failed(*failure) if failure else None

    def failed(self, state: State, words: str) -> BertFineTuneResult:
        """A trial that ended without a RESULT, as a result."""
        return self._ours(outcomes.failed_result(self.request, state, words, self.home, self.course))

    def _ours(self, found: BertFineTuneResult) -> BertFineTuneResult:
        """Less what was paid for, and counted, under another name."""
        if self.home_id == self.request.run_id:
            return found
        own = [attempt for attempt in attempts(self.home) if attempt.owner == self.lease.attempt.owner]
        worked = [attempt for attempt in own if attempt.began]
        rows = self.course.rows_seen(worked[0].first_step, found.steps, self.request.config.batch_size) if worked else 0
        counted = {"gpu_seconds": gpu_seconds(own), "rows_seen": rows, "attempts": len(worked)}
        return found.model_copy(update={"same_as": self.home_id, **counted})

    def command(self, store: Path) -> tuple[str, ...]:
        """What each rank runs. Written beside the run: its settings, and a link to the store, so that a report finds its data."""
        link = self.home / store.name
        if not link.is_symlink():
            try:
                link.symlink_to(os.path.relpath(store, self.home))
            except FileExistsError:
                pass
            except OSError as error:
                raise not_writable(error, link) or error from error
        settings = self.home / "settings.json"
        write_json(settings, self.config.model_dump(mode="json", exclude_defaults=True))
        return (*TRAINER, str(link), "--config", str(settings), "--resume", "--quiet_progress")


def request_is_part(request: BertFineTuneRequest) -> bool:
    """Whether another node, the first one, speaks for the whole launch."""
    return bool(request.node_rank)


def trainer_config(request: BertFineTuneRequest, folder: SharedFolder) -> TrainConfig:
    """What the trainer is told, its data being in a store.

    The metric that chooses the best epoch is that of the sweep, unless the settings say otherwise.
    """
    asked = request.config.train_config()
    found = asked.model_dump(mode="json", exclude=_READING, exclude_unset=True)
    if request.metric and "metric" not in request.config.settings:
        found["metric"] = request.metric
    if request.from_run:
        earlier = folder.finished_files(home_of(folder, request.from_run))
        if earlier is None:
            raise LaunchRefused(f"{request.from_run}, from which {request.run_id} is to go on, has no RESULT.")
        found["from_run"] = str(earlier.checkpoints)
    try:
        return TrainConfig.model_validate(found)
    except ValidationError as error:
        raise LaunchRefused(f"{request.run_id}: {first_problem(error)}") from None


def no_room(folder: Path) -> str:
    """The sentence for a disk that has no room for anything in this folder; empty where it has."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        words = str(not_writable(error, folder) or error)
        return words if outcomes.tells_of_a_full_disk(words) else ""
    return ""


def launch_request(request: BertFineTuneRequest, command: tuple[str, ...], folder: str, device: str) -> LaunchRequest:
    """The launch of a trial on this node, alone or as one node of several."""
    launch = request.launch
    if request.node_rank is None or not launch.gpu_map:
        return LaunchRequest(command, folder, here=launch.on_one_node, device=device, grace_s=launch.grace_s)
    hosts = list(launch.gpu_map)
    host = hosts[request.node_rank]
    return LaunchRequest(
        command,
        folder,
        here=launch.gpu_map[host],
        gpu_map=dict(launch.gpu_map),
        host=host,
        node_rank=request.node_rank,
        master_addr=hosts[0],
        master_port=launch.master_port,
        device=device,
        grace_s=launch.grace_s,
    )


__all__ = ["Busy", "Fenced", "Trials", "TryAgain"]

"""What is known of one trial: its places, what its ranks run, its course so far, and what came out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.errors import Unreachable, not_writable
from bert_train_parallel.run_files import RunFiles, store_stem, write_json
from bert_train_parallel.sweeps import launches, outcomes
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.keys import LaunchRefused, home_of, home_of_key, is_of_run, keep_asked, store_key, trial_key
from bert_train_parallel.sweeps.lease import Attempt, Lease, attempts, gpu_seconds
from bert_train_parallel.sweeps.messages import (
    BertFineTuneRequest,
    BertFineTuneResult,
    DatasetSnapshotResult,
    State,
    TrialProgress,
    first_problem,
)
from bert_train_parallel.sweeps.outcomes import Course
from bert_train_parallel.sweeps.snapshots import files_of

TRAINER = (sys.executable, "-P", "-m", "bert_train_parallel")
# how a source is read is a matter of its store: the trainer is given the store
_READING = {"text", "text_pair", "label", "encoding", "delimiter", "quoting", "header", "dataset_config"}
_READING |= {"validation_file", "test_file", "max_cell_bytes", "max_bad_rows"}

LAUNCHED = ("preparing", "training")  # phases in which processes of the trial are at work

Beat = Callable[[TrialProgress], None]


class Hung(Exception):
    """A training says nothing any more, or has taken longer than it may."""


class WrongFolder(Unreachable):
    """This machine does not have the folder of the sweep, which others have."""


class Trial:
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
        self.is_part = bool(request.node_rank)  # another node, the first one, speaks for the whole launch
        own = self.home / f"node_{request.node_rank}" if self.is_part else self.home
        own.mkdir(parents=True, exist_ok=True)
        self.output = own / "output.log"
        gpus = 0 if self.is_part else request.launch.gpus  # the first node counts for the whole fleet
        self.lease = Lease(own, worker, gpus, f"{owner}/{request.run_id}")
        self.moved = time.monotonic()  # when the training last said something
        self._phase, self._since = "", time.monotonic()
        self.course = Course()
        self._tail = launches.Tail(self.files.progress)
        self.look()

    def look(self) -> None:
        events = self._tail.read()
        if events:
            self.moved = time.monotonic()
        self.course.add(events)

    def tick(self, phase: str) -> None:
        """Look what has happened, write it down and tell it.

        Raises:
            Fenced: a newer attempt has taken over.
            Hung: the training says nothing any more, or this phase has lasted `max_hours`.
        """
        self.lease.check()
        self.look()
        try:
            self.lease.note(**self.steps())
        except OSError as error:  # of a full disk the training may have no need; the next look writes the same
            if not outcomes.tells_of_a_full_disk(str(error)):
                raise
        self.tell(phase)
        self._check_time(phase)

    def _check_time(self, phase: str) -> None:
        now, launch = time.monotonic(), self.request.launch
        if phase != self._phase:
            self._phase, self._since = phase, now
        if phase == "training" and now - self.moved > launch.no_progress_s:
            raise Hung(
                f"the training told no step, epoch or checkpoint for {launch.no_progress_s:g} s, which is the limit launch.no_progress_s"
            )
        # of several nodes, the first one ends the launch, and says so
        if phase in LAUNCHED and not self.is_part and now - self._since > launch.max_hours * 3600:
            raise Hung(f"{phase} took longer than launch.max_hours, which is {launch.max_hours:g}; give an attempt more time")

    def tell_of_waiting(self) -> None:
        self.tell("waiting for an earlier attempt" if self.lease.token else f"waiting for the same in {self.home_id}")

    def steps(self) -> dict[str, int]:
        course = self.course
        saved = course.checkpoint.step if course.checkpoint else -1
        return {"first_step": course.attempt_step, "last_step": course.step, "saved_step": saved}

    def _own_attempts(self) -> list[Attempt]:
        """Those that this trial pays for: all in its folder, unless that is the run of another which was asked for the same."""
        found = attempts(self.lease.folder)
        return found if self.home_id == self.request.run_id else [one for one in found if one.owner == self.lease.attempt.owner]

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
                gpu_seconds=gpu_seconds(self._own_attempts()),
                time=time.time(),
            )
        )

    def finished(self) -> BertFineTuneResult | None:
        """The result, if it is there, whoever trained it."""
        files = self._folder.finished_files(self.home_id)
        if self.is_part:  # the first node says how it went
            is_over = self.lease.attempt.outcome == "finished" or (files is not None and not self.lease.token)
            return BertFineTuneResult(run_id=self.request.run_id, config=self.request.config) if is_over else None
        if files is None:
            return None
        self.look()
        return self._ours(outcomes.result_of(self.request, files, self.course))

    def hopeless(self) -> BertFineTuneResult | None:
        """The result of a trial that failed for good; of several nodes, the first one says that."""
        if self.is_part:
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
        own = self._own_attempts()
        worked = [attempt for attempt in own if attempt.began]
        rows = self.course.rows_seen(worked[0].first_step, found.steps, self.request.config.batch_size) if worked else 0
        counted = {"gpu_seconds": gpu_seconds(own), "rows_seen": rows, "attempts": len(worked)}
        return found.model_copy(update={"same_as": self.home_id, **counted})

    def preparation(self) -> tuple[str, ...]:
        """What makes the store. Written beside it: its settings."""
        self.store.parent.mkdir(parents=True, exist_ok=True)
        settings = self.store.with_suffix(".json")
        write_json(settings, self.source_config.model_dump(mode="json", exclude_defaults=True))
        return (*TRAINER, str(self.source), "--preponly", "--config", str(settings), "--output_dir", str(self.store.parent))

    def training(self, store: Path) -> tuple[str, ...]:
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
        write_json(settings, self.config.model_dump(mode="json", exclude_defaults=True) | self._metric(store))
        return (*TRAINER, str(link), "--config", str(settings), "--resume", "--quiet_progress")

    def _metric(self, store: Path) -> dict[str, str]:
        """What chooses the best epoch where nobody has named it: that by which trials are compared, which follows from the data."""
        request = self.request
        if not request.by_score or request.metric or "metric" in request.config.settings:
            return {}
        from bert_train_parallel.data.store import Store  # which loads numpy, and workflows import this module

        with Store.open(store) as opened:
            return {"metric": "accuracy" if opened.task_type == "classification" else "pearson"}


def check_folder(folder: SharedFolder, snapshot: DatasetSnapshotResult, worker: str) -> None:
    """See that this machine's folder is the one in which the sweep's data was kept.

    Raises:
        WrongFolder: it is not, or is not mounted; that is a fault of this node, and says nothing of a trial.
    """
    missing = next((path for path in files_of(snapshot, folder).values() if not path.is_file()), None)
    if missing is not None:
        raise WrongFolder(
            f"the worker {worker} runs no trial of this sweep: {missing} is not there. Start it with the --output_dir that all machines "
            "share, where that is mounted."
        )


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

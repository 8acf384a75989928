"""What a launch's end means for its trial, and what a finished run has to show. Nothing here starts or writes anything."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bert_train_parallel.errors import BadRun
from bert_train_parallel.launching.plan import LaunchResult
from bert_train_parallel.progress import Event
from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.sweeps import lease
from bert_train_parallel.sweeps.messages import BertFineTuneRequest, BertFineTuneResult, CheckpointInfo, State

MOST_FAILURES = 3  # of a trial's own
MOST_KILLS = 10  # from outside, in a row and without a new checkpoint
STOPPED = "stopped by a person"

_FULL = {os.strerror(number).lower() for number in (errno.ENOSPC, errno.EDQUOT)} | {"disk is full"}  # the last as SQLite says it
_KILLED = {130, 137, 143}  # by Ctrl-C, SIGKILL or SIGTERM that this project did not send


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a launch ended: `final` says that another attempt would end the same way."""

    outcome: Literal["finished", "failed", "killed", "full", "nan", "oom"]
    words: str = ""
    final: bool = False


def verdict(result: LaunchResult) -> Verdict:
    """What a launch's result means for the trial.

    >>> from bert_train_parallel.launching.plan import Failure, WorldPlan
    >>> verdict(LaunchResult(WorldPlan(()), 4, Failure("alpha", 0, "oom", 4, "No room."))).outcome
    'oom'
    >>> verdict(LaunchResult(WorldPlan(()), 137, Failure("alpha", 1, "signal", 137, "rank 1 was killed."))).outcome
    'killed'
    """
    failure = result.first_failure
    if result.exit_code == 0:
        return Verdict("finished")
    words = failure.words if failure else f"ended with exit code {result.exit_code}"
    kind = failure.kind if failure else "exit"
    if tells_of_a_full_disk(words):
        return Verdict("full", words)
    if result.exit_code in _KILLED or kind == "lost":
        return Verdict("killed", words)
    if kind in ("nan", "oom"):
        return Verdict("nan" if kind == "nan" else "oom", words, final=True)
    return Verdict("failed", words, final=kind in ("usage", "stopped"))


def tells_of_a_full_disk(words: str) -> bool:
    """Whether an error, in our words or in Python's, is that a disk has no room: that passes, and says nothing of the trial.

    >>> tells_of_a_full_disk("OSError: [Errno 28] No space left on device: 'a'"), tells_of_a_full_disk("a: permission denied.")
    (True, False)
    """
    return any(reason in words.lower() for reason in _FULL)


@dataclass(slots=True)
class Course:
    """How far a run is, by its events so far."""

    first_step: int = 0  # at which it began: above 0 for one that goes on from another run
    attempt_step: int = 0  # at which the newest attempt began
    rows: int = 0  # of an epoch; 0: an earlier version of the trainer did not tell
    step: int = 0
    steps: int = 0
    epoch: int = 0
    loss: float | None = None
    figures: dict[str, Any] | None = None  # of the newest validation
    checkpoint: CheckpointInfo | None = None
    checkpoints: int = 0

    def rows_seen(self, first: int, last: int, batch_size: int) -> int:
        """Rows of the steps from `first` until `last`, both counted from 0: an epoch's last batch may be a smaller one.

        >>> Course(rows=40).rows_seen(0, 6, 16), Course(rows=40).rows_seen(3, 4, 16), Course().rows_seen(0, 6, 16)
        (80, 16, 96)
        """
        rows = self.rows or batch_size
        epoch = -(-rows // batch_size)

        def until(step: int) -> int:
            return step // epoch * rows + min(step % epoch * batch_size, rows)

        return max(until(last) - until(first), 0)

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            self.step, self.steps = event.step or self.step, event.steps or self.steps
            self.epoch = event.epoch or self.epoch
            if event.kind in ("start", "resume"):
                self.rows = event.figures.get("rows", self.rows)
            if event.kind == "start":
                self.first_step = self.attempt_step = self.step = event.step
            elif event.kind == "resume":
                self.attempt_step = self.step = event.step
            elif event.kind == "step":
                self.loss = event.figures.get("loss", self.loss)
            elif event.kind == "epoch":
                self.figures = event.figures.get("Validation")
            elif event.kind == "checkpoint":
                self.checkpoints += 1
                self.checkpoint = CheckpointInfo(
                    epoch=event.epoch, step=event.step, path=event.path, loss=self.loss, timestamp=f"{event.time:.3f}"
                )


def metric_of(figures: dict[str, Any], asked: str | None) -> str:
    """The figure that trials are compared by: the one asked for, else accuracy, or pearson where there are no classes.

    >>> metric_of({"accuracy": 0.9}, None), metric_of({"pearson": 0.4, "mse": 2.0}, None), metric_of({"accuracy": 1.0}, "loss")
    ('accuracy', 'pearson', 'loss')
    """
    return asked or ("accuracy" if "accuracy" in figures else "pearson")


def result_of(request: BertFineTuneRequest, files: RunFiles, course: Course) -> BertFineTuneResult:
    """A finished run for the sweep: figures of the validation split alone.

    Raises:
        BadRun: its RESULT cannot be read.
    """
    from bert_train_parallel.sweeps.run_facts import facts_of  # which loads numpy, and workflows import this module

    result, stats = _read(files.result), _read(files.stats)
    validated = {name: float(value) for name, value in result["figures"]["validate"].items() if _is_number(value)}
    metric = metric_of(validated, request.metric)
    found = lease.attempts(files.folder)
    epochs = stats.get("Training") or [{}]
    steps = int(result.get("steps", course.step))
    return BertFineTuneResult(
        run_id=request.run_id,
        config=request.config,
        train_loss=epochs[-1].get("Training Loss"),
        eval_metrics=validated,
        metric=metric,
        score=validated.get(metric),
        error="" if metric in validated else f"there is no {metric} of the validation split: it has {', '.join(validated) or 'no samples'}",
        training_time_seconds=float(result.get("seconds", 0.0)),
        gpu_seconds=lease.gpu_seconds(found),
        attempts=max(len(found), 1),
        rows_seen=course.rows_seen(course.first_step, steps, request.config.batch_size),
        first_step=course.first_step,
        steps=steps,
        total_checkpoints_saved=course.checkpoints,
        checkpoint=course.checkpoint,
        host=next((attempt.host for attempt in reversed(found) if attempt.host), ""),
        inferred_task_type=result.get("task_type"),
        inferred_num_labels=len(result.get("label_names", ())) or None,
        **facts_of(request, files, validated),
    )


def failed_result(request: BertFineTuneRequest, state: State, words: str, folder: Path, course: Course) -> BertFineTuneResult:
    """A trial that ended without a RESULT, as a result."""
    found = lease.attempts(folder)
    return BertFineTuneResult(
        run_id=request.run_id,
        config=request.config,
        state=state,
        error=words,
        gpu_seconds=lease.gpu_seconds(found),
        attempts=max(len(found), 1),
        rows_seen=course.rows_seen(course.first_step, course.step, request.config.batch_size),
        first_step=course.first_step,
        steps=course.step,
        checkpoint=course.checkpoint,
        host=next((attempt.host for attempt in reversed(found) if attempt.host), ""),
    )


def final_failure(found: list[lease.Attempt]) -> tuple[State, str] | None:
    """The state and words of a trial that is not to be tried again; None for one that may.

    >>> final_failure([lease.Attempt(number, outcome="failed", error="no disk") for number in (1, 2, 3)])
    ('failed', 'failed 3 times; the last time: no disk')
    """
    newest = found[-1] if found else lease.Attempt(0)
    if newest.outcome in ("nan", "oom"):
        return ("nan" if newest.outcome == "nan" else "oom"), newest.error
    if newest.final:
        return "failed", newest.error
    errors = [attempt.error for attempt in found if attempt.outcome in ("failed", "killed")]
    if lease.own_failures(found) >= MOST_FAILURES:
        return "failed", f"failed {MOST_FAILURES} times; the last time: {errors[-1]}"
    if lease.kills_without_progress(found) >= MOST_KILLS:
        return "failed", f"killed {MOST_KILLS} times without getting further; the last time: {errors[-1]}"
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRun(f"{path} cannot be read: {error}. Remove the folder {path.parent} to train again.") from None
    return dict(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

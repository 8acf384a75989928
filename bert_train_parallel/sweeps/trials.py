"""Runs trials on this machine: lease, store, GPUs and launch of each, and whether a failed one is to be tried again."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bert_train_parallel.errors import BertTrainParallelError, LaunchFailed, NotWritable, Unreachable, not_writable
from bert_train_parallel.launching.plan import LaunchRequest, LaunchResult
from bert_train_parallel.sweeps import launches, outcomes
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.keys import LaunchRefused, home_of
from bert_train_parallel.sweeps.lease import Fenced
from bert_train_parallel.sweeps.messages import BertFineTuneRequest, BertFineTuneResult, State
from bert_train_parallel.sweeps.outcomes import Verdict
from bert_train_parallel.sweeps.reservations import Hold, Reservations, check_can_run, launch_environment, wait_for_gpus
from bert_train_parallel.sweeps.trial import Beat, Hung, Trial, WrongFolder, check_folder

_log = logging.getLogger(__name__)

_ROOM = 1 << 16  # bytes; a disk without room for so little is full
_MOST_HELD_S = 60.0  # for which GPUs of several nodes are held while another trial of the same is under way


class TryAgain(Exception):
    """An attempt failed, and another one may do better."""

    def __init__(self, words: str, kind: str) -> None:
        super().__init__(words)
        self.kind = kind  # failed | killed | full


class Busy(Exception):
    """Another trial does what this one asks for; the GPUs that are held for it meanwhile are to be given back."""


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
            WrongFolder: this machine does not have the snapshot. That is no attempt either.
            BertTrainParallelError: the folder or the snapshot cannot be used.
        """
        if request.dataset_snapshot is not None and self._folder.finished_files(home_of(self._folder, request.run_id)) is None:
            check_folder(self._folder, request.dataset_snapshot, self._worker)
        trial = Trial(self._folder, request, self._worker, beat, owner)
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

    def ended(self, request: BertFineTuneRequest, owner: str, state: State, words: str) -> BertFineTuneResult:
        """What there is to tell of a trial that ended without a RESULT: its attempts say what it cost."""
        if not self._folder.asked(request.run_id).exists():  # it never came to a node
            return BertFineTuneResult(run_id=request.run_id, config=request.config, state=state, error=words, attempts=0)
        return Trial(self._folder, request, self._worker, lambda progress: None, owner).failed(state, words)

    async def _attempt(self, trial: Trial) -> BertFineTuneResult:
        try:
            found = await self._train(trial)
        except asyncio.CancelledError:
            trial.lease.note(outcome="cancelled")
            raise
        except Fenced:
            raise
        except (Unreachable, LaunchFailed) as error:  # the launcher was killed, or a node did not come
            found = Verdict("killed" if isinstance(error, LaunchFailed) else "failed", str(error))
        except (NotWritable, Hung) as error:
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
        if trial.is_part and found.final:
            raise LaunchRefused(found.words)
        raise TryAgain(found.words, found.outcome)

    async def _train(self, trial: Trial) -> Verdict:
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
                    launch_request(request, trial.training(store), str(trial.home), config.device),
                    trial.output,
                    lambda: trial.tick("training"),
                    held=(trial.lease.lock, *hold.claim.locks),
                    environment=launch_environment(hold.claim, self._cores_each),
                )
            )
        finally:
            hold.release()

    async def _hold(self, trial: Trial) -> Hold:
        if trial.request.reservation:
            return self._reservations.take(trial.request.reservation)
        return await wait_for_gpus(trial.request.launch.on_one_node, trial.config.device, lambda: trial.tick("waiting for GPUs"))

    async def _store(self, trial: Trial) -> Path:
        """The store for the trial's sequence length and model, made by the first trial that needs it."""
        store = trial.store
        if store.is_file():
            return store
        request = LaunchRequest(command=trial.preparation(), folder=str(trial.home), device="cpu", here=1, log_dir=str(trial.home / "logs"))
        result = await self._launch(request, trial.output, lambda: trial.tick("preparing"), held=(trial.lease.lock,))
        found = outcomes.verdict(result)
        if found.final:
            raise LaunchRefused(found.words)
        if found.outcome == "full":
            raise NotWritable(found.words)
        return store


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


__all__ = ["Busy", "Fenced", "Trials", "TryAgain", "WrongFolder"]

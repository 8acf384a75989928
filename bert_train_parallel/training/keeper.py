"""Finding the run that a command means, and saving it as it goes."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.errors import BadCheckpoint
from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.training import checkpoints, runs
from bert_train_parallel.training.checkpoints import Checkpoint
from bert_train_parallel.training.loop import Progress
from bert_train_parallel.training.refusals import MAY_GROW
from bert_train_parallel.training.strategy import Strategy
from bert_train_parallel.training.world import World


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins; the same on every rank."""

    files: RunFiles
    is_new: bool = False
    checkpoint: Checkpoint | None = None  # to go on from; its files are on the node of rank `source`
    source: int = 0
    adopts: bool = False  # the checkpoint is that of another run, which --from_run names
    origin: dict[str, Any] | None = None  # run and step that --from_run began with
    result: dict[str, Any] | None = None  # of a run that is finished
    notes: tuple[str, ...] = ()


def find_start(world: World, named: RunFiles, config: TrainConfig, data_fingerprint: str) -> Start:
    """The run that the command means, and its newest whole checkpoint, on whichever node that is.

    Raises:
        BadCheckpoint, BadRun: it is of other settings or data, or cannot be read.
    """
    asked = config.asked(data_fingerprint)
    found = world.together(lambda: _look(world, named, config, asked) if world.rank.is_first_of_node else None)
    starts = [start for start in found if start is not None]
    return max(starts, key=lambda start: -1 if start.checkpoint is None or start.adopts else start.checkpoint.step)


def _look(world: World, named: RunFiles, config: TrainConfig, asked: dict[str, Any]) -> Start:
    """What the disk of this node has."""
    choice = runs.choose_run(named, config, world.rank)
    notes = [choice.note] if choice.note else []
    if not choice.goes_on:
        return _beginning(world, config, asked, Start(choice.files, True), notes)
    result = runs.finished_result(choice.files, asked)
    if result:
        return Start(choice.files, result=result)
    checkpoint = checkpoints.newest(choice.files.checkpoints, notes.append)
    if checkpoint and config.from_run and checkpoint.state["asked"] != asked:
        checkpoint = None  # the best model of the run that this one goes on from; it has no checkpoint of its own yet
    if checkpoint is None:
        notes.append(f"{choice.files.stem} has no whole checkpoint: it begins again.")
        return _beginning(world, config, asked, Start(choice.files), notes)
    runs.refuse_other(checkpoint.folder, asked, checkpoint.state["asked"])
    origin = checkpoint.state["origin"]
    return Start(choice.files, checkpoint=checkpoint, source=world.rank.rank, origin=origin, notes=tuple(notes))


def _beginning(world: World, config: TrainConfig, asked: dict[str, Any], start: Start, notes: list[str]) -> Start:
    """A run without a checkpoint of its own: it begins at step 0, or with what --from_run means."""
    earlier = _earlier(config, asked, notes.append) if world.rank.is_first else None
    if earlier is None:
        return replace(start, notes=tuple(notes))
    origin = {"run": config.from_run, "key": earlier.state["key"], "step": earlier.step}
    return replace(start, checkpoint=earlier, source=world.rank.rank, adopts=True, origin=origin, notes=tuple(notes))


def _earlier(config: TrainConfig, asked: dict[str, Any], say: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint that --from_run means."""
    if not config.from_run:
        return None
    place = runs.earlier_run(config.from_run)
    checkpoint = checkpoints.newest(place, say) if place.name.endswith("_checkpoints") else checkpoints.read(place)
    if checkpoint is None:
        raise BadCheckpoint(f"--from_run {config.from_run}: {place} has no whole checkpoint.")
    runs.refuse_other(checkpoint.folder, asked, checkpoint.state["asked"], "--from_run", MAY_GROW)
    return checkpoint


@contextlib.contextmanager
def taken_name(world: World, named: RunFiles, start: Start, facts: Mapping[str, Any]) -> Iterator[tuple[RunFiles, bool]]:
    """The files of the run as this node names them, and whether this rank writes its checkpoints; no other process does within the block.

    Rank 0 writes, and the first rank of each node that does not see rank 0's disk: then the world can go on without rank 0's node.

    Args:
        facts: with the run's key, and what was asked: the folder of checkpoints says both, to refuse another run before it is read,
            and beside them of which source the run is, and under which name: a number behind a name may belong to another.
    Raises:
        BadRun: another process trains this run.
        NotWritable: the folder is read-only or the disk is full.
    """
    content = {"job": world.rank.job, "key": facts["key"], "asked": facts["asked"], "token": secrets.token_hex(8)}
    content |= {"source": named.source or named.stem, "named": named.stem}
    with contextlib.ExitStack() as held:

        def take() -> tuple[str, str]:
            # the checkpoint to go on from may be on another node, in a folder of its own
            files = runs.claim(named, content) if start.is_new else RunFiles(named.folder, start.files.stem)
            held.enter_context(runs.held(files))
            if not start.is_new:
                runs.write_claim(files, content)
            return files.stem, content["token"]

        def take_copy() -> bool:
            if world.rank.is_first or not world.rank.is_first_of_node or runs.read_claim(files).get("token") == token:
                return world.rank.is_first
            held.enter_context(runs.held(files))
            runs.write_claim(files, content | {"token": "of a copy"})
            return True

        stem, token = world.on_first(take)
        files = RunFiles(named.folder, stem)
        writes = world.together(take_copy)[world.rank.rank]
        if writes:
            checkpoints.sweep_up(files.checkpoints)
        yield files, writes


class Keeper:
    """Writes the checkpoints of a run where this rank is one that writes."""

    def __init__(self, files: RunFiles, writes: bool, keep: int, facts: dict[str, Any]) -> None:
        """`facts` go into every checkpoint."""
        self._files, self.writes, self._keep, self._facts = files, writes, keep, facts

    def save(self, strategy: Strategy, progress: Progress, seconds: float) -> Path | None:
        """Write a checkpoint of this moment, `seconds` into the run, and remove old ones; None where another rank does.

        Raises:
            NotWritable: the checkpoints before are whole.
        """
        if not self.writes:
            return None
        model, optimizer, values = strategy.state()
        state = self._facts | {"strategy": values, "progress": progress.to_json(), "seconds": seconds}
        place = checkpoints.write(self._files.checkpoints, progress.step, model, optimizer, state)
        best = [checkpoints.name_of(progress.best["step"])] if progress.best else []
        checkpoints.prune(self._files.checkpoints, progress.step, self._keep, best)
        return place

    def adopt(self, earlier: Checkpoint, best: dict[str, Any] | None) -> bool:
        """Keep the best model of an earlier run with this one's; False where it is not there any more."""
        if best is None or not self.writes:
            return True
        place = earlier.folder.parent / checkpoints.name_of(best["step"])
        if not place.is_dir():
            return False
        checkpoints.copy(place, self._files.checkpoints)
        return True

    def best(self, progress: Progress) -> Checkpoint | None:
        """The checkpoint of the best epoch; None where the last step was the best.

        Raises:
            BadCheckpoint: it is not there, or damaged.
        """
        if progress.best is None or progress.best["step"] == progress.step:
            return None
        return checkpoints.read(self._files.checkpoints / checkpoints.name_of(progress.best["step"]))

"""Which run a command means: a new one, one to go on with, or one that is finished. No torch."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.errors import BadCheckpoint, BadRun, not_writable
from bert_train_parallel.rank import Rank
from bert_train_parallel.run_files import CLAIM, RunFiles, read_object, write_json


@dataclass(frozen=True, slots=True)
class Choice:
    """A run by its files, and whether to go on with it."""

    files: RunFiles
    goes_on: bool = False
    note: str = ""  # a sentence for the user


def choose_run(named: RunFiles, config: TrainConfig, rank: Rank) -> Choice:
    """The run to go on with, by --resume or after a restart of the world; else a new one, under the first free name."""
    if rank.attempt > 0:
        for files in reversed(named.begun()):
            if rank.job and read_claim(files).get("job") == rank.job:
                return Choice(files, goes_on=True)
    elif config.resume:
        newest = named.newest_begun()
        if newest:
            return Choice(newest, goes_on=True)
    interrupted = named.newest_begun()
    note = ""
    if interrupted and not interrupted.is_finished and rank.attempt == 0:
        note = f"{interrupted.stem} was not finished; this is a new run beside it (--resume would go on with it)."
    return Choice(named.first_free(), note=note)


def finished_result(files: RunFiles, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a finished run has written; None for one that is not finished.

    Raises:
        BadRun: its RESULT cannot be read.
        BadCheckpoint: it was finished with other settings or data.
    """
    if not files.is_finished:
        return None
    result = read_object(files.result)
    if "asked" not in result:
        raise BadRun(f"{files.result} cannot be read as a result. Remove it to train again, or give the new run a name with --run.")
    refuse_other(files.result, asked, result["asked"])
    return result


def is_finished_sentence(files: RunFiles) -> str:
    return f"{files.stem} is finished, and nothing is done: {files.result}. For a new run leave --resume out."


def refuse_other(
    place: Path, asked: Mapping[str, Any], found: Mapping[str, Any], flag: str = "--resume", may_differ: Sequence[str] = ()
) -> None:
    """See that a run to go on with is of what is asked for now.

    Raises:
        BadCheckpoint: it is not; the sentence says what differs.
    """
    names = [name for name in asked if name not in may_differ and asked[name] != found.get(name)]
    if not names:
        return
    differs = ["the data" if name == "data" else f"{name} (was {found.get(name)!r}, is now {asked[name]!r})" for name in names[:4]]
    raise BadCheckpoint(
        f"{place} is of another run, which differs in {', '.join(differs)}. Ask for the same as then, or leave {flag} out for a new run."
    )


def run_key(model_key: str, origin: Mapping[str, Any] | None) -> str:
    """The key of what a run learns: of its settings and data, and of the run that it went on from under a new name.

    >>> run_key("abc", None)
    'abc'
    """
    if origin is None:
        return model_key
    return hashlib.sha256(f"{model_key} after step {origin['step']} of {origin['key']}".encode()).hexdigest()[:32]


def claim(named: RunFiles, content: Mapping[str, Any]) -> RunFiles:
    """Take the first free name for a new run, so that no other process gets it.

    Raises:
        NotWritable: the folder is read-only or the disk is full.
    """
    for files in named.numbered():
        if not files.is_free:
            continue
        try:
            files.checkpoints.mkdir(parents=True, exist_ok=True)
            with open(files.claim, "x", encoding="utf-8") as file:
                json.dump(dict(content), file)
        except FileExistsError:  # another process was quicker
            continue
        except OSError as error:
            raise not_writable(error, files.folder) or error from error
        files.progress.unlink(missing_ok=True)  # of a run under this name that failed before its first checkpoint
        return files
    raise AssertionError("numbered() has no end")


@contextlib.contextmanager
def held(files: RunFiles, patience: float = 10.0) -> Iterator[None]:
    """No other process trains this run within the block, as far as the file system has locks.

    Args:
        patience: seconds to wait for a process that is about to end, as after a restart.
    Raises:
        BadRun: another process trains it.
        NotWritable: the folder is read-only or the disk is full.
    """
    try:
        files.checkpoints.mkdir(parents=True, exist_ok=True)
        folder = os.open(files.checkpoints, os.O_RDONLY)
    except OSError as error:
        raise not_writable(error, files.folder) or error from error
    try:
        until = time.monotonic() + patience
        while not _locked(folder):
            if time.monotonic() > until:
                raise BadRun(
                    f"{files.checkpoints}: another process trains this run now. Wait for its end, or leave --resume out for a new run."
                )
            time.sleep(0.1)
        yield
    finally:
        os.close(folder)


def _locked(folder: int) -> bool:
    """Whether this process has the lock of an open folder now; true where there are no locks to have."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems lock no folders
        return True
    return True


def write_claim(files: RunFiles, content: Mapping[str, Any]) -> None:
    """Say anew whose run this is: its job differs each time it goes on."""
    write_json(files.claim, dict(content))


def give_up_claim(files: RunFiles) -> None:
    """Free the name of a run that failed before its first checkpoint; its events stay, for those who ask why."""
    if files.checkpoints.is_dir() and {place.name for place in files.checkpoints.iterdir()} <= {CLAIM} and not files.stats.exists():
        files.claim.unlink(missing_ok=True)
        files.checkpoints.rmdir()


def read_claim(files: RunFiles) -> dict[str, Any]:
    return read_object(files.claim)


def earlier_run(place: str) -> Path:
    """The folder of checkpoints that `--from_run` means: a run by its name or any of its files, or one checkpoint.

    Raises:
        BadCheckpoint: there are no checkpoints.
    """
    path = Path(place)
    if re.fullmatch(r"step_\d+", path.name) and path.is_dir():
        return path
    folder = path if path.name.endswith("_checkpoints") else RunFiles.of(path).checkpoints
    named = [folder, path.with_name(f"{path.name}_checkpoints")]
    for found in named:
        if found.is_dir():
            return found
    raise BadCheckpoint(f"--from_run {place}: there is no {folder}. Name an earlier run by any of its files.")

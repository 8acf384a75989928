"""Every file of a run, by name; and the one way files are written: aside, then renamed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bert_train_parallel.errors import BadSetting, BertTrainParallelError, not_writable

_PARTS = (
    "_testset_predictions.csv",
    "_train_test_stats.json",
    "_trained_model.sav",
    "_model",
    "_checkpoints",
    "_progress.jsonl",
    "_logs",
    "_trace.json",
    "_report",
    "_provenance",
    "_RESULT.json",
)
CLAIM = "run.json"  # in the folder of checkpoints: whose it is
_LONGEST_STEM = 200  # bytes: 255 that file systems take, less the longest ending, a number, and what a file is called while it is written


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The names of a run's files: `folder/stem_...`.

    >>> files = RunFiles(Path("work"), "leanings")
    >>> files.predictions.as_posix()
    'work/leanings_testset_predictions.csv'
    >>> RunFiles.of(Path("work/leanings-2_RESULT.json")) == RunFiles(Path("work"), "leanings-2")
    True
    """

    folder: Path
    stem: str
    source: str = field(default="", compare=False)  # stem of what it is a run of; '' where only the names of files are known

    @property
    def predictions(self) -> Path:
        return self.folder / f"{self.stem}_testset_predictions.csv"

    @property
    def stats(self) -> Path:
        return self.folder / f"{self.stem}_train_test_stats.json"

    @property
    def saved_model(self) -> Path:
        """One file for `torch.load(..., weights_only=True)`."""
        return self.folder / f"{self.stem}_trained_model.sav"

    @property
    def model_folder(self) -> Path:
        """The same model as a Hugging Face folder."""
        return self.folder / f"{self.stem}_model"

    @property
    def checkpoints(self) -> Path:
        return self.folder / f"{self.stem}_checkpoints"

    @property
    def claim(self) -> Path:
        """Whose run it is, as long as it has checkpoints."""
        return self.checkpoints / CLAIM

    @property
    def progress(self) -> Path:
        return self.folder / f"{self.stem}_progress.jsonl"

    @property
    def logs(self) -> Path:
        return self.folder / f"{self.stem}_logs"

    @property
    def trace(self) -> Path:
        """Of `--profile`, for chrome://tracing or Perfetto."""
        return self.folder / f"{self.stem}_trace.json"

    @property
    def report(self) -> Path:
        return self.folder / f"{self.stem}_report"

    @property
    def provenance(self) -> Path:
        return self.folder / f"{self.stem}_provenance"

    @property
    def result(self) -> Path:
        """Written last: a run with this file is finished, one without is not."""
        return self.folder / f"{self.stem}_RESULT.json"

    @property
    def has_begun(self) -> bool:
        """Whether anything of the run would be lost if another run took this name."""
        return self.result.exists() or self.stats.exists() or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))

    @property
    def is_free(self) -> bool:
        """Whether a new run may take this name: nothing that is there, of a run or of someone else, would be written over."""
        kept = (self.predictions, self.saved_model, self.model_folder)
        return not (self.has_begun or any(path.exists() for path in kept) or self.progress.is_dir())

    @property
    def is_finished(self) -> bool:
        return self.result.exists()

    def numbered(self) -> Iterator[RunFiles]:
        """This run's name, then `-2`, `-3`, ..., without end."""
        yield self
        number = 2
        while True:
            yield RunFiles(self.folder, f"{self.stem}-{number}")
            number += 1

    def first_free(self) -> RunFiles:
        """The name for a new run, so that an earlier one is never overwritten."""
        return next(files for files in self.numbered() if files.is_free)

    def begun(self) -> list[RunFiles]:
        """All runs of this source under this name or a number of it, the oldest first.

        `leanings-2` may as well be of `leanings-2.csv`, or what `--run 2` has named: it is a number of `leanings` where its files say so.
        """
        taken = itertools.takewhile(lambda files: not files.is_free, self.numbered())
        return [files for files in taken if files.has_begun and self._is_asked_for_by(files)]

    def _is_asked_for_by(self, files: RunFiles) -> bool:
        """Whether a run was started by a command that meant this name."""
        source, named = owner(files, {self.source or self.stem})
        return source == (self.source or self.stem) and named in (self.stem, None)

    def newest_begun(self) -> RunFiles | None:
        """The last run under this name or a number of it; None before the first."""
        return next(reversed(self.begun()), None)

    @classmethod
    def of(cls, path: Path) -> RunFiles:
        """The run that a result file belongs to, told by the file's name alone."""
        for part in _PARTS:
            if path.name.endswith(part) and path.name != part:
                return cls(path.parent, path.name.removesuffix(part))
        return cls(path.parent, path.stem)


def run_files(source: str, output_dir: str | None = None, run: str | None = None) -> RunFiles:
    """The files of a run over `source`: beside it, or in `output_dir`; `run` tells several apart.

    >>> run_files("data/leanings.csv").stats.as_posix()
    'data/leanings_train_test_stats.json'
    >>> run_files("data/leanings.csv", "out", "lr5").stats.as_posix()
    'out/leanings-lr5_train_test_stats.json'
    """
    if run is not None and not re.fullmatch(r"[A-Za-z0-9._-]{1,80}", run):
        raise BadSetting(f"--run {run!r}: use letters, digits, '.', '_' and '-' only, at most 80.")
    stem = store_stem(source) + (f"-{run}" if run else "")
    if len(os.fsencode(stem)) > _LONGEST_STEM:
        raise BadSetting(
            f"{source}: files of a run would have names longer than a file system takes. Give the source a shorter name: "
            f"at most {_LONGEST_STEM} bytes, with --run."
        )
    path = Path(source)
    is_file = os.path.exists(path) or path.suffix != ""
    folder = Path(output_dir) if output_dir else (path.parent if is_file else Path("."))
    return RunFiles(folder, stem, store_stem(source))


def owner(files: RunFiles, known: Iterable[str] = ()) -> tuple[str | None, str | None]:
    """The source that a run is of, by its stem, and the name that was asked for, before it got a number.

    Its checkpoints say both, or RESULT. Of files that say nothing, the source is the longest that their name begins with, of the
    stores beside them and those `known`; what was asked for is then None.
    """
    told = _told(files)
    if told is not None and _begins_with(files.stem, told[0]):  # else the files were renamed since
        return told
    stores = {store.stem for store in files.folder.glob("*.sqlite")} | set(known)
    return max((stem for stem in stores if _begins_with(files.stem, stem)), key=len, default=None), None


def _told(files: RunFiles) -> tuple[str, str] | None:
    claim = read_object(files.claim)
    source, named = claim.get("source"), claim.get("named")
    if isinstance(source, str) and isinstance(named, str):
        return source, named
    result = read_object(files.result)
    told, settings = result.get("files"), result.get("settings")
    if not (isinstance(told, dict) and isinstance(told.get("store"), str) and isinstance(settings, dict)):
        return None
    source, run = Path(told["store"]).stem, settings.get("run")
    return source, f"{source}-{run}" if run else source


def _begins_with(run: str, source: str) -> bool:
    return run == source or run.startswith(f"{source}-")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or no whole one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def store_stem(source: str) -> str:
    """The common part of the names of a source's store and runs.

    >>> store_stem("data/leanings.csv"), store_stem("stanfordnlp/sst2"), store_stem("TEXTS.JSONL.gz")
    ('leanings', 'sst2', 'TEXTS')
    """
    stem = Path(source.rstrip("/")).name
    for suffix in (".gz", ".csv", ".tsv", ".tab", ".txt", ".jsonl", ".json", ".parquet", ".sqlite"):
        stem = stem[: -len(suffix)] if stem.lower().endswith(suffix) else stem
    return stem or "data"


def name_given(value: object, what: str, expected: str, error: type[BertTrainParallelError]) -> str:
    """The name that a caller gave for a file, as text.

    Args:
        what, expected: what it names, and what that may be, for the sentence.
        error: to raise where it is no name.

    >>> name_given(Path("leanings.csv"), "source", "a file", BadSetting)
    'leanings.csv'
    >>> name_given(None, "source", "a file, such as 'leanings.csv',", BadSetting)
    Traceback (most recent call last):
    bert_train_parallel.errors.BadSetting: The source is None; a file, such as 'leanings.csv', is expected.
    """
    if isinstance(value, str | os.PathLike):
        name = os.fspath(value)
        if isinstance(name, str) and name.strip():
            return name
    given = "None" if value is None else "empty" if isinstance(value, str) else f"of the type {type(value).__name__}"
    raise error(f"The {what} is {given}; {expected} is expected.")


@contextlib.contextmanager
def written_aside(path: Path, flag: str = "--output_dir") -> Iterator[Path]:
    """A path to write to, in the same folder; renamed to `path` when the block ends well, else removed.

    Readers see the old file or the new one, never a part of one; the data reaches the disk before the name does.

    Args:
        flag: that names another place, for the sentence.
    Raises:
        NotWritable: the folder is read-only or the disk is full.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise not_writable(error, path, flag) or error from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder last through a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse to sync a folder; the rename stands all the same
        pass
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, flag: str = "--output_dir") -> None:
    """Write a whole text file, complete or not at all."""
    with written_aside(path, flag) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a whole JSON file, complete or not at all; NaN is refused, since it is not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def folder_written_aside(path: Path) -> Iterator[Path]:
    """An empty folder to fill, in the same place; renamed to `path` when the block ends well, else removed.

    Raises:
        NotWritable: the place is read-only or the disk is full.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    replaced = aside.with_suffix(".old")
    try:
        aside.mkdir(parents=True)
        yield aside
        for file in aside.iterdir():
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        sync_folder(aside)
        if path.exists():
            os.rename(path, replaced)  # a folder cannot be renamed over one that holds files
        os.rename(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise not_writable(error, path) or error from error
    finally:
        if replaced.exists() and not path.exists():
            os.rename(replaced, path)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)

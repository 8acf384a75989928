"""Where things lie in the folder that all workers of a sweep share; every path from a message is checked to stay inside."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bert_train_parallel.errors import BadSetting
from bert_train_parallel.run_files import RunFiles

RUNS, SNAPSHOTS, STORES, HISTORIES = "bert_runs", "data_snapshots", "data_stores", "histories"


def is_trial_of(run_id: str, experiment_id: str) -> bool:
    """
    >>> is_trial_of("a-t0001-r2", "a"), is_trial_of("a-random0001", "a"), is_trial_of("a-two-t0001", "a"), is_trial_of("a-t0001", "A")
    (True, True, False, False)
    """
    return bool(re.fullmatch(re.escape(experiment_id) + r"-(t|random)\d{4,}(-r\d+)?", run_id))


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """The folder of a sweep, as this machine reaches it."""

    root: Path

    def inside(self, path: str) -> Path:
        """A path from a message.

        >>> SharedFolder(Path("/work")).inside("bert_runs/a").as_posix()
        '/work/bert_runs/a'

        Raises:
            BadSetting: it leads out of the folder.
        """
        found = (self.root / path).resolve()
        if not found.is_relative_to(self.root.resolve()):
            raise BadSetting(f"{path} leads out of {self.root}, the folder of the sweep. Name a place inside it.")
        return self.root / path

    def relative(self, path: Path) -> str:
        return path.resolve().relative_to(self.root.resolve()).as_posix()

    def sweep(self, experiment_id: str) -> Path:
        """What a sweep found: leaderboard, page, RESULT."""
        return self.root / experiment_id

    def run(self, run_id: str) -> Path:
        return self.root / RUNS / run_id

    def trials_of(self, experiment_id: str) -> list[Path]:
        """The folders of a sweep's trials, and of no other whose name begins like its own."""
        return [place for place in sorted((self.root / RUNS).glob(f"{experiment_id}-*")) if is_trial_of(place.name, experiment_id)]

    def asked(self, run_id: str) -> Path:
        """Says what a run was asked."""
        return self.run(run_id) / "asked.json"

    def key(self, key: str) -> Path:
        """Says which run has been asked for what this key is the hash of."""
        return self.root / RUNS / ".keys" / key

    def snapshot(self, snapshot_id: str, place: str = SNAPSHOTS) -> Path:
        return self.inside(place) / snapshot_id

    def store(self, key: str, stem: str) -> Path:
        return self.root / STORES / key / f"{stem}.sqlite"

    def history(self, experiment_id: str, count: int) -> Path:
        return self.root / HISTORIES / f"{experiment_id}-{count:06d}.jsonl"

    def finished_files(self, run_id: str) -> RunFiles | None:
        """The files of a run, found by its RESULT; None for one that is not finished."""
        results = sorted(self.run(run_id).glob("*_RESULT.json"))
        return RunFiles.of(results[0]) if results else None

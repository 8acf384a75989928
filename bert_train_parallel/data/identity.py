"""Whether a source is still the one that a store was built from, by its content and by its place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Identity = list[dict[str, Any]]  # one entry for each file; JSON values
Place = dict[str, str]  # a source's path, absolute and as seen from the folder of its store


def identify(names: Sequence[str]) -> Identity:
    """Name, size, time of change and content hash of each file; of each file in a folder; a hub's data set is its name."""
    return [_file(path) if path.is_file() else {"name": str(path)} for name in names for path in _files(name)]


def is_unchanged(known: Identity, names: Sequence[str]) -> bool:
    """Whether these are the files that were identified, wherever they are now; they are read only where their time differs."""
    paths = [path for name in names for path in _files(name)]
    return len(paths) == len(known) and all(_same(path, entry) for path, entry in zip(paths, known, strict=True))


def place_of(name: str, folder: Path) -> Place:
    """Where a source is whose store is in a folder."""
    return {"absolute": os.path.abspath(name), "relative": os.path.relpath(name, folder)}


def is_same_place(one: Place, other: Place) -> bool:
    """Whether two places are one, or were before a source and its store were moved together."""
    return one["absolute"] == other["absolute"] or one["relative"] == other["relative"]


def _same(path: Path, known: dict[str, Any]) -> bool:
    if not path.is_file():
        return "sha256" not in known and known["name"] == str(path)
    found = path.stat()
    if found.st_size != known.get("size"):
        return False
    return bool(found.st_mtime_ns == known["changed_ns"] or _file(path)["sha256"] == known["sha256"])


def _files(name: str) -> list[Path]:
    path = Path(name)
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _file(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    found = path.stat()
    return {"name": path.name, "size": found.st_size, "changed_ns": found.st_mtime_ns, "sha256": content}

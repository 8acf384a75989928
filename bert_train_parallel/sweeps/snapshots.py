"""A data set kept as it is now, so that every trial, and a trial repeated next year, reads the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from bert_train_parallel.config import DataConfig
from bert_train_parallel.errors import BadSource
from bert_train_parallel.run_files import folder_written_aside, store_stem, write_json
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.messages import DatasetSnapshotRequest, DatasetSnapshotResult

MANIFEST = "snapshot.json"
_PIECE = 1 << 20
_SPLITS = {"train": "train", "validate": "validation", "test": "test"}
Tick = Callable[[], None]


def take_snapshot(request: DatasetSnapshotRequest, folder: SharedFolder, tick: Tick = lambda: None) -> DatasetSnapshotResult:
    """Copy a file or a data set under the hash of its content; one that is there already is used as it is.

    Args:
        tick: called now and then, from the thread that copies.
    Raises:
        BadSource: there is no such data, or the snapshot that is there is damaged.
        NotWritable: the folder is read-only or the disk is full.
    """
    parent = folder.inside(request.snapshot_dir)
    parent.mkdir(parents=True, exist_ok=True)
    with _copied(request, parent, tick) as (files, counts, digest, schema):
        snapshot_id = f"{store_stem(request.dataset_name)}-{digest[:16]}"
        result = DatasetSnapshotResult(
            snapshot_id=snapshot_id,
            dataset_name=request.dataset_name,
            dataset_config=request.dataset_config,
            num_train_samples=counts.get("train", 0),
            num_eval_samples=sum(count for split, count in counts.items() if split != "train"),
            data_hash=digest,
            snapshot_timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
            snapshot_path=folder.relative(parent / snapshot_id),
            dataset_schema=schema,
            files={split: path.name for split, path in files.items()},
        )
        there = read_snapshot(parent / snapshot_id)
        if there is not None:
            return there
        with folder_written_aside(parent / snapshot_id) as aside:
            for path in files.values():
                shutil.move(path, aside / path.name)
            write_json(aside / MANIFEST, result.model_dump(mode="json"))
    return result


def read_snapshot(place: Path) -> DatasetSnapshotResult | None:
    """A snapshot that is there; None where there is none."""
    try:
        return DatasetSnapshotResult.model_validate_json((place / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise BadSource(f"{place / MANIFEST} cannot be read: {error}. Remove the folder to take the snapshot again.") from None


def files_of(snapshot: DatasetSnapshotResult, folder: SharedFolder) -> dict[str, Path]:
    """The files of a snapshot by their split, as a person may have written it: none of them is elsewhere.

    Raises:
        BadSource: there is none for training, or a name that is none of a file in the snapshot's own folder.
        BadSetting: one leads out of the folder of the sweep.
    """
    as_it_was = f"write files as {snapshot.snapshot_path}/{MANIFEST} has them, or leave dataset_snapshot out"
    if "train" not in snapshot.files:
        raise BadSource(f"the snapshot {snapshot.snapshot_id} names no file for train; {as_it_was}.")
    for split, name in snapshot.files.items():
        if split not in _SPLITS.values() or Path(name).name != name:
            raise BadSource(f"the snapshot {snapshot.snapshot_id} names {name!r} for {split}, which is no file of its folder; {as_it_was}.")
    return {split: folder.inside(f"{snapshot.snapshot_path}/{name}") for split, name in snapshot.files.items()}


def check_snapshot(snapshot: DatasetSnapshotResult, folder: SharedFolder, tick: Tick = lambda: None) -> None:
    """See that a snapshot holds what it held.

    Raises:
        BadSource: a file is missing or has changed.
    """
    place = folder.inside(snapshot.snapshot_path)
    digest = hashlib.sha256()
    for split, path in sorted(files_of(snapshot, folder).items()):
        if not path.is_file():
            raise BadSource(f"{path} is missing: the snapshot {snapshot.snapshot_id} is not whole. Copy the folder back.")
        _add_file(digest, split, path, tick)
    if digest.hexdigest() != snapshot.data_hash:
        raise BadSource(f"{place} has changed since the snapshot was taken. Copy the folder back, or begin a new sweep.")


@contextlib.contextmanager
def _copied(
    request: DatasetSnapshotRequest, parent: Path, tick: Tick
) -> Iterator[tuple[dict[str, Path], dict[str, int], str, dict[str, str] | None]]:
    """The files by split, samples by split, hash of all, and column names; the files are gone when the block ends."""
    with _scratch(parent) as aside:
        source = Path(request.dataset_name).expanduser()
        if source.is_file():
            given = {"train": source, "validation": request.validation_file, "test": request.test_file}
            files = {split: _copy(split, Path(path).expanduser(), aside, tick) for split, path in given.items() if path is not None}
            counts = {split: _samples(path, tick) for split, path in files.items()}
            schema = None
        else:
            files, counts, schema = _written_out(request, aside, tick)
        digest = hashlib.sha256()
        for split, path in sorted(files.items()):
            _add_file(digest, split, path, tick)
        yield files, counts, digest.hexdigest(), schema


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    import tempfile

    aside = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=parent))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _copy(split: str, source: Path, aside: Path, tick: Tick) -> Path:
    """A file byte by byte, so that it is read later exactly as it would be now."""
    if not source.is_file():
        raise BadSource(f"{split}_file {source}: there is no such file.")
    name = source.name if not (aside / source.name).exists() else f"{split}_{source.name}"
    try:
        with open(source, "rb") as reading, open(aside / name, "wb") as writing:
            while piece := reading.read(_PIECE):
                writing.write(piece)
                tick()
    except PermissionError as error:
        raise BadSource(f"{source} may not be read: {error.strerror}.") from error
    return aside / name


def _samples(path: Path, tick: Tick) -> int:
    """Records of a file as a training reads it unless told otherwise: without a header, a text over several lines as one.

    Where only settings that a snapshot does not know make it readable, as many as could be read.
    """
    from bert_train_parallel.data.sources import open_file

    count = 0
    with contextlib.suppress(BadSource):
        for _ in open_file(DataConfig(), str(path)).usable(range(1)):
            count += 1
            if count % 10_000 == 0:
                tick()
    return count


def _written_out(request: DatasetSnapshotRequest, aside: Path, tick: Tick) -> tuple[dict[str, Path], dict[str, int], dict[str, str] | None]:
    """A data set of several splits as JSON lines: all columns, in their order; class codes by their names."""
    from bert_train_parallel.data.sources import open_tables

    tables = open_tables(DataConfig(dataset_config=request.dataset_config), request.dataset_name)
    stem = store_stem(request.dataset_name)
    files: dict[str, Path] = {}
    counts: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for split, table in tables.items():
            name = _SPLITS[split]
            files[name] = aside / (f"{stem}.jsonl" if name == "train" else f"{stem}_{name}.jsonl")
            file = stack.enter_context(open(files[name], "w", encoding="utf-8"))
            counts[name] = 0
            for line, cells in islice(table.usable(range(len(table.columns))), request.max_samples):
                record = dict(zip(table.columns, cells, strict=True))
                file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
                counts[name] += 1
                if line % 10_000 == 0:
                    tick()
    if "train" not in files:
        raise BadSource(f"{request.dataset_name} has no training samples.")
    return _with_labels(files, counts), counts, dict.fromkeys(tables["train"].columns, "column")


def _with_labels(files: dict[str, Path], counts: dict[str, int]) -> dict[str, Path]:
    """Without the splits whose labels are kept secret: nothing can be measured by them."""
    kept = {}
    for split, path in files.items():
        with open(path, encoding="utf-8") as file:
            first: dict[str, Any] = json.loads(file.readline())
        if any(name in first and first[name] is None for name in ("label", "labels", "target")):
            counts.pop(split)
        else:
            kept[split] = path
    return kept


def _add_file(digest: hashlib._Hash, split: str, path: Path, tick: Tick) -> None:
    digest.update(f"{split}/{path.stat().st_size}/".encode())
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            tick()

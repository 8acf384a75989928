"""The SQLite store of a source: texts, split, folded rows, label names, runs. The only SQL of the project.

| table | content |
| --- | --- |
| meta | key, value as JSON: format, fingerprint, spec, source, task_type, tokenizer, counts |
| labels | code, name |
| arrays | name, dtype, data: one value per sample (label or value, split, line), compressed |
| texts | first sample, count, data: 1,024 samples as compressed JSON, one list of one or two texts each |
| rows | first sample, tokens, lengths, segments_at, sample: the folded rows of those samples |
| runs | number, record as JSON |

A finished store is one file without a journal, opened read-only; only a run's record is added later.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bert_train_parallel.data.batches import IntArray, Rows
from bert_train_parallel.data.folding import Folded
from bert_train_parallel.data.split import SPLITS
from bert_train_parallel.errors import BadStore, not_writable

FORMAT = 1
BLOCK = 1024  # samples that are compressed together

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE labels (code INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE arrays (name TEXT PRIMARY KEY, dtype TEXT NOT NULL, data BLOB NOT NULL);
CREATE TABLE texts (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE rows (first INTEGER PRIMARY KEY, tokens BLOB NOT NULL, lengths BLOB NOT NULL,
                   segments_at BLOB NOT NULL, sample BLOB NOT NULL);
CREATE TABLE runs (number INTEGER PRIMARY KEY, record TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one split, n of them."""

    ids: IntArray  # (n,) int64 numbers in the store, ascending
    labels: npt.NDArray[np.generic]  # (n,) int64 codes, or float64 values of a regression
    lines: IntArray  # (n,) int64 line of the source at which each begins


class Store:
    """A finished store, open for reading.

    Use `with Store.open(path) as store:`, or close it; a thread of its own needs a store of its own.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, meta: dict[str, Any]) -> None:
        self.path = path
        self._connection = connection
        self.meta = meta
        self.fingerprint: str = meta["fingerprint"]
        self.task_type: str = meta["task_type"]
        self.spec: dict[str, Any] = meta["spec"]
        self.tokenizer_fingerprint: str = meta["tokenizer"]
        self.label_names: tuple[str, ...] = tuple(name for (name,) in connection.execute("SELECT name FROM labels ORDER BY code"))

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open a finished store, read-only.

        Raises:
            BadStore: no such file, not SQLite, truncated, or not a finished store of ours.
        """
        if not path.is_file():
            raise BadStore(f"{path}: there is no such file.")
        _check_size(path)
        try:
            connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
            try:
                return cls(path, connection, _read_meta(path, connection))
            except BaseException:
                connection.close()
                raise
        except sqlite3.DatabaseError as error:
            raise BadStore(f"{path} cannot be read as a store: {error}. Build it again from its CSV.") from error

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def samples_count(self) -> int:
        return int(self.meta["samples"])

    def samples(self, split: str) -> Samples:
        """The samples of `train`, `validate` or `test`."""
        ids = np.flatnonzero(self._array("split") == SPLITS.index(split))
        return Samples(ids, self._array("target")[ids], self._array("line")[ids].astype(np.int64))

    def rows(self, split: str) -> Rows:
        """The folded rows of a split, in one scan, of weight 1 each."""
        of_split = self._array("split") == SPLITS.index(split)
        target = self._array("target")
        dtype = np.dtype(self.meta["tokens"])
        tokens, lengths, segments_at, samples = [], [], [], []
        for block in self._all("SELECT tokens, lengths, segments_at, sample FROM rows ORDER BY first"):
            sample = np.frombuffer(block[3], dtype=np.int64)
            kept = of_split[sample]
            counts = np.frombuffer(block[1], dtype=np.int32)
            tokens.append(np.frombuffer(block[0], dtype=dtype)[np.repeat(kept, counts)])
            lengths.append(counts[kept])
            segments_at.append(np.frombuffer(block[2], dtype=np.int32)[kept])
            samples.append(sample[kept])
        sample = _concatenated(samples, np.int64)
        return Rows(
            tokens=_concatenated(tokens, dtype),
            offsets=np.concatenate(([0], np.cumsum(_concatenated(lengths, np.int64), dtype=np.int64))),
            segments_at=_concatenated(segments_at, np.int32),
            sample=sample,
            targets=target[sample][:, None],
            weights=np.ones(len(sample)),
        )

    def texts(self, ids: Sequence[int] | IntArray) -> list[tuple[str, ...]]:
        """The texts of samples, one or two each, in the order asked for; blocks are read once each."""
        wanted = np.asarray(ids, dtype=np.int64)
        found: dict[int, tuple[str, ...]] = {}
        for first in np.unique(wanted // BLOCK) * BLOCK:
            rows = list(self._all("SELECT data FROM texts WHERE first = ?", (int(first),)))
            if not rows:
                raise BadStore(f"{self.path} has no sample {int(first)}. Build it again from its source.")
            block = self._unpacked(rows[0][0])
            inside = wanted[(wanted >= first) & (wanted < first + BLOCK)]
            found |= {int(number): tuple(block[number - first]) for number in inside}
        return [found[int(number)] for number in wanted]

    def stored_samples(self) -> Iterator[tuple[int, tuple[str, ...], str, str]]:
        """(line, texts, label as text, split) of every sample, in order: what a rebuild starts from."""
        target, split, line = self._array("target"), self._array("split"), self._array("line")
        names = self.label_names
        for first, data in self._all("SELECT first, data FROM texts ORDER BY first"):
            for number, texts in enumerate(self._unpacked(data), first):
                label = names[int(target[number])] if names else repr(float(target[number]))
                yield int(line[number]), tuple(texts), label, SPLITS[int(split[number])]

    def runs(self) -> list[dict[str, Any]]:
        """The records of finished runs, the oldest first."""
        return [json.loads(record) for (record,) in self._all("SELECT record FROM runs ORDER BY number")]

    def add_run(self, record: dict[str, Any]) -> None:
        """Add a run's record, in a short transaction.

        Raises:
            NotWritable: the store's folder is read-only, or the disk is full.
        """
        with _sentences(self.path), contextlib.closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            connection.execute("INSERT INTO runs (record) VALUES (?)", (json.dumps(record, ensure_ascii=False),))

    def _array(self, name: str) -> npt.NDArray[Any]:
        for dtype, data in self._all("SELECT dtype, data FROM arrays WHERE name = ?", (name,)):
            return np.frombuffer(zlib.decompress(data), dtype=dtype)
        raise BadStore(f"{self.path} lacks its {name} of samples. Build it again from its source.")

    def _all(self, query: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._connection.execute(query, values)
        except (sqlite3.DatabaseError, zlib.error) as error:
            raise BadStore(f"{self.path} is damaged: {error}. Build it again from its source.") from error

    def _unpacked(self, data: bytes) -> list[list[str]]:
        try:
            return json.loads(zlib.decompress(data))  # type: ignore[no-any-return]
        except (zlib.error, ValueError) as error:
            raise BadStore(f"{self.path} is damaged: {error}. Build it again from its source.") from error


class StoreWriter:
    """Writes a store to a path of its own; it is complete only after `finish`."""

    def __init__(self, path: Path, token_dtype: npt.DTypeLike) -> None:
        self.path = path
        self._dtype = np.dtype(token_dtype)
        self._hash = hashlib.sha256()
        self._samples = 0
        self._rows = 0
        with _sentences(path):
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # one transaction over all: no journal is needed, since an unfinished file is thrown away
            self._connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA page_size=16384;" + _TABLES + "BEGIN;")

    def add(self, texts: Sequence[tuple[str, ...]], rows: Folded) -> None:
        """Add a block of samples with their rows; every block but the last has BLOCK samples."""
        first = self._samples
        packed = zlib.compress(json.dumps(texts, ensure_ascii=False).encode("utf-8", "surrogatepass"), 1)
        blobs = [
            rows.tokens.astype(self._dtype, copy=False).tobytes(),
            rows.lengths.astype(np.int32, copy=False).tobytes(),
            rows.segments_at.astype(np.int32, copy=False).tobytes(),
            (rows.text.astype(np.int64) + first).tobytes(),
        ]
        for blob in blobs:
            self._hash.update(blob)
        with _sentences(self.path):
            self._connection.execute("INSERT INTO texts VALUES (?, ?, ?)", (first, len(texts), packed))
            self._connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", (first, *blobs))
        self._samples += len(texts)
        self._rows += len(rows.lengths)

    def finish(
        self,
        *,
        target: npt.NDArray[Any],
        split: IntArray,
        line: IntArray,
        label_names: Sequence[str],
        meta: dict[str, Any],
        runs: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Write what is known only at the end, and close the file.

        Args:
            target, split, line: (n,) of every sample.
            meta: spec, source, task_type, tokenizer; the rest is added here.
            runs: of the store that this one replaces.
        """
        for part in (target, split):
            self._hash.update(part.tobytes())
        self._hash.update(json.dumps([list(label_names), meta["task_type"], meta["tokenizer"]]).encode())
        counts = {name: int((split == code).sum()) for code, name in enumerate(SPLITS)}
        whole = meta | {
            "format": FORMAT,
            "tokens": self._dtype.str,
            "samples": self._samples,
            "rows": self._rows,
            "split": counts,
            "fingerprint": self._hash.hexdigest()[:32],
        }
        with _sentences(self.path):
            for name, values in (("target", target), ("split", split), ("line", line)):
                self._connection.execute(
                    "INSERT INTO arrays VALUES (?, ?, ?)", (name, values.dtype.str, zlib.compress(np.ascontiguousarray(values).data, 1))
                )
            self._connection.executemany("INSERT INTO labels VALUES (?, ?)", enumerate(label_names))
            self._connection.executemany("INSERT INTO meta VALUES (?, ?)", ((key, json.dumps(value)) for key, value in whole.items()))
            self._connection.executemany("INSERT INTO runs (record) VALUES (?)", ((json.dumps(run),) for run in runs))
            self._connection.execute("COMMIT")
            self._connection.close()

    def abandon(self) -> None:
        """Close an unfinished file and remove it."""
        self._connection.close()
        self.path.unlink(missing_ok=True)


def _read_meta(path: Path, connection: sqlite3.Connection) -> dict[str, Any]:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if {"Samples", "TrainQueue"} <= tables:
        raise BadStore(
            f"{path} is a store of the 2020 tool. It has token numbers but neither the texts nor which rows belong to one text, "
            f"so it cannot be converted. Name the CSV it was made from instead."
        )
    if not {"meta", "labels", "arrays", "texts", "rows", "runs"} <= tables:
        raise BadStore(f"{path} is an SQLite file, but not a finished store. Name the CSV instead.")
    meta = {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM meta")}
    if meta.get("format") != FORMAT or "fingerprint" not in meta:
        raise BadStore(f"{path} is a store of format {meta.get('format')}; this version reads format {FORMAT}. Name the CSV instead.")
    return meta


def _check_size(path: Path) -> None:
    """Tell a truncated or foreign file by its header, before SQLite finds out in the middle of a run."""
    with open(path, "rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise BadStore(f"{path} is not an SQLite file. Name the CSV it was made from instead.")
    (page,) = struct.unpack(">H", header[16:18])
    (pages,) = struct.unpack(">I", header[28:32])
    expected = (65536 if page == 1 else page) * pages
    found = os.path.getsize(path)
    if found < expected:
        raise BadStore(f"{path} is truncated: {found} of {expected} bytes. Build it again from its CSV.")


@contextlib.contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """SQLite's words for a full disk and a read-only place, as ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        import errno

        words = str(error)
        code = errno.ENOSPC if "full" in words else errno.EROFS
        if any(sign in words for sign in ("full", "readonly", "unable to open", "disk I/O")):
            raise not_writable(OSError(code, os.strerror(code)), path) or error from error
        raise


def _concatenated(parts: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype=dtype)

"""The store: one SQLite file with the samples of a source, their split and their folded rows.

table    one line is                          columns
about    one fact of the store                name, value (JSON)
labels   one class                            code, name
splits   one split                            split, samples, rows, tokens
texts    up to 1,024 samples                  first (number of the first), texts (zlib of a JSON array of [text] or [text, pair])
samples  up to 65,536 samples                 block, lines (int64), labels (int32 codes, or float64), splits (uint8, as SPLITS)
rows     some rows of one split               block, split, sample (int64), lengths, segments_at (int32; empty: the lengths), tokens
runs     one finished run                     id, record (JSON)

Samples are numbered from 0 as they stand in the source; numbers in blobs are little-endian; tokens have
`token_bytes` bytes each, special tokens included. A store is built aside and renamed, without a journal; from
then on it is only read, but for short transactions that add a run.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import struct
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from bert_train_parallel.data.batches import IntArray, Rows
from bert_train_parallel.data.mapped_rows import Part, bytes_of, map_arrays, mapped_file
from bert_train_parallel.data.split import SPLITS
from bert_train_parallel.errors import BadStore, DamagedStore, NotWritable

FORMAT = 1
_APPLICATION = 0x42545053
_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE labels (code INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE splits (split TEXT PRIMARY KEY, samples INTEGER, rows INTEGER, tokens INTEGER);
CREATE TABLE texts (first INTEGER PRIMARY KEY, texts BLOB NOT NULL);
CREATE TABLE samples (block INTEGER PRIMARY KEY, lines BLOB NOT NULL, labels BLOB NOT NULL, splits BLOB NOT NULL);
CREATE TABLE rows (block INTEGER PRIMARY KEY, split TEXT, sample BLOB, lengths BLOB, segments_at BLOB, tokens BLOB);
CREATE TABLE runs (id INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE INDEX rows_of_split ON rows (split, block);
"""
_ROW_BYTES = 12  # at least: a sample and a length


@dataclass(frozen=True, slots=True)
class Content:
    """What a store, or one that is about to be written, is about."""

    task_type: str  # classification | regression
    label_names: tuple[str, ...]  # of the classes, by code; none for a regression
    fingerprint: str | None = None  # None as long as only the labels are known


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one split, n of them, in ascending order of their numbers."""

    ids: IntArray  # (n,) int64, number in the store
    labels: npt.NDArray[np.generic]  # (n,) class codes int64, or float64
    lines: IntArray  # (n,) int64, first line in the source file


class Store:
    """A finished store, open to read."""

    mapped_from = 1 << 27  # bytes of a split's rows from which on they are mapped into memory

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._closing = weakref.finalize(self, connection.close)  # a store that nobody closes is closed with its last reference
        with self._reading():
            about = {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM about")}
            self.label_names = tuple(name for (name,) in connection.execute("SELECT name FROM labels ORDER BY code"))
            self.counts = {split: (samples, rows, tokens) for split, samples, rows, tokens in connection.execute("SELECT * FROM splits")}
            self.about: dict[str, Any] = about
            self.fingerprint: str = about["fingerprint"]
            self.task_type: str = about["task_type"]
            self.spec: dict[str, Any] = about["spec"]
            self.tokenizer_fingerprint: str = about["tokenizer_fingerprint"]
            self._token_type = np.dtype(f"<u{about['token_bytes']}")
            size = path.stat().st_size
            for split in SPLITS:
                _, rows, tokens = self.counts[split]
                if not (0 <= rows * _ROW_BYTES <= size and 0 <= tokens * self._token_type.itemsize <= size):
                    raise ValueError("its counts are not those of a file of this size")
        self._samples: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]] | None = None

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a finished store to read.

        Raises:
            BadStore: no such file, not SQLite, not a store of ours, cut short, or of another format.
        """
        path = Path(path)
        connection = _connect(path)
        try:
            return cls(path, connection)
        except BaseException:
            connection.close()
            raise

    @property
    def content(self) -> Content:
        return Content(self.task_type, self.label_names, self.fingerprint)

    def close(self) -> None:
        self._closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def rows(self, split: str) -> Rows:
        """The folded rows of a split, in one scan.

        A large split is written once to a file beside the store, which all processes of a machine map into memory:
        it is there once, and may be larger than memory. Beside a store on a full or read-only disk, each process maps a
        temporary file of its own.
        """
        _, n, n_tokens = self.counts[split]
        number = "<i8" if self.task_type == "classification" else "<f8"
        parts = [("<i8", n + 1), ("<i8", n), (number, n), ("<i4", n), (self._token_type.str, n_tokens)]
        with self._reading():
            mapped = self._mapped(split, parts) if bytes_of(parts) > self.mapped_from else None
            arrays = mapped or [*self._arrays(split), self._tokens(split)]
        offsets, sample, targets, segments_at, tokens = arrays
        return Rows(tokens, offsets, segments_at, sample, targets[:, None], np.broadcast_to(np.float64(1), n))

    def _arrays(self, split: str) -> list[npt.NDArray[Any]]:
        """What `Rows` has of each row: offsets (N + 1,), sample, target and segments_at (N,)."""
        _, n, n_tokens = self.counts[split]
        sample, lengths, segments_at = np.empty(n, np.int64), np.empty(n, np.int32), np.empty(n, np.int32)
        row = 0
        query = "SELECT sample, lengths, segments_at FROM rows WHERE split = ? ORDER BY block"
        for samples, of_rows, segments in self._connection.execute(query, (split,)):
            piece = slice(row, row + len(of_rows) // 4)
            sample[piece] = np.frombuffer(samples, "<i8")
            lengths[piece] = np.frombuffer(of_rows, "<i4")
            segments_at[piece] = np.frombuffer(segments, "<i4") if segments else lengths[piece]
            row = piece.stop
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        if row != n or offsets[-1] != n_tokens:
            raise ValueError("rows are missing")
        return [offsets, sample, self.all_samples()[1][sample], segments_at]

    def _tokens(self, split: str) -> IntArray:
        """(T,) the tokens of a split, in memory."""
        tokens = np.empty(self.counts[split][2], self._token_type)
        first = 0
        for ids in self._token_blocks(split):
            piece = np.frombuffer(ids, self._token_type)
            tokens[first : first + len(piece)] = piece
            first += len(piece)
        if first != len(tokens):
            raise ValueError("tokens are missing")
        return tokens

    def _token_blocks(self, split: str) -> Iterator[bytes]:
        for (ids,) in self._connection.execute("SELECT tokens FROM rows WHERE split = ? ORDER BY block", (split,)):
            yield ids

    def _mapped(self, split: str, parts: Sequence[Part]) -> list[npt.NDArray[Any]] | None:
        """What `_arrays` and then `_tokens` give, in a file that is mapped; None where none can be."""
        path = mapped_file(self.path, self.fingerprint, split)
        return map_arrays(path, parts, lambda file: self._write_rows(split, file))

    def _write_rows(self, split: str, file: IO[bytes]) -> None:
        for array in self._arrays(split):
            file.write(array.data)
        for ids in self._token_blocks(split):
            file.write(ids)

    def samples(self, split: str) -> Samples:
        """The samples of a split."""
        lines, labels, splits = self.all_samples()
        ids = np.flatnonzero(splits == SPLITS.index(split))
        return Samples(ids, labels[ids], lines[ids])

    def all_samples(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Line, label and split of every sample; read once."""
        if self._samples is None:
            with self._reading():
                found = list(self._connection.execute("SELECT lines, labels, splits FROM samples ORDER BY block"))
                types = ("<i8", "<i4" if self.task_type == "classification" else "<f8", "u1")
                lines, labels, splits = (
                    np.frombuffer(b"".join(column), kind) for column, kind in zip(zip(*found, strict=True), types, strict=True)
                )
                self._samples = lines, labels.astype(np.int64 if self.task_type == "classification" else np.float64), splits
        return self._samples

    def texts(self, ids: Iterable[int]) -> list[tuple[str, ...]]:
        """The text, or the two texts, of each of these samples."""
        wanted = [int(number) for number in ids]
        found: dict[int, tuple[str, ...]] = {}
        first, block = 0, list[tuple[str, ...]]()
        with self._reading():
            for number in sorted(set(wanted)):
                if not first <= number < first + len(block):
                    query = "SELECT first, texts FROM texts WHERE first <= ? ORDER BY first DESC LIMIT 1"
                    first, packed = self._connection.execute(query, (number,)).fetchone()
                    block = _unpacked(packed)
                found[number] = block[number - first]
        return [found[number] for number in wanted]

    def all_texts(self) -> Iterator[list[tuple[str, ...]]]:
        """All texts in the order of the samples, block by block."""
        with self._reading():
            for (packed,) in self._connection.execute("SELECT texts FROM texts ORDER BY first"):
                yield _unpacked(packed)

    def runs(self) -> list[dict[str, Any]]:
        """The records that were added, oldest first."""
        with self._reading():
            return [json.loads(record) for (record,) in self._connection.execute("SELECT record FROM runs ORDER BY id")]

    def add_run(self, record: dict[str, Any]) -> None:
        """Keep the record of a run, in a short transaction of its own.

        Raises:
            NotWritable: the store's folder is read-only or full.
        """
        try:
            # a store that is gone is not made anew
            writing = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", timeout=60, uri=True)
            with contextlib.closing(writing), writing:
                writing.execute("INSERT INTO runs (record) VALUES (?)", (json.dumps(record, ensure_ascii=False),))
        except sqlite3.OperationalError as error:
            raise NotWritable(
                f"{self.path}: the record of the run could not be added to the store ({error}); the run's files are complete."
            ) from None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Say in one sentence that the file is damaged."""
        try:
            yield
        except (sqlite3.Error, LookupError, TypeError, ValueError, zlib.error) as error:
            raise DamagedStore(_damaged(self.path, error)) from None


class StoreWriter:
    """Fills a store that is being built aside: texts as they come, then all else."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("page_size = 8192", "journal_mode = OFF", "synchronous = OFF", f"application_id = {_APPLICATION}"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_TABLES)
        self._connection.execute("BEGIN")
        self._texts = self._blocks = 0

    def add_texts(self, packed: bytes, samples: int) -> None:
        """The texts of so many next samples, as `pack_texts` gave them."""
        self._connection.execute("INSERT INTO texts VALUES (?, ?)", (self._texts, packed))
        self._texts += samples

    def add_samples(self, lines: IntArray, labels: npt.NDArray[Any], splits: npt.NDArray[np.uint8]) -> None:
        """Line, label and split of all samples."""
        kind = "<f8" if labels.dtype.kind == "f" else "<i4"
        for block, first in enumerate(range(0, len(lines), 65_536)):
            piece = slice(first, first + 65_536)
            values = (lines[piece].astype("<i8").tobytes(), labels[piece].astype(kind).tobytes(), splits[piece].tobytes())
            self._connection.execute("INSERT INTO samples VALUES (?, ?, ?, ?)", (block, *values))

    def add_rows(self, split: str, sample: IntArray, lengths: IntArray, segments_at: IntArray | None, tokens: IntArray) -> None:
        """Some rows of a split, in the order of their samples; no segments_at where each row is one text."""
        segments = b"" if segments_at is None else segments_at.astype("<i4").tobytes()
        kind = tokens.dtype.newbyteorder("<")
        values = (sample.astype("<i8").tobytes(), lengths.astype("<i4").tobytes(), segments, tokens.astype(kind, copy=False).tobytes())
        self._connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", (self._blocks, split, *values))
        self._blocks += 1

    def finish(
        self, about: dict[str, Any], label_names: Sequence[str], counts: dict[str, tuple[int, int, int]], runs: Iterable[dict[str, Any]]
    ) -> None:
        """Write what the store is about; from here on it is complete."""
        insert = self._connection.executemany
        insert("INSERT INTO labels VALUES (?, ?)", enumerate(label_names))
        insert("INSERT INTO splits VALUES (?, ?, ?, ?)", ((split, *counts[split]) for split in SPLITS))
        insert("INSERT INTO runs (record) VALUES (?)", ((json.dumps(run, ensure_ascii=False),) for run in runs))
        facts = about | {"format": FORMAT}
        insert("INSERT INTO about VALUES (?, ?)", ((name, json.dumps(value, ensure_ascii=False)) for name, value in facts.items()))
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def store_writer(path: Path) -> Iterator[StoreWriter]:
    """A writer of a new store at `path`; a full disk is an OSError, as for any other file."""
    writer = StoreWriter(path)
    try:
        yield writer
    except sqlite3.OperationalError as error:
        raise _as_os_error(error, path) from error
    finally:
        writer.close()


def _as_os_error(error: sqlite3.OperationalError, path: Path) -> OSError:
    code = {"SQLITE_FULL": errno.ENOSPC, "SQLITE_READONLY": errno.EROFS, "SQLITE_CANTOPEN": errno.EACCES}
    number = code.get(getattr(error, "sqlite_errorname", ""), errno.EIO)
    return OSError(number, os.strerror(number), str(path))


def pack_texts(texts: Sequence[tuple[str, ...]]) -> bytes:
    """A block of texts as the store keeps it."""
    return zlib.compress(json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode(), 1)


def _unpacked(packed: bytes) -> list[tuple[str, ...]]:
    return [tuple(texts) for texts in json.loads(zlib.decompress(packed))]


def _connect(path: Path) -> sqlite3.Connection:
    """A read-only connection to a file that looks like a finished store.

    Raises:
        BadStore: no such file, or a file of something else.
        DamagedStore: a store that is cut short, or of another format.
    """
    _check_header(path)
    if Path(f"{path}-journal").exists():
        _roll_back(path)
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=60, check_same_thread=False)
    try:
        found = connection.execute("SELECT value FROM about WHERE name = 'format'").fetchone()
    except (sqlite3.Error, ValueError) as error:
        connection.close()
        raise DamagedStore(_damaged(path, error)) from None
    if found != (str(FORMAT),):
        connection.close()
        raise DamagedStore(f"{path} has the format {found and found[0]}, and this version reads {FORMAT}: build it again from its source.")
    return connection


def _check_header(path: Path) -> None:
    """Tell a foreign file, and one that was cut short, by its first bytes and its size."""
    try:
        with open(path, "rb") as file:
            header = file.read(100)
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise BadStore(f"{path}: there is no such store.") from None
    except OSError as error:
        raise BadStore(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from None
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise BadStore(f"{path} is not a store: it is no SQLite file. Name the CSV file it is to be built from.")
    page, application, pages = (struct.unpack_from(form, header, at)[0] for form, at in ((">H", 16), (">I", 68), (">I", 28)))
    if application != _APPLICATION:
        raise BadStore(_foreign(path))
    if size < pages * (65_536 if page == 1 else page):
        raise DamagedStore(f"{path} is cut short: {size} of {pages * page} bytes. Remove it, and build it again from its source.")


def _foreign(path: Path) -> str:
    """What to say of an SQLite file of another program."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except (sqlite3.Error, ValueError) as error:
        return f"{path} is not a store: {error}."
    if {"Samples", "TrainQueue"} <= tables:
        return (
            f"{path} was written by the tool of 2020. It has tokens, but neither the texts nor which rows are of one text, so it cannot "
            "be split without a leak, and is not converted. Name the CSV file it was built from."
        )
    return f"{path} is an SQLite file of another program, not a store. Name the CSV file to build one from."


def _roll_back(path: Path) -> None:
    """Undo what a process that was killed left half written; where that is forbidden, reading says so."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
        connection.execute("SELECT count(*) FROM runs").fetchone()


def _damaged(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{path} is damaged ({reason}). Remove it, and build it again from its source."

"""One pass over a source into a new store: texts written as they come, rows put aside until the split is known."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.labels import MANY_NUMBERS, LabelReader, Labels, advice_on_numbers, doubts_about
from bert_train_parallel.data.sources import Sample, Source
from bert_train_parallel.data.split import SPLITS, split_samples
from bert_train_parallel.data.store import Content, StoreWriter, store_writer
from bert_train_parallel.data.table import spaced
from bert_train_parallel.data.tokenizing import TextTokenizer
from bert_train_parallel.data.workers import Worked, Workers
from bert_train_parallel.errors import BadSource

Say = Callable[[str], None]
Check = Callable[[Content], None]  # raises where the content does not fit what is wanted of it

_SAMPLES, _LETTERS = 1_024, 1_000_000  # of a block, at most; one longer text is a block of its own
_ROWS_AT_ONCE = 8_192
_SAY_EVERY = 10.0  # seconds between lines on how far reading is


def build(
    config: DataConfig,
    sources: Sequence[Source],
    tokenizer: TextTokenizer,
    path: Path,
    *,
    about: dict[str, Any],
    runs: Iterable[dict[str, Any]] = (),
    say: Say = lambda line: None,
    check: Check = lambda content: None,
) -> None:
    """Read, split and fold sources into a new store at `path`.

    Args:
        sources: the first is split where splits are wanted that no other source gives.
        about: facts for the store beside those found here.
        runs: records of earlier runs to carry over.
        check: called when the labels are known, and again when all is.
    Raises:
        BadSource: the samples cannot be learned from; the sentence says why.
        Whatever `check` raises.
    """
    with (
        tempfile.TemporaryFile(dir=path.parent) as spool,
        store_writer(path) as writer,
        contextlib.closing(Workers(tokenizer, config)) as workers,
    ):
        draft = Draft(config, sources, tokenizer, spool)
        waiting: deque[Future[Worked]] = deque()

        def take_next() -> None:
            worked = waiting.popleft().result()
            writer.add_texts(worked.packed, len(worked.keys))
            draft.add_worked(worked)

        for block in _blocks(_samples(sources, draft, say)):
            waiting.append(workers.submit([_texts(sample) for sample in block]))
            draft.add(block)
            if len(waiting) > workers.ahead:
                take_next()
        while waiting:
            take_next()
        draft.write(writer, about, runs, say, check)


def _samples(sources: Sequence[Source], draft: Draft, say: Say) -> Iterator[Sample]:
    """The samples of all sources, one source after the other; too many bad lines in one are an error."""
    told = time.monotonic()
    for source in sources:
        number = 0
        for number, sample in enumerate(source.samples(draft.accepts), 1):
            if number % _SAMPLES == 0 and time.monotonic() - told > _SAY_EVERY:
                told = time.monotonic()
                say(f"{source.name}: {spaced(number)} samples so far")
            yield sample
        draft.end_source(number)
        _check_bad_lines(source, number)
        if source.bad.total:
            say(f"{source.name}: left out {source.bad}")


def _check_bad_lines(source: Source, good: int) -> None:
    most = source.config.max_bad_rows
    flags = "--text, --label and --delimiter" if "delimiter" in source.table.read_as else "--text and --label"
    if source.bad.total > most * (good + source.bad.total):
        raise BadSource(
            f"{source.name}: {source.bad}, of {spaced(good + source.bad.total)}, cannot be used; at most {100 * most:g} % may be bad. "
            f"Check {flags}, or allow more with --max_bad_rows."
        )
    if not good:
        raise BadSource(f"{source.name} has no {source.table.unit} with text and label.")


def _blocks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """The samples in blocks that are bounded in number and in letters, so that memory is, whatever the texts are."""
    block: list[Sample] = []
    letters = 0
    for sample in samples:
        block.append(sample)
        letters += len(sample.text) + len(sample.pair or "")
        if len(block) == _SAMPLES or letters > _LETTERS:
            yield block
            block, letters = [], 0
    if block:
        yield block


def _texts(sample: Sample) -> tuple[str, ...]:
    return (sample.text,) if sample.pair is None else (sample.text, sample.pair)


class Draft:
    """What is known of the samples while they are read: about 28 bytes each, and their tokens in a file without a name."""

    def __init__(self, config: DataConfig, sources: Sequence[Source], tokenizer: TextTokenizer, spool: IO[bytes]) -> None:
        self._config, self._sources, self._tokenizer, self._spool = config, sources, tokenizer, spool
        self._labels = LabelReader(config.task_type, sources[0].name)
        self._parts: list[int] = []  # samples of each source
        self._lines, self._keys = array("q"), array("Q")
        self._rows, self._lengths, self._segments = array("I"), array("I"), array("I")  # rows of each sample; of each row
        self.accepts = self._labels.accepts

    def add(self, block: list[Sample]) -> None:
        """Lines and labels of the next samples."""
        self._lines.extend([sample.line for sample in block])
        for sample in block:
            self._labels.add(str(sample.label))

    def end_source(self, samples: int) -> None:
        self._parts.append(samples)

    def add_worked(self, worked: Worked) -> None:
        """Keys and rows of the next block; each text has one row at least."""
        folded = worked.folded
        self._keys.frombytes(worked.keys.tobytes())
        self._spool.write(folded.tokens.tobytes())
        self._rows.frombytes(np.bincount(folded.sample).astype(np.uint32).tobytes())
        self._lengths.frombytes(np.diff(folded.offsets).astype(np.uint32).tobytes())
        if self._sources[0].columns.pair is not None:
            self._segments.frombytes(folded.segments_at.astype(np.uint32).tobytes())

    def write(self, writer: StoreWriter, about: dict[str, Any], runs: Iterable[dict[str, Any]], say: Say, check: Check) -> None:
        """Split the samples; write them, their rows by split, and what the store is about."""
        labels = self._labels.finish()
        keys, lines = np.frombuffer(self._keys, np.uint64), np.frombuffer(self._lines, np.int64)
        self._check_classes(labels, lines)
        check(Content(labels.task_type, labels.names))
        splits = self._split(labels, keys)
        self._say_doubts(labels, keys, say)
        self._say_repeats(keys, splits, say)
        writer.add_samples(lines, labels.values, splits)
        known = [labels.task_type, list(labels.names), self._tokenizer.fingerprint]
        digest = hashlib.sha256(json.dumps(known).encode())
        for values in (labels.values, splits, keys):
            digest.update(np.ascontiguousarray(values).data)
        counts = self._write_rows(writer, splits, digest)
        fingerprint = digest.hexdigest()[:32]
        check(Content(labels.task_type, labels.names, fingerprint))
        facts = {
            "fingerprint": fingerprint,
            "task_type": labels.task_type,
            "spec": self._config.spec(),
            "read_as": self._sources[0].read_as | {"task_type": labels.task_type},
            "parts": [(source.split, samples) for source, samples in zip(self._sources, self._parts, strict=True)],
            "bad_share": max(source.bad.total / (source.bad.total + good) for source, good in zip(self._sources, self._parts, strict=True)),
            "tokenizer_fingerprint": self._tokenizer.fingerprint,
            "token_bytes": self._tokenizer.dtype.itemsize,
        }
        writer.finish(about | facts, labels.names, counts, runs)

    def _bounds(self) -> list[slice]:
        """The samples of each source."""
        ends = np.cumsum(self._parts).tolist()
        return [slice(end - samples, end) for end, samples in zip(ends, self._parts, strict=True)]

    def _check_classes(self, labels: Labels, lines: npt.NDArray[np.int64]) -> None:
        """
        Raises:
            BadSource: one class or number only, a class of one sample that is to be split, or a class that nothing teaches.
        """
        name = self._sources[0].name
        column = self._sources[0].column_names["label"]
        first = self._bounds()[0]
        if labels.task_type == "regression":
            if len(np.unique(labels.values[first])) < 2:
                raise BadSource(f"{name}: every sample has the number {labels.values[0]:g} (column {column!r}); name another with --label.")
            return
        counts = np.bincount(labels.values[first], minlength=len(labels.names))
        for source, bounds in zip(self._sources[1:], self._bounds()[1:], strict=True):
            unknown = np.flatnonzero(counts[labels.values[bounds]] == 0)
            if len(unknown):
                code = labels.values[bounds][unknown[0]]
                raise BadSource(
                    f"{source.name}, {source.table.unit} {lines[bounds][unknown[0]]}: the label {labels.names[code]!r} is not in {name}, "
                    "so no model can learn it. Correct it, or add samples of it to train on."
                )
        if np.count_nonzero(counts) < 2:
            raise BadSource(
                f"{name}: every sample has the label {labels.names[0]!r} (column {column!r}). Two classes at least are expected; "
                "name another column with --label."
            )
        alone = np.flatnonzero(counts == 1)
        if len(alone) and sum(self._shares()[1:]) > 0:
            numbers = "" if self._config.task_type == "classification" else advice_on_numbers(labels.names)
            classes = f"A class is to be learned and tested: leave these lines out, correct them, or name another column than {column!r}."
            advice = f"{numbers} {classes}".strip()
            few = ", ".join(f"{labels.names[code]!r} (line {lines[first][labels.values[first] == code][0]})" for code in alone[:3])
            more = ", ..." if len(alone) > 3 else ""
            raise BadSource(f"{name}: {len(alone)} of {len(labels.names)} classes have one sample only: {few}{more}. {advice}")

    def _shares(self) -> tuple[float, float, float]:
        """Of the first source: what goes to each split that no other source gives."""
        given = {source.split for source in self._sources[1:]}
        validate = 0.0 if "validate" in given else self._config.split[1]
        test = 0.0 if "test" in given else self._config.split[2]
        return 1 - validate - test, validate, test

    def _split(self, labels: Labels, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        """The split of each sample: as its source says, or drawn."""
        splits = np.empty(len(keys), np.uint8)
        for source, bounds in zip(self._sources, self._bounds(), strict=True):
            if source.split is not None:
                splits[bounds] = SPLITS.index(source.split)
                continue
            splits[bounds] = split_samples(keys[bounds], labels.codes[bounds], self._shares(), self._config.split_seed)
        for number, share in enumerate(self._shares()):
            if share > 0 and not (splits == number).any():
                raise BadSource(
                    f"{self._sources[0].name} has too few different texts ({len(np.unique(keys))}) to {SPLITS[number]} with some of them. "
                    "Add samples, or set --split."
                )
        return splits

    def _say_doubts(self, labels: Labels, keys: npt.NDArray[np.uint64], say: Say) -> None:
        """Tell of labels that may not be what was meant: the store holds them all the same."""
        if labels.task_type == "regression":
            return
        name = self._sources[0].name
        for doubt in doubts_about(labels.names):
            say(f"{name}: {doubt}")
        if self._config.task_type == "auto" and len(labels.names) > MANY_NUMBERS and (advice := advice_on_numbers(labels.names)):
            say(f"{name}: {advice}")
        several = texts_of_several(keys[self._bounds()[0]], labels.codes[self._bounds()[0]])
        if several:
            what = "1 text comes" if several == 1 else f"{spaced(several)} texts come"
            say(f"{name}: {what} again with another label, which no model can learn")

    def _say_repeats(self, keys: npt.NDArray[np.uint64], splits: npt.NDArray[np.uint8], say: Say) -> None:
        """Tell of texts that come again: kept together in one split, unless files give the splits."""
        first = self._bounds()[0]
        repeats = first.stop - len(np.unique(keys[first]))
        if repeats:
            what = "1 sample repeats" if repeats == 1 else f"{spaced(repeats)} samples repeat"
            say(f"{self._sources[0].name}: {what} the text of another; equal texts are kept in one split")
        for source, bounds in zip(self._sources[1:], self._bounds()[1:], strict=True):
            also = int(np.isin(keys[bounds], keys[first]).sum())
            if also:
                say(f"{source.name}: {spaced(also)} of its texts also in {self._sources[0].name}; both are given, so both stay")

    def _write_rows(self, writer: StoreWriter, splits: npt.NDArray[np.uint8], digest: Any) -> dict[str, tuple[int, int, int]]:
        """Read the rows back in the order of the samples and hand each split its own; (samples, rows, tokens) of each."""
        lengths, segments = np.frombuffer(self._lengths, np.uint32), np.frombuffer(self._segments, np.uint32)
        ends = np.cumsum(np.frombuffer(self._rows, np.uint32), dtype=np.int64)
        counts = np.zeros((len(SPLITS), 3), np.int64)
        counts[:, 0] = np.bincount(splits, minlength=len(SPLITS))
        self._spool.seek(0)
        for first in range(0, len(lengths), _ROWS_AT_ONCE):
            piece = slice(first, min(first + _ROWS_AT_ONCE, len(lengths)))
            of_piece = lengths[piece].astype(np.int64)
            size = int(of_piece.sum()) * self._tokenizer.dtype.itemsize
            tokens = np.frombuffer(self._spool.read(size), self._tokenizer.dtype)
            for values in (of_piece, segments[piece], tokens):
                digest.update(values.data)
            sample = np.searchsorted(ends, np.arange(piece.start, piece.stop), side="right")
            for number, split in enumerate(SPLITS):
                chosen = splits[sample] == number
                if chosen.any():
                    kept = tokens[np.repeat(chosen, of_piece)]
                    second = segments[piece][chosen] if len(segments) else None
                    writer.add_rows(split, sample[chosen], of_piece[chosen], second, kept)
                    counts[number, 1:] += int(chosen.sum()), len(kept)
        return {split: tuple(counts[number].tolist()) for number, split in enumerate(SPLITS)}


def texts_of_several(keys: npt.NDArray[np.uint64], codes: npt.NDArray[np.integer]) -> int:
    """How many texts have more than one label.

    >>> texts_of_several(np.array([7, 8, 7, 8, 7], np.uint64), np.array([0, 1, 1, 1, 0]))
    1
    """
    order = np.lexsort((codes, keys))
    keys, codes = keys[order], codes[order]
    return len(np.unique(keys[1:][(keys[1:] == keys[:-1]) & (codes[1:] != codes[:-1])]))

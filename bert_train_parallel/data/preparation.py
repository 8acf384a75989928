"""From a source to a finished store: built once, then reused by every run that asks for the same."""

from __future__ import annotations

import hashlib
import json
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.folding import Folded, fold_texts
from bert_train_parallel.data.labels import LabelReader, Labels
from bert_train_parallel.data.sources import Sample, Source
from bert_train_parallel.data.split import SPLITS, split_samples
from bert_train_parallel.data.store import SAMPLES_PER_BLOCK, Store, StoreWriter, store_writer
from bert_train_parallel.data.tokenizing import TextTokenizer, load_tokenizer
from bert_train_parallel.run_files import run_files, store_stem, written_aside

_ROWS_AT_ONCE = 8_192


def prepare(config: DataConfig, source: str, output_dir: str | None = None, say: Callable[[str], None] = print) -> Store:
    """The store of a source for these settings: built, or the one that is there."""
    path = run_files(source, output_dir).folder / f"{store_stem(source)}.sqlite"
    tokenizer = load_tokenizer(config.model)
    if path.exists():
        store = Store.open(path)
        if store.spec == config.spec() and store.tokenizer_fingerprint == tokenizer.fingerprint:
            say(f"{path} is up to date: {source} is not read again")
            return store
    with written_aside(path) as aside:
        build(config, Source(config, source), tokenizer, aside)
    return Store.open(path)


def build(config: DataConfig, source: Source, tokenizer: TextTokenizer, path: Path) -> None:
    """Read, split and fold a source into a new store at `path`."""
    with tempfile.TemporaryFile(dir=path.parent) as spool, store_writer(path) as writer:
        draft = Draft(config, tokenizer, spool)
        for block in _blocks(source.samples()):
            writer.add_texts([_texts(sample) for sample in block])
            draft.add(block)
        draft.write(writer, source.name)


def _blocks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    samples = iter(samples)
    while block := list(islice(samples, SAMPLES_PER_BLOCK)):
        yield block


def _texts(sample: Sample) -> tuple[str, ...]:
    return (sample.text,) if sample.pair is None else (sample.text, sample.pair)


class Draft:
    """What is known of the samples while they are read: some 25 bytes each, and their rows in a file without a name."""

    def __init__(self, config: DataConfig, tokenizer: TextTokenizer, spool: IO[bytes]) -> None:
        self._config, self._tokenizer, self._spool = config, tokenizer, spool
        self._labels = LabelReader(config.task_type)
        self._lines, self._keys = array("q"), array("Q")
        self._rows, self._lengths, self._segments = array("I"), array("I"), array("I")

    def add(self, block: list[Sample]) -> None:
        """Fold the texts of a block; keep lines, labels and hashes of texts."""
        texts = [_texts(sample) for sample in block]
        for sample, pieces in zip(block, texts, strict=True):
            self._lines.append(sample.line)
            self._labels.add(sample.label)
            self._keys.append(text_key(pieces))
        folded = fold_texts(texts, self._tokenizer, self._config)
        self._spool.write(folded.tokens.tobytes())
        self._keep(folded, len(texts))

    def _keep(self, folded: Folded, samples: int) -> None:
        self._rows.frombytes(np.bincount(folded.sample, minlength=samples).astype(np.uint32).tobytes())
        self._lengths.frombytes(np.diff(folded.offsets).astype(np.uint32).tobytes())
        if self._config.text_pair:
            self._segments.frombytes(folded.segments_at.astype(np.uint32).tobytes())

    def write(self, writer: StoreWriter, source: str) -> None:
        """Split the samples, and write them and their rows by split."""
        labels = self._labels.finish(source)
        keys = np.frombuffer(self._keys, np.uint64)
        strata = labels.values if labels.task_type == "classification" else np.zeros(len(keys), np.int32)
        splits = split_samples(keys, strata, self._config.split, self._config.split_seed)
        writer.add_samples(np.frombuffer(self._lines, np.int64), labels.values, splits)
        digest = hashlib.sha256()
        about = self._about(labels)
        digest.update(json.dumps([about[name] for name in ("task_type", "tokenizer_fingerprint")] + list(labels.names)).encode())
        for values in (labels.values, splits, keys):
            digest.update(np.ascontiguousarray(values))
        counts = self._write_rows(writer, splits, digest)
        writer.finish(about | {"fingerprint": digest.hexdigest()[:32]}, labels.names, counts, ())

    def _about(self, labels: Labels) -> dict[str, Any]:
        return {
            "task_type": labels.task_type,
            "spec": self._config.spec(),
            "tokenizer_fingerprint": self._tokenizer.fingerprint,
            "token_bytes": self._tokenizer.dtype.itemsize,
        }

    def _write_rows(self, writer: StoreWriter, splits: npt.NDArray[np.uint8], digest: Any) -> dict[str, tuple[int, int, int]]:
        """Read the rows back in the order of the file and hand each split its own; (samples, rows, tokens) of each."""
        rows_of = np.frombuffer(self._rows, np.uint32)
        lengths = np.frombuffer(self._lengths, np.uint32)
        segments = np.frombuffer(self._segments, np.uint32)
        counts = {split: (int((splits == number).sum()), 0, 0) for number, split in enumerate(SPLITS)}
        ends = np.cumsum(rows_of, dtype=np.int64)
        self._spool.seek(0)
        for first in range(0, len(lengths), _ROWS_AT_ONCE):
            piece = slice(first, min(first + _ROWS_AT_ONCE, len(lengths)))
            of_piece = lengths[piece].astype(np.int64)
            tokens = np.frombuffer(self._spool.read(int(of_piece.sum()) * self._tokenizer.dtype.itemsize), self._tokenizer.dtype)
            digest.update(of_piece)
            digest.update(segments[piece])
            digest.update(tokens)
            sample = np.searchsorted(ends, np.arange(piece.start, piece.stop), side="right")
            for number, split in enumerate(SPLITS):
                chosen = splits[sample] == number
                if chosen.any():
                    kept = tokens[np.repeat(chosen, of_piece)]
                    second = segments[piece][chosen] if len(segments) else None
                    writer.add_rows(split, sample[chosen], of_piece[chosen], second, kept)
                    samples, rows, total = counts[split]
                    counts[split] = samples, rows + int(chosen.sum()), total + len(kept)
        return counts


def text_key(texts: tuple[str, ...]) -> int:
    """64 bits that are equal for equal texts, however their spaces run."""
    plain = "\x1f".join(" ".join(text.split()) for text in texts)
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little")

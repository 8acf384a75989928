"""From a source to a finished store: built once, reused by later runs and by every process of a node."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.batches import IntArray
from bert_train_parallel.data.folding import Folded, fold_texts
from bert_train_parallel.data.samples import BadRows, Sample
from bert_train_parallel.data.sources import Source, StoreTable, blocks, open_sources
from bert_train_parallel.data.split import ANY, SPLITS, split_samples
from bert_train_parallel.data.store import BLOCK, Store, StoreWriter
from bert_train_parallel.data.tokenizing import Tokenizing, load_tokenizing
from bert_train_parallel.errors import BadSource, BadStore, not_writable
from bert_train_parallel.run_files import store_stem, sync_folder

Say = Callable[[str], None]

# Settings that say how a source is read: they mean nothing to a store, whose samples are read already.
_READING = frozenset(
    {"text", "text_pair", "label", "encoding", "delimiter", "quoting", "header", "dataset_config", "validation_file", "test_file"}
    | {"max_cell_bytes", "max_bad_rows"}
)
_MOST_CLASSES = 100_000
_VALIDATE_OF_TRAIN = 0.1  # where test samples are given and validation samples are not


def prepare(config: DataConfig, source: str, output_dir: str | None = None, say: Say = print) -> Store:
    """The store of a source: the finished one where it fits the settings, else a new one in its place.

    Any number of processes of a node may call this at once: one builds, the others wait for it.

    Args:
        source: a file, a folder, the name of a data set, or a store.
        output_dir: where the store goes; beside the source when left out.
        say: takes sentences about what is reused, rebuilt or left out.
    Raises:
        BadSource, BadStore: the source cannot be used; nothing has changed.
        BadModel, BadSetting: no tokenizer, or settings that do not fit it; nothing has changed.
        NotWritable: a read-only folder, or a full disk.
    """
    source, path = _source_and_store(source, output_dir, say)
    found = _finished(config, source, path, None)
    if found is not None:  # without a lock, so that a read-only folder with a finished store is enough
        return _reused(found, say)
    with _lock(path, say):
        found = _finished(config, source, path, say)
        if found is not None:
            return _reused(found, say)
        _build(config, source, path, say)
    return Store.open(path)


def _source_and_store(source: str, output_dir: str | None, say: Say) -> tuple[str, Path]:
    """What to read, and where the store of it is or will be."""
    given = Path(source)
    if given.suffix != ".sqlite":
        folder = Path(output_dir) if output_dir else given.parent if given.exists() or given.suffix else Path(".")
        store = folder / f"{store_stem(source)}.sqlite"
        if given.suffix and not given.exists() and store.is_file():
            raise BadSource(f"{source}: there is no such file. Its store is there: name {store} instead.")
        return source, store
    if not given.exists():
        for suffix in (".csv", ".tsv", ".tab", ".txt", ".jsonl", ".json", ".parquet"):
            other = given.with_suffix(suffix)
            if other.exists():
                say(f"{given} is not there yet; it is made from {other} now.")
                return str(other), (Path(output_dir) / given.name if output_dir else given)
        raise BadStore(f"{given}: there is no such file, nor a {given.with_suffix('.csv').name} beside it to make it from.")
    return source, (Path(output_dir) / given.name if output_dir else given)


def _reused(store: Store, say: Say) -> Store:
    say(f"{store.path} is up to date and is used as it is; its source is not read again.")
    return store


def _finished(config: DataConfig, source: str, path: Path, say: Say | None) -> Store | None:
    """The store, if it is finished and fits; else None, with the reason said where `say` is given."""
    if not path.exists() and not path.is_symlink():
        return None
    try:
        store = Store.open(path)
    except BadStore as error:
        if source == str(path):
            raise
        if "2020 tool" in str(error) or "not an SQLite" in str(error) or "not a finished store" in str(error):
            raise BadStore(f"{error} (It stands where the store of {source} would go; move it away, or give --output_dir.)") from error
        if say is not None:
            say(f"{error} It is built again from {source}.")
        return None
    changes = _changes(store, config, source, path)
    if not changes:
        return store
    store.close()
    if say is not None:
        say(f"{path} was made otherwise ({'; '.join(changes)}) and is made again.")
    return None


def _changes(store: Store, config: DataConfig, source: str, path: Path) -> list[str]:
    """What differs between a store and what is asked for, in words; empty when it fits."""
    asked, spec = config.spec(), store.spec
    from_store = source == str(path) or Path(source).suffix == ".sqlite"
    differing = [name for name in spec if name != "model" and asked.get(name) != spec[name]]
    if from_store:
        wrong = sorted(name for name in differing if name in _READING and name in config.model_fields_set)
        if wrong:
            raise BadStore(
                f"--{wrong[0]} {asked[wrong[0]]}: {source} was made with {spec[wrong[0]]}, and a store cannot be read otherwise. "
                "Name the source that it was made from, or leave the flag out."
            )
        differing = [name for name in differing if name not in _READING]
    changes = [f"{name} {_shown(spec[name])}, now {_shown(asked[name])}" for name in differing]
    if asked["model"] != spec["model"] and load_tokenizing(config.model, config.sequence_len).fingerprint != store.tokenizer_fingerprint:
        changes.append(f"the tokenizer of {spec['model']}, now of {asked['model']}")
    elif Path(config.model).is_dir() and load_tokenizing(config.model, config.sequence_len).fingerprint != store.tokenizer_fingerprint:
        changes.append(f"another tokenizer in {config.model}")
    if not from_store and not changes:
        changes += [f"{name} has changed" for name, stamp in store.meta["source"]["stamps"].items() if not _same_file(name, stamp)]
        if store.meta["source"]["place"] != store_place(source):
            changes.append(f"made from {store.meta['source']['place']}, now {store_place(source)}")
    return changes


def _shown(value: Any) -> str:
    return "/".join(f"{100 * part:g}" for part in value) if isinstance(value, list) else str(value)


def store_place(source: str) -> str:
    """A source's name as it is kept in a store: without its folder, so that both may be moved together."""
    return Path(source).name if Path(source).exists() else source


def _stamp(path: Path, sha256: str | None) -> dict[str, Any]:
    status = path.stat()
    return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns, "path": str(path), "sha256": sha256}


def _same_file(name: str, stamp: dict[str, Any]) -> bool:
    """Whether a file is what it was: by size and time of change; by content where only the time differs."""
    path = Path(stamp["path"])
    if not path.is_file():
        return True  # moved or deleted: the store stands for it
    status = path.stat()
    if status.st_size != stamp["bytes"]:
        return False
    if status.st_mtime_ns == stamp["changed_ns"]:
        return True
    from bert_train_parallel.data.delimited import open_bytes

    with contextlib.closing(open_bytes(path)) as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return bool(digest.hexdigest() == stamp["sha256"])


@contextlib.contextmanager
def _lock(path: Path, say: Say) -> Iterator[None]:
    """One builder of a store on this machine at a time. The lock ends with its process, however that ends.

    The lock file stands outside of the store's folder: what fails must leave that folder as it was. Builders on
    several machines that share the folder write aside and rename; the last of equal files wins.
    """
    folder = Path(tempfile.gettempdir()) / f"bert_train_parallel-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    with open(folder / f"{name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that makes {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(config: DataConfig, source: str, path: Path, say: Say) -> None:
    """Write the store aside and rename it."""
    started = time.monotonic()
    previous = _runs_of(path)
    _remove_parts(path)
    tokenizing = load_tokenizing(config.model, config.sequence_len)
    with contextlib.ExitStack() as stack:
        if Path(source).suffix == ".sqlite":
            old = stack.enter_context(Store.open(Path(source)))
            _changes(old, config, source, path)  # refuses settings that a store cannot take
            sources = [StoreTable(old).source(config)]
            origin = old.meta["source"]
        else:
            sources = open_sources(source, config)
            origin = _origin(source, config, sources)
            for one in sources:
                say(str(one))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}.{os.getpid()}.part")
            writer = StoreWriter(aside, tokenizing.dtype)
        except OSError as error:
            raise not_writable(error, path.parent) or error from error
        try:
            gathered = _gather(sources, config, tokenizing, writer, say)
            summary = _finish(gathered, config, source, tokenizing, origin, previous, writer)
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(aside, path)
            sync_folder(path.parent)
        except OSError as error:
            raise not_writable(error, path) or error from error
        finally:
            writer.abandon()
    say(f"{path}: {summary}, in {time.monotonic() - started:.1f} s")


def _runs_of(path: Path) -> list[dict[str, Any]]:
    """The history of runs of the store that is replaced; none where it cannot be read."""
    try:
        with Store.open(path) as store:
            return store.runs()
    except BadStore:
        return []


def _remove_parts(path: Path) -> None:
    """What builders left that were killed; the lock says that none of them is alive on this machine."""
    for part in path.parent.glob(f".{path.name}.*.part") if path.parent.is_dir() else ():
        with contextlib.suppress(OSError):
            part.unlink()


def _origin(source: str, config: DataConfig, sources: Sequence[Source]) -> dict[str, Any]:
    """What a store keeps of its source, to tell a changed one."""
    files = [path for path in (source, config.validation_file, config.test_file) if path is not None]
    stamps = {
        store_place(name): _stamp(Path(name), one.table.identity.get("sha256"))
        for name, one in zip(files, sources, strict=True)
        if Path(name).is_file()
    }
    return {"place": store_place(source), "identity": sources[0].table.identity, "stamps": stamps, "given_splits": False}


@dataclass
class Gathered:
    """What is kept in memory of each sample while a store is built: 21 bytes."""

    keys: array[int]  # hashes of the texts
    labels: array[int]  # codes in order of appearance
    lines: array[int]
    splits: array[int]  # as given by the source, or ANY
    names: dict[str, int]  # label to code
    first_lines: list[int]  # of each label
    counts: list[int]  # of each label
    first_outside: dict[str, int]  # label to the line of its first sample that was not given for validation or test


def _gather(sources: Sequence[Source], config: DataConfig, tokenizing: Tokenizing, writer: StoreWriter, say: Say) -> Gathered:
    """Read all samples, fold them and write texts and rows, block by block; one thread folds while this one reads."""
    gathered = Gathered(array("Q"), array("i"), array("q"), array("b"), {}, [], [], {})
    with ThreadPoolExecutor(1) as folder:
        pending: list[tuple[list[tuple[str, ...]], Future[Folded]]] = []

        def write_first() -> None:
            texts, rows = pending.pop(0)
            writer.add(texts, rows.result())

        for block in blocks(_all_samples(sources, config, say), BLOCK):
            for sample in block:
                _note(gathered, sample)
            texts = [sample.texts for sample in block]
            pending.append((texts, folder.submit(partial(fold_texts, texts, tokenizing, config))))
            if len(pending) > 2:
                write_first()
        while pending:
            write_first()
    return gathered


def _all_samples(sources: Sequence[Source], config: DataConfig, say: Say) -> Iterator[Sample]:
    """The samples of all sources, one after the other; bad rows are said at the end of each, and too many are an error."""
    for source in sources:
        bad = BadRows()
        yield from source.samples(bad)
        bad.check(source.table.place, config.max_bad_rows)
        if bad.count:
            say(f"{source.table.place}: {bad}")


def _note(gathered: Gathered, sample: Sample) -> None:
    # texts that differ in white space only are equal to the tokenizer
    key = "\0".join(" ".join(text.split()) for text in sample.texts)
    gathered.keys.append(int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"))
    code = gathered.names.setdefault(sample.label, len(gathered.names))
    if code == len(gathered.first_lines):
        gathered.first_lines.append(sample.line)
        gathered.counts.append(0)
    gathered.counts[code] += 1
    gathered.labels.append(code)
    gathered.lines.append(sample.line)
    gathered.splits.append(ANY if sample.split is None else SPLITS.index(sample.split))
    if sample.split in (None, "train"):
        gathered.first_outside.setdefault(sample.label, sample.line)


def _finish(
    gathered: Gathered,
    config: DataConfig,
    source: str,
    tokenizing: Tokenizing,
    origin: dict[str, Any],
    runs: Sequence[dict[str, Any]],
    writer: StoreWriter,
) -> str:
    """Decide task, label codes and split, write them, and say in words what is in the store."""
    place = store_place(source)
    if not gathered.labels:
        raise BadSource(f"{place} has no samples: no row has both a text and a label.")
    task_type = _task_type(config, gathered.names, place)
    given = np.frombuffer(gathered.splits, dtype=np.int8)
    codes = np.frombuffer(gathered.labels, dtype=np.int32)
    target: npt.NDArray[Any]
    if task_type == "regression":
        values = np.array([_number(name, place, gathered) for name in gathered.names])
        target, names, strata = values[codes], [], np.zeros(len(codes), dtype=np.int64)
    else:
        names = sorted(gathered.names, key=_label_order(gathered.names))
        _check_classes(gathered, place)
        to_sorted = np.empty(len(names), dtype=np.int64)
        to_sorted[[gathered.names[name] for name in names]] = np.arange(len(names))
        target = to_sorted[codes]
        strata = target
    split = _split(given, np.frombuffer(gathered.keys, dtype=np.uint64), strata, config)
    _check_split(split, given, target, names, place)
    meta = {
        "spec": config.spec(),
        "source": origin | {"given_splits": bool((given != ANY).any())},
        "task_type": task_type,
        "tokenizer": tokenizing.fingerprint,
    }
    line = np.frombuffer(gathered.lines, dtype=np.int64)
    writer.finish(target=target, split=split, line=line, label_names=names, meta=meta, runs=runs)
    counts = [int((split == code).sum()) for code in range(len(SPLITS))]
    what = f"{len(names)} labels" if names else "a number to predict"
    return f"{len(codes)} samples, {what}; {counts[0]} to train, {counts[1]} to validate, {counts[2]} to test"


def _task_type(config: DataConfig, names: Iterable[str], place: str) -> str:
    """Regression where it is asked for, or where every label is a number and some have fractions."""
    if config.task_type != "auto":
        return config.task_type
    fractions = False
    for name in names:
        try:
            fractions = fractions or not float(name).is_integer()
        except (ValueError, OverflowError):
            return "classification"
    return "regression" if fractions else "classification"


def _number(name: str, place: str, gathered: Gathered) -> float:
    try:
        value = float(name)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        line = gathered.first_lines[gathered.names[name]]
        raise BadSource(f'{place}: line {line} has the label "{name}", where --task_type regression expects a number.')
    return value


def _label_order(names: Iterable[str]) -> Callable[[str], Any]:
    """Integers by value, else by letters."""
    return (lambda name: (int(name), name)) if all(name.lstrip("+-").isdecimal() for name in names) else (lambda name: name)


def _check_classes(gathered: Gathered, place: str) -> None:
    if len(gathered.names) == 1:
        raise BadSource(
            f'{place}: every label is "{next(iter(gathered.names))}". Two classes at least are expected; is it the right column?'
        )
    if len(gathered.names) > _MOST_CLASSES:
        raise BadSource(f"{place} has {len(gathered.names)} different labels. Is it the right column? Say it with -l NAME.")
    alone = [name for name, code in gathered.names.items() if gathered.counts[code] == 1]
    if len(alone) > len(gathered.names) / 2 and len(gathered.names) > 20:
        raise BadSource(
            f"{place}: {len(alone)} of {len(gathered.names)} labels come once only. Is it the right column? Say it with -l NAME."
        )
    if alone:
        line = gathered.first_lines[gathered.names[alone[0]]]
        raise BadSource(
            f'{place}: the label "{alone[0]}" comes once only, in line {line}, so it cannot be both learned and tested. '
            "Correct it, give it more samples, or remove the line."
        )
    unseen = [name for name in gathered.names if name not in gathered.first_outside]
    if unseen:
        line = gathered.first_lines[gathered.names[unseen[0]]]
        raise BadSource(
            f'{place}: the label "{unseen[0]}" comes only in the samples for validation or test (line {line}); none teaches it.'
        )


def _split(given: IntArray, keys: IntArray, strata: IntArray, config: DataConfig) -> IntArray:
    """The split of each sample: as given, or drawn by the settings among those that were not."""
    has = [bool((given == code).any()) for code in range(len(SPLITS))]
    if not any(has):
        return split_samples(keys, strata, config.split, config.split_seed)
    validate, test = SPLITS.index("validate"), SPLITS.index("test")
    shares = list(config.split)
    if has[validate]:
        shares[validate] = 0.0
    elif has[test] and config.test_file is not None:
        shares[validate] = _VALIDATE_OF_TRAIN
    if has[test]:
        shares[test] = 0.0
        if not has[validate]:
            shares[0] = 1 - _VALIDATE_OF_TRAIN
            shares[validate] = _VALIDATE_OF_TRAIN
    split = given.copy()
    free = np.flatnonzero((given == ANY) | (given == SPLITS.index("train")))
    split[free] = split_samples(keys[free], strata[free], [share / sum(shares) for share in shares], config.split_seed)
    return split


def _check_split(split: IntArray, given: IntArray, target: npt.NDArray[Any], names: Sequence[str], place: str) -> None:
    """A model needs samples to learn each class from, and some to be judged by."""
    for code, name in enumerate(SPLITS):
        if not (split == code).any():
            raise BadSource(f"{place}: too few samples ({len(split)}) for a split of their own to {name}. Give more, or another --split.")
    missing = np.setdiff1d(np.arange(len(names)), target[split == 0])
    if len(missing):
        raise BadSource(
            f'{place}: all samples of the label "{names[missing[0]]}" are equal texts or in other splits, so none is left to learn from. '
            "Give it more samples, or remove it."
        )

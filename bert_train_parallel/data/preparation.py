"""The store of a source for some settings: the one that is there where it fits, else a new one in its place."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.building import Check, build
from bert_train_parallel.data.identity import Identity, Place, identify, is_same_place, is_unchanged, place_of
from bert_train_parallel.data.mapped_rows import forget_mapped_rows
from bert_train_parallel.data.sources import check_exists, open_source
from bert_train_parallel.data.store import Store
from bert_train_parallel.data.store_lock import only_builder
from bert_train_parallel.data.stored import open_stored, read_settings_of
from bert_train_parallel.data.table import shown, spaced
from bert_train_parallel.data.tokenizing import TextTokenizer, load_tokenizer
from bert_train_parallel.errors import BadSource, BadStore, DamagedStore
from bert_train_parallel.run_files import run_files, store_stem, written_aside

Say = Callable[[str], None]

_SIBLINGS = (".csv", ".tsv", ".tab", ".txt", ".jsonl", ".json", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz")
# of a store's settings, those that are compared by what they led to: files by content, the model by its tokenizer
_BY_CONTENT = ("model", "validation_file", "test_file", "max_bad_rows")


def prepare(config: DataConfig, source: str, output_dir: str | None = None, say: Say = print, check: Check = lambda content: None) -> Store:
    """The finished store of a source: reused where it fits the settings, else built aside and swapped in.

    Any number of processes and machines may call this at once: one builds, the others wait and open what it built.

    Args:
        source: a file, a folder, the name of a data set, or a store.
        output_dir: where the store goes; beside the source when left out.
        say: takes lines on what is found, reused, left out or built.
        check: called with the store's content before the store is given, or takes the place of an earlier one; with the labels
            alone as soon as these are known.
    Raises:
        BadSource, BadStore, BadModel, BadSetting, MissingPackage, and what `check` raises: nothing has changed.
        NotWritable: a read-only folder, or a full disk.
    """
    path = store_path(source, output_dir)
    with contextlib.ExitStack() as stack:
        origin = _origin(source, path, say)
        if isinstance(origin, Store):
            stack.enter_context(origin)
            config = read_settings_of(origin, config)
        else:
            check_exists(origin)  # before the model is looked for, which may take a while
        tokenizer = load_tokenizer(config.model, config.sequence_len)
        store = _fitting(path, origin, config, tokenizer, lambda line: None)
        if store is None:
            with only_builder(path, lambda: say(f"{path}: another process builds it; waiting")):
                store = _fitting(path, origin, config, tokenizer, say)  # it may have been built meanwhile
                if store is None:
                    _build(path, origin, config, tokenizer, say, check)
                    return Store.open(path)
        try:
            check(store.content)
        except BaseException:
            store.close()
            raise
        say(f"{path} is up to date: {_name(origin)} is not read again")
        return store


def store_path(source: str, output_dir: str | None = None) -> Path:
    """Where the store of a source is, or will be.

    >>> store_path("data/leanings.csv").as_posix(), store_path("data/leanings.sqlite", "out").as_posix()
    ('data/leanings.sqlite', 'out/leanings.sqlite')
    """
    return run_files(source, output_dir).folder / f"{store_stem(source)}.sqlite"


def _name(origin: Store | str) -> str:
    return origin.about["sources"][0]["name"] if isinstance(origin, Store) else origin


def _origin(source: str, path: Path, say: Say) -> Store | str:
    """What samples are read from: the source, or a store where that is named, or where it is all that is left.

    Raises:
        BadSource: a store is named that is not there, and nothing to build it from.
    """
    given = Path(source)
    if given.suffix == ".sqlite":
        if os.path.exists(given):  # unlike Path's own, false for names that no file can have
            return Store.open(given)
        siblings = [file for ending in _SIBLINGS if (file := given.with_suffix(ending)).is_file()]
        if len(siblings) != 1:
            choice = f" Name one of {', '.join(map(str, siblings))}." if siblings else " Name the CSV file to build it from."
            raise BadSource(f"{source}: there is no such store.{choice}")
        say(f"{source} is not there yet: it is built from {siblings[0]}")
        return str(siblings[0])
    if not os.path.exists(given) and os.path.isfile(path):
        store = Store.open(path)
        first = store.about["sources"][0]
        if "sha256" in first and first["name"] == given.name:
            say(f"{source} is gone: its texts are taken from {path}")
            return store
        store.close()
    return source


def _fitting(path: Path, origin: Store | str, config: DataConfig, tokenizer: TextTokenizer, say: Say) -> Store | None:
    """The store at `path` if it is what would be built; else None, with the reason said.

    Raises:
        BadStore: the file there is none of ours, and is not to be lost.
    """
    if not os.path.exists(path):
        return None
    try:
        store = Store.open(path)
    except DamagedStore as error:
        if isinstance(origin, Store):
            raise
        say(f"{error} It is built again.")
        return None
    except BadStore as error:
        raise BadStore(f"{error} It stands where the store of {_name(origin)} would go: move it away, or type --output_dir.") from None
    found = differences(store, config, tokenizer.fingerprint)
    if isinstance(origin, Store):
        has_changed = store.about["sources"] != origin.about["sources"]
    else:
        has_changed = not is_unchanged(store.about["sources"], _files(origin, config))
    if has_changed:
        _check_same_source(store, origin)
        found.append(f"{_name(origin)} has changed")
    if not found:
        return store
    store.close()
    say(f"{path} is built again: {', '.join(found)}")
    return None


def _check_same_source(store: Store, origin: Store | str) -> None:
    """See that a store is not replaced by that of another source, which may be all that is left of its texts and runs.

    Raises:
        BadStore: neither the place nor the content of the source is that from which the store was built.
    """
    known, place = _place(store), _place(origin, store.path.parent)
    first = store.about["sources"][0]["name"]
    # stores of earlier versions do not know their place: the name alone must do
    is_other = (
        not is_same_place(known, place) if known and place else first != Path(_name(origin)).name and not os.path.isdir(_name(origin))
    )
    if isinstance(origin, Store):
        is_same_content = [_content(file) for file in _own_files(store)] == [_content(file) for file in _own_files(origin)]
    else:
        is_same_content = is_unchanged(_own_files(store), [origin])
    if is_other and not is_same_content:
        name = origin.path if isinstance(origin, Store) else origin
        store.close()
        raise BadStore(
            f"{store.path} is the store of {known['absolute'] if known else first}, not of {name}: "
            "type another --output_dir, or remove that store."
        )


def _place(origin: Store | str, folder: Path = Path()) -> Place | None:
    return origin.about.get("place") if isinstance(origin, Store) else place_of(origin, folder)


def _own_files(store: Store) -> Identity:
    """The files of a store's source, without those that were given for validation and test."""
    others = sum(store.spec[name] is not None for name in ("validation_file", "test_file"))
    found: Identity = store.about["sources"]
    return found[: len(found) - others]


def _content(file: dict[str, Any]) -> Any:
    return file.get("sha256", file["name"])


def differences(store: Store, config: DataConfig, tokenizer_fingerprint: str) -> list[str]:
    """What is asked for and is otherwise in a store, in words; empty where it fits."""
    found = []
    asked = config.spec()
    for name, known in store.spec.items():
        if name not in _BY_CONTENT and asked[name] not in (known, store.about["read_as"].get(name)):
            found.append(f"{name} {_shown(known)} -> {_shown(asked[name])}")
    if store.about["bad_share"] > config.max_bad_rows:
        found.append(f"max_bad_rows {store.spec['max_bad_rows']:g} -> {config.max_bad_rows:g}")
    if store.tokenizer_fingerprint != tokenizer_fingerprint:
        found.append(f"tokenizer of {store.spec['model']} -> {config.model}")
    return found


def _shown(value: Any) -> str:
    """
    >>> _shown([0.8, 0.1, 0.1]), _shown(None)
    ('80/10/10', 'auto')
    """
    if isinstance(value, list | tuple):
        return "/".join(f"{100 * part:g}" for part in value)
    return "auto" if value is None else str(value)


def _files(source: str, config: DataConfig) -> list[str]:
    return [source, *(name for name in (config.validation_file, config.test_file) if name is not None)]


def _build(path: Path, origin: Store | str, config: DataConfig, tokenizer: TextTokenizer, say: Say, check: Check) -> None:
    """Build the store aside and rename it; the history of runs of the store in its place is kept."""
    began = time.monotonic()
    if isinstance(origin, Store) and origin.path != path and not differences(origin, config, tokenizer.fingerprint):
        check(origin.content)
        with written_aside(path) as aside:
            shutil.copyfile(origin.path, aside)
        say(f"{path} is a copy of {origin.path}")
        return
    sources = open_stored(origin, config) if isinstance(origin, Store) else open_source(config, origin, say=say)
    identity = origin.about["sources"] if isinstance(origin, Store) else identify(_files(origin, config))
    about = {"sources": identity, "place": _place(origin, path.parent)}
    if not isinstance(origin, Store):
        for source in sources:
            say(source.described)
    with written_aside(path) as aside:
        build(config, sources, tokenizer, aside, about=about, runs=_runs_at(path), say=say, check=check)
    forget_mapped_rows(path)
    with Store.open(path) as store:
        say(f"{_summary(store)} ({time.monotonic() - began:.1f} s)")


def _runs_at(path: Path) -> Iterator[dict[str, Any]]:
    """The records of runs in the store that is about to be replaced, read at the last moment."""
    if path.exists():
        with contextlib.suppress(DamagedStore), Store.open(path) as store:
            yield from store.runs()


def _summary(store: Store) -> str:
    counts = ", ".join(f"{split} {spaced(samples)}" for split, (samples, _, _) in store.counts.items())
    samples = sum(samples for samples, _, _ in store.counts.values())
    rows = sum(rows for _, rows, _ in store.counts.values())
    names = ", ".join(map(shown, store.label_names[:6])) + (", ..." if len(store.label_names) > 6 else "")
    what = f"{len(store.label_names)} labels ({names})" if store.label_names else "a number to predict"
    return f"{store.path}: {spaced(samples)} samples ({counts}) in {spaced(rows)} rows; {what}"

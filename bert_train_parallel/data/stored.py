"""A store as a source: its own texts, to be folded anew for another length or tokenizer when the file they came from is gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.columns import Columns
from bert_train_parallel.data.sources import Source
from bert_train_parallel.data.store import Store
from bert_train_parallel.data.table import Record, Table
from bert_train_parallel.errors import BadSource

# settings that say how a source is read: a store has been read already
READING = (
    *("text", "text_pair", "label", "encoding", "delimiter", "quoting", "header", "dataset_config"),
    *("validation_file", "test_file", "max_cell_bytes", "max_bad_rows"),
)


def read_settings_of(store: Store, config: DataConfig) -> DataConfig:
    """The settings with those of reading as they were when the store was built.

    Raises:
        BadSource: another one is asked for, which would take the source itself.
    """
    for name in READING:
        asked, known = getattr(config, name), store.spec[name]
        if name in config.model_fields_set and asked not in (known, store.about["read_as"].get(name)):
            first = store.about["sources"][0]["name"]
            raise BadSource(
                f"--{name} {asked}: {store.path} was built with {store.about['read_as'].get(name, known)}, and its texts cannot be "
                f"read in another way. Name the file it came from ({first}), or leave --{name} out."
            )
    return config.model_copy(update={name: store.spec[name] for name in READING})


def open_stored(store: Store, config: DataConfig) -> list[Source]:
    """The samples of a store as sources: those that were split, and those of splits that were given."""
    sources = []
    first = 0
    has_pair = bool(store.spec["text_pair"])
    names = ("text", "pair", "label") if has_pair else ("text", "label")
    for split, samples in store.about["parts"]:
        table = Table(
            name=str(store.path),
            columns=names,
            named=True,
            look=[],
            records=partial(_records, store, range(first, first + samples)),
            described="a store",
            read_as=store.about["read_as"],
        )
        columns = Columns(0, 1 if has_pair else None, len(names) - 1)
        sources.append(Source(table, columns, config, split))
        first += samples
    return sources


def _records(store: Store, ids: range, wanted: Sequence[int]) -> Iterator[Record]:
    lines, labels, _ = store.all_samples()
    number = 0
    for block in store.all_texts():
        for texts in block:
            if number in ids:
                value = labels[number]
                yield int(lines[number]), (*texts, store.label_names[value] if store.label_names else repr(float(value)))
            number += 1

"""Hugging Face data sets as tables: by name, or from a folder that `save_to_disk` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from bert_train_parallel.data.hub_files import hub_answers
from bert_train_parallel.data.records import DATASETS_INSTALL, numbered, with_class_names
from bert_train_parallel.data.table import LOOK, Record, Table
from bert_train_parallel.errors import BadSource, BertTrainParallelError, MissingPackage

# the splits of a data set by the names that they have there
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validate": ("validation", "valid", "val", "dev", "validation_matched"),
    "test": ("test", "testing", "test_matched"),
}


def open_dataset(name: str, configuration: str | None) -> dict[str, Table]:
    """The tables of a data set by our names of splits; a single one is called train.

    Raises:
        BadSource: it is not there, cannot be read, or has no split to train on.
        MissingPackage: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise MissingPackage(f"{name} is no file; reading it as a data set takes the package datasets. Type: {DATASETS_INSTALL}") from None
    found = _load(datasets, name, configuration)
    splits: dict[str, Any] = dict(found) if isinstance(found, Mapping) else {"train": found}
    tables = {}
    for split, names in _SPLIT_NAMES.items():
        known = next((own for own in names if own in splits), None)
        if known is not None:
            tables[split] = _table(datasets, name if len(splits) == 1 else f"{name} ({known})", splits[known])
    if "train" not in tables:
        if len(splits) != 1:
            raise BadSource(f"{name} has the splits {', '.join(splits)}; one named train is expected.")
        tables = {"train": _table(datasets, name, next(iter(splits.values())))}
    return tables


def _load(datasets: Any, name: str, configuration: str | None) -> Any:
    quiet = datasets.utils.logging
    quiet.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        if Path(name).is_dir():
            saved = any((Path(name) / mark).exists() for mark in ("dataset_info.json", "dataset_dict.json", "state.json"))
            return datasets.load_from_disk(name) if saved else datasets.load_dataset(name, configuration)
        if not hub_answers():
            return _from_cache(datasets, name, configuration)
        return datasets.load_dataset(name, configuration)
    except BertTrainParallelError:
        raise
    except Exception as error:  # scripts, formats and networks: each raises its own
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise BadSource(f"{name} cannot be loaded as a data set: {reason}.") from None


def _from_cache(datasets: Any, name: str, configuration: str | None) -> Any:
    """The data set as it was downloaded before; the client is told not to try the network, which takes it half a minute."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(name, configuration)
    except Exception:
        raise BadSource(
            f"{name}: there is no such file or folder here, and the Hugging Face hub cannot be reached. Check the name, or name a CSV file."
        ) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _table(datasets: Any, name: str, rows: Any) -> Table:
    columns = tuple(rows.column_names)
    table = Table(
        name=name,
        columns=columns,
        named=True,
        look=[list(row.values()) for row in islice(_rows(datasets, rows, columns), LOOK)],
        records=partial(_records, datasets, rows, columns),
        described="a Hugging Face data set",
        unit="row",
    )
    table.check_look()
    return table


def _records(datasets: Any, rows: Any, columns: Sequence[str], wanted: Sequence[int]) -> Iterator[Record]:
    keys = [columns[number] for number in wanted]
    yield from numbered(_rows(datasets, rows, keys), keys)


def _rows(datasets: Any, rows: Any, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    rows = rows.select_columns(list(keys))
    names = {key: kind.names for key, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)}
    yield from (with_class_names(row, names) for row in rows)

"""Where samples come from: delimited text, JSON lines, Parquet, Hugging Face data sets, or an earlier store."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data import delimited
from bert_train_parallel.data.samples import BadRows, Columns, Sample, choose_columns, choose_text
from bert_train_parallel.data.store import Store
from bert_train_parallel.errors import BadSource, MissingPackage

_SNIFFED_ROWS = 200
_SPLIT_NAMES = {"train": "train", "validation": "validate", "valid": "validate", "dev": "validate", "val": "validate", "test": "test"}
Say = Callable[[str], None]


class Table(Protocol):
    """Records of named cells, whatever file they come from; opening it has found out how it is written."""

    place: str  # as the user named it
    form: str  # how it is written, in a few words
    names: tuple[str, ...]
    identity: dict[str, Any]  # equal for equal content

    def beginning(self) -> list[list[Any]]:
        """The first rows, to tell the columns from."""
        ...

    def records(self, bad: BadRows) -> Iterator[tuple[int, str | None, Sequence[Any]]]:
        """(line, split or None, cells) of each record; what cannot be read is added to `bad`."""
        ...


@dataclass(frozen=True)
class Source:
    """The samples of one input, with the columns chosen."""

    table: Table
    columns: Columns
    max_cell_bytes: int
    split: str | None = None  # of all its samples, where the input was given for one split

    def __str__(self) -> str:
        pair = f', second text "{self.columns.pair}"' if self.columns.pair else ""
        return f'{self.table.place}: {self.table.form}; text "{self.columns.text}"{pair}, label "{self.columns.label}"'

    def samples(self, bad: BadRows) -> Iterator[Sample]:
        """The samples in the order of the source; rows that are none are added to `bad`."""
        names = self.table.names
        wanted = [self.columns.text, *([self.columns.pair] if self.columns.pair else [])]
        places = [names.index(name) for name in wanted]
        label_place = names.index(self.columns.label)
        for line, split, cells in self.table.records(bad):
            bad.total += 1
            reason = self._reason(cells, places, label_place)
            if reason:
                bad.add(line, reason)
                continue
            texts = tuple(str(cells[place]) for place in places)
            yield Sample(line, texts, as_label(cells[label_place]), self.split or split)

    def _reason(self, cells: Sequence[Any], places: Sequence[int], label_place: int) -> str | None:
        """Why a row is no sample; None when it is one."""
        if len(cells) != len(self.table.names):
            return "with too few cells" if len(cells) < len(self.table.names) else "with too many cells"
        for place in places:
            text = cells[place]
            if text is None or not str(text).strip():
                return "without text"
            if len(text := str(text)) * 4 > self.max_cell_bytes and len(text.encode("utf-8", "replace")) > self.max_cell_bytes:
                return "with a text above --max_cell_bytes"
        label = cells[label_place]
        return "without label" if label is None or not as_label(label) else None


def as_label(value: Any) -> str:
    """A label as text: white space around it does not count, 1.0 is 1, true and false are words.

    >>> as_label(" spam "), as_label(3), as_label(2.0), as_label(0.25), as_label(True)
    ('spam', '3', '2', '0.25', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "" if value != value else str(int(value)) if value.is_integer() else repr(value)
    return str(value).strip()


def open_sources(source: str, config: DataConfig) -> list[Source]:
    """The input, and the files for validation and test where they are given.

    Raises:
        BadSource: one of them cannot be read, or its columns cannot be told.
        MissingPackage: a format that needs a package that is not installed.
    """
    opened = [_open(source, config, None)]
    for path, split in ((config.validation_file, "validate"), (config.test_file, "test")):
        if path is not None:
            flag = "--validation_file" if split == "validate" else "--test_file"
            if not Path(path).exists():
                raise BadSource(f"{flag} {path}: there is no such file.")
            opened.append(_open(path, config, split))
    return opened


def _open(source: str, config: DataConfig, split: str | None) -> Source:
    table = open_table(source, config)
    columns = choose_columns(table.place, table.names, table.beginning(), config.text, config.text_pair, config.label)
    return Source(table, columns, config.max_cell_bytes, split)


def open_texts(source: str, config: DataConfig) -> tuple[Table, list[int]]:
    """An input of texts without labels, and the places of its one or two text columns."""
    table = open_table(source, config)
    names = [choose_text(table.place, table.names, table.beginning(), config.text), *([config.text_pair] if config.text_pair else [])]
    for name in names:
        if name not in table.names:
            choose_text(table.place, table.names, [], name)  # raises, with what was meant
    return table, [table.names.index(name) for name in names]


def open_table(source: str, config: DataConfig) -> Table:
    """Open an input by its name and content."""
    path = Path(source)
    if path.is_dir():
        return DatasetTable.of_folder(path)
    if not path.exists():
        if path.suffix or source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise BadSource(_no_such_file(path))
        return DatasetTable.of_hub(source, config.dataset_config)
    if not path.is_file():
        raise BadSource(f"{source} is not a file. A CSV, JSON lines, Parquet or a .sqlite store is expected.")
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            return ParquetTable(path)
        if name.endswith((".json", ".jsonl", ".ndjson")):
            return JsonTable(path, delimited.scan(path, config.encoding))
        return DelimitedTable(path, config)
    except PermissionError as error:
        raise BadSource(f"{source} may not be read: {error.strerror}.") from error


def _no_such_file(path: Path) -> str:
    import difflib

    if not path.parent.is_dir():
        return f"{path}: there is no folder {path.parent}."
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir() if other.is_file()], 1)
    return f"{path}: there is no such file." + (f" Did you mean {path.with_name(near[0])}?" if near else "")


class DelimitedTable:
    """A CSV, TSV or the like."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.place = str(path)
        self._path = path
        self._max_cell_bytes = config.max_cell_bytes
        scanned = delimited.scan(path, config.encoding)
        self._form, self._beginning = delimited.find_form(path, config, scanned.encoding)
        self.form = str(self._form)
        self.names = self._form.names
        self.identity = {"sha256": scanned.sha256}
        if len(self.names) < 2 and config.label is not None:
            raise BadSource(f"{path} has one column only, where a text and a label are expected; say with --delimiter what separates them.")

    def beginning(self) -> list[list[Any]]:
        return [list(row) for row in self._beginning[:_SNIFFED_ROWS]]

    def records(self, bad: BadRows) -> Iterator[tuple[int, str | None, Sequence[Any]]]:
        width = len(self.names)
        for line, cells in delimited.records(self._path, self._form, self._max_cell_bytes):
            # spreadsheets write empty cells at the end of some rows
            while len(cells) > width and not cells[-1].strip():
                cells.pop()
            yield line, None, cells


class JsonTable:
    """JSON lines, or one JSON array of objects."""

    def __init__(self, path: Path, scanned: delimited.Scan) -> None:
        self.place = str(path)
        self._path = path
        self._encoding = scanned.encoding
        self.identity = {"sha256": scanned.sha256}
        first = list(itertools.islice(self._objects(BadRows()), _SNIFFED_ROWS))
        if not first:
            raise BadSource(f'{path} has no JSON objects. One such as {{"text": ..., "label": ...}} per line is expected.')
        self.names = tuple(dict.fromkeys(name for _, found in first for name in found))
        self._first = [[found.get(name) for name in self.names] for _, found in first]
        self.form = f"{self._encoding}, JSON"

    def beginning(self) -> list[list[Any]]:
        return self._first

    def records(self, bad: BadRows) -> Iterator[tuple[int, str | None, Sequence[Any]]]:
        for line, found in self._objects(bad):
            yield line, None, [_plain(found.get(name)) for name in self.names]

    def _objects(self, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
        with delimited.open_text(self._path, self._encoding) as file:
            start = file.read(64).lstrip("\ufeff \t\r\n")
            file.seek(0)
            if start.startswith("["):
                yield from self._of_array(file.read())
                return
            for line, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    found = json.loads(text.lstrip("\ufeff"))
                except (ValueError, RecursionError):
                    found = None
                if isinstance(found, dict):
                    yield line, found
                else:
                    bad.total += 1
                    bad.add(line, "not a JSON object")

    def _of_array(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            found = json.loads(text.lstrip("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise BadSource(f"{self._path} cannot be read as JSON: {error}.") from error
        if not all(isinstance(entry, dict) for entry in found):
            raise BadSource(f"{self._path} holds a JSON array of something else than objects with a text and a label.")
        yield from enumerate(found, 1)


def _plain(value: Any) -> Any:
    """A list or object in place of a text or label is no cell."""
    return None if isinstance(value, list | dict) else value


class ParquetTable:
    """A Parquet file, by pyarrow; "lines" are rows, counted from 1."""

    def __init__(self, path: Path) -> None:
        pyarrow = _package("pyarrow", "pyarrow.parquet")
        self.place = str(path)
        self.form = "Parquet"
        try:
            self._file = pyarrow.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise BadSource(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        self.names = tuple(self._file.schema_arrow.names)
        with open(path, "rb") as file:
            import hashlib

            self.identity = {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    def beginning(self) -> list[list[Any]]:
        return [list(cells) for _, _, cells in itertools.islice(self.records(BadRows()), _SNIFFED_ROWS)]

    def records(self, bad: BadRows) -> Iterator[tuple[int, str | None, Sequence[Any]]]:
        line = 0
        for batch in self._file.iter_batches(4096):
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                line += 1
                yield line, None, [_plain(cell) for cell in cells]


class DatasetTable:
    """A data set of the `datasets` package; its own splits are kept, its class names become labels."""

    def __init__(self, place: str, splits: dict[str, Any]) -> None:
        self.place = place
        self._splits = splits
        first = next(iter(splits.values()))
        self.names = tuple(first.column_names)
        self.identity = {"fingerprints": {name: str(part._fingerprint) for name, part in splits.items()}}
        self.form = f"data set with {', '.join(f'{len(part)} {name}' for name, part in splits.items())}"

    @classmethod
    def of_folder(cls, path: Path) -> DatasetTable:
        """A folder of `save_to_disk`, or of files that `load_dataset` knows."""
        datasets = _package("datasets", "datasets")
        with _reading(str(path)):
            saved = (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()
            found = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path))
        return cls(str(path), _known_splits(str(path), found))

    @classmethod
    def of_hub(cls, name: str, config: str | None) -> DatasetTable:
        datasets = _package("datasets", "datasets")
        with _reading(name):
            found = datasets.load_dataset(name, config)
        return cls(name, _known_splits(name, found))

    def beginning(self) -> list[list[Any]]:
        return [list(cells) for _, _, cells in itertools.islice(self.records(BadRows()), _SNIFFED_ROWS)]

    def records(self, bad: BadRows) -> Iterator[tuple[int, str | None, Sequence[Any]]]:
        line = 0
        several = len(self._splits) > 1
        for split, part in self._splits.items():
            readers = [_class_names(part.features[name]) for name in self.names]
            for batch in part.select_columns(list(self.names)).iter(1000):
                for cells in zip(*(batch[name] for name in self.names), strict=True):
                    line += 1
                    yield line, split if several else None, [read(cell) for read, cell in zip(readers, cells, strict=True)]


def _class_names(feature: Any) -> Callable[[Any], Any]:
    """How a column's values become cells: class codes by their names; -1, for a label kept secret, is none."""
    names = getattr(feature, "names", None)
    if names is None:
        return _plain
    return lambda code: names[code] if isinstance(code, int) and 0 <= code < len(names) else None


def _known_splits(place: str, found: Any) -> dict[str, Any]:
    """The splits of a data set under our names."""
    if not hasattr(found, "keys"):
        return {"train": found}
    splits = {_SPLIT_NAMES[name]: part for name, part in found.items() if name in _SPLIT_NAMES}
    if "train" not in splits:
        if len(found) == 1:
            return {"train": next(iter(found.values()))}
        raise BadSource(f"{place} has no split called train; it has {', '.join(found)}.")
    return splits


class _reading:
    """Errors of the `datasets` package as a sentence; it raises many kinds."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        import datasets

        datasets.disable_progress_bars()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | ValueError | RuntimeError | KeyError):
            reason = next(iter(str(error).splitlines()), kind.__name__ if kind else "")
            raise BadSource(
                f"{self._place} cannot be read as a data set: {reason} "
                "Name a file, a folder of `save_to_disk`, or a data set of the Hugging Face hub that this machine can reach."
            ) from error


def _package(name: str, module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingPackage(f"This input needs the package {name}. Type: pip install 'bert-train-parallel[datasets]'") from None


class StoreTable:
    """The samples of an earlier store, to fold or split them anew when their source is gone."""

    def __init__(self, store: Store) -> None:
        self.names: tuple[str, ...] = ("text", "text_pair", "label")
        self.place = str(store.path)
        self.form = "store"
        self.identity = dict(store.meta["source"]["identity"])
        self._store = store

    def source(self, config: DataConfig) -> Source:
        has_pair = bool(self._store.spec.get("text_pair"))
        return Source(self, Columns("text", "text_pair" if has_pair else None, "label"), config.max_cell_bytes)

    def beginning(self) -> list[list[Any]]:
        return []

    def records(self, bad: BadRows) -> Iterator[tuple[int, str | None, Sequence[Any]]]:
        given = self._store.meta["source"]["given_splits"]
        for line, texts, label, split in self._store.stored_samples():
            yield line, split if given else None, [texts[0], texts[1] if len(texts) > 1 else None, label]


def blocks(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """Samples in lists of `size`, the last one shorter.

    >>> [len(block) for block in blocks([Sample(1, ("a",), "x")] * 5, 2)]
    [2, 2, 1]
    """
    iterator = iter(samples)
    while block := list(itertools.islice(iterator, size)):
        yield block

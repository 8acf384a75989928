"""JSON lines, JSON arrays and Parquet files as tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from bert_train_parallel.data.columns import is_known_name
from bert_train_parallel.data.encodings import TextFile
from bert_train_parallel.data.table import LOOK, Cells, Record, Table, Unusable
from bert_train_parallel.errors import BadSource, MissingPackage

ClassNames = Mapping[str, Sequence[str]]  # of columns with class codes: the name of each code
Objects = Iterator[tuple[int, dict[str, Any] | Unusable]]

_NO_OBJECT = Unusable("that are no JSON object")
_EXPECTED = (
    'one object on each line, or an array of them, is expected, such as {"text": "...", "label": "..."}. '
    'From pandas: to_json(..., orient="records", lines=True).'
)
_OPENING = re.compile(r'\s*\{\s*("[^"]*"\s*:\s*[\[{]?\s*)?')  # of an object that goes on in the next line
_MOST_LOOKED_AT = 20 * LOOK
DATASETS_INSTALL = 'pip install "bert-train-parallel[datasets]"'


def open_json(file: TextFile, name: str) -> Table:
    """The table in a file of JSON lines, or of one JSON array of objects; its columns are the keys of the first objects, or of all.

    Raises:
        BadSource: the beginning is neither.
    """
    with file.open() as text:
        beginning = text.read(1 << 16).lstrip()
    is_array = beginning.startswith("[")
    unit = "entry" if is_array else "line"
    objects = partial(_array, file, name) if is_array else partial(_lines, file, name)
    look = [found for _, found in islice(objects(), LOOK) if isinstance(found, dict)]
    if not look:
        raise BadSource(f'{name} has no {"entries" if is_array else "lines"} of JSON such as {{"text": "...", "label": "..."}}.')
    if not is_array and len(look) == 1 and _holds_all(look[0]):
        raise BadSource(f"{name} is a single JSON object with all texts inside; {_EXPECTED}")
    columns = tuple(dict.fromkeys(key for found in look for key in found))
    if not columns:
        raise BadSource(f'{name} has JSON objects without keys only; such as {{"text": "...", "label": "..."}} are expected.')
    table = Table(
        name=name,
        columns=columns,
        named=True,
        look=_cells(look, columns),
        records=partial(_records, objects, columns),
        described="a JSON array" if is_array else "JSON lines",
        read_as={"encoding": file.encoding},
        remark=file.remark,
        unit=unit,
    )
    return replace(table, read_on=partial(_with_all_columns, table, objects, look))


def _holds_all(only: dict[str, Any]) -> bool:
    """Whether the only object of a file holds all samples: as columns, or as a list of objects beside which there is no text."""
    values = list(only.values())
    if any(isinstance(value, str) and is_known_name(key) for key, value in only.items()):
        return False
    lists = any(isinstance(value, list) and len(value) > 1 and isinstance(value[0], dict) for value in values)
    return lists or (bool(values) and all(isinstance(value, list | dict) for value in values))


def _cells(found: Iterable[dict[str, Any]], columns: Sequence[str]) -> list[Cells]:
    return [[each.get(column) for column in columns] for each in found]


def _with_all_columns(table: Table, objects: Callable[[], Objects], look: Sequence[dict[str, Any]]) -> Table:
    """The table with the keys of all objects; those that bring a new key, and as many behind them as a look takes, are looked at too."""
    columns, seen = dict.fromkeys(table.columns), list(look)
    left = 0
    for found in (found for _, found in islice(objects(), LOOK, None) if isinstance(found, dict)):
        if not columns.keys() >= found.keys():
            columns |= dict.fromkeys(found)
            left = LOOK
        if left and len(seen) < _MOST_LOOKED_AT:
            seen.append(found)
            left -= 1
    return replace(table, columns=tuple(columns), look=_cells(seen, tuple(columns)), records=partial(_records, objects, tuple(columns)))


def _records(objects: Callable[[], Objects], columns: Sequence[str], wanted: Sequence[int]) -> Iterator[Record]:
    keys = [columns[number] for number in wanted]
    for line, found in objects():
        yield line, [_whole(found.get(key)) for key in keys] if isinstance(found, dict) else found


def _lines(file: TextFile, name: str) -> Objects:
    """The object on each line; blank lines do not count."""
    good = opened = False
    with file.open() as text:
        for number, line in enumerate(text, 1):
            if line.isspace():
                continue
            opened = opened or (number == 1 and _OPENING.fullmatch(line) is not None)
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                good = True
                yield number, found
            elif not good and number > 1 and opened:
                raise BadSource(f"{name} has JSON objects of several lines; {_EXPECTED}")
            elif not good and number > 3:
                raise BadSource(
                    f'{name}, line {number}: not JSON. One object on each line is expected, such as {{"text": "...", "label": "..."}}.'
                )
            else:
                yield number, _NO_OBJECT


def _array(file: TextFile, name: str) -> Objects:
    """The objects of a JSON array, which is read whole."""
    with file.open() as text:
        try:
            entries = json.load(text)
        except (ValueError, RecursionError) as error:
            raise BadSource(f"{name} begins as a JSON array and is none: {error}.") from None
    for number, found in enumerate(entries, 1):
        yield number, found if isinstance(found, dict) else _NO_OBJECT


def _whole(cell: Any) -> Any:
    """A text without halves of surrogate pairs, which JSON can spell and UTF-8 cannot; `true` and `false` as JSON writes them."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if not isinstance(cell, str):
        return cell
    try:
        cell.encode()
    except UnicodeEncodeError:
        return cell.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return cell


def open_parquet(path: Path, name: str) -> Table:
    """The table in a Parquet file.

    Raises:
        BadSource: damaged, or not Parquet.
        MissingPackage: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackage(f"{name} is a Parquet file; reading it takes pyarrow. Type: {DATASETS_INSTALL}") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = tuple(file.schema_arrow.names)
            names = _class_names(file.schema_arrow.metadata or {})
            look = [list(row.values()) for row in islice(_parquet_rows(file, columns, names), LOOK)]
    except (pyarrow.ArrowException, OSError) as error:
        raise BadSource(f"{name} cannot be read as Parquet: {str(error).partition(chr(10))[0].rstrip('.')}.") from None
    table = Table(
        name=name,
        columns=columns,
        named=True,
        look=look,
        records=partial(_parquet_records, path, name, columns, names),
        described="Parquet",
        unit="row",
    )
    table.check_look()
    return table


def _class_names(metadata: Mapping[bytes, bytes]) -> ClassNames:
    """The names of classes that the package datasets has written into a file beside their codes.

    >>> _class_names({b"huggingface": b'{"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}'})
    {'label': ['neg', 'pos']}
    """
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {key: list(map(str, kind["names"])) for key, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError):  # another program's, or none
        return {}


def with_class_names(row: dict[str, Any], names: ClassNames) -> dict[str, Any]:
    """A row with class labels by name; -1, which data sets write where a label is kept secret, is none."""
    for key in names.keys() & row.keys():
        code = row[key]
        row[key] = names[key][code] if isinstance(code, int) and 0 <= code < len(names[key]) else None
    return row


def _parquet_rows(file: Any, columns: Sequence[str], names: ClassNames) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(batch_size=1_024, columns=list(columns)):
        yield from (with_class_names(row, names) for row in batch.to_pylist())


def _parquet_records(path: Path, name: str, columns: Sequence[str], names: ClassNames, wanted: Sequence[int]) -> Iterator[Record]:
    import pyarrow.parquet

    keys = [columns[number] for number in wanted]
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from numbered(_parquet_rows(file, keys, names), keys)
    except pyarrow.ArrowException as error:
        raise BadSource(f"{name} is damaged: {str(error).partition(chr(10))[0].rstrip('.')}.") from None


def numbered(rows: Iterable[dict[str, Any]], keys: Sequence[str]) -> Iterator[tuple[int, Cells]]:
    """The cells of each row with its number, from 1."""
    for number, row in enumerate(rows, 1):
        yield number, [row[key] for key in keys]

"""Where samples come from: files of tables or JSON, data sets, and stores; read one sample after the other."""

from __future__ import annotations

import datetime
import decimal
import difflib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.columns import Columns, choose_columns
from bert_train_parallel.data.delimited import open_delimited
from bert_train_parallel.data.encodings import survey
from bert_train_parallel.data.hub_datasets import open_dataset
from bert_train_parallel.data.labels import number_in
from bert_train_parallel.data.records import open_json, open_parquet
from bert_train_parallel.data.table import BadLines, Table, Unusable, shown
from bert_train_parallel.errors import BadSource

_FILE_NAME = re.compile(r".*\.(csv|tsv|tab|txt|json|jsonl|ndjson|parquet|gz|sqlite|db|xlsx?|data)", re.IGNORECASE)


class Sample(NamedTuple):
    """One text, or two, and its label, as the source has them."""

    line: int  # where its record begins in the file, counted from 1
    text: str
    pair: str | None
    label: str | None  # None only where no labels are asked for


@dataclass(slots=True)
class Source:
    """Samples of one file or one split of a data set; what cannot be used is counted in `bad`."""

    table: Table
    columns: Columns
    config: DataConfig
    split: str | None = None  # the split that all its samples belong to, where that is given
    bad: BadLines = field(default_factory=BadLines)

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def described(self) -> str:
        """One line on how the source is read."""
        names = self.table.columns
        remark = f"; {self.table.remark}" if self.table.remark else ""
        label = "" if self.columns.label is None else f", label {names[self.columns.label]!r}"
        pair = "" if self.columns.pair is None else f", second text {names[self.columns.pair]!r}"
        return f"{self.name}: {self.table.described}; text {names[self.columns.text]!r}{pair}{label}{remark}"

    @property
    def read_as(self) -> dict[str, Any]:
        """The settings that were found, by their names."""
        return self.table.read_as | self.column_names

    @property
    def column_names(self) -> dict[str, str]:
        """The settings that would choose the same columns."""
        chosen = {"text": self.columns.text, "text_pair": self.columns.pair, "label": self.columns.label}
        return {setting: self.table.columns[number] for setting, number in chosen.items() if number is not None}

    def samples(self, accepts: Callable[[str], bool] = lambda label: True) -> Iterator[Sample]:
        """Every sample that has all it needs; the others are counted.

        Args:
            accepts: whether a label can be used.
        """
        self.bad = bad = BadLines(self.table.unit)
        for line, found in self.entries(accepts):
            if isinstance(found, Unusable):
                bad.add(line, found.reason)
            else:
                yield found

    def entries(self, accepts: Callable[[str], bool] = lambda label: True) -> Iterator[tuple[int, Sample | Unusable]]:
        """What stands at each line: a sample, or why there is none."""
        most = self.config.max_cell_bytes
        has_pair, has_label = self.columns.pair is not None, self.columns.label is not None
        for line, cells in self.table.records(self.columns.wanted):
            if isinstance(cells, Unusable):
                yield line, cells
                continue
            text = _text(cells[0])
            pair = _text(cells[1]) if has_pair else None
            label = _label(cells[-1]) if has_label else None
            if not text or text.isspace() or (has_pair and (not pair or pair.isspace())):
                yield line, Unusable(_lacking("text", cells[0] if not text or text.isspace() or not has_pair else cells[1]))
            elif has_label and not label:
                yield line, Unusable(_lacking("label", cells[-1]))
            elif label and not accepts(label):
                yield line, Unusable("whose label is not a number")
            elif is_too_long(text, most) or (pair and is_too_long(pair, most)) or (label and is_too_long(label, most)):
                yield line, too_long(most)
            else:
                yield line, Sample(line, text, pair, label)


def _text(cell: Any) -> str | None:
    """A text as it is, also where it is stored as bytes; a number or a date in its place is written out, anything else is no text."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bytes):
        return cell.decode(errors="replace")
    return str(cell) if isinstance(cell, int | float | decimal.Decimal | datetime.date) and cell == cell else None


def _lacking(what: str, cell: Any) -> str:
    """
    >>> _lacking("text", None), _lacking("label", ["ham"])
    ('without text', 'whose label is a list')
    """
    kind = "a list" if isinstance(cell, list | tuple) else "an object" if isinstance(cell, dict) else ""
    return f"whose {what} is {kind}" if kind else f"without {what}"


def _label(cell: Any) -> str | None:
    return (_text(cell) or "").strip() or None


def is_too_long(text: str, most: int) -> bool:
    """Whether a cell has more than `most` bytes in UTF-8."""
    return len(text) * 4 > most and len(text.encode(errors="replace")) > most


def too_long(most: int) -> Unusable:
    return Unusable(f"with a cell above {most} bytes (--max_cell_bytes)")


def open_source(config: DataConfig, name: str, labelled: bool = True, say: Callable[[str], None] = lambda line: None) -> list[Source]:
    """What a name stands for, found and looked into: one source, or one for each split that is given.

    Raises:
        BadSource: no such file, not readable, no such column; the sentence names file, line or column.
    """
    tables = open_tables(config, name)
    for split, file in (("validate", config.validation_file), ("test", config.test_file)):
        if file is not None:
            tables[split] = open_file(config, file)
    sources: list[Source] = []
    for given, table in tables.items():
        asked = config.model_copy(update=sources[0].column_names) if sources else config
        found = Source(*_with_columns(table, asked, labelled), config, None if given == "train" else given)
        if sources and labelled and all(row[found.columns.label or 0] is None for row in table.look):
            say(f"{found.name} has no labels and is left out")
            continue
        if labelled and config.task_type == "regression":
            _check_numbers(found)
        sources.append(found)
    return sources


def _with_columns(table: Table, config: DataConfig, labelled: bool) -> tuple[Table, Columns]:
    """A table with the columns of text and label; where its first records lack one, it is read on to the end."""
    try:
        return table, choose_columns(table, config, labelled)
    except BadSource:
        if table.read_on is None:
            raise
    table = table.read_on()
    return table, choose_columns(table, config, labelled)


def _check_numbers(source: Source) -> None:
    """See that labels are numbers where numbers are to be learned, by the first records: a wrong column is told before all are read.

    Raises:
        BadSource: none of them is.
    """
    column = source.columns.label or 0
    labels = [label for row in source.table.look if (label := _label(row[column])) is not None]
    if labels and not any(number_in(label) is not None for label in labels):
        raise BadSource(
            f"{source.name}: --task_type regression learns numbers, and the first {len(labels)} labels are none (column "
            f"{source.table.columns[column]!r}, such as {shown(labels[0])!r}). Name another column with --label, or leave --task_type out."
        )


def check_exists(name: str) -> None:
    """Raises BadSource for a name that can only be a file or a folder, and is not there or is neither."""
    if not name.strip():
        raise BadSource("The name of the source is empty; a file, a folder or a data set is expected.")
    if re.match(r"\w+://", name):
        raise BadSource(f"{name} is an address; a file is expected. Fetch it first, then name the file.")
    path = Path(name)
    is_there = os.path.exists(path)  # unlike Path's own, false for names that no file can have
    if name == "-" or (is_there and not path.is_file() and not path.is_dir()):
        raise BadSource(f"{name} is a stream or a device, which can be read once only; a file is expected. Write it to one first.")
    if not is_there and (_FILE_NAME.fullmatch(path.name) or name.count("/") > 1 or name.startswith(("/", "~", "."))):
        raise BadSource(_missing(path))


def open_tables(config: DataConfig, name: str) -> dict[str, Table]:
    """The tables of a source by split; `train` is also what is to be split."""
    check_exists(name)
    if Path(name).is_file():
        return {"train": open_file(config, name)}
    return open_dataset(name, config.dataset_config)


def open_file(config: DataConfig, name: str) -> Table:
    """The table in a file, by its content more than by its name."""
    path = Path(name)
    if not path.is_file():
        raise BadSource(f"{name} is a folder; a file is expected." if path.is_dir() else _missing(path))
    try:
        with open(path, "rb") as file:
            is_parquet = file.read(4) == b"PAR1"
    except OSError as error:
        raise BadSource(f"{name} cannot be read: {error.strerror}.") from None
    if is_parquet or path.suffix == ".parquet":
        return open_parquet(path, name)
    text = survey(path, config.encoding)
    with text.open() as file:
        beginning = file.read(1 << 12).lstrip()
    if beginning.startswith(("{", "[{")) or path.name.removesuffix(".gz").endswith((".json", ".jsonl", ".ndjson")):
        return open_json(text, name)
    return open_delimited(text, name, config)


def _missing(path: Path) -> str:
    beside = [found.name for found in path.parent.iterdir() if found.is_file() or not path.suffix] if os.path.isdir(path.parent) else []
    near = difflib.get_close_matches(path.name, beside, 1)
    return f"{path}: there is no such file." + (f" Did you mean {path.with_name(near[0])}?" if near else "")

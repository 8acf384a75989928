"""The texts to predict for: from the command line, a file, or standard input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.sources import open_source
from bert_train_parallel.data.table import Unusable
from bert_train_parallel.errors import BadSetting, BadSource
from bert_train_parallel.models.export import Reading

_FILES = (".csv", ".tsv", ".tab", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".gz")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the input; texts is None where there is nothing to predict for."""

    line: int
    texts: tuple[str, ...] | None


def file_named(inputs: Sequence[str]) -> str | None:
    """The one input that is a file, or would be one if it were there; None: the inputs are texts.

    Raises:
        BadSetting: a file beside something else.

    >>> file_named(["What a day!"]), file_named(["reviews.csv"])
    (None, 'reviews.csv')
    """
    files = [word for word in inputs if _is_file(word)]
    if not files:
        return None
    if len(inputs) > 1:
        raise BadSetting(f"{files[0]} is a file: name it alone, or give texts only.")
    return files[0]


def _is_file(word: str) -> bool:
    if word.endswith(_FILES) and not any(character.isspace() for character in word):
        return True
    try:
        return word not in ("", ".", "..") and Path(word).exists()
    except OSError:  # a text may be too long to be a name
        return False


def of_file(path: str, config: DataConfig, say: Callable[[str], None] = lambda sentence: None) -> Iterator[Entry]:
    """The lines of a CSV, JSON lines or Parquet file; its columns are checked at once.

    Args:
        say: takes a line on how the file is read.
    Raises:
        BadSource: it cannot be read, or has no such column.
    """
    if Path(path).is_dir():
        raise BadSource(f"{path} is a folder; texts, or one CSV, JSON lines or Parquet file are expected.")
    (source,) = open_source(config, path, labelled=False)
    say(source.described)
    records = source.table.records(source.columns.wanted)
    return (Entry(line, None if isinstance(cells, Unusable) else _texts(cells)) for line, cells in records)


def of_lines(file: BinaryIO) -> Iterator[Entry]:
    """One text per line of standard input, in UTF-8.

    Raises:
        BadSource: other bytes.
    """
    for number, line in enumerate(file, 1):
        try:
            yield Entry(number, _texts([line.decode("utf-8").rstrip("\r\n")]))
        except UnicodeDecodeError as error:
            raise BadSource(f"Line {number} of standard input is not UTF-8: {error.reason}. Convert it, for example with iconv.") from None


def of_arguments(inputs: Sequence[str], reading: Reading) -> Iterator[Entry]:
    """The texts of the command line; two each for a model that was trained on pairs.

    Raises:
        BadSource: one is empty, or the second of a pair is missing.
    """
    width = 1 if reading.text_pair is None else 2
    if len(inputs) % width:
        raise BadSource(f"The model was trained on pairs of texts, and {len(inputs)} texts are given. Give two for each prediction.")
    for number in range(len(inputs) // width):
        yield Entry(number + 1, tuple(inputs[number * width : (number + 1) * width]))


def _texts(cells: Iterable[object]) -> tuple[str, ...] | None:
    texts = tuple(str(cell) if isinstance(cell, str | int | float) else "" for cell in cells)
    return texts if all(text.strip() for text in texts) else None

"""The texts to predict for: from the command line, a file, or standard input."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.encodings import TextFile, survey
from bert_train_parallel.data.sources import check_exists, is_too_long, open_source, too_long
from bert_train_parallel.data.table import BadLines, Unusable
from bert_train_parallel.errors import BadSetting, BadSource
from bert_train_parallel.models.reading import Reading

_PIECE = 1 << 16  # bytes of a line that is too long, read at once
_FILES = (".csv", ".tsv", ".tab", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".gz")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the input; texts is None where there is nothing to predict for."""

    line: int
    texts: tuple[str, ...] | None
    lacks: str = ""  # why there is nothing, in words


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


def is_plain(path: str) -> bool:
    """Whether a file is called one of plain text, in which a comma is of the text and a first line is a text like the others."""
    return path.removesuffix(".gz").endswith(".txt")


def of_plain_file(path: str, config: DataConfig, say: Callable[[str], None] = lambda sentence: None) -> Iterator[Entry]:
    """One text per line of a file, which is looked at at once; no line above the limit of a cell is held in memory.

    Raises:
        BadSource: it is not there, or no text.
    """
    check_exists(path)
    if Path(path).is_dir():
        raise BadSource(f"{path} is a folder; texts, or one file are expected.")
    file = survey(Path(path), config.encoding)
    encoding = "UTF-8" if file.encoding.startswith("utf-8") else file.encoding
    remark = f"; {file.remark}" if file.remark else ""
    say(f"{path}: {encoding}, one text a line (--text, --header or --delimiter: a table){remark}")
    return _lines(file, config.max_cell_bytes)


def _lines(file: TextFile, most: int) -> Iterator[Entry]:
    with file.open() as text:
        for number in itertools.count(1):
            line = text.readline(most + 2)
            if not line:
                return
            is_whole = line.endswith(("\n", "\r"))
            while not is_whole and (rest := text.readline(_PIECE)):
                is_whole = rest.endswith(("\n", "\r"))
            line = line.rstrip("\r\n")
            if is_too_long(line, most):
                yield Entry(number, None, too_long(most).reason)
            else:
                yield Entry(number, (line,) if line.strip() else None, "without text")


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
    return (
        Entry(line, None, found.reason)
        if isinstance(found, Unusable)
        else Entry(line, (found.text,) if found.pair is None else (found.text, found.pair))
        for line, found in source.entries()
    )


def of_lines(file: BinaryIO, most: int) -> Iterator[Entry]:
    """One text per line of standard input, in UTF-8; no line above `most` bytes is held in memory.

    Raises:
        BadSource: other bytes.
    """
    for number in itertools.count(1):
        line = file.readline(most + 2)
        if not line:
            return
        is_whole = line.endswith(b"\n")
        while not is_whole and (rest := file.readline(_PIECE)):
            is_whole = rest.endswith(b"\n")
        line = line.rstrip(b"\r\n")
        if len(line) > most:
            yield Entry(number, None, too_long(most).reason)
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise BadSource(f"Line {number} of standard input is not UTF-8: {error.reason}. Convert it, for example with iconv.") from None
        yield Entry(number, (text,) if text.strip() else None, "without text")


def of_arguments(inputs: Sequence[str], reading: Reading) -> Iterator[Entry]:
    """The texts of the command line; two each for a model that was trained on pairs.

    Raises:
        BadSource: one is empty, or the second of a pair is missing.
    """
    width = 1 if reading.text_pair is None else 2
    if len(inputs) % width:
        raise BadSource(f"The model was trained on pairs of texts, and {len(inputs)} texts are given. Give two for each prediction.")
    for number, text in enumerate(inputs):
        if not text.strip():
            raise BadSource(f"Text {number // width + 1} is empty. Give one with words in it.")
    # bytes that are not UTF-8 come as halves of surrogate pairs, which cannot be written out again
    texts = [text.encode(errors="surrogateescape").decode(errors="replace") for text in inputs]
    return (Entry(number + 1, tuple(texts[number * width : (number + 1) * width])) for number in range(len(texts) // width))


def begun(entries: Iterator[Entry]) -> Iterator[Entry]:
    """The same entries, once one of them is known to have a text.

    Raises:
        BadSource: none has.
    """
    bad, seen = BadLines(), list[Entry]()
    for entry in entries:
        seen.append(entry)
        if entry.texts is not None:
            return itertools.chain(seen, entries)
        bad.add(entry.line, entry.lacks)
    raise BadSource(f"There is no text in the input, so there is no prediction{f': {bad}' if bad.total else ''}.")

"""CSV and its relatives as they are found: encoding, delimiter, quoting and header told from the file, or given."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.samples import LABEL_NAMES, TEXT_NAMES
from bert_train_parallel.errors import BadSetting, BadSource

_CHUNK = 1 << 20
_SNIFFED = 1 << 18  # characters from which the form of a file is told
_DELIMITERS = (",", "\t", ";", "|")
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_RUNAWAY = 8  # a record this many times longer than the longest cell allowed is taken for an unclosed quote


def open_bytes(path: Path) -> IO[bytes]:
    """The content of a file, unpacked where its name ends with .gz."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rb")  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over the bytes of a text file tells."""

    encoding: str
    sha256: str


def scan(path: Path, encoding: str = "auto") -> Scan:
    """Tell the encoding of a whole text file, and its hash.

    UTF-8 is taken where all of the file is valid as such; a byte order mark decides; else Windows-1252, which
    agrees with latin-1 wherever that has printable characters.

    Raises:
        BadSource: empty, binary, a NUL byte, or not in the encoding that was given.
    """
    digest = hashlib.sha256()
    try:
        with open_bytes(path) as file:
            head = file.read(4096)
            found = next((name for mark, name in _BOMS if head.startswith(mark)), None)
            chosen = (found or "utf-8") if encoding == "auto" else encoding
            try:
                decoder = codecs.getincrementaldecoder(chosen)()
            except LookupError:
                raise BadSetting(f"--encoding {encoding} is not known to Python. Try utf-8, latin-1 or utf-16.") from None
            size, lines, valid = 0, 0, True
            chunk = head or file.read(_CHUNK)
            while chunk:
                if b"\0" in chunk and not chosen.startswith(("utf-16", "utf_16", "utf-32", "utf_32")):
                    raise BadSource(_nul(path, lines + chunk[: chunk.index(b"\0")].count(b"\n") + 1, size == 0 and _is_binary(head)))
                digest.update(chunk)
                if valid:
                    try:
                        decoder.decode(chunk)
                    except UnicodeDecodeError as error:
                        if encoding != "auto" or found:
                            line = lines + chunk[: error.start].count(b"\n") + 1
                            raise BadSource(
                                f"{path}: line {line} is not {chosen} ({error.reason}). Leave --encoding out, or name another."
                            ) from None
                        valid = False
                lines += chunk.count(b"\n")
                size += len(chunk)
                chunk = file.read(_CHUNK)
            if valid:
                valid = _ends_well(decoder)
    except (gzip.BadGzipFile, EOFError) as error:
        raise BadSource(f"{path} cannot be unpacked: {error}.") from error
    if not size:
        raise BadSource(f"{path} is empty. A header line and one line per text are expected.")
    if not valid and _is_binary(head):
        raise BadSource(f"{path} is not a text file. A CSV with a header line, JSON lines or Parquet is expected.")
    return Scan(chosen if valid else "cp1252-or-latin-1", digest.hexdigest())


def _ends_well(decoder: codecs.IncrementalDecoder) -> bool:
    try:
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return False
    return True


def _is_binary(head: bytes) -> bool:
    """Whether a file begins with bytes that no text has: control characters beside white space, or a known mark."""
    if head.startswith((b"%PDF", b"PK\x03\x04", b"\x89PNG", b"\xff\xd8\xff", b"SQLite format 3", b"\x7fELF", b"PAR1")):
        return True
    odd = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
    return odd > len(head) / 50


def _nul(path: Path, line: int, binary: bool) -> str:
    if binary:
        return f"{path} is not a text file. A CSV with a header line, JSON lines or Parquet is expected."
    return f"{path}: line {line} has a NUL byte. Remove it, for example with: tr -d '\\000' < {path.name} > clean.csv"


def _odd_bytes(error: UnicodeError) -> tuple[str, int]:
    """The five bytes that Windows-1252 leaves open, as latin-1 has them."""
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("bert_train_latin1", _odd_bytes)


def open_text(path: Path, encoding: str) -> io.TextIOWrapper:
    """A file as text, its line ends untouched; `encoding` as `scan` gave it."""
    if encoding == "cp1252-or-latin-1":
        return io.TextIOWrapper(open_bytes(path), encoding="cp1252", errors="bert_train_latin1", newline="")
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="")


@dataclass(frozen=True, slots=True)
class Form:
    """How a delimited file is written."""

    encoding: str
    delimiter: str
    quoting: str  # minimal | none
    names: tuple[str, ...]
    has_header: bool

    def __str__(self) -> str:
        """
        >>> print(Form("utf-8", "\\t", "none", ("0", "1"), False))
        utf-8, separated by tab, quotes are text, no header
        """
        delimiter = {"\t": "tab", ",": "comma", ";": "semicolon"}.get(self.delimiter, self.delimiter)
        quotes = ", quotes are text" if self.quoting == "none" else ""
        return f"{self.encoding}, separated by {delimiter}{quotes}{'' if self.has_header else ', no header'}"


def find_form(path: Path, config: DataConfig, encoding: str) -> tuple[Form, list[list[str]]]:
    """How a file is written, from its beginning and the settings; and its first rows, without the header.

    Raises:
        BadSource: it has no rows, or no two columns.
    """
    with open_text(path, encoding) as file:
        beginning = file.read(_SNIFFED)
        whole = not file.read(1)
    delimiter, quoting = _delimiter_and_quoting(path, beginning, whole, config)
    if config.quoting == "auto" and quoting == "minimal" and '"' in beginning + _rest(path, encoding):
        quoting = "none" if _quotes_are_text(path, encoding, delimiter) else "minimal"
    rows = _parsed(beginning, delimiter, quoting, whole)
    if not rows:
        raise BadSource(f"{path} has no rows. A header line and one line per text are expected.")
    has_header = _has_header(rows, config)
    width = len(rows[0])
    names = tuple(_unique(rows[0])) if has_header else tuple(str(place) for place in range(width))
    body = rows[1:] if has_header else rows
    if not body:
        raise BadSource(f"{path} has a header and no rows.")
    return Form(encoding, delimiter, quoting, names, has_header), body


def _rest(path: Path, encoding: str) -> str:
    """A quote, if the file has one past its beginning; nothing else of it is needed."""
    with open_text(path, encoding) as file:
        while chunk := file.read(_CHUNK):
            if '"' in chunk:
                return '"'
    return ""


def _delimiter_and_quoting(path: Path, beginning: str, whole: bool, config: DataConfig) -> tuple[str, str]:
    """The pair under which most records have the same number of cells, two at least."""
    by_name = "\t" if path.name.removesuffix(".gz").endswith((".tsv", ".tab")) else ","
    delimiters = [config.delimiter] if config.delimiter != "auto" else sorted(_DELIMITERS, key=lambda mark: mark != by_name)
    quotings = [config.quoting] if config.quoting != "auto" else ["minimal", "none"]
    best, choice = 0.0, (delimiters[0], quotings[0])
    for delimiter in delimiters:
        for quoting in quotings:
            rows = _parsed(beginning, delimiter, quoting, whole)
            widths = Counter(len(row) for row in rows)
            if not widths:
                continue
            width, count = widths.most_common(1)[0]
            # a header that has this delimiter is worth more than even rows under another
            headed = 0.5 * (len(rows[0]) == width and bool({cell.strip().lower() for cell in rows[0]} & {*TEXT_NAMES, *LABEL_NAMES}))
            score = (count / len(rows) + headed) * (width > 1)
            if score > best + 0.01:
                best, choice = score, (delimiter, quoting)
    return choice


def _parsed(text: str, delimiter: str, quoting: str, whole: bool) -> list[list[str]]:
    """The records of the beginning of a file; the last is dropped where the file goes on."""
    with _any_field_size():
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), **_dialect(delimiter, quoting)) if row]
    return rows if whole or len(rows) < 2 else rows[:-1]


def _dialect(delimiter: str, quoting: str) -> dict[str, Any]:
    return {"delimiter": delimiter, "quoting": csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL}


class _any_field_size:
    """The csv module's limit of 131,072 characters a cell, lifted: we have our own."""

    def __enter__(self) -> None:
        self._before = csv.field_size_limit(sys.maxsize)

    def __exit__(self, *_: object) -> None:
        csv.field_size_limit(self._before)


def _quotes_are_text(path: Path, encoding: str, delimiter: str) -> bool:
    """Whether double quotes are part of the texts: every line has the same number of cells without them, and some cell
    that begins with a quote is not one that CSV would have written."""
    quoted = re.compile(r'"(?:[^"]|"")*"')
    width = None
    odd = False
    with open_text(path, encoding) as file:
        for line in file:
            cells = line.rstrip("\r\n").split(delimiter)
            if cells == [""]:
                continue
            if width is None:
                width = len(cells)
            if len(cells) != width:
                return False
            odd = odd or any(cell.startswith('"') and not quoted.fullmatch(cell) for cell in cells if '"' in cell)
    return odd and width is not None and width > 1


def _has_header(rows: Sequence[Sequence[str]], config: DataConfig) -> bool:
    """Whether the first row names the columns."""
    if config.header != "auto":
        return config.header == "yes"
    first = [cell.strip() for cell in rows[0]]
    asked = {name for name in (config.text, config.text_pair, config.label) if name is not None}
    if asked & set(first):
        return True
    if asked and all(name.isdigit() and int(name) < len(first) for name in asked):
        return False
    if {cell.lower() for cell in first} & {*TEXT_NAMES, *LABEL_NAMES}:
        return True
    others = rows[1:]
    if not others:
        return True
    named = [cell for cell in first if cell]
    if len(set(named)) < len(named) or any(re.fullmatch(r"[-+\d.,eE]+", cell) or len(cell) > 60 for cell in named):
        return False
    # a value that comes again in its own column is a label, not the name of one
    return not any(cell and any(place < len(row) and row[place].strip() == cell for row in others) for place, cell in enumerate(first))


def _unique(names: Sequence[str]) -> Iterator[str]:
    """Names of columns; an empty one is told by its place, a second of one name by a number."""
    seen: Counter[str] = Counter()
    for place, raw in enumerate(names):
        name = raw.strip() or f"unnamed_{place}"
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}.{seen[name] - 1}"


def records(path: Path, form: Form, max_cell_bytes: int) -> Iterator[tuple[int, list[str]]]:
    """(line at which it begins, cells) of each record, the header left out; blank lines are passed over.

    Raises:
        BadSource: a quote that is not closed at the end of the file.
    """
    with open_text(path, form.encoding) as file, _any_field_size():
        feed = _Feed(file, path, _RUNAWAY * max_cell_bytes)
        reader = csv.reader(feed, **_dialect(form.delimiter, form.quoting))
        begin = 1
        for number, cells in enumerate(reader):
            ended = feed.take()
            if form.quoting == "minimal" and '"' in ended:
                _check_closed(path, ended, begin, form, feed)
            if cells and not (form.has_header and number == 0):
                yield begin, cells
            begin = feed.lines + 1


class _Feed:
    """Hands lines to the csv reader, and keeps those of the current record."""

    def __init__(self, file: io.TextIOWrapper, path: Path, limit: int) -> None:
        self._file = file
        self._path = path
        self._limit = limit
        self._held: list[str] = []
        self._size = 0
        self.lines = 0
        self.ended = False

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            self.ended = True
            raise StopIteration
        self.lines += 1
        self._held.append(line)
        self._size += len(line)
        if self._size > self._limit and len(self._held) > 1:
            raise BadSource(_unclosed(self._path, self.lines - len(self._held) + 1))
        return line

    def take(self) -> str:
        """The text of the record that the reader has just finished."""
        held, self._held, self._size = self._held, [], 0
        return held[0] if len(held) == 1 else "".join(held)


def _check_closed(path: Path, record: str, line: int, form: Form, feed: _Feed) -> None:
    """Only the last record of a file can be one whose quote was never closed; strict reading tells."""
    if not feed.ended:
        return
    try:
        for _ in csv.reader(io.StringIO(record, newline=""), strict=True, **_dialect(form.delimiter, form.quoting)):
            pass
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise BadSource(_unclosed(path, line)) from None


def _unclosed(path: Path, line: int) -> str:
    return (
        f"{path}: a quote that opens in line {line} is not closed. Mend that line, or type --quoting none if quotes are part of the texts."
    )

"""Files of cells with something between them (CSV, TSV): how they are written, found by their beginning; and their records."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any, Literal

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.columns import DELIMITERS, is_known_name
from bert_train_parallel.data.encodings import TextFile
from bert_train_parallel.data.table import LOOK, Cells, Record, Table, Unusable, spaced
from bert_train_parallel.errors import BadSource

Quoting = Literal["minimal", "none"]

_BEGINNING = 1 << 20  # letters by which the form is found
_NO_DELIMITER = "\x1f"  # one column: a letter that text does not have
_MOST_LETTERS = 64_000_000  # of a record, unless cells may be that long; more is a quote that never closes
_END = "\ue000 end of file \ue000"  # a line of our own behind the last, to see whether a quote is still open there

_SEPARATOR_LINE = re.compile(r'"?sep=([^\r\n"])"?(\r\n|\r|\n)', re.IGNORECASE)  # Excel's own, before the header

_BACKSLASH = re.compile(r"\\(.?)", re.DOTALL)

csv.field_size_limit(2**31 - 1)  # the length of cells is checked by --max_cell_bytes, which can be said in a sentence


@dataclass(frozen=True, slots=True)
class Form:
    """How a delimited file is written."""

    delimiter: str
    quoting: Quoting
    header: bool
    spaced: bool = False  # spaces behind a delimiter are not of the cell, as in `label, "text"`
    escaped: bool = False  # a quote within quotes is written \", not ""

    def __str__(self) -> str:
        """
        >>> print(Form("\\t", "none", False))
        tab-separated, quotes are text, no header
        >>> print(Form(",", "minimal", True, spaced=True, escaped=True))
        comma-separated, spaces before cells left out, \\" for a quote, header
        """
        between = "one column" if self.delimiter == _NO_DELIMITER else f"{DELIMITERS.get(self.delimiter, repr(self.delimiter))}-separated"
        quotes = ", quotes are text" if self.quoting == "none" else ""
        spaces, escapes = ", spaces before cells left out" * self.spaced, ', \\" for a quote' * self.escaped
        return f"{between}{quotes}{spaces}{escapes}, {'header' if self.header else 'no header'}"

    def reader(self, lines: Iterable[str], strict: bool = False) -> Any:
        """The csv module's reader of this form.

        Args:
            strict: letters behind a closing quote are an error.
        """
        quoting: Any = csv.QUOTE_MINIMAL if self.quoting == "minimal" else csv.QUOTE_NONE
        return csv.reader(
            map(_without_other_escapes, lines) if self.escaped else lines,
            delimiter=self.delimiter,
            quoting=quoting,
            skipinitialspace=self.spaced,
            escapechar="\\" if self.escaped else None,
            strict=strict,
        )


def _without_other_escapes(line: str) -> str:
    """A line in which every backslash that stands before another letter than a quote, a backslash or a line end is kept.

    >>> print(_without_other_escapes(r'"C:\\new\" and \\\\ more",a'))
    "C:\\\\new\" and \\\\ more",a
    """
    return _BACKSLASH.sub(lambda found: found[0] if found[1] in '"\\\r\n' else "\\" + found[0], line) if "\\" in line else line


def open_delimited(file: TextFile, name: str, config: DataConfig) -> Table:
    """The table in a delimited file.

    Raises:
        BadSource: no record, or a NUL byte or an endless quote already in its beginning.
    """
    with file.open() as text:
        beginning = text.read(_BEGINNING)
        whole = not text.read(1)
    told = _SEPARATOR_LINE.match(beginning)
    if told and config.delimiter == "auto":
        config = config.model_copy(update={"delimiter": told[1]})
    before = 1 if told else 0  # lines that are not of the table
    form = find_form(beginning[told.end() :] if told else beginning, whole, config)
    look: list[Cells] = [
        row for _, row in islice(_rows(io.StringIO(beginning, newline=""), form, name, _BEGINNING, before, cut=not whole), LOOK) if row
    ]
    header = look.pop(0) if form.header and look else None
    look = [row for row in look if not _repeats(row, header)]
    width = len(header) if header else Counter(map(len, look)).most_common(1)[0][0] if look else 0
    columns = tuple(cell.strip() for cell in header) if header else tuple(map(str, range(width)))
    most = max(_MOST_LETTERS, 2 * config.max_cell_bytes)
    table = Table(
        name=name,
        columns=columns,
        named=header is not None,
        look=[(*row, *[""] * (width - len(row)))[:width] for row in look],
        records=partial(_records, file, form, name, width, most, before),
        described=f"{'UTF-8' if file.encoding.startswith('utf-8') else file.encoding}, {form}",
        read_as={
            "encoding": file.encoding,
            "delimiter": form.delimiter,
            "quoting": form.quoting,
            "header": "yes" if form.header else "no",
        },
        remark=file.remark,
    )
    table.check_look()
    return table


def _records(file: TextFile, form: Form, name: str, width: int, most: int, before: int, wanted: Sequence[int]) -> Iterator[Record]:
    """The wanted cells of each record."""
    pick = itemgetter(*wanted) if len(wanted) > 1 else lambda row: (row[wanted[0]],)
    with file.open() as text:
        rows = _rows(text, form, name, most, before)
        header = next((row for _, row in rows if row), None) if form.header else None
        for line, row in rows:
            if _repeats(row, header):
                yield line, Unusable("equal to the header")
            elif len(row) == width:
                yield line, pick(row)
            elif len(row) > width and any(cell.strip() for cell in row[width:]):
                yield line, Unusable(f"with more than {width} cells")
            elif row:
                yield line, pick([*row, *[""] * (width - len(row))])


def _repeats(row: Cells, header: Cells | None) -> bool:
    """Whether a record is the header again, in files that were put end to end; the mark of an encoding may stand before it."""
    return header is not None and row[-1:] == header[-1:] and [row[0].lstrip("\ufeff"), *row[1:]] == header


class _Lines:
    """The lines of a file one by one, with a line of our own at the end; counts what the record at hand has taken."""

    def __init__(self, text: Any, name: str, most: int, before: int, cut: bool) -> None:
        for _ in range(before):
            text.readline()
        self.number = before  # lines read
        self.letters = 0  # of the record at hand
        self.first = before + 1  # its first line
        self._text, self._name, self._most, self._cut = text, name, most, cut

    def __iter__(self) -> Iterator[str]:
        for line in iter(partial(self._text.readline, self._most + 1), ""):
            self.number += 1
            self.letters += len(line)
            if self.letters > self._most:
                raise BadSource(
                    f"{self._name}, line {self.first}: a record of more than {spaced(self._most)} letters begins here. "
                    "If a quote is open there, close it, or type --quoting none if quotes are text."
                )
            yield line
        if not self._cut:
            yield _END


def _rows(text: Any, form: Form, name: str, most: int, before: int, cut: bool = False) -> Iterator[tuple[int, list[str]]]:
    """First line and cells of each record, none of more than `most` letters.

    Args:
        before: lines to pass over.
        cut: the text is the beginning of a file, so that its last record may be half a one.
    """
    lines = _Lines(text, name, most, before, cut)
    reader = form.reader(lines)
    row: list[str] = []
    try:
        for row in reader:
            if lines.number == before + reader.line_num or cut:
                yield lines.first, row
                lines.first, lines.letters = lines.number + 1, 0
    except csv.Error as error:
        raise BadSource(f"{name}, line {lines.first}: {error}.") from None
    if not cut and row != [_END]:
        opened = lines.first + sum(cell.count("\n") for cell in row[:-1])
        raise BadSource(
            f'{name}, line {opened}: a quote (") opens here and is not closed by the end of the file. '
            "Close it, or type --quoting none if quotes are text."
        )


def find_form(beginning: str, whole: bool, config: DataConfig) -> Form:
    """The form of a file by its beginning, where the settings leave it open.

    >>> find_form("ham\\tOk lar, he said\\nspam\\t\\"Free entry\\" now\\nham\\tyes\\n", True, DataConfig())
    Form(delimiter='\\t', quoting='none', header=False, spaced=False, escaped=False)
    """
    beginning = beginning.replace("\0", "")
    delimiter = config.delimiter if config.delimiter != "auto" else _find_delimiter(beginning[: _BEGINNING // 4])
    form = Form(delimiter, "none", header=False)
    if config.quoting != "none":
        quoted = _find_spelling(beginning, delimiter)
        if config.quoting == "minimal" or _is_quoted(beginning, quoted, whole):
            form = quoted
    if config.header != "auto":
        return replace(form, header=config.header == "yes")
    rows = [row for row in islice(form.reader(_lines_of(beginning)), LOOK) if row]
    return replace(form, header=_has_header(rows, {config.text, config.label, config.text_pair} - {None}))


def _lines_of(text: str) -> Iterable[str]:
    return io.StringIO(text, newline="")


def _spellings(text: str, delimiter: str) -> list[Form]:
    """How quoted cells may be written in a text: as usual, with spaces before them, with a backslash before quotes within them."""
    usual = Form(delimiter, "minimal", header=False)
    forms = [usual, replace(usual, escaped=True)] if '\\"' in text else [usual]
    if re.search(rf'(^|{re.escape(delimiter)}) +"', text, re.MULTILINE):
        forms += [replace(form, spaced=True) for form in forms if _any_quote_behind_space(text, form)]
    return forms


def _any_quote_behind_space(text: str, form: Form) -> bool:
    """Whether a cell begins with spaces and a quote; within other quotes, where texts have such, it is none."""
    return any(cell[:1] == " " and cell.lstrip(" ")[:1] == '"' for row in form.reader(_lines_of(text)) for cell in row)


def _find_spelling(text: str, delimiter: str) -> Form:
    """The spelling of quoted cells that leaves the fewest lines in records that no program writes so; of two alike, the simpler one.

    Where nothing speaks against it, quotes behind spaces enclose a cell: a program that writes them as text puts quotes around them.
    """
    spellings = _spellings(text, delimiter)
    if len(spellings) == 1:
        return spellings[0]
    odd = {form: _odd_lines(text, form) for form in spellings}
    return min(spellings, key=lambda form: (odd[form], form.escaped, not form.spaced))


def _odd_lines(text: str, form: Form) -> int:
    """Lines in records with letters behind a closing quote, or of another width than most, or of several whole records."""
    lines = io.StringIO(text, newline="").readlines()
    usual = Counter(len(row) for row in form.reader(lines) if row).most_common(1)[0][0]
    reader, first, odd = form.reader(iter(lines)), 0, 0
    for row in reader:
        record, first = lines[first : reader.line_num], reader.line_num
        if row and (len(row) != usual or _is_sloppy(record, form) or _are_several(record, form.delimiter, usual - 1)):
            odd += len(record)
    return odd


def _find_delimiter(text: str) -> str:
    """The delimiter that gives most records as many cells as the first one has; several columns at least."""
    best, best_share = _NO_DELIMITER, 0.0
    for delimiter in DELIMITERS:
        for form in (*_spellings(text, delimiter), Form(delimiter, "none", False)):
            rows = [len(row) for row in form.reader(_lines_of(text)) if row]
            widths = rows[:-1] or rows
            share = widths.count(widths[0]) / len(widths) if widths and widths[0] > 1 else 0.0
            if share > best_share + 0.01:
                best, best_share = delimiter, share
    names: list[str] = next((row for row in Form(best, "minimal", False).reader(_lines_of(text)) if row), [])
    return best if best_share >= 0.7 or any(map(is_known_name, names)) else _NO_DELIMITER


def _is_quoted(text: str, form: Form, whole: bool) -> bool:
    """Whether double quotes enclose cells.

    Records that only quotes hold together (a delimiter, a line end or a doubled quote within a cell) speak for it.
    Against it: letters after a closing quote, and records of several lines of which each is a whole record by itself.
    Files with tabs need a reason for quotes, files with commas one against them.
    """
    delimiter = form.delimiter
    if not re.search(rf'(^|{re.escape(delimiter)}){" *" * form.spaced}"', text, re.MULTILINE):
        return delimiter != "\t"
    lines = io.StringIO(text, newline="").readlines()
    reader = form.reader(iter(lines))
    usual = Counter(line.count(delimiter) for line in lines).most_common(1)[0][0]
    within = '\\"' if form.escaped else '""'
    held = against = first = 0
    for row in reader:
        record, first = lines[first : reader.line_num], reader.line_num
        if first == len(lines) and len(record) > 1:  # the beginning ends within this record, or the file within a quote
            against += delimiter == "\t" and whole
        elif _is_sloppy(record, form) or _are_several(record, delimiter, usual):
            against += 1
        elif len(record) > 1 or record[0].count(delimiter) != len(row) - 1 or within in record[0]:
            held += 1
    return held >= against


def _are_several(record: list[str], delimiter: str, usual: int) -> bool:
    """Whether each line of a record has as many delimiters as are usual, so that it may be a record by itself."""
    return len(record) > 1 and all(line.count(delimiter) == usual for line in record)


def _is_sloppy(record: list[str], form: Form) -> bool:
    """Whether letters follow a closing quote in a record: no program writes cells so."""
    try:
        for _ in form.reader(record, strict=True):
            pass
    except csv.Error:
        return True
    return False


def _has_header(rows: list[list[str]], asked: set[str | None]) -> bool:
    """Whether the first record names the columns: a name that is asked for or well known, or short words that are not data."""
    if not rows:
        return False
    first = [cell.strip() for cell in rows[0]]
    if asked & set(first):
        return True
    others = [row for row in rows[1:] if not _repeats(row, rows[0])]
    if any(cell and len(row) > column and row[column].strip() == cell for row in others for column, cell in enumerate(first)):
        return False  # a value that comes again in its column is a label, not the name of one
    if any(map(is_known_name, first)):
        return True
    named = [cell for cell in first if cell]
    if len(first) < 2 or len(set(named)) < len(named) or not named or not others:
        return False
    return not any(len(cell) > 40 or len(cell.split()) > 3 or re.fullmatch(r"[-+]?[\d.,]+", cell) for cell in named)

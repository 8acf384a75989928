"""Tables as values, and how a terminal shows them: names of any length and script, columns that line up."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

NARROWEST = 16  # terminal columns of a column of words


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table of words; numbers stand right, the columns in `left` and the first one left."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    left: frozenset[int] = frozenset()

    def is_left(self, column: int) -> bool:
        return column == 0 or column in self.left


def visible(text: str) -> str:
    r"""The text in one line, with control and direction marks written out, so that no label can move the cursor.

    >>> print(visible("two\nlines \x1b[31m \u202eevil"))
    two lines \x1b[31m \u202eevil
    """
    return "".join(_visible(mark) for mark in text)


def _visible(mark: str) -> str:
    if mark.isprintable() or mark == "\u200d":  # the joiner inside one emoji: without it a family is four people
        return mark
    return " " if mark.isspace() else mark.encode("unicode_escape").decode()


def width(text: str) -> int:
    """Terminal columns: two for wide East Asian characters and emoji, none for combining ones.

    >>> width("abc"), width("日本"), width("e\u0301")
    (3, 4, 1)
    """
    return sum(_width_of(mark) for mark in text)


def _width_of(mark: str) -> int:
    if mark < "\u0300":
        return 1
    if unicodedata.category(mark) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(mark) in "WF" else 1


def shorten(text: str, most: int) -> str:
    """The text within so many terminal columns; its end is kept too, since names that begin alike differ there.

    >>> shorten("sociology of religion", 12), shorten("law", 6)
    ('sociolo…gion', 'law')
    """
    if width(text) <= most:
        return text
    end = _beginning(text[::-1], min(most // 3, 12))[::-1]
    return _beginning(text, most - 1 - width(end)) + "…" + end


def _beginning(text: str, most: int) -> str:
    """The longest beginning that fits."""
    kept = ""
    for mark in text:
        most -= _width_of(mark)
        if most < 0:
            break
        kept += mark
    return kept


def render(table: Table, columns: int) -> str:
    """The table as lines of at most so many terminal columns, as far as its numbers allow; long words are shortened."""
    cells = [[visible(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(width(row[number]) for row in cells) for number in range(len(table.columns))]
    _fit(widths, [number for number in range(len(widths)) if table.is_left(number)], columns - 2 * len(widths))
    lines = [_line(table, row, widths) for row in cells]
    if not any(table.columns):
        lines = lines[1:]
    note = textwrap.wrap(table.note, columns, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([visible(table.title), *lines, *note])


def _fit(widths: list[int], flexible: Sequence[int], room: int) -> None:
    """Narrow the widest of the columns of words until all fit, but none further than to NARROWEST."""
    excess = sum(widths) - room
    while excess > 0 and flexible:
        widest = max(flexible, key=lambda number: widths[number])
        if widths[widest] <= NARROWEST:
            return
        others = [widths[number] for number in flexible if number != widest]
        step = min(excess, max(1, widths[widest] - max([NARROWEST, *others])))
        widths[widest] -= step
        excess -= step


def _line(table: Table, row: Sequence[str], widths: Sequence[int]) -> str:
    parts = []
    for number, (cell, room) in enumerate(zip(row, widths, strict=True)):
        cell = shorten(cell, room)
        gap = " " * (room - width(cell))
        parts.append(cell + gap if table.is_left(number) else gap + cell)
    return ("  " + "  ".join(parts)).rstrip()

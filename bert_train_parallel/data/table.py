"""What every readable source is before its columns are chosen: named columns, a first look, and records with their lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bert_train_parallel.errors import BadSource, one_line

_SHOWN = 5  # line numbers of each kind of bad line
LOOK = 1_000  # records by which columns are guessed


@dataclass(slots=True)
class BadLines:
    """Lines that cannot be used, counted by what is wrong with them."""

    unit: str = "line"  # what a record stands in: line, row, entry
    found: dict[str, list[int]] = field(default_factory=dict)  # reason -> first few lines
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, line: int, reason: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        lines = self.found.setdefault(reason, [])
        if len(lines) < _SHOWN:
            lines.append(line)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        """
        >>> bad = BadLines()
        >>> bad.add(7, "without text"); bad.add(9, "without text"); bad.add(12, "without label")
        >>> print(bad)
        2 lines without text (7, 9), 1 line without label (12)
        """
        parts = []
        for reason, lines in self.found.items():
            count = self.counts[reason]
            more = ", ..." if count > len(lines) else ""
            parts.append(f"{spaced(count)} {_plural(self.unit) if count > 1 else self.unit} {reason} ({', '.join(map(str, lines))}{more})")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Unusable:
    """What stands in the place of a record's cells where they cannot be told."""

    reason: str


Cells = Sequence[Any]
Record = tuple[int, Cells | Unusable]  # with the line at which it begins
Records = Callable[[Sequence[int]], Iterator[Record]]


@dataclass(frozen=True, slots=True)
class Table:
    """A source whose form is known, not yet which of its columns are text and label."""

    name: str  # as the user typed it
    columns: tuple[str, ...]
    named: bool  # whether the source names its columns; else they are called 0, 1, 2, ...
    look: Sequence[Cells]  # the cells of its first records, to guess columns by
    records: Records  # numbers of the wanted columns -> line and wanted cells of each record
    described: str  # its form in a few words
    read_as: dict[str, Any] = field(default_factory=dict)  # the settings that `auto` stood for
    unit: str = "line"
    remark: str = ""  # what the user should know of it
    read_on: Callable[[], Table] | None = None  # the same with the columns of all its records, where the first may not have all

    def usable(self, wanted: Sequence[int]) -> Iterator[tuple[int, Cells]]:
        """The records whose cells can be told."""
        for line, cells in self.records(wanted):
            if not isinstance(cells, Unusable):
                yield line, cells

    def check_look(self) -> None:
        """
        Raises:
            BadSource: there is no record.
        """
        if not self.look:
            raise BadSource(
                f"{self.name} has no {_plural(self.unit)} of data{' after its header' if self.named and self.unit == 'line' else ''}."
            )


def _plural(unit: str) -> str:
    """
    >>> _plural("line"), _plural("entry")
    ('lines', 'entries')
    """
    return f"{unit.removesuffix('y')}ies" if unit.endswith("y") else f"{unit}s"


def spaced(number: int) -> str:
    """
    >>> spaced(1234567)
    '1 234 567'
    """
    return f"{number:,}".replace(",", " ")


def shown(text: str, most: int = 40) -> str:
    """A cell for a sentence: one line, not long."""
    plain = one_line(" ".join(text.split()))
    return plain if len(plain) <= most else plain[: most - 3] + "..."

"""What a source yields: samples, and the lines that are none."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bert_train_parallel.errors import BadSource

TEXT_NAMES = (
    *("text", "texts", "tweet", "sentence", "sentences", "content", "body", "message", "review", "article", "string", "comment", "post"),
    *("document", "abstract", "description", "utterance", "question", "premise", "sentence1", "title", "snippet", "sms", "input"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "category", "target", "leaning", "sentiment", "author", "topic", "intent", "bias", "stance", "rating"),
    *("score", "y", "tag", "gold_label", "label_text", "bias_text", "answer", "polarity", "spam", "output"),
)
_FIRST_FEW = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a source: a text, perhaps a second one, and its label."""

    line: int  # at which it begins, counted from 1
    texts: tuple[str, ...]  # one or two
    label: str
    split: str | None = None  # train | validate | test where the source says it


@dataclass(slots=True)
class BadRows:
    """The lines that were left out, counted by reason."""

    total: int = 0  # lines read, good ones too
    reasons: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def add(self, line: int, reason: str) -> None:
        self.reasons[reason] += 1
        if len(self.lines) < _FIRST_FEW:
            self.lines.append(str(line))

    @property
    def count(self) -> int:
        return self.reasons.total()

    def __str__(self) -> str:
        """
        >>> bad = BadRows(total=50)
        >>> bad.add(7, "without text"); bad.add(9, "without label"); print(bad)
        2 of 50 rows left out (1 without text, 1 without label): lines 7, 9
        """
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        more = ", ..." if self.count > len(self.lines) else ""
        return f"{self.count} of {self.total} rows left out ({reasons}): line{'s' * (self.count > 1)} {', '.join(self.lines)}{more}"

    def check(self, source: str, most: float) -> None:
        """Raises BadSource when more than a share of `most` of the rows are bad."""
        if self.count > most * self.total:
            raise BadSource(f"{source}: {self}. That is more than --max_bad_rows {most:g} allows; mend the source, or allow more.")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold the text, a second text, and the label."""

    text: str
    pair: str | None
    label: str


def choose_columns(
    source: str, names: Sequence[str], rows: Iterable[Sequence[Any]], text: str | None, pair: str | None, label: str | None
) -> Columns:
    """The columns that were asked for, or that are meant by their names or their content.

    Args:
        rows: the first rows, to tell from their content where no name is known.
    Raises:
        BadSource: no such column, or several could be meant.

    >>> choose_columns("a.csv", ["", "count", "class", "tweet"], [], None, None, None)
    Columns(text='tweet', pair=None, label='class')
    """
    for flag, wanted in (("--text", text), ("--text_pair", pair), ("--label", label)):
        if wanted is not None and wanted not in names:
            raise BadSource(no_such_column(source, flag, wanted, names))
    rows = list(rows)
    taken = {name for name in (text, pair, label) if name is not None}
    text = text or _by_name(names, TEXT_NAMES, taken) or _longest(source, names, rows, taken)
    taken.add(text)
    label = label or _by_name(names, LABEL_NAMES, taken) or _fewest(source, names, rows, taken)
    return Columns(text, pair, label)


def choose_text(source: str, names: Sequence[str], rows: Iterable[Sequence[Any]], text: str | None) -> str:
    """The column of the text alone, where no label is needed; see `choose_columns`."""
    if text is not None:
        if text not in names:
            raise BadSource(no_such_column(source, "--text", text, names))
        return text
    if len(names) == 1:
        return names[0]
    return _by_name(names, TEXT_NAMES, set()) or _longest(source, names, list(rows), set())


def no_such_column(source: str, flag: str, wanted: str, names: Sequence[str]) -> str:
    """
    >>> no_such_column("a.csv", "--text", "twet", ["tweet", "class"])
    'a.csv has no column "twet" (--text). Did you mean "tweet"? Its columns: "tweet", "class".'
    """
    near = difflib.get_close_matches(wanted.lower(), [name.lower() for name in names], 1)
    hint = next((f' Did you mean "{name}"?' for name in names if near and name.lower() == near[0]), "")
    return f'{source} has no column "{wanted}" ({flag}).{hint} Its columns: {_listed(names)}.'


def _by_name(names: Sequence[str], known: Sequence[str], taken: set[str]) -> str | None:
    lowered = {name.lower(): name for name in names if name not in taken}
    return next((lowered[name] for name in known if name in lowered), None)


def _longest(source: str, names: Sequence[str], rows: Sequence[Sequence[Any]], taken: set[str]) -> str:
    """The column with by far the longest cells."""
    lengths = {
        name: sum(len(str(row[place])) for row in rows if place < len(row)) / max(1, len(rows))
        for place, name in enumerate(names)
        if name not in taken
    }
    ranked = sorted(lengths, key=lambda name: -lengths[name])
    if not ranked or (len(ranked) > 1 and lengths[ranked[0]] < 2 * lengths[ranked[1]]):
        raise BadSource(f"{source}: which column holds the text? Say it with -t NAME. Its columns: {_listed(names)}.")
    return ranked[0]


def _fewest(source: str, names: Sequence[str], rows: Sequence[Sequence[Any]], taken: set[str]) -> str:
    """The only column whose values come again and again."""
    candidates = []
    for place, name in enumerate(names):
        values = {str(row[place]).strip() for row in rows if place < len(row)} - {""}
        if name not in taken and 2 <= len(values) <= max(2, len(rows) // 4):
            candidates.append(name)
    others = [name for name in names if name not in taken]
    if len(candidates) != 1 and len(others) != 1:
        raise BadSource(f"{source}: which column holds the label? Say it with -l NAME. Its columns: {_listed(names)}.")
    return candidates[0] if len(candidates) == 1 else others[0]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:20])
    return shown + (", ..." if len(names) > 20 else "")

"""Which columns of a table are the text and the label: as asked for, by common names, or by what is in them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.table import Table, shown
from bert_train_parallel.errors import BadSource, one_line

# the first name of a list wins over the others; several of the others are a question for the user
_TEXT_NAMES = (
    *("text", "texts", "sentence", "tweet", "content", "body", "message", "msg", "review", "comment", "document", "doc", "article"),
    *("post", "string", "utterance", "question", "statement", "passage", "input", "sms", "email", "paragraph"),
)
_LABEL_NAMES = (
    *("label", "labels", "class", "category", "target", "author", "leaning", "sentiment", "stance", "topic", "intent", "polarity"),
    *("rating", "score", "emotion", "bias", "party", "tag", "gold", "gold_label", "y", "annotation", "spam", "toxic"),
)
_KNOWN = {*_TEXT_NAMES, *_LABEL_NAMES, "title", "headline", "id", "idx", "index", "sentence1", "sentence2", "premise", "hypothesis"}
DELIMITERS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "pipe"}  # what may separate cells, by likelihood
_MOST_CLASSES = 50  # of a column that is taken for the label by what is in it


@dataclass(frozen=True, slots=True)
class Columns:
    """Numbers of the columns to read."""

    text: int
    pair: int | None
    label: int | None

    @property
    def wanted(self) -> list[int]:
        return [number for number in (self.text, self.pair, self.label) if number is not None]


def is_known_name(cell: str) -> bool:
    return cell.strip().lower() in _KNOWN


def choose_columns(table: Table, config: DataConfig, labelled: bool = True) -> Columns:
    """The columns of text, second text and label.

    Raises:
        BadSource: no such column, or more than one that could be meant; the sentence names them.
    """
    text = _asked(table, config.text, "--text")
    pair = _asked(table, config.text_pair, "--text_pair")
    label = _asked(table, config.label, "--label") if labelled else None
    taken = [column for column in (text, pair, label) if column is not None]
    if len(set(taken)) < len(taken):
        raise BadSource(f"{table.name}: the column {_name(table, taken[0])} is asked for twice, among --text, --text_pair and --label.")
    if text is None:
        text = _by_name(table, "text", _TEXT_NAMES, taken)
    if labelled and label is None:
        label = _by_name(table, "label", _LABEL_NAMES, taken)
    if text is None:
        text = _text_by_content(table, [pair, label])
    if labelled and label is None:
        label = _label_by_content(table, [text, pair])
    return Columns(text, pair, label)


def _asked(table: Table, name: str | None, flag: str) -> int | None:
    """The number of a column that was asked for by name, or by number where the table has no names."""
    if name is None:
        return None
    matches = [number for number, column in enumerate(table.columns) if column == name.strip()]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise BadSource(f"{table.name} has {len(matches)} columns named {name!r} ({flag}); give them different names.")
    if not table.named:
        raise BadSource(
            f"{table.name} has no header, so {flag} {name} names no column: its columns are {', '.join(table.columns)}. "
            "Type one of these numbers, or --header yes if the first line does name them."
        )
    near = difflib.get_close_matches(name.lower(), [column.lower() for column in table.columns if column], 1)
    meant = next((column for column in table.columns if near and column.lower() == near[0]), None)
    hint = f" Did you mean {one_line(meant)}?" if meant is not None else ""
    raise BadSource(f"{table.name} has no column {name!r} ({flag}).{hint} Its columns: {_names(table)}.")


def _by_name(table: Table, what: str, names: Sequence[str], taken: Sequence[int]) -> int | None:
    """The one column with a common name; the first name of the list wins over the others."""
    if not table.named:
        return None
    free = {number: column.lower() for number, column in enumerate(table.columns) if number not in taken}
    first = [number for number, column in free.items() if column == names[0]]
    found = first or [number for number, column in free.items() if column in names]
    if len(found) > 1 and len({table.columns[number] for number in found}) == 1:
        raise BadSource(f"{table.name} has {len(found)} columns named {table.columns[found[0]]!r}; give them different names.")
    if len(found) > 1:
        raise BadSource(f"{table.name} has several columns that could be the {what}. Type {_choices(table, what, found)}.")
    return found[0] if found else None


def _text_by_content(table: Table, taken: Sequence[int | None]) -> int:
    """The column with by far the most letters and words."""
    free = [number for number in range(len(table.columns)) if number not in taken]
    if not free:
        raise BadSource(f"{table.name} has {_count(table)}; a column of texts beside the labels is expected. {_hint(table)}")
    weights = {number: sum(_weight(_cell(row[number])) for row in table.look) for number in free}
    ranked = sorted(free, key=lambda number: -weights[number])
    if len(ranked) > 1 and weights[ranked[1]] >= weights[ranked[0]] / 2:
        raise BadSource(f"{table.name}: it is not plain which column is the text. Type {_choices(table, 'text', ranked[:4])}.")
    return ranked[0]


def _weight(cell: str) -> int:
    """How much a cell is a text: letters times words.

    >>> _weight("the dog barks"), _weight("2024-05-17")
    (33, 0)
    """
    return sum(map(str.isalpha, cell)) * len(cell.split())


def _label_by_content(table: Table, taken: Sequence[int | None]) -> int:
    """The one column that is left, or the one with a few values that come again and again."""
    free = [number for number in range(len(table.columns)) if number not in taken]
    if not free:
        raise BadSource(f"{table.name} has {_count(table)}; a column of labels beside the texts is expected. {_hint(table)}")
    values = {number: {_cell(row[number]).strip() for row in table.look} for number in free}
    few = [number for number in free if 1 < len(values[number]) <= min(_MOST_CLASSES, len(table.look) * 2 // 3)]
    found = free if len(free) == 1 else few
    if len(found) != 1:
        raise BadSource(f"{table.name}: it is not plain which column is the label. Type {_choices(table, 'label', found or free)}.")
    return found[0]


def _choices(table: Table, what: str, numbers: Sequence[int]) -> str:
    return " or ".join(f"--{what} {_name(table, number)}" for number in numbers[:6])


def _cell(cell: Any) -> str:
    return cell if isinstance(cell, str) else "" if cell is None else str(cell)


def _name(table: Table, number: int) -> str:
    return one_line(table.columns[number]) or repr("")


def _names(table: Table) -> str:
    return ", ".join(one_line(column) or "(no name)" for column in table.columns[:30]) + (", ..." if len(table.columns) > 30 else "")


def _count(table: Table) -> str:
    return "one column" if len(table.columns) == 1 else f"{len(table.columns)} columns ({_names(table)})"


def _hint(table: Table) -> str:
    first = " | ".join(shown(_cell(cell), 24) for cell in table.look[0])
    todo = (
        _hint_on_title(table) or "Name what separates its columns with --delimiter."
        if "delimiter" in table.read_as
        else "What stands inside of other values is not looked at: write text and label side by side."
    )
    return f"Its first {table.unit} of data reads: {first}. {todo}"


def _hint_on_title(table: Table) -> str:
    """What to do where the first line seems to be a title above the header: it alone lacks what separates the others."""
    first, *others = (_cell(row[0]) for row in table.look[:20])
    for delimiter, name in DELIMITERS.items():
        counts = [line.count(delimiter) for line in others]
        usual = max(set(counts), key=counts.count) if len(counts) > 1 and delimiter not in first else 0
        if usual and counts.count(usual) >= 0.7 * len(counts):
            return f"It has no {name}, as the lines below have: if it is a title or a comment, remove it."
    return ""

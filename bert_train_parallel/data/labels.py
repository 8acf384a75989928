"""Labels as they are read, and what they say about the task: names of classes, or numbers."""

from __future__ import annotations

import math
import re
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bert_train_parallel.data.batches import IntArray
from bert_train_parallel.errors import BadSource

Task = Literal["classification", "regression"]

_MAX_CLASSES = 20_000
MANY_NUMBERS = 20  # different whole numbers that are more often amounts, such as scores of 0 to 100, than codes of classes
_MISSING = {"nan", "null", "<na>"}  # what table programs write where there is nothing
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of n samples."""

    task_type: Task
    values: npt.NDArray[np.generic]  # (n,) class codes int32, or float64
    names: tuple[str, ...]  # of the classes, by code; none for a regression

    @property
    def codes(self) -> IntArray:
        """(n,) class codes; zeros for a regression."""
        return self.values.astype(np.int32) if self.task_type == "classification" else np.zeros(len(self.values), np.int32)


class LabelReader:
    """Collects labels sample by sample and tells at the end what they are.

    Classes are coded in the order of their sorted names, numerically where all are whole numbers. The task is a
    regression when asked for, or with `auto` when every label is a number and one of them has a fraction.

    >>> reader = LabelReader("auto", "scores.csv")
    >>> for label in ("10", "9", "10.0"):
    ...     reader.add(label)
    >>> found = reader.finish()
    >>> found.task_type, found.names, found.values.tolist()
    ('classification', ('9', '10'), [1, 0, 1])
    """

    def __init__(self, task_type: Literal["auto", "classification", "regression"], source: str) -> None:
        self._asked, self._source = task_type, source
        self._codes = array("i")
        self._code_of: dict[str, int] = {}
        self._numbers: array[float] | None = array("d") if task_type == "regression" else None

    def __len__(self) -> int:
        return len(self._codes) if self._numbers is None else len(self._numbers)

    def accepts(self, label: str) -> bool:
        """Whether a label can be one of this task; `auto` takes all."""
        return self._numbers is None or number_in(label) is not None

    def add(self, label: str) -> None:
        """Take one more label, which `accepts` has let pass."""
        if self._numbers is not None:
            self._numbers.append(float(label))
            return
        code = self._code_of.setdefault(label, len(self._code_of))
        self._codes.append(code)
        if len(self._code_of) > _MAX_CLASSES:
            self._become_numbers()

    def _become_numbers(self) -> None:
        """Too many different labels for classes: numbers of a regression, or the wrong column."""
        values = [number_in(label) for label in self._code_of]
        if self._asked == "classification" or None in values or not _any_fraction(self._code_of):
            raise BadSource(
                f"{self._source}: the labels have more than {_MAX_CLASSES} different values; is it the right column? "
                "Name another with --label, or type --task_type regression to learn numbers."
            )
        table = np.array(values, np.float64)
        self._numbers = array("d", table[np.frombuffer(self._codes, np.int32)].tobytes())
        self._codes = array("i")

    def finish(self) -> Labels:
        """The labels, their names and the task."""
        if self._numbers is not None:
            return Labels("regression", np.frombuffer(self._numbers, np.float64), ())
        codes = np.frombuffer(self._codes, np.int32)
        if self._asked == "auto" and self._code_of and _any_fraction(self._code_of):
            numbers = [number_in(label) for label in self._code_of]
            if None not in numbers:
                return Labels("regression", np.array(numbers, np.float64)[codes], ())
        named = {label: _class_name(label, all(map(_WHOLE.fullmatch, self._code_of))) for label in self._code_of}
        names = sorted(set(named.values()), key=_by_number if all(map(_WHOLE.fullmatch, named.values())) else None)
        place = {name: code for code, name in enumerate(names)}
        final = np.array([place[named[label]] for label in self._code_of], np.int32)
        return Labels("classification", final[codes], tuple(names))


def advice_on_numbers(names: Sequence[str]) -> str:
    """What to do where classes look like numbers that were meant to be learned as such; empty where they do not.

    >>> advice_on_numbers(["0.5", "0.7", "1.2", "high"])
    "All of the labels but 'high' are numbers: to learn numbers, correct it or type --task_type regression, which leaves such lines out."
    >>> advice_on_numbers(["0,5", "0,7"])
    'They look like numbers with a decimal comma: to learn numbers, write a point in its place.'
    >>> advice_on_numbers([str(score) for score in range(101)])
    'All of the 101 labels are numbers: to learn numbers, not classes, type --task_type regression.'
    >>> advice_on_numbers(["ham", "spam"]), advice_on_numbers(["1", "2"])
    ('', '')
    """
    others = [name for name in names if number_in(name) is None]
    if not others and len(names) > MANY_NUMBERS:
        return f"All of the {len(names)} labels are numbers: to learn numbers, not classes, type --task_type regression."
    if others and all(number_in(name.replace(",", ".", 1)) is not None for name in others):
        return "They look like numbers with a decimal comma: to learn numbers, write a point in its place."
    if not 0 < len(others) <= len(names) / 4:
        return ""
    shown = ", ".join(map(repr, others[:3])) + (", ..." if len(others) > 3 else "")
    return (
        f"All of the labels but {shown} are numbers: to learn numbers, correct {'it' if len(others) == 1 else 'them'} "
        "or type --task_type regression, which leaves such lines out."
    )


def doubts_about(names: Sequence[str]) -> Iterator[str]:
    """Classes that may be none, or one: a sentence each.

    >>> for doubt in doubts_about(["NEG", "NaN", "neg", "pos"]):
    ...     print(doubt)
    the label 'NaN' is a class like the others: where it means that there is none, leave the cell empty
    the labels 'NEG', 'neg' differ in capital letters alone, and are classes of their own
    """
    for name in names:
        if name.lower() in _MISSING:
            yield f"the label {name!r} is a class like the others: where it means that there is none, leave the cell empty"
    alike = defaultdict(list)
    for name in names:
        alike[name.casefold()].append(name)
    several = [repr(name) for group in alike.values() if len(group) > 1 for name in group]
    if several:
        shown = ", ".join(several[:6]) + ", ..." * (len(several) > 6)
        yield f"the labels {shown} differ in capital letters alone, and are classes of their own"


def number_in(label: str) -> float | None:
    """The number that a label is; None for any other, and for NaN and infinity."""
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _any_fraction(labels: dict[str, int]) -> bool:
    values = map(number_in, labels)
    return any(value is not None and not value.is_integer() for value in values)


def _class_name(label: str, whole: bool) -> str:
    """`1.0` is the class `1` where all labels are whole numbers: a table program wrote it so."""
    return label.partition(".")[0] if whole else label


def _by_number(name: str) -> tuple[int, str]:
    return int(name), name

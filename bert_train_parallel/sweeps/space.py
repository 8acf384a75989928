"""What a sweep searches: settings with their ranges, some in force only under another's value. Pure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, RootModel, ValidationError, field_validator, model_validator

from bert_train_parallel.config import TrainConfig, setting_names

Value = bool | int | float | str
Conditions = dict[str, tuple[Value, ...]]

OTHER_NAMES = {"num_epochs": "epochs", "max_seq_length": "sequence_len", "model_name": "model"}
NOT_SEARCHED = {"text", "text_pair", "label", "split_seed", "validation_file", "test_file", "metric", "max_eval_samples", "task_type"}
NOT_SEARCHED |= {"dataset_config", "split"}  # all trials read one snapshot, and are measured by the same samples of it


class _Parameter(BaseModel, frozen=True, extra="forbid"):
    when: Conditions = {}  # in force only where each of these other parameters has one of these values

    @field_validator("when", mode="before")
    @classmethod
    def _one_value_is_a_list(cls, found: Any) -> Any:
        if not isinstance(found, dict):
            return found
        return {OTHER_NAMES.get(name, name): value if isinstance(value, list | tuple) else [value] for name, value in found.items()}


class _Range(_Parameter, frozen=True):
    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        low, high, log = (getattr(self, name) for name in ("low", "high", "log"))
        if low > high:
            raise ValueError(f"low {low:g} is above high {high:g}; swap them")
        if log and low <= 0:
            raise ValueError(f"low {low:g} with log; a logarithmic range begins above 0")
        return self


Num = Annotated[int | None, Field(ge=1, le=10_000)]  # values that a grid takes from a range


class FloatRange(_Range, frozen=True):
    """Numbers from low to high."""

    type: Literal["float"] = "float"
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    num: Num = None


class IntRange(_Range, frozen=True):
    """Whole numbers from low to high, in steps; a grid takes all of them, or `num`."""

    type: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False
    step: int = Field(default=1, ge=1)
    num: Num = None

    @model_validator(mode="after")
    def _step_alone(self) -> Self:
        if self.log and self.step != 1:
            raise ValueError("a logarithmic range has no step; leave one of log and step out")
        if self.num is not None and self.step != 1:
            raise ValueError("num and step both say which values a grid takes; leave one of them out")
        return self


class Choice(_Parameter, frozen=True):
    """One of some values."""

    type: Literal["choice"] = "choice"
    values: tuple[Value, ...] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def _each_once(cls, values: tuple[Value, ...]) -> tuple[Value, ...]:
        twice = next((value for number, value in enumerate(values) if _holds(values[:number], value)), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is there twice")
        return values


Parameter = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]

DEFAULT_SPACE: dict[str, Any] = {"learning_rate": [1e-5, 5e-5], "batch_size": [2, 4, 8], "max_seq_length": [64, 128, 256]}


class SweepSpace(RootModel[dict[str, Parameter]], frozen=True):
    """The parameters by name, those that others depend on first.

    A list is a choice, but for `learning_rate`, where two numbers are the ends of a logarithmic range.

    >>> space = SweepSpace(learning_rate=(1e-5, 5e-5), batch_size=[16, 32])
    >>> space.root["learning_rate"].log, space.root["batch_size"].values
    (True, (16, 32))
    >>> list(SweepSpace(warmup={"low": 0, "high": 0.2, "when": {"schedule": "linear"}}, schedule=["linear", "constant"]).root)
    ['schedule', 'warmup']
    """

    @model_validator(mode="before")
    @classmethod
    def _read(cls, found: Any) -> Any:
        if not isinstance(found, dict):
            return found
        known = {OTHER_NAMES.get(name, name): _spelled_out(name, value) for name, value in found.items()}
        if len(known) < len(found):
            raise ValueError(f"one setting is there under two names: {', '.join(found)}")
        return known

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.root:
            raise ValueError('there is nothing to search; give at least one range, such as {"learning_rate": [1e-5, 1e-3]}')
        for name, parameter in self.root.items():
            _check_values(name, parameter)
            _check_conditions(name, parameter, self.root)
        try:
            order = list(TopologicalSorter({name: sorted(found.when) for name, found in sorted(self.root.items())}).static_order())
        except CycleError as error:
            raise ValueError(f"these depend on each other in a circle: {', '.join(error.args[1][:-1])}") from None
        ordered = {name: self.root[name] for name in order}
        self.root.clear()
        self.root.update(ordered)
        return self

    def __iter__(self) -> Iterator[tuple[str, Parameter]]:  # type: ignore[override]
        return iter(self.root.items())


def is_in_force(parameter: FloatRange | IntRange | Choice, values: Mapping[str, Value]) -> bool:
    """Whether a parameter counts, given the values of those before it.

    >>> warmup = FloatRange(low=0, high=0.2, when={"schedule": ["linear"]})
    >>> is_in_force(warmup, {"schedule": "linear"}), is_in_force(warmup, {"schedule": "constant"}), is_in_force(warmup, {})
    (True, False, False)
    """
    return all(name in values and _holds(allowed, values[name]) for name, allowed in parameter.when.items())


def _holds(values: tuple[Value, ...], value: Value) -> bool:
    """Membership in which True is not 1."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


def _spelled_out(name: str, found: Any) -> Any:
    """The long form of a parameter that was given as a list, or as an object without its type."""
    choices = found.get("values") if isinstance(found, dict) else found
    if isinstance(choices, list | tuple) and None in choices:
        raise ValueError(f"{name}: null is no choice; write the value that it stands for, or search {name} without it")
    if isinstance(found, list | tuple):
        is_range = name == "learning_rate" and len(found) == 2 and all(isinstance(end, int | float) for end in found)
        return {"type": "float", "low": found[0], "high": found[1], "log": True} if is_range else {"type": "choice", "values": list(found)}
    if isinstance(found, BaseModel):
        return found.model_dump()
    if not isinstance(found, dict):
        raise ValueError(f"{name}: {found!r} is neither a list of choices nor a range with low and high; a fixed value belongs to base")
    if not found.keys() & {"low", "high", "values"}:
        raise ValueError(f'{name}: write {{"low": 1, "high": 4}} for a range, {{"values": [1, 4]}} for a choice; it has {", ".join(found)}')
    kind = found.get("type", "choice" if "values" in found else None)
    if kind in (None, "float") and "step" in found and not _is_whole(name):
        raise ValueError(f"{name}: step is for whole numbers; num says how many values a grid takes of a range such as this")
    if kind not in (None, "float") or (kind == "float" and "num" in found) or not _is_whole(name):
        return found | {"type": kind or "float"}
    numbers = {end: found[end] for end in ("low", "high", "step") if isinstance(found.get(end), int | float)}
    if not all(math.isfinite(number) and number == int(number) for number in numbers.values()):
        return found | {"type": "float"}
    return found | {end: int(number) for end, number in numbers.items()} | {"type": "int"}  # a table writes 1.0 for 1


def _is_whole(name: str) -> bool:
    field = TrainConfig.model_fields.get(OTHER_NAMES.get(name, name))
    return field is None or "float" not in str(field.annotation)


def _check_values(name: str, parameter: FloatRange | IntRange | Choice) -> None:
    """Raises ValueError where a value is one that training would not take."""
    allowed = [one for one in setting_names("data", "model") if one not in NOT_SEARCHED]
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, 1)
        raise ValueError(f"{name} cannot be searched. " + (f"Did you mean {near[0]}?" if near else f"Known: {', '.join(sorted(allowed))}"))
    for value in parameter.values if isinstance(parameter, Choice) else (parameter.low, parameter.high):
        try:
            TrainConfig.model_validate({name: value})
        except ValidationError as error:
            words = str(error.errors()[0]["msg"]).removeprefix("Value error, ").removeprefix("Input ")
            raise ValueError(f"{name}: {value!r}: {words}") from None


def _check_conditions(name: str, parameter: FloatRange | IntRange | Choice, space: Mapping[str, Parameter]) -> None:
    for other, values in parameter.when.items():
        if other == name or other not in space:
            raise ValueError(f"{name} depends on {other}, which is not another parameter of this space")
        possible = space[other]
        for value in values:
            if isinstance(possible, Choice):
                found = _holds(possible.values, value)
            else:
                found = isinstance(value, int | float) and not math.isnan(value) and possible.low <= value <= possible.high
            if not found:
                raise ValueError(f"{name} depends on {other} being {value!r}, which {other} never is")

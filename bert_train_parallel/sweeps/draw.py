"""Trials drawn at random or taken from a grid: pure, and the same on every machine and in every version."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from bert_train_parallel.sweeps.space import Choice, FloatRange, IntRange, Parameter, SweepSpace, Value, is_in_force

Values = dict[str, Value]

DRAWS = 20  # for one trial, until one is new; then what is left of the space is looked through
MOST_LISTED = 10_000  # configurations of a space; a larger one is never looked through


def uniform(seed: int, *place: object) -> float:
    """A number in [0, 1) that follows from the seed and the place alone.

    A hash, not a generator with a state: what is drawn for one trial and parameter depends on no other.

    >>> 0 <= uniform(42, "trial", 7) < 1 and uniform(42, "trial", 7) == uniform(42, "trial", 7)
    True
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *place))).encode()).digest()
    return (int.from_bytes(digest[:7], "big") >> 3) / 2**53


def value_at(parameter: FloatRange | IntRange | Choice, share: float) -> Value:
    """The value at a share of the way through a range, share in [0, 1).

    >>> value_at(FloatRange(low=1e-5, high=1e-3, log=True), 0.5), value_at(IntRange(low=1, high=4), 0.99)
    (0.0001, 4)
    """
    if isinstance(parameter, Choice):
        return parameter.values[int(share * len(parameter.values))]
    low, high = parameter.low, parameter.high
    if isinstance(parameter, FloatRange):
        found = math.exp(math.log(low) + share * (math.log(high) - math.log(low))) if parameter.log else low + share * (high - low)
        # six digits: enough to search, the same where libm differs in the last bit, and fit to be read
        return min(max(float(f"{found:.6g}"), low), high)
    if parameter.log:
        ends = math.log(low - 0.5), math.log(high + 0.5)  # so that the ends are as likely as their neighbours
        return min(max(round(math.exp(ends[0] + share * (ends[1] - ends[0]))), parameter.low), parameter.high)
    return parameter.low + int(share * ((parameter.high - parameter.low) // parameter.step + 1)) * parameter.step


def draw_random(space: SweepSpace, seed: int, number: int, again: int = 0) -> Values:
    """The values of one trial, or of its draw `again`; parameters that are not in force are left out.

    >>> space = SweepSpace(learning_rate=(1e-5, 1e-3), batch_size=[16, 32])
    >>> draw_random(space, 42, 0) == draw_random(space, 42, 0) != draw_random(space, 42, 1)
    True
    """
    drawn: Values = {}
    for name, parameter in space:
        if is_in_force(parameter, drawn):
            place = (number, name, again) if again else (number, name)
            drawn[name] = value_at(parameter, uniform(seed, *place))
    return drawn


def key_of(values: Values) -> str:
    """The same for two trials that would train alike, the order in which their values are told aside.

    >>> key_of({"epochs": 1, "freeze": True}) == key_of({"freeze": True, "epochs": 1}) != key_of({"freeze": 1, "epochs": 1})
    True
    """
    return repr(sorted(values.items()))


def draw_new(space: SweepSpace, seed: int, number: int, taken: Collection[str]) -> Values | None:
    """The values of one trial, drawn again until no trial in `taken` (by `key_of`) has them.

    Where that does not succeed, one of those that are left of a space of up to 10,000 configurations; None: there is none.
    """
    return _redrawn(space, seed, number, taken) or _one_of(left_of(space, taken), seed, number)


def draws(space: SweepSpace, seed: int) -> Iterator[Values]:
    """The trials of a random sweep in their order, each configuration once; it ends when the space has no other.

    >>> sorted(values["batch_size"] for values in draws(SweepSpace(batch_size=[8, 16, 32]), 42))
    [8, 16, 32]
    """
    taken: set[str] = set()
    left: dict[str, Values] | None = None
    for number in itertools.count():
        values = _redrawn(space, seed, number, taken)
        if values is None:
            left = {key_of(one): one for one in left_of(space, taken)} if left is None else left
            values = _one_of(list(left.values()), seed, number)
        if values is None:
            return
        key = key_of(values)
        taken.add(key)
        if left is not None:
            left.pop(key, None)
        yield values


def left_of(space: SweepSpace, taken: Collection[str]) -> list[Values]:
    """The configurations that no trial has; none where the space has too many to be listed."""
    return [values for values in configurations(space) or () if key_of(values) not in taken]


def why_no_more(space: SweepSpace) -> str:
    """
    >>> why_no_more(SweepSpace(batch_size=[8, 16]))
    'the space holds 2 configurations, and none is trained twice'
    """
    everything = configurations(space)
    if everything is None:
        return f"{DRAWS} draws gave no configuration that was not trained before"
    return f"the space holds {len(everything):,} configuration{'s' * (len(everything) != 1)}, and none is trained twice"


def _redrawn(space: SweepSpace, seed: int, number: int, taken: Collection[str]) -> Values | None:
    drawn = (draw_random(space, seed, number, again) for again in range(DRAWS))
    return next((values for values in drawn if key_of(values) not in taken), None)


def _one_of(left: Sequence[Values], seed: int, number: int) -> Values | None:
    return left[int(uniform(seed, number, "left") * len(left))] if left else None


def configurations(space: SweepSpace) -> list[Values] | None:
    """All that can be drawn from a space; None: there are more than 10,000, or a range of floats has no end of them.

    >>> len(configurations(SweepSpace(batch_size=[8, 16], epochs={"low": 1, "high": 3}))), configurations(SweepSpace(warmup=[0.1]))
    (6, [{'warmup': 0.1}])
    """
    try:
        found = list(itertools.islice(_combinations(list(space), _listed), MOST_LISTED + 1))
    except _Endless:
        return None
    return found if len(found) <= MOST_LISTED else None


class _Endless(Exception):
    """A range of floats."""


def _listed(parameter: Parameter) -> Sequence[Value]:
    if not isinstance(parameter, FloatRange):
        return parameter.values if isinstance(parameter, Choice) else range(parameter.low, parameter.high + 1, parameter.step)
    if parameter.low < parameter.high:
        raise _Endless
    return [value_at(parameter, 0.0)]


def _combinations(
    parameters: Sequence[tuple[str, Parameter]], listed: Callable[[Parameter], Iterable[Value]], taken: Values | None = None
) -> Iterator[Values]:
    """Every combination of values that are in force beside each other, the last parameter changing fastest."""
    taken = taken or {}
    if not parameters:
        yield taken
        return
    (name, parameter), *rest = parameters
    if not is_in_force(parameter, taken):
        yield from _combinations(rest, listed, taken)
        return
    for value in listed(parameter):
        yield from _combinations(rest, listed, taken | {name: value})


def grid_values(parameter: FloatRange | IntRange | Choice) -> Iterable[Value]:
    """What a grid takes: every choice, and of a range `num` values from end to end, or every whole number; none is made in advance.

    >>> list(grid_values(FloatRange(low=1e-5, high=1e-3, log=True, num=3))), list(grid_values(IntRange(low=8, high=64, log=True, num=4)))
    ([1e-05, 0.0001, 0.001], [8, 16, 32, 64])
    """
    if isinstance(parameter, Choice):
        return parameter.values
    if isinstance(parameter, IntRange) and parameter.num is None:
        return range(parameter.low, parameter.high + 1, parameter.step)
    if parameter.num is None:
        ends = json.dumps({"low": parameter.low, "high": parameter.high, "log": parameter.log, "num": 5})
        raise ValueError(
            f"a grid needs to know how many values to take of this range: write {ends}, "
            f'or {{"values": [{parameter.low:g}, {parameter.high:g}]}} for these two alone'
        )
    steps = max(parameter.num - 1, 1)
    floats = FloatRange(low=parameter.low, high=parameter.high, log=parameter.log)
    found = (value_at(floats, step / steps) for step in range(parameter.num))
    if isinstance(parameter, IntRange):
        found = (round(float(value)) for value in found)
    return (value for value, _ in itertools.groupby(found))  # two that are alike in six digits stand beside each other


def grid(space: SweepSpace) -> Iterator[Values]:
    """Every combination once, the last parameter changing fastest.

    Raises:
        ValueError: a range of floats without `num`; the sentence names it.

    >>> space = SweepSpace(schedule=["linear", "constant"], warmup={"values": [0.0, 0.1], "when": {"schedule": "linear"}})
    >>> list(grid(space))
    [{'schedule': 'linear', 'warmup': 0.0}, {'schedule': 'linear', 'warmup': 0.1}, {'schedule': 'constant'}]
    """
    for name, parameter in space:
        try:
            grid_values(parameter)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    yield from _combinations(list(space), grid_values)

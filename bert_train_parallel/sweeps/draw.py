"""Trials drawn at random or taken from a grid: pure, and the same on every machine and in every version."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator

from bert_train_parallel.sweeps.space import Choice, FloatRange, IntRange, SweepSpace, Value, is_in_force

Values = dict[str, Value]


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


def draw_random(space: SweepSpace, seed: int, number: int) -> Values:
    """The values of one trial; parameters that are not in force are left out.

    >>> space = SweepSpace(learning_rate=(1e-5, 1e-3), batch_size=[16, 32])
    >>> draw_random(space, 42, 0) == draw_random(space, 42, 0) != draw_random(space, 42, 1)
    True
    """
    drawn: Values = {}
    for name, parameter in space:
        if is_in_force(parameter, drawn):
            drawn[name] = value_at(parameter, uniform(seed, number, name))
    return drawn


def grid_values(parameter: FloatRange | IntRange | Choice) -> list[Value]:
    """What a grid takes of a range: every choice and whole number, and `num` floats from end to end.

    >>> grid_values(FloatRange(low=1e-5, high=1e-3, log=True, num=3))
    [1e-05, 0.0001, 0.001]
    """
    if isinstance(parameter, Choice):
        return list(parameter.values)
    if isinstance(parameter, IntRange):
        return list(range(parameter.low, parameter.high + 1, parameter.step))
    if parameter.num is None:
        raise ValueError("a grid needs to know how many values to take: add num, or list the values")
    steps = max(parameter.num - 1, 1)
    return list(dict.fromkeys(value_at(parameter, step / steps) for step in range(parameter.num)))


def grid(space: SweepSpace) -> Iterator[Values]:
    """Every combination once, the last parameter changing fastest.

    Raises:
        ValueError: a range of floats without `num`; the sentence names it.

    >>> space = SweepSpace(schedule=["linear", "constant"], warmup={"values": [0.0, 0.1], "when": {"schedule": "linear"}})
    >>> list(grid(space))
    [{'schedule': 'linear', 'warmup': 0.0}, {'schedule': 'linear', 'warmup': 0.1}, {'schedule': 'constant'}]
    """
    names, ranges = [], []
    for name, parameter in space:
        try:
            ranges.append(grid_values(parameter))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        names.append(name)
    seen: set[str] = set()
    for combination in itertools.product(*ranges):
        taken: Values = {}
        for (name, parameter), value in zip(space, combination, strict=True):
            if is_in_force(parameter, taken):
                taken[name] = value
        if repr(taken) not in seen:
            seen.add(repr(taken))
            yield taken

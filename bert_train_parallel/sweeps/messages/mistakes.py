"""What a user got wrong in a message, in words."""

from __future__ import annotations

import re

from pydantic import ValidationError


def first_problem(error: ValidationError) -> str:
    """Where and what the first thing is that a user got wrong.

    >>> from bert_train_parallel.sweeps.messages import SweepRequest
    >>> for changes in ({"base": {"fine_tune_config": {"num_epochs": 0}}}, {"ladder": {"stages": []}}, {"num_trials": "many"}):
    ...     try:
    ...         SweepRequest.model_validate({"experiment_id": "x", "base": {"fine_tune_config": {}}, **changes})
    ...     except ValidationError as error:
    ...         print(first_problem(error))
    base.fine_tune_config.num_epochs: 0: should be greater than or equal to 1
    ladder.stages: should have at least 1 item, not 0
    num_trials: 'many': should be a valid integer
    """
    first = error.errors()[0]
    tags = {"float", "int", "choice"}  # which pydantic puts after the name of what may be of several kinds
    place = ".".join(str(part) for number, part in enumerate(first["loc"]) if not (number and part in tags))
    words = first_words(error)
    if first["type"] == "string_pattern_mismatch":
        words = f"letters, digits, dots, dashes and underscores are expected, such as {fitting_name(str(first['input'])) or 'mine'!r}"
    if first["type"] == "extra_forbidden":
        return f"{place} is not a setting of a sweep"
    if first["type"] == "missing":
        return f"{place} is missing"
    shown = "" if first["type"] == "value_error" or isinstance(first["input"], dict | list) else f"{first['input']!r}: "
    return f"{place}: {shown}{words}" if place else words


def first_words(error: ValidationError) -> str:
    """The first mistake without what pydantic adds to it."""
    words = re.sub(r"^(Value error, |Input |(Tuple|List|Dictionary) (?=should have))", "", str(error.errors()[0]["msg"]))
    return re.sub(r" after validation|, unable to parse string as an? \w+", "", words).replace("valid tuple", "valid list")


def fitting_name(text: str) -> str:
    """A text with what a name of a run or sweep cannot have left out.

    >>> fitting_name("sw one (2)"), fitting_name("mine")
    ('sw-one-2', 'mine')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")

"""What goes wrong in a workflow: it ends with a sentence, and never waits for a repair that nobody knows is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TypeVar

from temporalio import workflow
from temporalio.exceptions import ApplicationError

Result = TypeVar("Result")

# Of any other exception Temporal makes no end of the workflow: it tries the same step again for ever, and answers no query meanwhile.
# Those that say that code and history do not fit each other are not here: there, waiting for the code that fits is right.
MISTAKES = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError)


async def results_of(tasks: Collection[asyncio.Task[Result]]) -> list[Result]:
    """Wait for all of some tasks; what went wrong in one of them is raised here, and not lost with it."""
    if tasks:
        await workflow.wait(tasks)
    return [task.result() for task in tasks]


def first_words(error: BaseException) -> str:
    """The sentence at the bottom of a chain of Temporal's errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error.message if isinstance(error, ApplicationError) else str(error)

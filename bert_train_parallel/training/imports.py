"""Torch and transformers, loaded in less time than by naming them: most of a start is spent on importing both."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

# what parts of transformers import where it is installed, for work that no command of ours does
_UNUSED = ("accelerate", "scipy", "sklearn", "torchvision")


def leave_out_unused() -> None:
    """Let this process do as if packages that a training never needs were not installed; for commands, whose process is their own."""
    for name in _UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # so Python takes a module for missing


@contextlib.contextmanager
def libraries() -> Iterator[None]:
    """Import what a training needs; within the block the garbage collector leaves it alone.

    Some hundred thousand objects come into being, all to stay: looking through them again and again is a tenth of the start.
    """
    was_enabled, may_freeze = gc.isenabled(), not gc.get_freeze_count()
    gc.disable()
    try:
        import torch  # noqa: F401
        import transformers.modeling_utils  # noqa: F401
        from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig  # noqa: F401

        if may_freeze:
            gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
    try:
        yield
    finally:
        if may_freeze:
            gc.unfreeze()

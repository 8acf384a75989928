"""The precision of a run's arithmetic: chosen once for the whole world; `models.inference.autocast` applies it."""

from __future__ import annotations

import torch

from bert_train_parallel.errors import BadSetting
from bert_train_parallel.training.world import World


def choose_dtype(asked: str, world: World) -> str:
    """The precision of a run: as asked; auto is bfloat16 where every rank has a GPU that computes it, else float32.

    Raises:
        BadSetting: float16 or float64 where the device has no such arithmetic.
    """
    if asked == "auto":
        has_it = world.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if all(world.gather(has_it)) else "float32"
    world.together(lambda: check_dtype(asked, world.device))
    return asked


def check_dtype(asked: str, device: torch.device) -> None:
    """See that the device of one rank computes in the precision that is asked for.

    Raises:
        BadSetting: float16 or float64 where it does not.
    """
    if asked == "float16" and device.type != "cuda":
        raise BadSetting("--dtype float16 needs a CUDA GPU in every rank. Type --dtype bfloat16, or float32.")
    if asked == "float64" and device.type == "mps":
        raise BadSetting("--dtype float64: a Metal GPU has no such arithmetic. Type --device cpu.")


def parameters_dtype(dtype: str) -> torch.dtype:
    """Of the parameters and the optimizer: half precision is for products alone."""
    return torch.float64 if dtype == "float64" else torch.float32

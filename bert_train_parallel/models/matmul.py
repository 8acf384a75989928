"""The library of float32 matrix products on a CPU: torch's own (MKL, where it is built with it) or oneDNN.

Which is faster depends on the processor, by up to two times either way, so both are timed on the model's shapes.
Neither is taken unless its result is as near to float64 as float32 can be: some processors have shorter formats
that a library might choose.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bert_train_parallel.errors import BadSetting

Library = Literal["mkl", "onednn"]
_MEASURE_S = 0.1  # a few rounds at least, whatever they take
_ROUNDS = 3
_WORK = 4e9  # floating point operations of a round with one library: as many tokens as make that of the two largest layers, within limits
_TOKENS = (128, 1024)
_FASTER = 1.02  # by which oneDNN must be faster to be taken instead of torch's own
_BLOCK, _TILE = 64, 16  # rows
_FLOAT32_ERROR = 1e-5  # of the greatest value; bfloat16 errs by 4e-3, TF32 by 5e-4


@dataclass(frozen=True, slots=True)
class Matmul:
    """The library to use and what was measured; empty figures where there was nothing to choose."""

    library: Library
    gflops: dict[str, float]  # 1e9 floating point operations a second, forward and backward
    errors: dict[str, float]  # greatest difference from float64 over the greatest value

    def __str__(self) -> str:
        if not self.gflops:
            return self.library
        figures = ", ".join(f"{name} {speed:.0f} GFLOP/s (error {self.errors[name]:.0e})" for name, speed in self.gflops.items())
        return f"{self.library}: {figures}"


def choose_matmul(asked: str, model: nn.Module) -> Matmul:
    """The library for this model on this CPU; `auto` times both for some tenths of a second.

    Raises:
        BadSetting: the library that was asked for is not here, or does not compute in float32.
    """
    shapes = [tuple(linear.weight.shape) for linear in _linears(model)]
    if not shapes or not _may_choose(model):
        if asked == "onednn" and not torch.backends.mkldnn.is_available():
            raise BadSetting("--matmul onednn: this torch was built without oneDNN. Leave --matmul out.")
        return Matmul("mkl", {}, {})
    outputs, inputs = max(shapes, key=lambda shape: shape[0] * shape[1])
    if asked == "mkl":
        return Matmul("mkl", {}, {})
    errors = {name: _error(linear) for name, linear in _LIBRARIES.items()}
    if errors["onednn"] > _FLOAT32_ERROR:
        if asked == "onednn":
            raise BadSetting(f"--matmul onednn: on this processor it errs by {errors['onednn']:.0e}, more than float32 does. Leave it out.")
        return Matmul("mkl", {}, errors)
    gflops = _speeds(outputs, inputs)
    faster: Library = "onednn" if gflops["onednn"] > _FASTER * gflops["mkl"] else "mkl"
    return Matmul("onednn" if asked == "onednn" else faster, gflops, errors)


def use_matmul(model: nn.Module, library: Library) -> None:
    """From now on the linear layers of the model compute with this library in float32 on a CPU, forward and backward."""
    for linear in _linears(model):
        linear.__class__ = CpuLinear
        linear.library = library


class CpuLinear(nn.Linear):
    """A linear layer that asks oneDNN, where a CPU computes by it, for products of few different sizes.

    oneDNN compiles a kernel of half a megabyte for each number of rows and keeps it: with packed rows, of a new number in
    every step, that took 3 % of a step in bfloat16, and memory grew by several GiB.
    """

    library: Library = "mkl"

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and input.numel():
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
            if dtype == torch.bfloat16 or (dtype == torch.float32 and self.library == "onednn"):
                return _by_onednn(input.to(dtype), self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)


class _OneDnn(torch.autograd.Function):
    """A linear layer of rows (n, i) in the rows' precision; weight and bias, and their gradients, in their own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cast = weight.to(rows.dtype)
        ctx.save_for_backward(rows, cast)
        ctx.dtype = weight.dtype
        return _product(rows, cast, None if bias is None else bias.to(rows.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        to_rows, to_weight, to_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()
        return (
            _product(gradient, weight.t()) if to_rows else None,
            _weight_gradient(gradient, rows, ctx.dtype) if to_weight else None,
            gradient.sum(0, dtype=ctx.dtype) if to_bias else None,
        )


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows (n, i) times weight (o, i) transposed, by oneDNN."""
    product, begin = rows.new_empty(len(rows), len(weight)), 0
    for block in _blocks(rows):
        place = product[begin : begin + len(block)]
        if rows.dtype == torch.float32:
            place.copy_(torch.ops.mkldnn._linear_pointwise(block, weight, bias, "none", [], "")[: len(place)])
        elif len(place) < len(block):
            place.copy_(F.linear(block, weight, bias)[: len(place)])
        elif bias is None:
            torch.mm(block, weight.t(), out=place)
        else:
            torch.addmm(bias, block, weight.t(), out=place)
        begin += len(block)
    return product


def _weight_gradient(gradient: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient (n, o) transposed times rows (n, i). In float32 torch's own library reads both as they lie, oneDNN would copy them first."""
    if rows.dtype == torch.float32:
        return gradient.t().mm(rows)
    first, *rest = (some.t().mm(others).to(dtype) for some, others in zip(_blocks(gradient), _blocks(rows), strict=True))
    return first.add_(*rest) if rest else first


def _blocks(rows: Tensor) -> list[Tensor]:
    """The rows (n, i) as a multiple of a block's, and what is left with zeros up to a whole tile, as a kernel would compute them."""
    whole = len(rows) // _BLOCK * _BLOCK
    left = F.pad(rows[whole:], (0, 0, 0, -len(rows) % _TILE))
    return [some for some in (rows[:whole], left) if len(some)]


def _by_onednn(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _OneDnn.apply(input.flatten(0, -2), weight, bias).unflatten(0, input.shape[:-1])


_LIBRARIES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {"mkl": F.linear, "onednn": _by_onednn}


def _linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if type(module) in (nn.Linear, CpuLinear)]


def _may_choose(model: nn.Module) -> bool:
    parameter = next(model.parameters())
    return parameter.device.type == "cpu" and parameter.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def _tensors(tokens: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    rows, weight, bias = (torch.randn(shape, generator=draw) for shape in ((tokens, inputs), (outputs, inputs), (outputs,)))
    return rows.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def _error(linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> float:
    """Greatest error of the product and of its gradients against float64."""
    rows, weight, bias = _tensors(64, 256, 192)
    exact = [tensor.detach().double().requires_grad_() for tensor in (rows, weight, bias)]
    values, true_values = linear(rows, weight, bias), F.linear(*exact)
    upstream = torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
    found = [values.detach(), *torch.autograd.grad(values, (rows, weight, bias), upstream)]
    true = [true_values.detach(), *torch.autograd.grad(true_values, exact, upstream.double())]
    return max(float((mine.double() - theirs).abs().max() / theirs.abs().max()) for mine, theirs in zip(found, true, strict=True))


def _speeds(outputs: int, inputs: int) -> dict[str, float]:
    """GFLOP/s of forward and backward with each library, by turns; the best of several rounds, since others use the machine too."""
    fewest, most = _TOKENS
    tokens = min(max(round(_WORK / (12 * outputs * inputs)), fewest), most)
    # of a BERT's two large layers, one is the other transposed
    layers = [(_tensors(tokens, o, i), torch.ones(tokens, o)) for o, i in ((outputs, inputs), (inputs, outputs))]

    def seconds_of(linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> float:
        begin = time.perf_counter()
        for tensors, upstream in layers:
            torch.autograd.grad(linear(*tensors), tensors, upstream)
        return time.perf_counter() - begin

    for linear in _LIBRARIES.values():  # the first time also loads and compiles
        seconds_of(linear)
    best = dict.fromkeys(_LIBRARIES, float("inf"))
    ends_at = time.perf_counter() + _MEASURE_S
    for number in itertools.count():
        for name, linear in _LIBRARIES.items():
            best[name] = min(best[name], seconds_of(linear))
        if number + 1 >= _ROUNDS and time.perf_counter() > ends_at:
            break
    return {name: 12e-9 * tokens * outputs * inputs / seconds for name, seconds in best.items()}

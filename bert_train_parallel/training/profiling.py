"""Where the time of a step goes, and how near its matrix products come to what the machine can do."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bert_train_parallel.data.batches import IntArray
from bert_train_parallel.models.matmul import CpuLinear, use_matmul
from bert_train_parallel.run_files import written_aside
from bert_train_parallel.training.course import Course
from bert_train_parallel.training.strategy import StepResult, Strategy

_WARM, _TIMED, _TRACED = 3, 10, 5  # steps, where an epoch has as many: not looked at, timed, traced (which makes them slower)
_FEWEST = 3  # one of each
# by the first pattern that fits: attention's kernels are of cutlass too, and those of gathering, norms and the rest are elementwise
_KINDS = {
    "attention": r"attention|flash|fmha|sdpa|varlen",
    "matrix products": r"addmm|aten::b?mm$|linear_pointwise|gemm|gemv|cutlass|nvjet|cublas",
    "averaging": r"gloo|nccl|c10d|allreduce",
    "optimizer and clipping": r"adam|Optimizer|_foreach|multi_tensor|clip|vector_norm|LpNorm",
    "normalisation": r"layer_?norm|GammaBeta",
    "activation": r"gelu|tanh|softmax",
    "dropout": r"dropout|bernoulli|_Dropped|masked_scale",
    "moving and gathering": r"copy_|index|embedding|gather|aten::cat|CatArray|Memcpy|Memset|contiguous|clone",
    "sums and elementwise": r"elementwise|reduce_kernel|aten::(add|sub|mul|div|sum)_?$",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Which steps are timed and which traced, by their numbers in the run. All are of one epoch: validation is no part of a step."""

    timed_from: int
    traced_from: int
    end: int  # the step after the last one that is traced

    @property
    def timed(self) -> int:
        return self.traced_from - self.timed_from

    @property
    def traced(self) -> int:
        return self.end - self.traced_from


def plan_profile(course: Course, step: int) -> Plan | None:
    """The plan for a run that begins with this step: in its first epoch that has steps enough, else in its longest.

    None where no epoch has one step to warm up, one to time and one to trace.
    """
    epochs = range(step // course.steps_per_epoch, course.epochs)
    places = [(max(step, epoch * course.steps_per_epoch), course.end_of(epoch)) for epoch in epochs]
    first, end = max(places, key=lambda place: min(place[1] - place[0], _WARM + _TIMED + _TRACED), default=(step, step))
    if end - first < _FEWEST:
        return None
    warm, timed, traced = divide(end - first)
    return Plan(first + warm, first + warm + timed, first + warm + timed + traced)


def divide(steps: int) -> tuple[int, int, int]:
    """How many of these steps, at least 3, to let pass, to time and to trace.

    >>> divide(100), divide(9), divide(3)
    ((3, 10, 5), (1, 6, 2), (1, 1, 1))
    """
    all_steps = _WARM + _TIMED + _TRACED
    steps = min(steps, all_steps)
    warm, traced = (max(1, steps * part // all_steps) for part in (_WARM, _TRACED))
    return warm, steps - warm - traced, traced


class Profiled:
    """A strategy of whose early steps some are timed, then some traced; all else it hands on."""

    def __init__(self, strategy: Strategy, course: Course, model: nn.Module, dtype: str, trace: Path, say: Callable[[str], None]) -> None:
        self._strategy, self._model, self._dtype, self._trace, self._say = strategy, model, dtype, trace, say
        self._course = course
        self._device = next(model.parameters()).device
        self._begun = False
        self._plan: Plan | None = None
        self._began = self._seconds = 0.0
        self._products = ProductCounter(model)
        self._profiler: profile | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)

    def step(self, numbers: IntArray, step: int, learning_rate: float) -> StepResult:
        if not self._begun:
            self._begin(step)
        plan = self._plan
        if plan and step == plan.timed_from:
            self._wait()
            self._products.start()
            self._began = time.perf_counter()
        if plan and step == plan.traced_from:
            self._wait()
            self._seconds = (time.perf_counter() - self._began) / plan.timed
            self._products.stop()
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library would tell the terminal when it starts and stops
            gpu = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
            self._profiler = profile(activities=[ProfilerActivity.CPU, *gpu])
            self._profiler.start()
        result = self._strategy.step(numbers, step, learning_rate)
        if plan and self._profiler and step + 1 == plan.end:
            self._wait()
            self._profiler.stop()
            self._tell(self._profiler, plan)
            self._profiler = None
        return result

    def _begin(self, step: int) -> None:
        self._begun, self._plan = True, plan_profile(self._course, step)
        if self._plan is None:
            left = min(self._course.steps_per_epoch, self._course.steps - step)
            self._say(
                f"--profile: this run has at most {left} step{'s' * (left != 1)} of an epoch left, and a profile takes {_FEWEST}, "
                "to warm up, to time and to trace. Type a smaller --batch_size, or a larger --max_steps."
            )

    def _tell(self, profiler: profile, plan: Plan) -> None:
        with written_aside(self._trace) as aside:
            profiler.export_chrome_trace(str(aside))
        times = computing_times(profiler.key_averages(), self._device.type == "cuda")
        in_all = sum(seconds for _, seconds in times)
        self._say(f"profile: a step takes {1e3 * self._seconds:.1f} ms; while it is traced, of its computing time:")
        if not in_all:
            self._say("  the profiler saw no kernel: another one may be at work, or the driver keeps its counters to root.")
        for kind, seconds in by_kind(times).items():
            self._say(f"  {kind:<24} {1e3 * seconds / plan.traced:8.1f} ms  {100 * seconds / in_all:5.1f} %")
        rows = self._products.most_rows
        speed, best = self._products.operations / plan.timed / self._seconds, measured_peak(self._model, rows, self._dtype)
        if not best:
            self._say(f"  no linear layer of this model is large enough to be measured alone. Trace: {self._trace}")
            return
        self._say(f"  linear layers: {speed / 1e9:.0f} GFLOP/s over the whole step, which is {100 * speed / best:.0f} % of the")
        self._say(f"  {best / 1e9:.0f} GFLOP/s that their products alone reach here with {rows} tokens. Trace: {self._trace}")

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class ProductCounter:
    """Floating point operations of the linear layers, forward and backward, by the rows that enter them."""

    def __init__(self, model: nn.Module) -> None:
        self.operations = 0.0
        self.most_rows = 0
        self._model = model
        self._handles: list[Any] = []

    def start(self) -> None:
        layers = [module for module in self._model.modules() if isinstance(module, nn.Linear)]
        self._handles = [layer.register_forward_pre_hook(self._count) for layer in layers]

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _count(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        rows = inputs[0].numel() // layer.in_features
        self.operations += 6.0 * rows * layer.in_features * layer.out_features  # 2 forward, 2 for the input, 2 for the weight
        self.most_rows = max(self.most_rows, rows)


def measured_peak(model: nn.Module, rows: int, dtype: str, rounds: int = 10) -> float:
    """The most operations a second that the products of any linear layer of the model reach alone, with this many rows.

    0 where no layer is large enough to be measured.

    Products are a layer's three, forward and backward, of tensors that are in this precision already: a step's casts, and its sums
    over biases, are not the products' time. In float32 on a CPU they are computed by the layer's own library.
    """
    shapes = {(layer.in_features, layer.out_features): layer for layer in model.modules() if isinstance(layer, nn.Linear)}
    best = 0.0
    for (inputs, outputs), layer in shapes.items():
        if outputs < 64:  # the classifier
            continue
        bare = nn.Linear(inputs, outputs, bias=False, device=layer.weight.device, dtype=getattr(torch, dtype))
        if isinstance(layer, CpuLinear) and dtype == "float32":
            use_matmul(bare, layer.library)
        given = torch.randn(rows, inputs, device=bare.weight.device, dtype=bare.weight.dtype, requires_grad=True)
        upstream = torch.ones(rows, outputs, device=bare.weight.device, dtype=bare.weight.dtype)
        for _ in range(rounds):
            seconds = _seconds_of(partial(_three_products, bare, given, upstream), given.device)
            best = max(best, 6.0 * rows * inputs * outputs / seconds)
    return best


def computing_times(events: Iterable[Any], on_gpu: bool) -> list[tuple[str, float]]:
    """Names and seconds of what computed, each second once.

    On a GPU that is the kernels alone: the operators that started them carry the same time, and the ranges that torch and NCCL name
    there lie over them.

    Args:
        events: of `key_averages()` of torch's profiler; several may have one name.
    """
    if on_gpu:
        kernels = (event for event in events if event.device_type != DeviceType.CPU and not event.is_user_annotation)
        return [(event.key, event.self_device_time_total / 1e6) for event in kernels]
    return [(event.key, event.self_cpu_time_total / 1e6) for event in events if event.device_type == DeviceType.CPU]


def by_kind(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Times of operators summed by what they are for, the greatest first.

    >>> by_kind([("aten::addmm", 2.0), ("aten::gelu", 1.0), ("aten::mm", 2.0), ("autograd::engine", 0.5)])
    {'matrix products': 4.0, 'activation': 1.0, 'all else': 0.5}
    """
    sums: dict[str, float] = {}
    for name, seconds in times:
        kind = next((kind for kind, pattern in _KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "all else")
        sums[kind] = sums.get(kind, 0.0) + seconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _three_products(layer: nn.Linear, given: torch.Tensor, upstream: torch.Tensor) -> None:
    torch.autograd.grad(layer(given), (given, layer.weight), upstream)


def _seconds_of(work: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    work()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1e3

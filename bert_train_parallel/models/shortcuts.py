"""Exact short cuts: the same function of the same parameters in less time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bert_train_parallel.models.attention import Packing, attend

_BITS = 1 << 16  # a dropout probability is rounded to a multiple of 1 / 65,536


class FirstTokens:
    """The last layer of a BERT, RoBERTa or Electra encoder when the head reads first tokens alone.

    Keys and values are of all tokens; queries, and all after them, of each row's first. What is left out has
    no influence on outputs and a gradient of zero. For 6 layers that is a seventh of all arithmetic.
    """

    attention: Any
    feed_forward_chunk: Any

    def forward(self, hidden_states: Tensor, *args: Any, packing: Packing | None = None, **kwargs: Any) -> Tensor:
        """(1, b, H) of first tokens from the packed rows (1, T, H); without a packing, what the layer does."""
        if packing is None:
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        attention = self.attention.self
        first = hidden_states[0].index_select(0, packing.starts[:-1])  # (b, H)
        heads = (-1, attention.num_attention_heads, attention.attention_head_size)
        query = attention.query(first).view(heads)
        key, value = (project(hidden_states[0]).view(heads) for project in (attention.key, attention.value))
        dropout = attention.dropout.p if attention.training else 0.0
        seen = attend(query, key, value, packing, dropout, attention.scaling, first_tokens=True).flatten(1)
        return self.feed_forward_chunk(self.attention.output(seen, first)).unsqueeze(0)


def read_first_tokens(layer: nn.Module) -> None:
    """Let this layer compute what the head reads and no more."""
    kind = type(layer)
    layer.__class__ = type(kind.__name__, (FirstTokens, kind), {"__module__": kind.__module__})


class CpuDropout(nn.Dropout):
    """Dropout whose draws on a CPU cost a quarter: 16 random bits for each element, from a seed of torch's generator."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu" or input.numel() == 0:
            return F.dropout(input, self.p, self.training)
        return _Dropped.apply(input, round(self.p * _BITS))


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: int) -> Tensor:
        seed = int(torch.randint(1 << 62, ()))  # so that torch.manual_seed, and a recomputed layer, give the same draws
        drawn = np.frombuffer(np.random.Generator(np.random.SFC64(seed)).bytes(2 * values.numel()), dtype=np.uint16)
        kept = torch.from_numpy(drawn >= threshold).view(values.shape)
        ctx.save_for_backward(kept)
        ctx.scale = _BITS / (_BITS - threshold)
        return torch.ops.aten.native_dropout_backward(values, kept, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(gradients[0], kept, ctx.scale), None


def draw_dropout_fast(network: nn.Module) -> None:
    """Every dropout module of the network draws as `CpuDropout` does."""
    for module in network.modules():
        if type(module) is nn.Dropout and not module.inplace:
            module.__class__ = CpuDropout

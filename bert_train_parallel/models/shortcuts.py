"""Exact short cuts: the same function of the same parameters in less time."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bert_train_parallel.models.attention import attend
from bert_train_parallel.models.packing import Packing

_OWN_REFERENCES = 2  # to reused memory: of its owner, and of the call that counts them; each tensor over it has one more
_LARGE = 1_000_000  # elements of an embedding
_DRAWS = 4  # of 16 bits in what the generator gives at once
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
        attention, hidden = self.attention.self, hidden_states.squeeze(0)
        first = hidden.index_select(0, packing.starts[:-1])  # (b, H)
        heads = (-1, attention.num_attention_heads, attention.attention_head_size)
        query = attention.query(first).view(heads)
        key, value = (project(hidden).view(heads) for project in (attention.key, attention.value))
        dropout = attention.dropout.p if attention.training else 0.0
        seen = attend(query, key, value, packing, dropout, attention.scaling, first_tokens=True).flatten(1)
        return self.feed_forward_chunk(self.attention.output(seen, first)).unsqueeze(0)


def read_first_tokens(layer: nn.Module) -> None:
    """Let this layer compute what the head reads and no more."""
    kind = type(layer)
    layer.__class__ = type(kind.__name__, (FirstTokens, kind), {"__module__": kind.__module__})


class CpuDropout(nn.Dropout):
    """Dropout whose draws on a CPU cost a tenth: 16 random bits for each element, from a seed of torch's generator."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu" or input.numel() == 0:
            return F.dropout(input, self.p, self.training)
        return _Dropped.apply(input, round(self.p * _BITS))


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: int) -> Tensor:
        seed = int(torch.randint(1 << 62, ()))  # so that torch.manual_seed, and a recomputed layer, give the same draws
        drawn = np.random.SFC64(seed).random_raw(-(-values.numel() // _DRAWS)).view(np.uint16)
        kept = torch.from_numpy(drawn[: values.numel()] >= threshold).view(values.shape)
        ctx.save_for_backward(kept)
        ctx.scale = _BITS / (_BITS - threshold)
        return torch.ops.aten.native_dropout_backward(values, kept, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(gradients[0], kept, ctx.scale), None


class LeanEmbedding(nn.Embedding):
    """A word embedding whose gradient on a CPU, tens of megabytes of zeros but for a few rows, keeps its memory.

    A new block of that size costs a page fault for every 4 KiB, more than a layer of a small model does.
    """

    _memory: np.ndarray[Any, Any] | None = None

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if (
            weight.device.type != "cpu"
            or weight.dtype not in (torch.float32, torch.float64)
            or not (torch.is_grad_enabled() and weight.requires_grad)
        ):
            return super().forward(input)
        return _Embedded.apply(weight, input, self)

    def take_memory(self) -> Tensor:
        """Zeros in the shape of the weight, in memory that no other tensor uses."""
        dtype = torch.empty(0, dtype=self.weight.dtype).numpy().dtype
        if self._memory is None or self._memory.dtype != dtype or sys.getrefcount(self._memory) > _OWN_REFERENCES:
            self._memory = np.empty(self.weight.shape, dtype)
        return torch.from_numpy(self._memory).zero_()


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, module: LeanEmbedding) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(tokens)
        return F.embedding(tokens, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (tokens,) = ctx.saved_tensors
        to_weight = ctx.module.take_memory().index_add_(0, tokens.flatten(), gradient.flatten(0, -2))
        if ctx.module.padding_idx is not None:
            to_weight[ctx.module.padding_idx].zero_()
        return to_weight, None, None


def take_cpu_shortcuts(network: nn.Module) -> None:
    """Let dropout and large embeddings compute as `CpuDropout` and `LeanEmbedding` do."""
    for module in network.modules():
        if type(module) is nn.Dropout and not module.inplace:
            module.__class__ = CpuDropout
        if (
            type(module) is nn.Embedding
            and module.weight.numel() > _LARGE
            and not (module.sparse or module.max_norm or module.scale_grad_by_freq)
        ):
            module.__class__ = LeanEmbedding

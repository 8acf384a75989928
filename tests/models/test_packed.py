"""Packed rows give what padded ones give: outputs, gradients, and no row more than there are tokens."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from bert_train_parallel.errors import BadSetting
from bert_train_parallel.models import attention
from bert_train_parallel.models.packed import ARCHITECTURES, PackedModel
from bert_train_parallel.models.packing import Packing
from bert_train_parallel.models.shortcuts import CpuDropout

from .families import HAS_SEGMENTS, PACKED, PADDED, gradients_of, greatest_difference, network_of, packed_rows, padded_rows

LENGTHS = {
    "one row of one token": [1],
    "all equal": [6, 6, 6, 6, 6],
    "one very long": [3, 2, 150, 2, 3, 3, 2],
    "all unlike": [5, 3, 1, 7, 12, 90, 13, 2, 31],
    "random": [random.Random(0).randint(1, 60) for _ in range(24)],
}


def packed_model(name: str, dtype: torch.dtype, dropout: float = 0.0) -> PackedModel:
    attention.register()
    return PackedModel(network_of(PACKED[name], attention.NAME, dtype, dropout), packed=True).train()


def compare(name: str, config: Any, model: PackedModel, lengths: Sequence[int], dtype: torch.dtype, tolerance: float) -> None:
    """Holds a model over packed rows against transformers' own over padded ones."""
    tokens, positions, segments, starts = packed_rows(lengths)
    peer = network_of(config, "sdpa" if "modernbert" in name else "eager", dtype)
    outputs = model(tokens, positions, segments, starts)
    expected = peer(**padded_rows(tokens, segments, starts, config.pad_token_id or 0, name in HAS_SEGMENTS)).logits
    assert float((outputs - expected).detach().abs().max()) < tolerance
    found, true = gradients_of(model.network, outputs), gradients_of(peer, expected)
    assert greatest_difference(found, true) < tolerance


@pytest.mark.parametrize("shape", LENGTHS)
@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_give_outputs_and_gradients_of_padded_ones(name: str, shape: str) -> None:
    model = packed_model(name, torch.float64)
    # ModernBERT computes its rotary positions in float32, whatever the model's precision
    compare(name, PACKED[name], model, LENGTHS[shape], torch.float64, tolerance=1e-12)


@pytest.mark.parametrize("name", PACKED)
def test_float32_is_as_near_as_float32_can_be(name: str) -> None:
    compare(name, PACKED[name], packed_model(name, torch.float32), LENGTHS["random"], torch.float32, tolerance=1e-5)


@pytest.mark.parametrize("shape", LENGTHS)
@pytest.mark.parametrize("name", PADDED)
def test_other_families_get_padded_batches_of_like_length(name: str, shape: str) -> None:
    assert PADDED[name].model_type not in ARCHITECTURES
    model = PackedModel(network_of(PADDED[name], "eager", torch.float64), packed=False)
    compare(name, PADDED[name], model, LENGTHS[shape], torch.float64, tolerance=1e-12)


@pytest.mark.parametrize("name", [*PACKED, *PADDED])
def test_an_empty_share_has_no_outputs_and_a_zero_gradient_for_every_parameter(name: str) -> None:
    if name in PACKED:
        model = packed_model(name, torch.float64)
    else:
        model = PackedModel(network_of(PADDED[name], "eager", torch.float64), packed=False)
    nothing = torch.zeros(0, dtype=torch.int64)
    outputs = model(nothing, nothing, nothing, torch.tensor([0]))
    assert outputs.shape == (0, 3)
    outputs.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_outputs_stand_in_the_order_of_the_rows() -> None:
    model = packed_model("bert", torch.float64)
    lengths = [9, 2, 5, 2, 7]
    rows = packed_rows(lengths)
    together = model(*rows)
    parts = zip(*(tensor.split(lengths) for tensor in rows[:3]), lengths, strict=True)
    alone = [model(tokens, positions, segments, torch.tensor([0, length])) for tokens, positions, segments, length in parts]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


def rows_entering(model: PackedModel, rows: tuple[torch.Tensor, ...]) -> dict[str, int]:
    """How many rows each linear layer of the encoder was given."""
    entered: dict[str, int] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: entered.update({name: entered.get(name, 0) + args[0].shape[:-1].numel()})
        )
        for name, module in model.network.base_model.encoder.named_modules()
        if isinstance(module, nn.Linear)
    ]
    model(*rows)
    for hook in hooks:
        hook.remove()
    return entered


def test_as_many_rows_enter_the_linear_layers_as_there_are_tokens() -> None:
    model = packed_model("bert", torch.float32)
    lengths = LENGTHS["random"]
    entered = rows_entering(model, packed_rows(lengths))
    last = "layer.2."
    assert {count for name, count in entered.items() if not name.startswith(last)} == {sum(lengths)}
    # the head reads first tokens: of the last layer, only keys and values are needed of the others
    assert {name.removeprefix(last): count for name, count in entered.items() if name.startswith(last)} == {
        "attention.self.query": len(lengths),
        "attention.self.key": sum(lengths),
        "attention.self.value": sum(lengths),
        "attention.output.dense": len(lengths),
        "intermediate.dense": len(lengths),
        "output.dense": len(lengths),
    }


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert"])
def test_recomputed_activations_give_the_same_gradients_with_dropout_on(name: str) -> None:
    model = packed_model(name, torch.float64, dropout=0.2)
    rows = packed_rows(LENGTHS["all unlike"])
    torch.manual_seed(3)
    kept = gradients_of(model.network, model(*rows))
    model.checkpoint_gradients()
    torch.manual_seed(3)
    computed_again = gradients_of(model.network, model(*rows))
    assert greatest_difference(computed_again, kept) < 1e-12


def test_a_kernel_that_is_tried_within_a_layer_does_not_disturb_its_recomputation(monkeypatch: pytest.MonkeyPatch) -> None:
    def grouped(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, *rest: Any) -> torch.Tensor:
        scaling, window, first_tokens = rest
        return attention._grouped(query, key, value, packing, 0.0, scaling, window, first_tokens)

    tried = []

    def has_varlen(query: torch.Tensor, dropout: float) -> bool:
        tried.append(attention._varlen_is_right(query.device, query.dtype, query.shape[1], query.shape[2]))
        return tried[-1]

    attention._varlen_is_right.cache_clear()
    monkeypatch.setattr(attention, "_varlen", grouped)
    monkeypatch.setattr(attention, "_has_varlen", has_varlen)
    model = packed_model("bert", torch.float64)
    model.checkpoint_gradients()
    model(*packed_rows(LENGTHS["random"])).sum().backward()
    attention._varlen_is_right.cache_clear()
    assert tried
    assert all(tried)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert", "modernbert"])
def test_recomputing_activations_warns_of_nothing(name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.WARNING)
    transformers_logging.warning_once.cache_clear()
    model = packed_model(name, torch.float32)
    model.checkpoint_gradients()
    model(*packed_rows([3, 5])).sum().backward()
    assert caplog.messages == []


def test_a_family_that_cannot_recompute_says_so() -> None:
    with pytest.raises(BadSetting, match="--gradient_checkpointing: models of the kind 'albert' cannot"):
        packed_model("albert", torch.float32).checkpoint_gradients()


def test_dropout_repeats_with_the_seed_and_differs_without_it() -> None:
    model = packed_model("bert", torch.float32, dropout=0.5)
    rows = packed_rows(LENGTHS["random"])

    def outputs(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(*rows)

    assert torch.equal(outputs(1), outputs(1))
    assert not torch.equal(outputs(1), outputs(2))
    assert any(isinstance(module, CpuDropout) for module in model.modules())

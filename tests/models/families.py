"""Tiny models of every family, with random weights, and batches of rows of any lengths to try them with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

_SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 3}
_SPECIAL = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
_MODERN = _SIZES | _SPECIAL | {"local_attention": 16, "global_attn_every_n_layers": 3, "max_position_embeddings": 200}

PACKED: dict[str, Any] = {
    "bert": transformers.BertConfig(**_SIZES),
    "roberta": transformers.RobertaConfig(**_SIZES, max_position_embeddings=200),
    "xlm-roberta": transformers.XLMRobertaConfig(**_SIZES, max_position_embeddings=200),
    "camembert": transformers.CamembertConfig(**_SIZES, max_position_embeddings=200),
    "distilbert": transformers.DistilBertConfig(vocab_size=60, dim=32, n_layers=3, n_heads=4, hidden_dim=48, num_labels=3),
    "electra": transformers.ElectraConfig(**_SIZES, embedding_size=16),
    "albert": transformers.AlbertConfig(**_SIZES, embedding_size=16),
    "modernbert": transformers.ModernBertConfig(**_MODERN),
    "modernbert, mean pooling": transformers.ModernBertConfig(**_MODERN, classifier_pooling="mean"),
}
PADDED: dict[str, Any] = {
    "mpnet": transformers.MPNetConfig(**_SIZES, max_position_embeddings=200),
    "deberta-v2": transformers.DebertaV2Config(**_SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8),
}
HAS_SEGMENTS = {"bert", "electra", "albert"}


def network_of(config: Any, attention: str, dtype: torch.dtype, dropout: float = 0.0) -> Any:
    """The classifier of a config with random weights from a fixed seed."""
    config = type(config).from_dict(config.to_dict())
    for field in vars(config):
        if "dropout" in field and isinstance(getattr(config, field), float):
            setattr(config, field, dropout)
    config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config).to(dtype).train()
        for parameter in network.parameters():  # far from the usual small values, so that each of them matters
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def packed_rows(lengths: Sequence[int], seed: int = 0, pairs: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random tokens, positions, segments and starts of rows of these lengths."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 60, (sum(lengths),), generator=draw)
    positions = torch.cat([torch.arange(length) for length in lengths])
    segments = torch.cat([(torch.arange(length) > length // 2).long() for length in lengths])
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return tokens, positions, segments if pairs else torch.zeros_like(segments), starts


def padded_rows(tokens: Tensor, segments: Tensor, starts: Tensor, pad: int, with_segments: bool) -> dict[str, Tensor]:
    """The same rows as transformers' own users pass them."""
    lengths = starts.diff().tolist()
    rows = [tokens.split(lengths), segments.split(lengths)]
    inputs = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(list(rows[0]), batch_first=True, padding_value=pad),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones(length, dtype=torch.int64) for length in lengths], batch_first=True),
    }
    if with_segments:
        inputs["token_type_ids"] = torch.nn.utils.rnn.pad_sequence(list(rows[1]), batch_first=True)
    return inputs


def gradients_of(network: Any, outputs: Tensor) -> dict[str, Tensor]:
    """Gradients of a fixed random function of the outputs."""
    network.zero_grad(set_to_none=True)
    upstream = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).to(outputs.dtype)
    (outputs * upstream).sum().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def greatest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """max |difference| / max |gradient|, both over all parameters."""
    assert found.keys() == expected.keys()
    scale = max(float(tensor.abs().max()) for tensor in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / scale

"""A Hugging Face classifier that is given rows end to end, with no padding, and answers one line per row."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bert_train_parallel.errors import BadSetting
from bert_train_parallel.models.matmul import use_matmul
from bert_train_parallel.models.packing import Packing, group_lengths, make_packing, to_device
from bert_train_parallel.models.shortcuts import read_first_tokens, take_cpu_shortcuts


@dataclass(frozen=True, slots=True)
class Architecture:
    """What packing needs to know of a family of models, besides that its attention asks transformers' interface."""

    pooled_from: str  # the module whose hidden states (1, T, H) the head reads at the first token
    segments: bool = True  # whether token types are an input
    positions_after_padding: bool = False  # positions begin at the padding token's id + 1
    last_layer: str | None = None  # the list whose last layer may answer for first tokens alone


ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture("bert.encoder", last_layer="bert.encoder.layer"),
    "roberta": Architecture("roberta.encoder", last_layer="roberta.encoder.layer", segments=False, positions_after_padding=True),
    "xlm-roberta": Architecture("roberta.encoder", last_layer="roberta.encoder.layer", segments=False, positions_after_padding=True),
    "camembert": Architecture("roberta.encoder", last_layer="roberta.encoder.layer", segments=False, positions_after_padding=True),
    "distilbert": Architecture("distilbert.transformer", segments=False),
    "electra": Architecture("electra.encoder", last_layer="electra.encoder.layer"),
    "albert": Architecture("albert.encoder"),
    "modernbert": Architecture("model", segments=False),
}


class PackedModel(nn.Module):
    """A `...ForSequenceClassification` model of transformers over packed rows.

    Its state dict has Hugging Face's names. `packed` says whether rows stay end to end; an architecture without
    the attention interface gets them padded, in sub-batches of like length, with the same results.
    """

    def __init__(self, network: nn.Module, packed: bool) -> None:
        super().__init__()
        self.network = network
        self.packed = packed
        config: Any = network.config
        take_cpu_shortcuts(network)
        use_matmul(network, "mkl")
        self._pad = config.pad_token_id or 0
        architecture = ARCHITECTURES.get(config.model_type)
        if packed:
            if architecture is None:
                raise ValueError(f"{config.model_type} is not known to take packed rows")
            self._has_segments = architecture.segments
            self._first_position = self._pad + 1 if architecture.positions_after_padding else 0
            self._pooling = getattr(config, "classifier_pooling", "cls")
            network.get_submodule(architecture.pooled_from).register_forward_hook(self._pool, with_kwargs=True)
            self._first_tokens = architecture.last_layer is not None
            if architecture.last_layer:
                read_first_tokens(network.get_submodule(architecture.last_layer)[-1])
        else:
            self._has_segments = architecture.segments if architecture else (getattr(config, "type_vocab_size", 0) or 0) > 1

    def forward(self, tokens: Tensor, positions: Tensor, segments: Tensor, starts: Tensor) -> Tensor:
        """Outputs of the head for each row.

        Args:
            tokens, positions, segments: (T,) int64, the rows end to end; positions begin at 0 in each row.
            starts: (b + 1,) int64 on the CPU, where each row begins, and T; b may be 0.
        Returns:
            (b, k), in the order of the rows. Every parameter takes part, even with b = 0.
        """
        edges = starts.tolist()
        if len(edges) < 2:  # one row goes in and nothing comes out: DDP expects a gradient, of zero, for every parameter
            one = tokens.new_zeros(1)
            return self.forward(one, one, one, starts.new_tensor([0, 1]))[:0]
        lengths = [end - begin for begin, end in itertools.pairwise(edges)]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        ascending = [lengths[row] for row in order]
        if order == list(range(len(order))):
            return self._ascending(tokens, positions, segments, ascending)
        chosen = to_device(torch.cat([torch.arange(edges[row], edges[row + 1]) for row in order]), tokens.device)
        outputs = self._ascending(tokens[chosen], positions[chosen], segments[chosen], ascending)
        return outputs.index_select(0, to_device(torch.tensor(order).argsort(), tokens.device))

    def _ascending(self, tokens: Tensor, positions: Tensor, segments: Tensor, lengths: list[int]) -> Tensor:
        """(b, k) for rows in ascending order of length."""
        return self._packed(tokens, positions, segments, lengths) if self.packed else self._padded(tokens, segments, lengths)

    def _packed(self, tokens: Tensor, positions: Tensor, segments: Tensor, ascending: list[int]) -> Tensor:
        inputs = {
            "input_ids": tokens.unsqueeze(0),
            "position_ids": (positions + self._first_position).unsqueeze(0),
            "packing": make_packing(ascending, tokens.device),
        }
        if self._has_segments:
            inputs["token_type_ids"] = segments.unsqueeze(0)
        return self.network(**inputs).logits

    def _pool(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Give the head what it would read of each row, as if each were one token long: hidden states (b, 1, H)."""
        packing: Packing | None = kwargs.get("packing")
        if packing is None:  # the network is used as transformers has it
            return output
        hidden = output.last_hidden_state[0]
        if self._first_tokens:
            pooled = hidden
        elif self._pooling == "mean":
            pooled = torch.stack([row.mean(0) for row in hidden.split(list(packing.lengths))])
        else:
            pooled = hidden.index_select(0, packing.starts[:-1])
        output.last_hidden_state = pooled.unsqueeze(1)
        return output

    def _padded(self, tokens: Tensor, segments: Tensor, ascending: list[int]) -> Tensor:
        """(b, k) for rows in ascending order of length, each group of like length as a padded batch of its own."""
        outputs, begin = [], 0
        for rows in group_lengths(ascending):
            lengths = torch.tensor([ascending[row] for row in rows])
            here = slice(begin, begin + int(lengths.sum()))
            begin = here.stop
            inside = to_device(torch.arange(int(lengths[-1])) < lengths[:, None], tokens.device)
            inputs = {
                "input_ids": torch.full(inside.shape, self._pad, device=tokens.device).masked_scatter_(inside, tokens[here]),
                "attention_mask": inside.long(),
            }
            if self._has_segments:
                inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"]).masked_scatter_(inside, segments[here])
            outputs.append(self.network(**inputs).logits)
        return torch.cat(outputs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The parameters and buffers by Hugging Face's names."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes what `state_dict` gave."""
        return self.network.load_state_dict(state_dict, strict=strict, assign=assign)

    @property
    def config(self) -> Any:
        """The transformers config, with label names."""
        return self.network.config

    def checkpoint_gradients(self) -> None:
        """Compute each layer's activations again in backward: less memory, more time.

        Raises:
            BadSetting: the architecture cannot.
        """
        network: Any = self.network
        if not network.supports_gradient_checkpointing:
            raise BadSetting(f"--gradient_checkpointing: models of the kind {self.config.model_type!r} cannot. Use --micro_batch_size.")
        # its name up to transformers 5.22, or from then on
        enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        if getattr(self.config, "use_cache", False):  # of a decoder; transformers would warn that it goes without
            network.base_model.register_forward_pre_hook(_without_cache, with_kwargs=True)


def _without_cache(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs | {"use_cache": False}

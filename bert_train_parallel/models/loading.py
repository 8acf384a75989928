"""A model by name: its config and weights from a folder or the hub, with a new head for these labels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bert_train_parallel.errors import BadModel
from bert_train_parallel.model_names import check_config, check_weights, locate_model
from bert_train_parallel.models import attention
from bert_train_parallel.models.packed import ARCHITECTURES, PackedModel

_DROPOUTS = (
    *("hidden_dropout_prob", "dropout", "embedding_dropout", "mlp_dropout"),
    *("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "pooler_dropout"),
)
_ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout")


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All that builds a model's structure, as JSON values, so that a rank without files can be told by another."""

    config: dict[str, Any]  # of transformers, with label names and dropout as asked
    packed: bool


def build_model(
    name: str | Path,
    outputs: int,
    task_type: str,
    label_names: Sequence[str],
    *,
    seed: int,
    dropout: float | None = None,
    attention_dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> PackedModel:
    """The model `name` with a head for these labels, on the CPU, in evaluation mode.

    The head is drawn from `seed` alone, unless the model was trained for the same label names in the same order:
    then its own is kept.

    Args:
        name: `minilm`, a local folder or a name on the Hugging Face hub.
        outputs: k, the number of classes, or of values for a regression.
        dropout: of hidden states; None for the model's own.
        dtype: of the parameters, float32 or float64; half precision is autocast, which is the caller's.
    Raises:
        BadModel: it cannot be found, read or used to classify.
    """
    place = locate_model(str(name))
    config = read_config(place)
    keep_head = task_type == "classification" and _trained_for(config) == list(label_names)
    _set_labels(config, outputs, task_type, label_names)
    _set_dropout(config, dropout, attention_dropout)
    return read_network(place, config, dtype, None if keep_head else seed)


def build_from(blueprint: Blueprint, dtype: torch.dtype = torch.float32) -> PackedModel:
    """The structure of a blueprint, its parameters without values, in evaluation mode."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    from transformers.initialization import no_init_weights

    config = CONFIG_MAPPING[blueprint.config["model_type"]].from_dict(blueprint.config)
    config._attn_implementation = _attention_name(blueprint.packed)
    with no_init_weights():
        network = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config)
    return PackedModel(network.to(dtype), blueprint.packed).eval()


def blueprint_of(model: PackedModel) -> Blueprint:
    """What another rank needs to build the same structure."""
    return Blueprint(model.config.to_dict(), model.packed)


def read_config(place: str | Path) -> Any:
    """The transformers config of a folder or of a name on the hub.

    Raises:
        BadModel: there is none, or it is not of a model that can classify texts.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig

    check_config(place)
    with sentences(place):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise BadModel(
            f"{place} is a model of the kind {config.model_type!r}, for which transformers has no classifier of texts. "
            "Name a BERT-like one, or type --model minilm."
        )
    return config


def read_network(place: str | Path, config: Any, dtype: torch.dtype, head_seed: int | None) -> PackedModel:
    """The model with its weights by memory map; packed when its architecture can be, and shows it here.

    Args:
        head_seed: draws what the files do not have and the classifier anew; None keeps the classifier of the files.
    Raises:
        BadModel: no weights, or not of this config.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    check_weights(place)
    may_pack = config.model_type in ARCHITECTURES
    with torch.random.fork_rng(devices=[]), sentences(place):
        torch.manual_seed(head_seed or 0)
        network, found = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)].from_pretrained(
            place,
            config=config,
            dtype=torch.float32,  # so that a head drawn for float64 is that of float32
            attn_implementation=_attention_name(may_pack),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        _refuse_gaps(place, network, found, head_is_new=head_seed is not None)
        if head_seed is not None:
            torch.manual_seed(head_seed)
            _draw_again(network, getattr(network, "classifier", None))
    config.dtype = dtype
    model = PackedModel(network.to(dtype), may_pack).eval()
    if may_pack and not packs_exactly(model):
        network.set_attn_implementation("eager")
        model = PackedModel(network, False).eval()
    return model


def _refuse_gaps(place: str | Path, network: Any, found: dict[str, Any], head_is_new: bool) -> None:
    """transformers fills what the files lack, or have in another shape, with random values: right for a new head alone."""
    gaps = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if head_is_new:
        gaps = {name for name in gaps if name.startswith(network.base_model_prefix + ".") and ".pooler." not in name}
    if gaps:
        raise BadModel(
            f"{place} has no weights for {min(gaps)}, or of another shape ({len(gaps)} such in all): its config.json and its weights "
            "are not of the same model. Name another with --model."
        )


def packs_exactly(model: PackedModel) -> bool:
    """Whether packed rows give the outputs of padded ones, tried on three short rows of this very model.

    The table of architectures says how to pack; this says whether it holds in the version of transformers at hand.
    """
    words = [token for token in range(min(model.config.vocab_size, 13)) if token != model.config.pad_token_id]
    tokens = torch.tensor([words[place % len(words)] for place in range(12)])
    positions = torch.tensor([*range(3), *range(3), *range(6)])
    segments = torch.zeros_like(tokens)
    network = model.network
    with torch.no_grad():
        try:
            packed = model(tokens, positions, segments, torch.tensor([0, 3, 6, 12]))
        except (TypeError, ValueError, KeyError, RuntimeError, AttributeError):
            return False  # the model does not hand its keywords on to the attention
        network.set_attn_implementation("eager")
        padded = PackedModel(network, False)._padded(tokens, segments, [3, 3, 6])
        network.set_attn_implementation(attention.NAME)
    return bool((packed - padded).abs().max() <= 1e-4 * padded.abs().max())


def _attention_name(packed: bool) -> str | None:
    attention.register()
    return attention.NAME if packed else None


def _trained_for(config: Any) -> list[str] | None:
    """Label names of a model that is already a classifier, in the order of its outputs."""
    if not any("ForSequenceClassification" in name for name in config.architectures or ()):
        return None
    return [config.id2label[code] for code in range(config.num_labels)]


def _set_labels(config: Any, outputs: int, task_type: str, label_names: Sequence[str]) -> None:
    names = list(label_names) or [f"value_{number}" for number in range(outputs)]
    if len(names) != outputs:
        raise ValueError(f"{outputs} outputs, {len(names)} label names")
    config.id2label = dict(enumerate(names))
    config.label2id = {name: code for code, name in enumerate(names)}
    config.problem_type = "regression" if task_type == "regression" else "single_label_classification"


def _set_dropout(config: Any, dropout: float | None, attention_dropout: float) -> None:
    for field in _DROPOUTS if dropout is not None else ():
        if getattr(config, field, None) is not None:
            setattr(config, field, dropout)
    for field in _ATTENTION_DROPOUTS:
        if hasattr(config, field):
            setattr(config, field, attention_dropout)


def _draw_again(network: Any, head: nn.Module | None) -> None:
    """New values for a module, as its architecture draws them."""
    for module in head.modules() if head is not None else ():
        for parameter in module.parameters(recurse=False):
            parameter.__dict__.pop("_is_hf_initialized", None)  # else transformers takes it for read, and leaves it
        network._init_weights(module)


@contextlib.contextmanager
def sentences(place: str | Path) -> Iterator[None]:
    """transformers without its bars and reports; its errors as sentences."""
    import huggingface_hub.errors as hub
    from safetensors import SafetensorError
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BadModel(_sentence(place, error, hub)) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _sentence(place: str | Path, error: BaseException, hub: Any) -> str:
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(cause, hub.RepositoryNotFoundError | hub.HFValidationError | hub.GatedRepoError) for cause in causes):
        return f"--model {place}: no folder here and no open model on the Hugging Face hub has this name."
    if any(isinstance(cause, hub.LocalEntryNotFoundError | hub.OfflineModeIsEnabled) for cause in causes):
        return (
            f"--model {place}: the Hugging Face hub cannot be reached, and the model is not in its cache. "
            "Type --model minilm, which needs no network, or name a local folder."
        )
    return f"{place} cannot be read as a model: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"

"""A model's tokenizer by the bare `tokenizers` library: no torch, no transformers where there is a tokenizer.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_train_parallel.data.batches import IntArray
from bert_train_parallel.errors import BadModel, BadSetting
from bert_train_parallel.model_names import locate_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "longformer", "data2vec-text", "mpnet"}


@dataclass(frozen=True)
class Tokenizing:
    """A tokenizer without truncation and padding, and what its model puts around a text."""

    tokenizer: Tokenizer
    fingerprint: str  # of what it does: sha256 of the tokenizer without truncation and padding
    positions: int | None  # longest row that the model takes; None: not said

    @classmethod
    def of_json(cls, text: str, positions: int | None = None) -> Tokenizing:
        """From the content of a tokenizer.json.

        Raises:
            BadModel: it is not one.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for any content it cannot read
            raise BadModel(f"The tokenizer cannot be read: {str(error).splitlines()[0]}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:32], positions)

    @cached_property
    def single(self) -> tuple[list[int], list[int]]:
        """Tokens before and after a single text."""
        ids = self.tokenizer.encode("a").ids
        inner = self.tokenizer.encode("a", add_special_tokens=False).ids
        at = _place(inner, ids, 0)
        return ids[:at], ids[at + len(inner) :]

    @cached_property
    def pair(self) -> tuple[list[int], list[int], list[int], int | None]:
        """Tokens before, between and after two texts; and how many of those between belong to the first segment.

        None in the last place: the model knows one segment only.
        """
        encoding = self.tokenizer.encode("a", "b")
        first = self.tokenizer.encode("a", add_special_tokens=False).ids
        second = self.tokenizer.encode("b", add_special_tokens=False).ids
        at = _place(first, encoding.ids, 0)
        end = at + len(first)
        second_at = _place(second, encoding.ids, end)
        between = encoding.ids[end:second_at]
        of_first = encoding.type_ids.index(1) - end if 1 in encoding.type_ids else None
        return encoding.ids[:at], between, encoding.ids[second_at + len(second) :], of_first

    @property
    def vocabulary(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint16 if self.vocabulary <= 2**16 else np.uint32

    def encode(self, texts: Sequence[str]) -> list[IntArray]:
        """Tokens of each text, without special ones; on all cores."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]

    def encode_with_spans(self, texts: Sequence[str]) -> list[tuple[IntArray, Sequence[tuple[int, int]]]]:
        """Tokens of each text and where they stand in it; on all cores, slower than `encode`."""
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(np.array(encoding.ids, dtype=self.dtype), encoding.offsets) for encoding in encodings]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text stands in it, (first, last + 1) characters."""
        spans: list[tuple[int, int]] = self.tokenizer.encode(text, add_special_tokens=False).offsets
        return spans


def _place(inner: list[int], ids: list[int], start: int) -> int:
    """Where `inner` begins within `ids`, from `start` on."""
    for at in range(start, len(ids) - len(inner) + 1):
        if ids[at : at + len(inner)] == inner:
            return at
    raise BadModel("The tokenizer does not put a text between its special tokens; such a model cannot be used here.")


def load_tokenizing(model: str, sequence_len: int | None = None) -> Tokenizing:
    """The tokenizer of a model by name.

    Raises:
        BadModel: it has none, or the hub cannot be reached.
        BadSetting: `sequence_len` is more than the model has positions.
    """
    place = locate_model(model)
    config = json.loads(model_file(place, "config.json") or "{}")
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in _OFFSET_POSITIONS:
        positions -= int(config.get("pad_token_id") or 0) + 1  # these models count positions from the padding's number on
    if sequence_len is not None and isinstance(positions, int) and sequence_len > positions:
        raise BadSetting(f"--sequence_len {sequence_len}: {model} has {positions} positions. Use {positions} or less.")
    text = model_file(place, TOKENIZER)
    if text is None:
        text = _converted(place)
    return Tokenizing.of_json(text, positions if isinstance(positions, int) else None)


def model_file(place: Path | str, name: str) -> str | None:
    """The text of a file of a model's folder or hub page; None where the model has no such file.

    Raises:
        BadModel: the hub cannot be reached and has not been before, or has no such model.
    """
    if isinstance(place, Path):
        path = place / name
        return path.read_text(encoding="utf-8") if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(place, name)).read_text(encoding="utf-8")
    except LocalEntryNotFoundError as error:  # also an EntryNotFoundError, so it comes first
        raise BadModel(
            f"--model {place}: the Hugging Face hub cannot be reached, and the model is not in its cache. "
            "Type --model minilm, which needs no network, or name a local folder."
        ) from error
    except EntryNotFoundError:
        return None
    except (RepositoryNotFoundError, GatedRepoError, HFValidationError) as error:
        raise BadModel(f"--model {place}: no folder here and no open model on the Hugging Face hub has this name.") from error
    except OSError as error:
        raise BadModel(
            f"--model {place}: the Hugging Face hub cannot be reached ({type(error).__name__}). "
            "Type --model minilm, which needs no network, or name a local folder."
        ) from error


def _converted(place: Path | str) -> str:
    """A tokenizer.json made by transformers from a model's older files (vocab.txt, sentencepiece)."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, use_fast=True, trust_remote_code=False)
        return str(tokenizer.backend_tokenizer.to_str())
    except (OSError, ValueError, AttributeError, ImportError) as error:
        raise BadModel(f"--model {place} has no tokenizer that can be read: {str(error).splitlines()[0]}") from error

"""Texts to token ids by the bare `tokenizers` library, and how a model frames them with its special tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bert_train_parallel.data.hub_files import model_file
from bert_train_parallel.errors import BadModel, BadSetting
from bert_train_parallel.model_names import locate_model

_CACHED_WORDS = 200_000  # about 40 MB; then the cache starts anew
_POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "data2vec-text", "mpnet", "xmod"}
_MARK = "|"  # between words that are encoded together: a token of its own for BERT, whatever stands beside it
_WORDS_OF_TEXT, _WORDS_AT_ONCE = 32, 16_384
_CACHED_LETTERS = 64  # longer words are rare, and a text without spaces is one of them


Spans = Sequence[tuple[int, int]]  # (start, end) of each unit, in characters


def units_before(of_words: Spans, units: Spans) -> list[int]:
    """How many units of a text stand before each of its words, and in all; a unit belongs to the word that it ends in.

    >>> units_before([(0, 3), (4, 11)], [(0, 3), (3, 8), (8, 11)])       # a tokenizer that counts the space to a word
    [0, 1, 3]
    """
    starts = np.array([start for start, _ in of_words])
    ends = np.array([end for _, end in units], np.int64)
    word = np.maximum(np.searchsorted(starts, ends - 1, side="right") - 1, 0)
    return [0, *np.cumsum(np.bincount(word, minlength=len(starts))).tolist()]


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens around a text, or around and between two, as stored bytes.

    `[CLS] text [SEP]` is a before and an after; `[CLS] text [SEP] pair [SEP]` has a between as well.
    """

    before: bytes
    between: bytes
    after: bytes
    second_segment: bool  # whether the model tells the second text by segment 1, as BERT does and RoBERTa does not
    tokens: int  # special tokens in all


class TextTokenizer:
    """A model's tokenizer. Ids of a text are bytes, two for each token (four in vocabularies above 65,536).

    Truncation and padding that a tokenizer.json may carry are switched off.
    """

    def __init__(self, definition: dict[str, Any]) -> None:
        definition = dict(definition, truncation=None, padding=None)
        text = json.dumps(definition, sort_keys=True, ensure_ascii=False)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._tokenizer = Tokenizer.from_str(text)
        self.vocabulary = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if self.vocabulary <= 2**16 else np.uint32)
        self.single = self._frame("a")
        self.pair = self._frame("a", "a")
        self._words: dict[str, bytes] | None = {} if _words_stand_alone(definition) else None
        self._not_kept: list[str] = []  # words of the last texts that are too long to be remembered for the next

    def bodies(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text, without special tokens."""
        if self._words is None:
            return self._encoded(texts)
        split = [text.split(" ") for text in texts]
        self._remember(self._words, split)
        known = self._words.__getitem__
        return [b"".join(map(known, words)) for words in split]

    def by_words(self, text: str, of_words: Spans) -> tuple[bytes, list[int]]:
        """The ids of a text, and how many tokens stand before each of its words, and in all."""
        if self._words is None:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            return np.array(encoding.ids, self.dtype).tobytes(), units_before(of_words, encoding.offsets)
        words = [text[start:end] for start, end in of_words]
        self._remember(self._words, [words])
        parts = [self._words[word] for word in words]
        size = self.dtype.itemsize
        return b"".join(parts), list(accumulate((len(part) // size for part in parts), initial=0))

    def spans(self, text: str) -> Spans:
        """Where each token of a text stands."""
        offsets: Spans = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return offsets

    def _remember(self, known: dict[str, bytes], texts: list[list[str]]) -> None:
        """Have the ids of every word of these texts: each word goes through the tokenizer once, while it is remembered."""
        for word in self._not_kept:
            known.pop(word, None)
        words = set().union(*texts)
        new = [word for word in words if word not in known]
        if len(known) + len(new) > _CACHED_WORDS:
            known.clear()
            new = list(words)
        known.update(self._encoded_words(new))
        self._not_kept = [word for word in new if len(word) > _CACHED_LETTERS]

    def _encoded_words(self, words: list[str]) -> Iterator[tuple[str, bytes]]:
        """Each word with its ids. A text costs the tokenizer more than its words, so many go as one, with a mark between them."""
        mark = self._tokenizer.token_to_id(_MARK)
        plain = [word for word in words if _MARK not in word] if mark is not None else []
        for first in range(0, len(plain), _WORDS_AT_ONCE):
            batch = plain[first : first + _WORDS_AT_ONCE]
            groups = [batch[begin : begin + _WORDS_OF_TEXT] for begin in range(0, len(batch), _WORDS_OF_TEXT)]
            for group, ids in zip(groups, self._encoded([f" {_MARK} ".join(group) for group in groups]), strict=True):
                marks = np.flatnonzero(np.frombuffer(ids, self.dtype) == mark) * self.dtype.itemsize
                begins, ends = [0, *(marks + self.dtype.itemsize).tolist()], [*marks.tolist(), len(ids)]
                yield from ((word, ids[begin:end]) for word, begin, end in zip(group, begins, ends, strict=True))
        others = words if mark is None else [word for word in words if _MARK in word]
        yield from zip(others, self._encoded(others), strict=True)

    def _encoded(self, texts: Sequence[str]) -> list[bytes]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype).tobytes() for encoding in encodings]

    def _frame(self, text: str, pair: str | None = None) -> Frame:
        encoding = self._tokenizer.encode(text, pair)
        ids: npt.NDArray[Any] = np.array(encoding.ids, self.dtype)
        sequences = encoding.sequence_ids
        bodies = [number for number, sequence in enumerate(sequences) if sequence is not None]
        first = [number for number in bodies if sequences[number] == 0]
        second = [number for number in bodies if sequences[number] == 1]
        last = second[-1] if second else first[-1]
        return Frame(
            before=ids[: first[0]].tobytes(),
            between=ids[first[-1] + 1 : second[0]].tobytes() if second else b"",
            after=ids[last + 1 :].tobytes(),
            second_segment=bool(second) and encoding.type_ids[second[0]] == 1,
            tokens=len(ids) - len(bodies),
        )


def _words_stand_alone(definition: dict[str, Any]) -> bool:
    """Whether the ids of a text are those of its words, split at spaces, one after the other.

    True for BERT's own normalizer and pre-tokenizer: each splits at spaces and looks no further than a word.
    """
    normalizer, before, model = (definition.get(part) or {} for part in ("normalizer", "pre_tokenizer", "model"))
    return (
        normalizer.get("type") in (None, "BertNormalizer")
        and before.get("type") == "BertPreTokenizer"
        and model.get("type") == "WordPiece"
        and not any(set(" \t\r\n") & set(token["content"]) for token in definition.get("added_tokens") or ())
    )


def load_tokenizer(model: str, sequence_len: int | None = None) -> TextTokenizer:
    """The tokenizer of a model: `minilm`, a local folder or a name on the hub.

    Raises:
        BadModel: there is none, or it cannot be read.
        BadSetting: rows of `sequence_len` tokens are longer than the model takes, or too short for any text.
    """
    place = locate_model(model)
    if sequence_len is not None:
        _check_length(model, _config(place), sequence_len)
    path = model_file(place, "tokenizer.json")
    return read_tokenizer(path) if path is not None else TextTokenizer(_converted(model, place))


def read_tokenizer(path: Path) -> TextTokenizer:
    """The tokenizer of a tokenizer.json file."""
    try:
        return TextTokenizer(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadModel(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # tokenizers raises bare Exception for all it cannot read
        raise BadModel(f"{path} is not a tokenizer that can be used: {_first_line(error)}.") from None


def _config(place: Path | str) -> dict[str, Any]:
    path = model_file(place, "config.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError) as error:
        raise BadModel(f"{path} cannot be read: {_first_line(error)}.") from None
    return found if isinstance(found, dict) else {}


def _check_length(model: str, config: dict[str, Any], sequence_len: int) -> None:
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return
    if config.get("model_type") in _POSITIONS_AFTER_PADDING:
        positions -= int(config.get("pad_token_id") or 0) + 1
    if sequence_len > positions:
        raise BadSetting(
            f"--sequence_len {sequence_len}: --model {model} has {positions} positions. Type --sequence_len {positions} or less."
        )


def _converted(model: str, place: Path | str) -> dict[str, Any]:
    """The definition of a tokenizer that comes in older files, as transformers converts it."""
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(place, use_fast=True, trust_remote_code=False)
        definition: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # transformers raises many kinds for files it cannot make a tokenizer of
        raise BadModel(f"--model {model} has no tokenizer.json, and no other tokenizer that can be used ({_first_line(error)}).") from None
    return definition


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")

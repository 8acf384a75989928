"""Long texts become several rows: cut at the end of a sentence where one is near, else of a word."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bert_train_parallel.data.batches import IntArray
from bert_train_parallel.data.tokenizing import Tokenizing
from bert_train_parallel.errors import BadSetting

Spans = Sequence[tuple[int, int]]

_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+|\n\s*\n")
_NEAR = 0.5  # a sentence end counts as near when the row it ends is at least this full
_SURELY_LONG = 8  # characters per token of room above which a text is taken to be folded before its tokens are counted
_HEAD = 128 / 510  # of a row, for head_tail: Sun et al. 2019, How to Fine-Tune BERT for Text Classification


class FoldingSettings(Protocol):
    """What folding reads of the settings; a DataConfig has it, and so does what is stored with a model."""

    @property
    def sequence_len(self) -> int: ...
    @property
    def long_texts(self) -> str: ...
    @property
    def stride(self) -> int: ...


def words(text: str) -> list[tuple[int, int]]:
    """The measure in words: where each stands in the text."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def fold(text: str, length: int, measure: Callable[[str], Spans] = words, stride: int = 0) -> list[str]:
    """A text in pieces of at most `length` units of a measure: words, or tokens by `Tokenizing.spans`.

    >>> text = "Beat my Republican opponent! She will remove stop signs from your neighborhood."
    >>> for row in fold(text, 4):
    ...     print(row)
    Beat my Republican opponent!
    She will remove stop
    signs from your neighborhood.
    """
    spans = measure(text)
    return [text[spans[first][0] : spans[last - 1][1]] for first, last in cuts(text, spans, length, stride)]


def cuts(text: str, spans: Spans, length: int, stride: int = 0) -> list[tuple[int, int]]:
    """The pieces of a text as ranges of its units, none longer than `length`.

    A piece ends with a sentence if one ends in its second half, else with a word; inside a word only where that
    word alone is too long. Each piece but the first repeats the last `stride` units of the one before.
    """
    sentences = _sentence_ends(text, spans)
    pieces = []
    first = 0
    while len(spans) - first > length:
        last = _cut(text, spans, sentences, first + max(stride, int(length * _NEAR)), first + length, first + stride)
        pieces.append((first, last))
        first = last - stride
    pieces.append((first, len(spans)))
    return pieces


def _cut(text: str, spans: Spans, sentences: set[int], near: int, limit: int, first: int) -> int:
    """Where a piece ends: after the last sentence from `near` on, or the last word, or at the limit."""
    for edge in range(limit, near, -1):
        if edge in sentences:
            return edge
    for edge in range(limit, first, -1):
        if _between_words(text, spans, edge):
            return edge
    return limit


def _between_words(text: str, spans: Spans, edge: int) -> bool:
    """Whether white space stands between the units before and after an edge; units may overlap it, as `Ġword` does."""
    gap = text[spans[edge - 1][1] : max(spans[edge][0] + 1, spans[edge - 1][1])]
    return any(character.isspace() for character in gap)


def _sentence_ends(text: str, spans: Spans) -> set[int]:
    """The edges between units at which a sentence ends."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends:
        return set()
    lasts = np.fromiter((last for _, last in spans), dtype=np.int64, count=len(spans))
    return set(np.searchsorted(lasts, ends, side="right").tolist())


@dataclass(frozen=True, slots=True)
class Folded:
    """The rows of some texts, end to end; as `batches.Rows` has them, with the number of the text in place of the sample."""

    tokens: IntArray  # (T,)
    lengths: IntArray  # (N,) int32
    segments_at: IntArray  # (N,) int32
    text: IntArray  # (N,) int32, ascending

    @property
    def offsets(self) -> IntArray:
        return np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))


def fold_texts(texts: Sequence[tuple[str, ...]], tokenizing: Tokenizing, settings: FoldingSettings) -> Folded:
    """The rows of texts, or of pairs of texts, as BERT takes them: with special tokens, none above `sequence_len`.

    Args:
        texts: one or two strings each, all alike.
    Raises:
        BadSetting: `sequence_len` has no room for text beside the special tokens.
    """
    if texts and len(texts[0]) == 2:
        return _fold_pairs(texts, tokenizing, settings)
    before, after = (np.array(part, dtype=tokenizing.dtype) for part in tokenizing.single)
    room = _room(settings, len(before) + len(after))
    parts: list[IntArray] = []
    owners: list[int] = []
    encoded = _encode([text[0] for text in texts], tokenizing, settings, room)
    for number, (tokens, spans) in enumerate(encoded):
        for piece in _pieces(tokens, texts[number][0], spans, settings, room):
            parts += [before, piece, after]
            owners.append(number)
    lengths = _sums(parts, 3)
    return Folded(_joined(parts, tokenizing), lengths, lengths, np.array(owners, dtype=np.int32))


def _fold_pairs(texts: Sequence[tuple[str, ...]], tokenizing: Tokenizing, settings: FoldingSettings) -> Folded:
    """Rows of two texts: the longer is folded, the shorter stands whole in each row, or its first half row of tokens."""
    *edges, of_first = tokenizing.pair
    before, between, after = (np.array(part, dtype=tokenizing.dtype) for part in edges)
    room = _room(settings, sum(len(part) for part in edges) + 1)  # one token at least of the shorter
    parts: list[IntArray] = []
    owners: list[int] = []
    second_at: list[int] = []
    encoded = _encode([part for text in texts for part in text], tokenizing, settings, room // 2)
    for number, ((left, left_spans), (right, right_spans)) in enumerate(zip(encoded[::2], encoded[1::2], strict=True)):
        longer = 0 if len(left) >= len(right) else 1
        shorter = (right, left)[longer][: max(1, (room + 1) // 2)]
        spans = (left_spans, right_spans)[longer]
        for piece in _pieces((left, right)[longer], texts[number][longer], spans, settings, room + 1 - len(shorter)):
            first, second = (piece, shorter) if longer == 0 else (shorter, piece)
            parts += [before, first, between, second, after]
            owners.append(number)
            second_at.append(len(before) + len(first) + (of_first or 0))
    lengths = _sums(parts, 5)
    segments_at = lengths if of_first is None else np.array(second_at, dtype=np.int32)
    return Folded(_joined(parts, tokenizing), lengths, segments_at, np.array(owners, dtype=np.int32))


def _encode(texts: Sequence[str], tokenizing: Tokenizing, settings: FoldingSettings, room: int) -> list[tuple[IntArray, Spans]]:
    """Tokens of each text, and where they stand in it for those that may have to be cut; no spans for the others.

    A tokenizer without spans is faster; so only texts that are surely long, and then those that prove to be, pay for them.
    """
    folding = settings.long_texts == "fold"
    surely = [folding and len(text) > _SURELY_LONG * room for text in texts]
    plain = iter(tokenizing.encode([text for text, long in zip(texts, surely, strict=True) if not long]))
    encoded: list[tuple[IntArray, Spans] | None] = [None if long else (next(plain), ()) for long in surely]
    long = [number for number, found in enumerate(encoded) if found is None or (folding and len(found[0]) > room)]
    for number, found in zip(long, tokenizing.encode_with_spans([texts[number] for number in long]), strict=True):
        encoded[number] = found
    return [found for found in encoded if found is not None]


def _pieces(tokens: IntArray, text: str, spans: Spans, settings: FoldingSettings, room: int) -> list[IntArray]:
    """What of a text's tokens stands in its rows, at most `room` tokens each."""
    if len(tokens) <= room:
        return [tokens]
    if settings.long_texts == "truncate":
        return [tokens[:room]]
    if settings.long_texts == "head_tail":
        head = max(1, round(room * _HEAD)) if room > 1 else room
        return [np.concatenate((tokens[:head], tokens[len(tokens) - (room - head) :]))]
    return [tokens[first:last] for first, last in cuts(text, spans, room, min(settings.stride, room - 1))]


def _room(settings: FoldingSettings, special: int) -> int:
    room = settings.sequence_len - special
    if room < 1:
        raise BadSetting(f"--sequence_len {settings.sequence_len}: this model adds {special} tokens to a text. Use {special + 1} or more.")
    return room


def _sums(parts: Sequence[IntArray], per_row: int) -> IntArray:
    """(N,) tokens of each row, from the lengths of its `per_row` parts."""
    counts = np.fromiter((len(part) for part in parts), dtype=np.int32, count=len(parts))
    lengths: IntArray = counts.reshape(-1, per_row).sum(axis=1, dtype=np.int32)
    return lengths


def _joined(parts: Sequence[IntArray], tokenizing: Tokenizing) -> IntArray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=tokenizing.dtype)

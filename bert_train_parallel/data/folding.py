"""Long texts as several rows: cut at a sentence end where one is near, else at a word end."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

import numpy as np

from bert_train_parallel.data.batches import IntArray
from bert_train_parallel.data.tokenizing import Spans, TextTokenizer, units_before
from bert_train_parallel.errors import BadSetting

Measure = Callable[[str], Spans]

_NEAR = 0.25  # a row may stay this empty for the sake of a sentence end
_HEAD = 0.25  # of a row that keeps beginning and end: 128 of 512 tokens did best in Sun et al. 2019, arXiv:1905.05583

_WIDE_ENDS = "。！？｡"  # of sentences in scripts without spaces
_WORD = re.compile(rf"[^ \t\r\n{_WIDE_ENDS}]*[{_WIDE_ENDS}]+|[^ \t\r\n{_WIDE_ENDS}]+")
_ENDS = tuple(".!?…" + _WIDE_ENDS)
_CLOSERS = "\"'”’»)]}*_"


class FoldingSettings(Protocol):
    """What of the settings decides how texts become rows; a DataConfig has it."""

    @property
    def sequence_len(self) -> int: ...
    @property
    def long_texts(self) -> Literal["fold", "truncate", "head_tail"]: ...
    @property
    def stride(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Folded:
    """The rows of some texts, in their order; N rows of T tokens in all."""

    tokens: IntArray  # (T,) uint16 or uint32, with special tokens
    offsets: IntArray  # (N + 1,) int64
    segments_at: IntArray  # (N,) int32, where the second text of a pair begins, else the row's length
    sample: IntArray  # (N,) int64, which text; ascending

    def __len__(self) -> int:
        return len(self.sample)


def words(text: str) -> Spans:
    """Where the words of a text stand; a sentence end of a script without spaces ends a word too."""
    return [match.span() for match in _WORD.finditer(text)]


def fold(text: str, length: int, measure: Measure = words) -> list[str]:
    """The pieces of a text, each of at most `length` units of the measure: words, or tokens (`TextTokenizer.spans`).

    For one text, to look at what `cuts` does; `fold_texts` makes the rows of many.

    >>> fold("Beat my Republican opponent! She will remove stop signs from your neighborhood.", 4)
    ['Beat my Republican opponent!', 'She will remove stop', 'signs from your neighborhood.']
    """
    units, of_words = measure(text), words(text)
    before = units_before(of_words, units)
    return [text[units[begin][0] : units[end - 1][1]] for begin, end in cuts(text, of_words, before, length)]


def cuts(text: str, of_words: Spans, before: Sequence[int], length: int, stride: int = 0) -> Iterator[tuple[int, int]]:
    """(begin, end) of each piece, in units: at most `length` of them, all units covered, in order.

    A piece ends at a sentence end in its last quarter, else at its last word end, and inside a word only
    where that word alone is longer than a piece. It begins with up to `stride` units of the piece before.

    Args:
        of_words: (w,) where each word stands.
        before: (w + 1,) units before each word, and in all.
    """
    begin = 0
    while before[-1] - begin > length:
        full = begin + length
        word = bisect_right(before, full) - 1
        end = before[word] if before[word] > begin else full
        while before[word] > max(begin, full - _NEAR * length):
            if _sentence_ends(text, of_words[word - 1][1], of_words[word][0]):
                end = before[word]
                break
            word -= 1
        yield begin, end
        begin = end if not stride else min(end, before[bisect_left(before, max(end - stride, begin + 1))])
    yield begin, before[-1]


def _sentence_ends(text: str, left: int, right: int) -> bool:
    """Whether a sentence ends between a word's end and the next one's start: an end mark and no small letter, or a blank line."""
    if text.count("\n", left, right) > 1:
        return True
    return text[max(0, left - 8) : left].rstrip(_CLOSERS).endswith(_ENDS) and not text[right].islower()


def fold_texts(texts: Sequence[tuple[str, ...]], tokenizer: TextTokenizer, settings: FoldingSettings) -> Folded:
    """The rows of texts or text pairs (tuples of one or two), no row longer than `settings.sequence_len`.

    Raises:
        BadSetting: rows so short have no room for text beside the special tokens.
    """
    frame = tokenizer.pair if texts and len(texts[0]) == 2 else tokenizer.single
    needed = frame.tokens + (2 if frame.between else 1)
    if settings.sequence_len < needed:
        raise BadSetting(
            f"--sequence_len {settings.sequence_len}: {needed} at least are needed, {frame.tokens} of them for special tokens."
        )
    rows: list[bytes] = []
    segments: list[int] = []
    sample: list[int] = []
    if frame is tokenizer.pair:
        _fold_pairs(texts, tokenizer, settings, rows, segments, sample)
    else:
        _fold_singles([text for (text,) in texts], tokenizer, settings, rows, sample)
    itemsize = tokenizer.dtype.itemsize
    offsets = np.fromiter(accumulate(map(len, rows), initial=0), np.int64, len(rows) + 1) // itemsize
    return Folded(
        tokens=np.frombuffer(b"".join(rows), tokenizer.dtype),
        offsets=offsets,
        segments_at=np.array(segments, np.int32) if segments else np.diff(offsets).astype(np.int32),
        sample=np.array(sample, np.int64),
    )


def _fold_singles(texts: list[str], tokenizer: TextTokenizer, settings: FoldingSettings, rows: list[bytes], sample: list[int]) -> None:
    frame = tokenizer.single
    room = settings.sequence_len - frame.tokens
    for number, body in enumerate(tokenizer.bodies(texts)):
        if len(body) <= room * tokenizer.dtype.itemsize:
            rows.append(frame.before + body + frame.after)
            sample.append(number)
            continue
        for piece in _pieces(texts[number], body, room, tokenizer, settings):
            rows.append(frame.before + piece + frame.after)
            sample.append(number)


def _fold_pairs(
    texts: Sequence[tuple[str, ...]],
    tokenizer: TextTokenizer,
    settings: FoldingSettings,
    rows: list[bytes],
    segments: list[int],
    sample: list[int],
) -> None:
    """The longer text of a pair is folded; the other stands whole in each row, or to half of the room."""
    frame, size = tokenizer.pair, tokenizer.dtype.itemsize
    room = settings.sequence_len - frame.tokens
    first = tokenizer.bodies([text for text, _ in texts])
    second = tokenizer.bodies([pair for _, pair in texts])
    for number, bodies in enumerate(zip(first, second, strict=True)):
        longer = 0 if len(bodies[0]) >= len(bodies[1]) else 1
        kept = bodies[1 - longer]
        if len(first[number]) + len(second[number]) > room * size:
            kept = kept[: room // 2 * size]
        for piece in _pieces(texts[number][longer], bodies[longer], room - len(kept) // size, tokenizer, settings):
            one, two = (piece, kept) if longer == 0 else (kept, piece)
            head = frame.before + one + frame.between
            row = head + two + frame.after
            rows.append(row)
            segments.append(len(head if frame.second_segment else row) // size)
            sample.append(number)


def _pieces(text: str, body: bytes, room: int, tokenizer: TextTokenizer, settings: FoldingSettings) -> list[bytes]:
    """What of a text enters rows that have room for so many tokens of it; ids as bytes."""
    size = tokenizer.dtype.itemsize
    if len(body) <= room * size:
        return [body]
    if settings.long_texts == "truncate":
        return [body[: room * size]]
    if settings.long_texts == "head_tail":
        head = int(room * _HEAD) * size
        return [body[:head] + body[len(body) - (room * size - head) :]]
    of_words = words(text)
    body, before = tokenizer.by_words(text, of_words)
    return [body[begin * size : end * size] for begin, end in cuts(text, of_words, before, room, settings.stride)]

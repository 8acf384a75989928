"""Long texts as several rows: cut at a sentence end where one is near, else at a word end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

import numpy as np

from bert_train_parallel.data.batches import IntArray
from bert_train_parallel.data.tokenizing import TextTokenizer

Spans = Sequence[tuple[int, int]]  # (start, end) of each unit, in characters
Measure = Callable[[str], Spans]

_NEAR = 0.25  # a row may stay this empty for the sake of a sentence end
_HEAD = 0.25  # of a row that keeps beginning and end: 128 of 512 tokens did best in Sun et al. 2019, arXiv:1905.05583

_ENDS = ".!?…"
_WIDE_ENDS = "。！？｡"  # no space follows these
_CLOSERS = "\"'”’»)]}"


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
    """The words of a text, as spaces divide them."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def fold(text: str, length: int, measure: Measure = words) -> list[str]:
    """The pieces of a text, each of at most `length` units of the measure.

    >>> fold("Beat my Republican opponent! She will remove stop signs from your neighborhood.", 4)
    ['Beat my Republican opponent!', 'She will remove stop', 'signs from your neighborhood.']
    """
    spans = measure(text)
    return [text[spans[begin][0] : spans[end - 1][1]] for begin, end in cuts(text, spans, length)]


def cuts(text: str, spans: Spans, length: int, stride: int = 0) -> Iterator[tuple[int, int]]:
    """(begin, end) of each piece, in units: at most `length` of them, all units covered, in order.

    A piece ends at a sentence end in its last quarter, else at its last word end, and inside a word only
    where that word alone is longer than a piece. It begins with up to `stride` units of the piece before.
    """
    begin, units = 0, len(spans)
    while units - begin > length:
        end = _cut(text, spans, begin, begin + length)
        yield begin, end
        begin = _word_start(text, spans, max(end - stride, begin + 1), end)
    yield begin, units


def _cut(text: str, spans: Spans, begin: int, full: int) -> int:
    """Where a piece that could reach from `begin` to `full` ends."""
    word_end = 0
    for place in range(full, begin, -1):
        if not word_end and _at_word_end(text, spans, place):
            word_end = place
        if place > full - _NEAR * (full - begin):
            if _at_sentence_end(text, spans, place):
                return place
        elif word_end:
            break
    return word_end or full


def _word_start(text: str, spans: Spans, earliest: int, end: int) -> int:
    """The first unit from `earliest` on that begins a word, or `end`."""
    return next((place for place in range(earliest, end) if _at_word_end(text, spans, place)), end)


def _at_word_end(text: str, spans: Spans, place: int) -> bool:
    """Whether a space stands between the units before and after this place."""
    left, right = spans[place - 1][1], spans[place][0]
    # some tokenizers count the space before a word as a part of it
    return text[left - 1 : right + 1].strip() != text[left - 1 : right + 1] or right > left


def _at_sentence_end(text: str, spans: Spans, place: int) -> bool:
    """Whether a sentence ends before this place: an end mark, closing quotes, a space and no small letter, or a blank line."""
    left, right = spans[place - 1][1], spans[place][0]
    before = text[max(0, left - 4) : left].rstrip().rstrip(_CLOSERS)
    if before.endswith(tuple(_WIDE_ENDS)):
        return True
    if not _at_word_end(text, spans, place):
        return False
    if text.count("\n", left, right) > 1:
        return True
    return before.endswith(tuple(_ENDS)) and not text[right : right + 2].strip()[:1].islower()


def fold_texts(texts: Sequence[tuple[str, ...]], tokenizer: TextTokenizer, settings: FoldingSettings) -> Folded:
    """The rows of texts or text pairs (tuples of one or two), no row longer than `settings.sequence_len`."""
    rows: list[bytes] = []
    segments: list[int] = []
    sample: list[int] = []
    if texts and len(texts[0]) == 2:
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
    room = (settings.sequence_len - frame.tokens) * tokenizer.dtype.itemsize
    bodies = tokenizer.bodies(texts)
    spans = _spans_of_long(texts, bodies, room, tokenizer, settings)
    for number, body in enumerate(bodies):
        if len(body) <= room:
            rows.append(frame.before + body + frame.after)
            sample.append(number)
            continue
        for piece in _pieces(texts[number], body, spans.get(number, ()), room, tokenizer, settings):
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
    frame, itemsize = tokenizer.pair, tokenizer.dtype.itemsize
    room = settings.sequence_len - frame.tokens
    first = tokenizer.bodies([text for text, _ in texts])
    second = tokenizer.bodies([pair for _, pair in texts])
    for number, bodies in enumerate(zip(first, second, strict=True)):
        longer = 0 if len(bodies[0]) >= len(bodies[1]) else 1
        kept = bodies[1 - longer]
        if len(bodies[0]) + len(bodies[1]) > room * itemsize:
            kept = kept[: room // 2 * itemsize]
        left = room * itemsize - len(kept)
        pieces: list[bytes] = [bodies[longer]]
        if len(bodies[longer]) > left:
            text = texts[number][longer]
            spans = tokenizer.spans([text])[0] if settings.long_texts == "fold" else ()
            pieces = _pieces(text, bodies[longer], spans, left, tokenizer, settings)
        for piece in pieces:
            one, two = (piece, kept) if longer == 0 else (kept, piece)
            head = frame.before + one + frame.between
            rows.append(head + two + frame.after)
            segments.append(len(head if frame.second_segment else rows[-1]) // itemsize)
            sample.append(number)


def _spans_of_long(
    texts: list[str], bodies: list[bytes], room: int, tokenizer: TextTokenizer, settings: FoldingSettings
) -> dict[int, Spans]:
    """Where the tokens of the texts stand that do not fit a row; only folding asks for it."""
    if settings.long_texts != "fold":
        return {}
    long = [number for number, body in enumerate(bodies) if len(body) > room]
    return dict(zip(long, tokenizer.spans([texts[number] for number in long]), strict=True)) if long else {}


def _pieces(text: str, body: bytes, spans: Spans, room: int, tokenizer: TextTokenizer, settings: FoldingSettings) -> list[bytes]:
    """What of a text that is longer than `room` bytes of ids enters rows."""
    size = tokenizer.dtype.itemsize
    if settings.long_texts == "truncate":
        return [body[:room]]
    if settings.long_texts == "head_tail":
        head = int(room // size * _HEAD) * size
        return [body[:head] + body[len(body) - (room - head) :]]
    return [body[begin * size : end * size] for begin, end in cuts(text, spans, room // size, settings.stride)]

"""Long texts as several rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_train_parallel.data.folding import Folded, cuts, fold, fold_texts, words
from bert_train_parallel.data.tokenizing import TextTokenizer
from bert_train_parallel.errors import BadSetting

NUMBERS = "one two three four five six seven eight nine ten "


@dataclass(frozen=True)
class Settings:
    sequence_len: int = 16
    long_texts: Literal["fold", "truncate", "head_tail"] = "fold"
    stride: int = 0


def rows_of(folded: Folded) -> list[list[int]]:
    return [folded.tokens[begin:end].tolist() for begin, end in zip(folded.offsets, folded.offsets[1:], strict=False)]


def body(text: str, tokenizer: TextTokenizer) -> list[int]:
    return np.frombuffer(tokenizer.bodies([text])[0], tokenizer.dtype).tolist()


def test_a_sentence_end_near_the_end_of_a_row_ends_it() -> None:
    text = "One two three. Four five six seven. Eight nine ten"
    assert fold(text, 8) == ["One two three. Four five six seven.", "Eight nine ten"]


def test_a_sentence_end_far_from_the_end_of_a_row_does_not() -> None:
    text = "One. " + " ".join(f"word{number}" for number in range(20))
    assert fold(text, 10)[0] == "One. " + " ".join(f"word{number}" for number in range(9))


@pytest.mark.parametrize(
    "ending", ["stop. Next", 'stop." Next', "stop!) Next", "stop? “Next", "stop… Next", "stop\n\nnext", "stop.\nNext", "stop. 5 more"]
)
def test_sentence_ends_are_known_with_quotes_brackets_and_blank_lines(ending: str) -> None:
    text = "a b c d e f " + ending + " x y z"
    assert fold(text, 8)[0] == text[: text.lower().index("next") if "ext" in ending else text.index("5")].rstrip("“ \n")


@pytest.mark.parametrize("middle", ["approx. next", "e.g. next", "no end"])
def test_a_point_before_a_small_letter_is_no_sentence_end(middle: str) -> None:
    text = "a b c d e f " + middle + " x y z"
    assert len(words(fold(text, 8)[0])) == 8


def test_sentences_of_scripts_without_spaces_end_too(minilm: TextTokenizer) -> None:
    pieces = fold("私は学生です。彼は先生です。これは本です。", 8, minilm.spans)
    assert pieces == ["私は学生です。", "彼は先生です。", "これは本です。"]


def test_a_word_that_alone_is_too_long_is_cut_and_only_that_one(minilm: TextTokenizer) -> None:
    long = "supercalifragilisticexpialidocious"
    assert len(minilm.spans(long)) > 5
    pieces = fold(f"a short {long} word", 5, minilm.spans)
    assert pieces[0] == "a short"
    assert "".join(pieces[1:]).replace(" ", "").startswith(long)
    assert pieces[-1].endswith("word")


def test_no_row_is_longer_than_asked_and_none_is_lost(minilm: TextTokenizer, byte_level: TextTokenizer) -> None:
    text = "She will remove stop signs. " * 40 + "x" * 300 + " Beat my Republican opponent! " * 10
    for tokenizer in (minilm, byte_level):
        folded = fold_texts([(text,), ("short",)], tokenizer, Settings(24))
        assert np.diff(folded.offsets).max() <= 24
        before, after = len(tokenizer.single.before) // 2, len(tokenizer.single.after) // 2
        inside = [token for row in rows_of(folded)[:-1] for token in row[before : len(row) - after]]
        assert inside == body(text, tokenizer)
        assert folded.sample.tolist() == [0] * (len(folded) - 1) + [1]


def test_truncated_texts_keep_their_first_tokens(minilm: TextTokenizer) -> None:
    text = "one two three four five six seven eight nine ten " * 4
    folded = fold_texts([(text,)], minilm, Settings(16, "truncate"))
    assert rows_of(folded) == [[101, *body(text, minilm)[:14], 102]]


def test_head_and_tail_keep_a_quarter_from_the_beginning_and_the_rest_from_the_end(minilm: TextTokenizer) -> None:
    text = NUMBERS * 4
    folded = fold_texts([(text,)], minilm, Settings(18, "head_tail"))
    tokens = body(text, minilm)
    assert rows_of(folded) == [[101, *tokens[:4], *tokens[-12:], 102]]


def test_a_stride_repeats_the_end_of_the_row_before(minilm: TextTokenizer) -> None:
    text = NUMBERS * 3
    rows = rows_of(fold_texts([(text,)], minilm, Settings(12, stride=4)))
    assert all(before[-5:-1] == after[1:5] for before, after in pairwise(rows))
    assert len(rows) > len(rows_of(fold_texts([(text,)], minilm, Settings(12))))


@pytest.mark.parametrize("longer", [0, 1])
def test_the_longer_text_of_a_pair_is_folded_beside_the_whole_of_the_other(minilm: TextTokenizer, longer: int) -> None:
    long, short = "one two three four five six seven. " * 6, "a question"
    pair = (long, short) if longer == 0 else (short, long)
    folded = fold_texts([pair], minilm, Settings(20))
    kept = body(short, minilm)
    found: list[int] = []
    for row, at in zip(rows_of(folded), folded.segments_at, strict=True):
        assert len(row) <= 20
        first, second = row[1 : at - 1], row[at:-1]
        assert (second if longer == 0 else first) == kept
        found += first if longer == 0 else second
    assert found == body(long, minilm)


def test_a_pair_of_long_texts_gives_half_of_a_row_to_the_shorter(minilm: TextTokenizer) -> None:
    folded = fold_texts([("one " * 30, "two " * 40)], minilm, Settings(23))
    one, two = body("one", minilm)[0], body("two", minilm)[0]
    assert all(row.count(one) == 10 for row in rows_of(folded))
    assert sum(row.count(two) for row in rows_of(folded)) == 40


def test_a_model_with_one_segment_has_no_second_one(byte_level: TextTokenizer) -> None:
    folded = fold_texts([("stop signs", "beat my opponent")], byte_level, Settings(64))
    assert folded.segments_at.tolist() == np.diff(folded.offsets).tolist()


def test_rows_without_room_for_text_are_refused(minilm: TextTokenizer) -> None:
    with pytest.raises(BadSetting, match=r"--sequence_len 4: 5 at least are needed, 3 of them for special tokens"):
        fold_texts([("one", "two")], minilm, Settings(4))
    assert rows_of(fold_texts([("one two",)], minilm, Settings(3))) == [[101, token, 102] for token in body("one two", minilm)]


def test_no_texts_are_no_rows(minilm: TextTokenizer) -> None:
    folded = fold_texts([], minilm, Settings())
    assert (len(folded), folded.offsets.tolist(), len(folded.tokens)) == (0, [0], 0)


@given(st.text(alphabet="ab .!\n。é", max_size=120), st.integers(1, 9), st.integers(0, 4))
def test_pieces_of_any_text_are_short_enough_and_cover_it_in_order(text: str, length: int, stride: int) -> None:
    spans = words(text)
    pieces = list(cuts(text, spans, range(len(spans) + 1), length, min(stride, length // 2)))
    assert pieces[0][0] == 0
    assert pieces[-1][1] == len(spans)
    assert all(0 <= end - begin <= length for begin, end in pieces)
    assert all(before[0] < after[0] <= before[1] < after[1] for before, after in pairwise(pieces))


@given(st.lists(st.text(max_size=60), min_size=1, max_size=4), st.integers(3, 12), st.sampled_from(["fold", "truncate", "head_tail"]))
def test_rows_of_any_texts_fit_and_every_text_has_one(
    minilm: TextTokenizer, byte_level: TextTokenizer, texts: list[str], length: int, long_texts: Literal["fold", "truncate", "head_tail"]
) -> None:
    for tokenizer in (minilm, byte_level):
        folded = fold_texts([(text,) for text in texts], tokenizer, Settings(length, long_texts))
        assert np.diff(folded.offsets).max() <= length
        assert np.unique(folded.sample).tolist() == list(range(len(texts)))
        if long_texts == "fold":
            assert len(folded.tokens) - 2 * len(folded) == sum(len(body(text, tokenizer)) for text in texts)

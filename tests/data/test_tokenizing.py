"""Tokens by the bare library, against the tokenizers that everyone uses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data import tokenizing
from bert_train_parallel.data.folding import fold_texts
from bert_train_parallel.data.tokenizing import TextTokenizer, load_tokenizer, read_tokenizer
from bert_train_parallel.errors import BadModel, BadSetting
from bert_train_parallel.model_names import locate_model

TEXTS = [
    "Beat my Republican opponent!",
    "I can't believe it... really?!",
    "naïve café, Zürich — “quotes” and ‘more’",
    "東京は 日本の首都です。Next sentence.",
    "tabs\tand\nnew\r\nlines  and   spaces\u00a0and\u2028more\x85",
    "control\x00\x07\x1fcharacters and \ufffd and zero\u200bwidth",
    "[CLS] in a text [SEP] and [MASK]s| and | alone",
    "😀 emoji 👨‍👩‍👧 and ﬁ ligatures ＡＢＣ İstanbul ΣΑΣ",
    "x" * 150 + " " + "supercalifragilisticexpialidocious " * 3,
    "",
    "   ",
]


@pytest.fixture(scope="module")
def plain() -> Any:
    """The same tokenizer with nothing of ours around it."""
    tokenizer = Tokenizer.from_file(str(locate_model("minilm")) + "/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def ids(body: bytes, tokenizer: TextTokenizer) -> list[int]:
    return np.frombuffer(body, tokenizer.dtype).tolist()


def test_tokens_are_those_of_the_library_for_every_kind_of_text(minilm: TextTokenizer, plain: Any) -> None:
    found = [ids(body, minilm) for body in minilm.bodies(TEXTS)]
    assert found == [plain.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert [ids(body, minilm) for body in minilm.bodies(TEXTS)] == found  # once more, from remembered words


@given(st.lists(st.text(), max_size=5))
def test_tokens_are_those_of_the_library_for_any_text(minilm: TextTokenizer, plain: Any, texts: list[str]) -> None:
    assert [ids(body, minilm) for body in minilm.bodies(texts)] == [plain.encode(text, add_special_tokens=False).ids for text in texts]


@pytest.mark.slow
def test_tokens_of_short_texts_are_those_of_transformers(minilm: TextTokenizer) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(locate_model("minilm"))
    texts = [text for text in TEXTS if text.strip()]
    folded = fold_texts([(text,) for text in texts], minilm, DataConfig(sequence_len=512))
    rows = [folded.tokens[begin:end].tolist() for begin, end in zip(folded.offsets, folded.offsets[1:], strict=False)]
    assert rows == [reference(text)["input_ids"] for text in texts]
    pairs = fold_texts([(text, "and a second") for text in texts], minilm, DataConfig(sequence_len=512))
    for number, text in enumerate(texts):
        expected = reference(text, "and a second")
        begin, end = pairs.offsets[number], pairs.offsets[number + 1]
        assert pairs.tokens[begin:end].tolist() == expected["input_ids"]
        assert expected["token_type_ids"].index(1) == pairs.segments_at[number]


def test_words_are_forgotten_when_there_are_too_many(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_CACHED_WORDS", 3)
    tokenizer = load_tokenizer("minilm")
    for _ in range(2):
        for text in TEXTS:
            assert ids(*tokenizer.bodies([text]), tokenizer) == plain.encode(text, add_special_tokens=False).ids


def test_truncation_and_padding_of_the_file_do_not_apply(plain: Any) -> None:
    definition = json.loads(Path(str(locate_model("minilm")), "tokenizer.json").read_text(encoding="utf-8"))
    assert definition["truncation"] is not None
    assert definition["padding"] is not None
    tokenizer = TextTokenizer(definition)
    assert len(ids(*tokenizer.bodies(["word " * 300]), tokenizer)) == 300
    assert tokenizer.fingerprint == TextTokenizer(dict(definition, truncation=None, padding=None)).fingerprint


def test_special_tokens_stand_around_and_between_texts_as_each_family_has_them(minilm: TextTokenizer, byte_level: TextTokenizer) -> None:
    assert (ids(minilm.single.before, minilm), ids(minilm.single.after, minilm)) == ([101], [102])
    assert (ids(minilm.pair.between, minilm), minilm.pair.tokens, minilm.pair.second_segment) == ([102], 3, True)
    assert (ids(byte_level.pair.between, byte_level), byte_level.pair.tokens, byte_level.pair.second_segment) == ([1, 1], 4, False)


@pytest.mark.parametrize("text", [text for text in TEXTS if text.strip()])
def test_tokens_are_counted_to_the_words_they_are_of(minilm: TextTokenizer, byte_level: TextTokenizer, text: str) -> None:
    from bert_train_parallel.data.folding import words

    for tokenizer in (minilm, byte_level):
        body, before = tokenizer.by_words(text, words(text))
        assert body == tokenizer.bodies([text])[0]
        assert len(before) == len(words(text)) + 1
        assert before[-1] * tokenizer.dtype.itemsize == len(body)
        for number, (start, end) in enumerate(words(text)):
            alone = tokenizer.bodies([text[start:end]])[0]
            if tokenizer is minilm:
                assert body[2 * before[number] : 2 * before[number + 1]] == alone


def test_more_positions_than_the_model_has_are_refused(tiny_tokenizer: Path) -> None:
    with pytest.raises(BadSetting, match=r"--sequence_len 513: --model .* has 512 positions\. Type --sequence_len 512 or less\."):
        load_tokenizer(str(tiny_tokenizer), 513)
    load_tokenizer(str(tiny_tokenizer), 512)


def test_positions_that_are_counted_from_the_padding_on_are_fewer(tiny_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny_tokenizer / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}')
    load_tokenizer(str(tmp_path), 512)
    with pytest.raises(BadSetting, match="has 512 positions"):
        load_tokenizer(str(tmp_path), 513)


@pytest.mark.slow
def test_a_folder_with_a_vocabulary_alone_is_converted(tmp_path: Path, minilm: TextTokenizer) -> None:
    source = Path(str(locate_model("minilm")))
    for name in ("vocab.txt", "config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.bodies(TEXTS[:4]) == minilm.bodies(TEXTS[:4])
    assert tokenizer.single == minilm.single


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "WordPiece"}}', '"text"'])
def test_a_damaged_tokenizer_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BadModel, match=r"is not a tokenizer that can be used") as error:
        read_tokenizer(path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_folder_without_any_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"has no tokenizer\.json, and no other tokenizer") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_told_within_seconds_with_what_to_type(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PATH": "", "HOME": str(tmp_path)}
    code = "from bert_train_parallel.data.tokenizing import load_tokenizer; load_tokenizer('bert-base-uncased')"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=20, check=False)
    assert done.stderr.splitlines()[-1].startswith("bert_train_parallel.errors.BadModel: --model bert-base-uncased is neither a folder")
    assert "--model minilm" in done.stderr.splitlines()[-1]


def test_preparing_with_a_tokenizer_json_loads_neither_torch_nor_transformers(write_csv: Any, tiny_tokenizer: Path) -> None:
    code = (
        "import sys; from bert_train_parallel.config import DataConfig; from bert_train_parallel.data.preparation import prepare;"
        f"prepare(DataConfig(model={str(tiny_tokenizer)!r}), {str(write_csv(30))!r}, say=lambda line: None);"
        "print(*{'torch', 'transformers', 'datasets', 'pyarrow', 'pandas', 'huggingface_hub'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

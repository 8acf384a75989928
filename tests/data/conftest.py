"""Tokenizers of two families, a store, a small disk, and a fingerprint of a folder."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.preparation import prepare
from bert_train_parallel.data.store import Store
from bert_train_parallel.data.tokenizing import TextTokenizer, load_tokenizer


@pytest.fixture(scope="session")
def minilm() -> TextTokenizer:
    """BERT's own: words, then pieces of words."""
    return load_tokenizer("minilm")


@pytest.fixture(scope="session")
def byte_level() -> TextTokenizer:
    """As RoBERTa's: bytes with the space before a word counted to it, and one segment for pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["she will remove stop signs from your neighborhood", "beat my republican opponent"] * 20, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return TextTokenizer(json.loads(tokenizer.to_str()))


@pytest.fixture
def store(write_csv: Callable[..., Path], tiny_tokenizer: Path) -> Store:
    path = write_csv(300, long_every=10)
    return prepare(DataConfig(model=str(tiny_tokenizer), sequence_len=32), str(path), say=lambda line: None)


@dataclass(frozen=True)
class Disk:
    """A file system of its own, of half a megabyte."""

    folder: Path

    def make_read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small disk needs root")
    yield Disk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def content_hash(folder: Path) -> str:
    """Names and contents of all files and folders below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()

"""Small real parts that tests share: a tiny BERT with its tokenizer, and CSV files of made-up texts."""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

SUBJECTS = ["the dog", "a small cat", "my neighbor", "the old senator", "an angry driver", "her brother", "the new teacher"]
GOOD = ["loved", "praised", "enjoyed", "helped", "thanked", "admired"]
BAD = ["hated", "blamed", "ignored", "insulted", "feared", "attacked"]
OBJECTS = ["the long film", "a cold soup", "this town", "the tall garden", "an honest answer", "the green house"]
WORDS = sorted({word for phrase in SUBJECTS + GOOD + BAD + OBJECTS for word in phrase.split()} | {"and", "then", "it", "was"})


def sentence(rng: random.Random, label: str) -> str:
    """A short sentence whose verb gives the label away."""
    return f"{rng.choice(SUBJECTS)} {rng.choice(GOOD if label == 'good' else BAD)} {rng.choice(OBJECTS)}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests run last, so that a mistake shows early."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session", autouse=True)
def temporary_files_of_launches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Launches that are made to fail keep what they printed in the temporary folder: here it is one that pytest removes."""
    os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("tmp"))


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of a tiny BERT: whole words of the made-up texts, letters for all else."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789")
    marks = list(".,!?'\"-:;()@#&/$%")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *marks]
    vocabulary = {piece: code for code, piece in enumerate(dict.fromkeys([*pieces, *WORDS]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    folder = tmp_path_factory.mktemp("tiny_tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "model_max_length": 512, "do_lower_case": true, "unk_token": "[UNK]", '
        '"sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}'
    )
    (folder / "config.json").write_text(
        '{"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_hidden_layers": 2, '
        '"num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 512, '
        f'"vocab_size": {len(vocabulary)}, "type_vocab_size": 2, "hidden_dropout_prob": 0.1, '
        '"attention_probs_dropout_prob": 0.1, "pad_token_id": 0}'
    )
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local model folder: 2 layers of 32, random weights from a fixed seed, with the tiny tokenizer."""
    import shutil

    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(tiny_tokenizer, folder)
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    BertModel(BertConfig.from_pretrained(folder)).save_pretrained(folder)
    torch.set_rng_state(generator_state)
    return folder


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Writes a CSV of made-up texts whose label can be learned: `write_csv(200)` gives its path."""

    def write(rows: int = 200, name: str = "leanings.csv", seed: int = 0, long_every: int = 0) -> Path:
        rng = random.Random(seed)
        path = tmp_path / name
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for number in range(rows):
                label = rng.choice(["good", "bad"])
                sentences = rng.randint(20, 60) if long_every and number % long_every == 0 else rng.randint(1, 3)
                writer.writerow([". ".join(sentence(rng, label) for _ in range(sentences)) + f". {number}", label])
        return path

    return write

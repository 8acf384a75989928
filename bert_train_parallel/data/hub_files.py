"""Single files of a model: from its folder, the local Hugging Face cache, or the hub."""

from __future__ import annotations

from pathlib import Path

from bert_train_parallel.errors import BadModel


def model_file(place: Path | str, name: str) -> Path | None:
    """One file of a model, fetched where it must be; None where the model has no such file.

    Args:
        place: what `locate_model` gave: a folder, or a name on the hub.
    Raises:
        BadModel: the hub cannot be reached, or does not know the model.
    """
    if isinstance(place, Path):
        return place / name if (place / name).is_file() else None
    raise BadModel(place)

"""Checkpoints: numbered folders that appear complete or not at all, and prove by hashes that they still are.

leanings_checkpoints/
    run.json              which run this folder belongs to
    step_00000120/        model.safetensors, optimizer.safetensors, state.json, manifest.json
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bert_train_parallel.errors import BadCheckpoint
from bert_train_parallel.run_files import folder_written_aside

FORMAT = 1
_MODEL, _OPTIMIZER, _STATE, _MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files have the hashes of its manifest."""

    folder: Path
    step: int  # optimizer steps done
    state: dict[str, Any]  # JSON values: position, figures so far, settings

    def model(self) -> dict[str, Tensor]:
        return load_file(self.folder / _MODEL)

    def optimizer(self) -> dict[str, Tensor]:
        return load_file(self.folder / _OPTIMIZER)


def name_of(step: int) -> str:
    return f"step_{step:08d}"


def write(folder: Path, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: dict[str, Any]) -> Path:
    """Write the checkpoint after `step` optimizer steps; it takes its name when all of it is on the disk.

    Raises:
        NotWritable: no room, or no permission; nothing is left of the attempt.
    """
    place = folder / name_of(step)
    with folder_written_aside(place) as aside:
        _save(model, aside / _MODEL)
        _save(optimizer, aside / _OPTIMIZER)
        (aside / _STATE).write_text(json.dumps({"format": FORMAT, "step": step, **state}, allow_nan=False), encoding="utf-8")
        manifest = {name: _file_sha256(aside / name) for name in (_MODEL, _OPTIMIZER, _STATE)}
        (aside / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return place


def read(place: Path) -> Checkpoint:
    """A checkpoint, every byte of it compared with its manifest.

    Raises:
        BadCheckpoint: a file is missing, or is not what was written.
    """
    try:
        manifest = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
        for name in (_MODEL, _OPTIMIZER, _STATE):
            if _file_sha256(place / name) != manifest[name]:
                raise BadCheckpoint(f"{place / name} is not what was written (its sha256 differs from {_MANIFEST}).")
        state = json.loads((place / _STATE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{place} is not a whole checkpoint: {Path(error.filename).name} is missing.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{place} cannot be read as a checkpoint: {error}.") from None
    if state.get("format") != FORMAT:
        raise BadCheckpoint(f"{place} is of format {state.get('format')}; this version reads {FORMAT}. Use the version that wrote it.")
    return Checkpoint(place, int(state["step"]), state)


def found(folder: Path) -> list[Path]:
    """The checkpoints of a run by name, the newest first; not yet verified."""
    if not folder.is_dir():
        return []
    numbered = [(int(match[1]), place) for place in folder.iterdir() if (match := _NAME.fullmatch(place.name))]
    return [place for _, place in sorted(numbered, reverse=True)]


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies; damaged ones are passed over, and named."""
    for place in found(folder):
        try:
            return read(place)
        except BadCheckpoint as error:
            say(f"Passed over: {error}")
    return None


def prune(folder: Path, step: int, keep: int, also: Iterable[str]) -> None:
    """Remove what is not among the newest `keep` up to `step`, nor named in `also`.

    What has a later step did not verify when the run went on from an earlier one, and goes too.
    """
    places = found(folder)
    kept = [place for place in places if int(place.name.removeprefix("step_")) <= step][:keep]
    names = {place.name for place in kept} | set(also)
    for place in places:
        if place.name not in names:
            _remove(place)


def sweep_up(folder: Path) -> None:
    """Remove what writers that were killed have left half done; only while no other process writes here."""
    if folder.is_dir():
        for place in folder.glob(".step_*"):
            shutil.rmtree(place, ignore_errors=True)


def copy(checkpoint: Path, folder: Path) -> Path:
    """The same checkpoint in another run's folder, by links where the disk has them."""
    place = folder / checkpoint.name
    if not place.exists():
        with folder_written_aside(place) as aside:
            for file in checkpoint.iterdir():
                _link_or_copy(file, aside / file.name)
    return place


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, such as `exp_avg.classifier.weight`."""
    tensors: dict[str, Tensor] = {}
    for parameter, values in optimizer.state.items():
        tensors |= {f"{key}.{names[parameter]}": torch.as_tensor(value) for key, value in values.items()}
    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]) -> None:
    """Takes what `optimizer_tensors` gave, onto the devices where the optimizer wants it."""
    state_dict = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    keys = {name.split(".", 1)[0] for name in tensors}
    state_dict["state"] = {
        number: {key: tensors[f"{key}.{names[parameter]}"].clone() for key in keys} for number, parameter in enumerate(parameters) if keys
    }
    optimizer.load_state_dict(state_dict)


def _remove(place: Path) -> None:
    """Out of sight first, so that one half removed is never taken for whole."""
    aside = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        os.rename(place, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises OSError as any write does; safetensors hands on the system's reason as text alone."""
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""What a trial asks for, as a key: two that ask for the same are trained once, and the run of the first has the files of both."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.errors import BertTrainParallelError, not_writable
from bert_train_parallel.run_files import write_text
from bert_train_parallel.sweeps.differences import differing
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.messages import BertFineTuneRequest, DatasetSnapshotResult


class LaunchRefused(BertTrainParallelError):
    """What a trial asks for cannot be done, however often it is tried."""


def store_key(config: TrainConfig, snapshot: DatasetSnapshotResult) -> str:
    """What a store depends on: the snapshot and the settings that read, split and fold it."""
    spec = config.spec() | {"model": config.model, "validation_file": None, "test_file": None}
    return _hash({"snapshot": snapshot.data_hash, "spec": spec})[:16]


def trial_key(config: TrainConfig, request: BertFineTuneRequest, folder: SharedFolder) -> str:
    """What a trial asks for: the settings that make the model, the data, and where it goes on from. Two equal ones are trained once."""
    assert request.dataset_snapshot is not None
    return _hash(
        {
            "data": store_key(config, request.dataset_snapshot),
            "model": config.model_key(request.dataset_snapshot.data_hash),
            "metric": request.metric,
            "rung": request.rung,
            "again": request.again,
            "from_run": request.from_run and home_of(folder, request.from_run),
            **({"by_score": True} if request.by_score else {}),  # trials of earlier versions have keys without
        }
    )


def home_of_key(folder: SharedFolder, key: str, run_id: str) -> str:
    """The run that a key belongs to: `run_id` itself where it is the first to ask."""
    path = folder.key(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_once(path, run_id)
        home = path.read_text(encoding="utf-8").strip()
        if home != run_id and _is_of_another_key(folder, home, key):  # it was removed, and its name used again
            write_text(path, run_id)
            home = run_id
        if home != run_id:
            folder.run(run_id).mkdir(parents=True, exist_ok=True)
            (folder.run(run_id) / "same_as").write_text(home, encoding="utf-8")
        return home
    except OSError as error:
        raise not_writable(error, path) or error from error


def keep_asked(folder: SharedFolder, key: str, request: BertFineTuneRequest) -> None:
    """Write down what a run was asked, so that it can be repeated, and is never given to whoever asks for something else.

    Raises:
        LaunchRefused: it was asked for something else before; the sentence says what differs.
    """
    path = folder.asked(request.run_id)
    plain = request.model_copy(update={"node_rank": None, "reservation": None})
    words = ""
    try:
        if not path.exists() and folder.finished_files(request.run_id) and not folder.key(key).exists():
            words = "which was trained with other settings or data"
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_once(path, json.dumps({"key": key, "request": plain.model_dump(mode="json")}))
            earlier_key, earlier = asked_before(folder, request.run_id)
            if earlier_key != key:  # without a difference: a later version hashes the same in another way
                words = "; ".join(differing(_what_counts(plain), _what_counts(earlier)))
                words = words and f"which differs in {words}"
    except OSError as error:
        raise not_writable(error, path) or error from error
    if words:
        raise LaunchRefused(
            f"{path.parent} is of another run of this name, {words}. Give the new one its own run_id (trials of a sweep: its own "
            "experiment_id), or remove that folder."
        )


def asked_before(folder: SharedFolder, run_id: str) -> tuple[str, BertFineTuneRequest]:
    """The key of a run, and what it was asked.

    Raises:
        OSError: that was not written down.
    """
    found = json.loads(folder.asked(run_id).read_text(encoding="utf-8"))
    return str(found["key"]), BertFineTuneRequest.model_validate(found["request"])


def _what_counts(request: BertFineTuneRequest) -> dict[str, Any]:
    """What of a request may make another model, by names that its author knows."""
    config = request.config.model_dump(mode="json", exclude={"run_id", "dataset_name", "validation_file", "test_file", "use_gpu"})
    found = request.model_dump(mode="json", include={"metric", "rung", "from_run", "again"})
    return {**config, **found, "data": request.dataset_snapshot and request.dataset_snapshot.data_hash[:12]}


def _is_of_another_key(folder: SharedFolder, run_id: str, key: str) -> bool:
    try:
        return asked_before(folder, run_id)[0] != key
    except OSError:
        return False


def _write_once(path: Path, text: str) -> None:
    """Write a whole file, unless there is one: of two that try at once, one is first."""
    if path.exists():
        return
    aside = path.with_name(f".{secrets.token_hex(8)}")
    aside.write_text(text, encoding="utf-8")
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    finally:
        aside.unlink()


def is_of_run(checkpoint: str, run_id: str, folder: SharedFolder) -> bool:
    """Whether a checkpoint's path, whole or from the shared folder, leads into the folder of a run, or of the run that is the same."""
    place = (folder.root / checkpoint).resolve()
    return any(place.is_relative_to(folder.run(one).resolve()) for one in (run_id, home_of(folder, run_id)))


def home_of(folder: SharedFolder, run_id: str) -> str:
    """The run whose folder has the files of this one."""
    pointer = folder.run(run_id) / "same_as"
    return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else run_id


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]

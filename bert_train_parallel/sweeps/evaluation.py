"""Predictions of a run's model, made by the predict command in a launch of its own: for given texts, or to measure the model."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_train_parallel import metrics
from bert_train_parallel.config import TrainConfig
from bert_train_parallel.data.store import Store
from bert_train_parallel.errors import BadRun
from bert_train_parallel.gpus import Claim
from bert_train_parallel.launching.plan import LaunchRequest
from bert_train_parallel.models.reading import reading_in_folder
from bert_train_parallel.run_files import RunFiles, store_stem
from bert_train_parallel.sweeps import launches, outcomes
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.keys import asked_before, home_of, store_key
from bert_train_parallel.sweeps.messages import (
    BertEvalRequest,
    BertEvalResult,
    BertFineTuneRequest,
    BertInferenceRequest,
    BertInferenceResult,
    DatasetSnapshotResult,
    counted,
)
from bert_train_parallel.sweeps.reservations import Hold, gpu_at_once, launch_environment
from bert_train_parallel.sweeps.run_facts import baseline_accuracy, with_baseline
from bert_train_parallel.sweeps.snapshots import files_of
from bert_train_parallel.sweeps.trial import TRAINER

Tick = Callable[[], None]
_TOLD = "from bert_train_parallel.training.last_words import told_to_launcher"
_PREDICT = (
    *(sys.executable, "-P", "-c"),
    f"import sys; from bert_train_parallel.predict.cli import main; {_TOLD}; sys.exit(main(told=told_to_launcher))",
)
_SPLITS = {"validation": "validate"}


async def infer(request: BertInferenceRequest, folder: SharedFolder, tick: Tick) -> BertInferenceResult:
    """Labels for texts."""
    files = _model_of(folder, request.run_id)
    result = _result(files)
    check_length(request.max_seq_length, result)
    predictions = await _predictions(files, _texts_of(request, _takes_pairs(files)), request.use_gpu, tick)
    names = result["label_names"]
    if not names:
        return BertInferenceResult(
            run_id=request.run_id,
            texts=request.texts,
            text_pairs=request.text_pairs,
            predicted_labels=[],
            confidences=[float(found["prediction"]) for found in predictions],
        )
    labels = [str(found["prediction"]) for found in predictions]
    return BertInferenceResult(
        run_id=request.run_id,
        texts=request.texts,
        text_pairs=request.text_pairs,
        predicted_labels=[names.index(label) for label in labels],
        confidences=[float(found["probabilities"][label]) for found, label in zip(predictions, labels, strict=True)],
        label_names=labels,
    )


def inference_of(run_id: str, texts: Sequence[str], folder: SharedFolder) -> BertInferenceRequest:
    """What the texts of a command line ask of a run's model: as for `bert_predict`, two for each prediction where it takes pairs.

    Raises:
        BadRun: there is no such model, or the second text of a pair is missing.
    """
    if not _takes_pairs(_model_of(folder, run_id)):
        return BertInferenceRequest(run_id=run_id, texts=list(texts))
    if len(texts) % 2:
        raise BadRun(f"{run_id} was trained on pairs of texts: give two for each prediction, and not {counted(len(texts), 'text')} in all.")
    return BertInferenceRequest(run_id=run_id, texts=list(texts[::2]), text_pairs=list(texts[1::2]))


def _takes_pairs(files: RunFiles) -> bool:
    reading = reading_in_folder(files.model_folder)
    return reading is not None and reading.text_pair is not None


def _texts_of(request: BertInferenceRequest, pairs: bool) -> list[tuple[str, ...]]:
    """The texts of each prediction, as the model was trained to read them.

    Raises:
        BadRun: it takes another number of texts, or one is empty.
    """
    if pairs and request.text_pairs is None:
        raise BadRun(f"{request.run_id} was trained on pairs of texts: text_pairs is to have the second text of each of texts.")
    if not pairs and request.text_pairs is not None:
        raise BadRun(f"{request.run_id} was trained on single texts, not on pairs; leave text_pairs out.")
    texts = list(zip(request.texts, *([request.text_pairs] if request.text_pairs is not None else []), strict=True))
    empty = next((number for number, parts in enumerate(texts, 1) if not all(part.strip() for part in parts)), None)
    if empty is not None:
        raise BadRun(f"Text {empty} is empty. Give one with words in it.")
    return texts


async def evaluate(request: BertEvalRequest, folder: SharedFolder, tick: Tick) -> BertEvalResult:
    """Measure a model by samples of a split: of the data that it was trained with, or of another snapshot split in the same way."""
    if request.run_id is None and request.model_path is None:
        raise BadRun("run_id and model_path are missing: one of them says which run's model is to be measured.")
    files = _model_of(folder, request.run_id or "", request.model_path)
    run_id = request.run_id or files.folder.name
    asked = _asked(folder, run_id) or _asked(folder, files.folder.name)
    split = _SPLITS.get(request.split, request.split)
    with Store.open(await _store(request, files, folder, tick)) as store:
        samples = store.samples(split)
        chosen = np.arange(len(samples.ids))
        if request.max_eval_samples is not None and request.max_eval_samples < len(chosen):
            chosen = np.sort(np.random.default_rng(request.seed).permutation(len(chosen))[: request.max_eval_samples])
        if not len(chosen):
            raise BadRun(f"{store.path} has no samples in its {request.split} split, so nothing can be measured.")
        texts, truth, names = store.texts(samples.ids[chosen]), samples.labels[chosen], store.label_names
    batch = ("--batch_size", str(request.batch_size)) if request.batch_size != BertEvalRequest().batch_size else ()
    predictions = await _predictions(files, texts, request.use_gpu, tick, batch)
    figures = _figures([found["prediction"] for found in predictions], truth, names)
    found = BertEvalResult(
        run_id=run_id,
        dataset_name=request.dataset_name or (asked.config.dataset_name if asked else files.stem),
        dataset_config_name=request.dataset_config_name,
        split=request.split,
        num_examples=len(chosen),
        accuracy=figures.get("accuracy"),
        figures=figures,
    )
    return with_baseline(found, baseline_accuracy(truth) if names else None)


def _figures(predicted: Sequence[Any], truth: Any, names: Sequence[str]) -> dict[str, float]:
    """Accuracy and macro F1 for classes, correlation and squared error for numbers."""
    if not names:
        numbers = np.array([float(value) for value in predicted])
        return {"pearson": float(metrics.pearson(truth, numbers)), "mse": float(metrics.mean_squared_error(truth, numbers))}
    code_of = {name: code for code, name in enumerate(names)}
    codes = np.array([code_of.get(str(label), len(names)) for label in predicted])  # a label that this data lacks is always wrong
    counts = metrics.confusion_counts(truth.astype(np.int64), codes, len(names) + 1)
    return {"accuracy": float(np.trace(counts) / counts.sum())}


async def _store(request: BertEvalRequest, files: RunFiles, folder: SharedFolder, tick: Tick) -> Path:
    """The store to take samples from."""
    snapshot = request.dataset_snapshot
    own = next(iter(sorted(files.folder.glob("*.sqlite"))), None)
    if snapshot is None:
        if own is None:
            raise BadRun(f"{files.folder} has no store; name the data set to measure the model by.")
        return own
    config = reading_of(files, snapshot, folder)
    paths = files_of(snapshot, folder)
    source = paths.pop("train")
    config = config.model_copy(update={f"{split}_file": str(path) for split, path in paths.items()})
    store = folder.store(store_key(config, snapshot), store_stem(source.name))
    if not store.is_file():
        store.parent.mkdir(parents=True, exist_ok=True)
        settings = store.with_suffix(".json")
        settings.write_text(config.model_dump_json(exclude_defaults=True), encoding="utf-8")
        command = (*TRAINER, str(source), "--preponly", "--config", str(settings), "--output_dir", str(store.parent))
        await _run(command, files.folder, tick, Claim(1))
    return store


def check_length(asked: int | None, result: Mapping[str, Any]) -> None:
    """Raises BadRun for another number of tokens than that of the training, at which the model was never measured."""
    trained = result["settings"]["sequence_len"]
    if asked not in (None, trained):
        raise BadRun(f"max_seq_length {asked}: this model was trained to read {trained} tokens and reads as many now; leave it out.")


def reading_of(files: RunFiles, snapshot: DatasetSnapshotResult, folder: SharedFolder) -> TrainConfig:
    """How other data is read for a run's model: with the columns that its training named, unless this data is known to lack them."""
    asked = _asked(folder, files.folder.name)
    if asked is None:
        config = TrainConfig.model_validate(json.loads((files.folder / "settings.json").read_text(encoding="utf-8")))
    else:
        config = asked.config.train_config()
    columns = {name for name in (config.text, config.text_pair, config.label) if name}
    lacks = snapshot.dataset_schema is not None and not columns <= snapshot.dataset_schema.keys()
    unnamed = {"text": None, "text_pair": None, "label": None} if lacks else {}
    return config.model_copy(update={"validation_file": None, "test_file": None, "dataset_config": None} | unnamed)


def _asked(folder: SharedFolder, run_id: str) -> BertFineTuneRequest | None:
    """What a run was asked; None where that was not written down, as for a training that no sweep began."""
    try:
        return asked_before(folder, run_id)[1]
    except OSError:
        return None


async def _predictions(
    files: RunFiles, texts: Sequence[tuple[str, ...]], use_gpu: bool, tick: Tick, more: Sequence[str] = ()
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix=".predict-", dir=files.folder) as scratch:
        given, made = Path(scratch) / "texts.jsonl", Path(scratch) / "predictions.jsonl"
        names = ("text", "text_pair")
        given.write_text("".join(json.dumps(dict(zip(names, one, strict=False))) + "\n" for one in texts), encoding="utf-8")
        columns = ["--text", "text", *(["--text_pair", "text_pair"] if len(texts[0]) > 1 else [])]
        command = (*_PREDICT, str(files.model_folder), str(given), "--output", str(made), "--quiet", *columns, *more)
        hold = await gpu_at_once(tick) if use_gpu else Hold(Claim(1))
        try:
            await _run((*command, "--device", _device(hold.claim)), files.folder, tick, hold.claim)
        finally:
            hold.release()
        return [json.loads(line) for line in made.read_text(encoding="utf-8").splitlines()]


def _device(claim: Claim) -> str:
    return "cuda" if claim.devices else "cpu"


async def _run(command: tuple[str, ...], folder: Path, tick: Tick, claim: Claim) -> None:
    request = LaunchRequest(command, str(folder), here=1, device=_device(claim), log_dir=str(folder / "logs"))
    launch = launches.launch(request, folder / "output.log", tick, held=claim.locks, environment=launch_environment(claim))
    found = outcomes.verdict(await launch)
    if found.outcome != "finished":
        raise BadRun(f"{folder}: {found.words}")


def _model_of(folder: SharedFolder, run_id: str, model_path: str | None = None) -> RunFiles:
    place = folder.inside(model_path) if model_path else folder.run(run_id)
    home = folder.run(home_of(folder, place.name)) if place.parent == folder.run(run_id).parent else place
    results = sorted(home.glob("*_RESULT.json"))
    if not results:
        raise BadRun(f"{home} has no finished run. `bert_sweep status` shows those that are under way.")
    files = RunFiles.of(results[0])
    if not files.model_folder.is_dir():
        raise BadRun(f"{files.model_folder} is gone: only the best trials keep their models. `bert_sweep rerun` makes it again.")
    return files


def _result(files: RunFiles) -> dict[str, Any]:
    return dict(json.loads(files.result.read_text(encoding="utf-8")))

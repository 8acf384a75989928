"""One run from its store to its RESULT, as each rank goes through it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.data.batches import Rows
from bert_train_parallel.data.split import SPLITS
from bert_train_parallel.data.store import Store
from bert_train_parallel.data.table import shown
from bert_train_parallel.errors import BadCheckpoint, BadSetting, BertTrainParallelError, StoppedBySignal
from bert_train_parallel.metrics import figure_words
from bert_train_parallel.models.export import save_model, tokenizer_files
from bert_train_parallel.models.loading import Blueprint, blueprint_of, build_from, build_model
from bert_train_parallel.models.matmul import Library, choose_matmul, use_matmul
from bert_train_parallel.models.packed import PackedModel
from bert_train_parallel.rank import Rank
from bert_train_parallel.run_files import RunFiles, write_json
from bert_train_parallel.tasks import Predictions, task_of
from bert_train_parallel.training import memory, outcome, runs
from bert_train_parallel.training.checkpoints import Checkpoint
from bert_train_parallel.training.course import Course
from bert_train_parallel.training.data_parallel import DataParallel
from bert_train_parallel.training.keeper import Keeper, Start, find_start, taken_name
from bert_train_parallel.training.loop import Progress, fit
from bert_train_parallel.training.precision import choose_dtype, parameters_dtype
from bert_train_parallel.training.profiling import Profiled
from bert_train_parallel.training.reporter import Reporter, duration, json_figures
from bert_train_parallel.training.samples import doubts, evaluation_rows, labels_used, training_rows
from bert_train_parallel.training.signals import StopRequests
from bert_train_parallel.training.strategy import Strategy
from bert_train_parallel.training.watcher import RunWatcher
from bert_train_parallel.training.world import World, choose_device, join_world, set_threads


@dataclass(slots=True)
class Run:
    """What one rank has in hand between the beginning and the end of a run."""

    world: World
    store: Store
    config: TrainConfig  # resolved
    facts: dict[str, Any]  # that every checkpoint and RESULT carry: asked, key, origin, resolved
    model: PackedModel
    tokenizer: dict[str, bytes]  # files of it, on rank 0
    course: Course
    strategy: Strategy
    requests: StopRequests
    reporter: Reporter
    progress: Progress = field(default_factory=Progress)
    began: float = field(default_factory=time.monotonic)
    earlier_seconds: float = 0.0  # that the run took before this process

    @property
    def seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.began


def run_rank(open_store: Callable[[], Store], named: RunFiles, config: TrainConfig, rank: Rank, reporter: Reporter) -> dict[str, Any]:
    """Train as one rank of a world; gives what RESULT holds, on every rank.

    Args:
        open_store: gives the store, which the first rank of each node has prepared before it joins the world.
        named: the files that the run would have if none had been there before it.
    """
    began = time.monotonic()
    set_threads(config.threads, rank)
    device = choose_device(config.device, rank)
    with join_world(rank, device) as world, open_store() as store, memory.errors_as_sentences(world):
        todo = f"Copy {store.path.name} from one node to the others, or remove it there and type --send_data on every node."
        world.agree("The data", store.fingerprint, todo)
        start = find_start(world, named, config, store.fingerprint)
        for note in start.notes:
            reporter.say(note)
        if start.result is not None:
            reporter.say(runs.is_finished_sentence(start.files))
            return start.result
        run = set_up(world, store, config, start, reporter)
        run.began = began
        try:
            with taken_name(world, named, start, run.facts) as (files, writes):
                return see_through(run, files, start, Keeper(files, writes, config.keep_checkpoints, run.facts))
        finally:
            run.strategy.close()


def see_through(run: Run, files: RunFiles, start: Start, keeper: Keeper) -> dict[str, Any]:
    """From the start to RESULT; a run that fails says so in its events, and gives its name up where it has left nothing."""
    try:
        go_on(run, files, start, keeper)
        train(run, files, keeper)
        return conclude(run, files, keeper)
    except BertTrainParallelError as error:
        run.reporter.event("failed", step=run.progress.step, figures={"kind": error.kind, "words": str(error)})
        if keeper.writes and start.is_new:
            runs.give_up_claim(files)
        raise


def set_up(world: World, store: Store, config: TrainConfig, start: Start, reporter: Reporter) -> Run:
    """Decide `auto` settings, load the model on rank 0, send it to all, and say what will be done."""
    kept = start.checkpoint.state if start.checkpoint else None
    asked, model_key = config.asked(store.fingerprint), config.model_key(store.fingerprint)
    dtype = kept["resolved"]["dtype"] if kept else choose_dtype(config.dtype, world)
    blueprint = Blueprint(**kept["blueprint"]) if kept else None
    model, tokenizer = load_model(world, store, config, parameters_dtype(dtype), blueprint)
    known: Library | None = kept["resolved"]["matmul"] if kept and config.matmul == "auto" and dtype == "float32" else None
    matmul = known or choose_library(world, model, config, dtype)
    if config.matmul == "onednn" and matmul != "onednn":
        reporter.say(f"--matmul onednn changes nothing: it is for float32 on a CPU, and this is {dtype} on {world.device.type}")
    use_matmul(model, matmul or "mkl")
    resolved = {"dtype": dtype, "matmul": matmul, "device": world.device.type, "backend": world.backend}
    config = config.model_copy(update={name: resolved[name] for name in ("dtype", "matmul", "device") if resolved[name]})
    rows = training_rows(store, config)
    if not len(rows):
        raise BadSetting(f"{store.path} has no training samples. Build it again with another --split.")
    facts = {
        "asked": asked,
        "key": runs.run_key(model_key, start.origin),
        "origin": start.origin,
        "resolved": resolved,
        "blueprint": asdict(blueprint_of(model)),
    }
    requests = StopRequests()
    strategy = DataParallel(model, rows, world, config, store.task_type, requests)
    course = Course(rows, config)
    for sentence in introduction(world, store, config, model, course):
        reporter.say(sentence)
    return Run(world, store, config, facts, model, tokenizer, course, strategy, requests, reporter)


def load_model(
    world: World, store: Store, config: TrainConfig, dtype: torch.dtype, blueprint: Blueprint | None
) -> tuple[PackedModel, dict[str, bytes]]:
    """The model and its tokenizer's files: read on rank 0; elsewhere the structure alone, whose values DDP sends when it is made.

    With a blueprint, that of a checkpoint, no weights are read anywhere: `strategy.load` brings them.
    """
    model: PackedModel | None = None
    tokenizer: dict[str, bytes] = {}

    def read() -> Blueprint:
        nonlocal model, tokenizer
        tokenizer = tokenizer_files(config.model) if config.export else {}
        if blueprint:
            return blueprint
        model = build_model(
            config.model,
            len(store.label_names) or 1,
            store.task_type,
            store.label_names,
            seed=config.seed,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            dtype=dtype,
        )
        return blueprint_of(model)

    plan = world.on_first(read)
    return model or build_from(plan, dtype), tokenizer


def choose_library(world: World, model: PackedModel, config: TrainConfig, dtype: str) -> Library | None:
    """The library of products on CPUs for the whole world, None on other devices.

    In float32 it is oneDNN where that was asked for, or every node finds it faster; torch itself takes oneDNN in bfloat16.
    """
    if world.device.type != "cpu":
        return None
    if dtype != "float32":
        return "onednn" if dtype == "bfloat16" and torch.backends.mkldnn.is_available() else "mkl"
    first_of_node = world.rank.is_first_of_node
    found = world.together(lambda: choose_matmul(config.matmul, model).library if first_of_node else "onednn")
    return "onednn" if all(library == "onednn" for library in found) else "mkl"


def introduction(world: World, store: Store, config: TrainConfig, model: PackedModel, course: Course) -> Iterator[str]:
    """What rank 0 says before the first step."""
    used = {split: labels_used(store, split, config) for split in SPLITS}
    train, validate, test = (_count(len(labels), len(store.samples(split).ids)) for split, labels in used.items())
    counts = np.bincount(used["train"].astype(np.int64)) if store.label_names else ()
    names = [store.label_names[code] for code in np.flatnonzero(counts)] or ["a number"]
    labels = ", ".join(map(shown, names[:8])) + ", ..." * (len(names) > 8)
    yield (
        f"data: {store.path.name}, {train} samples to train on, {validate} to validate, {test} to test; "
        f"{len(course.rows)} rows of at most {config.sequence_len} tokens; {store.task_type}: {labels}"
    )
    yield from doubts(store, config)
    size = sum(parameter.numel() for parameter in model.parameters())
    yield f"model: {config.model}, {size / 1e6:.1f} M parameters, {'packed' if model.packed else 'padded in groups of like length'}"
    nodes = list(dict.fromkeys(world.hosts))
    ranks = f"{world.size} rank{'s' * (world.size > 1)} on {', '.join(nodes[:8])}{', ...' * (len(nodes) > 8)}"
    matmul = f", matmul {config.matmul}" if world.device.type == "cpu" else ""
    backend = f", {world.backend}" if world.size > 1 else ""
    yield f"world: {ranks}, {world.device.type}{backend}, {config.dtype}{matmul}, {torch.get_num_threads()} threads each"
    yield f"steps: {course.steps} of {config.batch_size} rows, {course.steps_per_epoch} an epoch"


def _count(used: int, there: int) -> str:
    """
    >>> _count(320, 320), _count(50, 320)
    ('320', '50 of 320')
    """
    return str(used) if used == there else f"{used} of {there}"


def go_on(run: Run, files: RunFiles, start: Start, keeper: Keeper) -> None:
    """Open the run's progress file; load the checkpoint where there is one."""
    run.reporter.write_events_to(files.progress)
    checkpoint = start.checkpoint
    facts = {"run": files.stem, "key": run.facts["key"], "job": run.world.rank.job, "world": run.world.size, **run.facts["resolved"]}
    facts["rows"] = len(run.course.rows)  # of an epoch
    if checkpoint is None:
        run.reporter.event("start", figures=facts)
        return
    run.progress = Progress.from_json(checkpoint.state["progress"])
    if start.adopts and checkpoint.state["asked"]["max_train_samples"] != run.config.max_train_samples:
        run.progress.step = len(run.progress.epochs) * run.course.steps_per_epoch  # of more samples an epoch has more steps
    if run.progress.step > run.course.steps:
        raise BadCheckpoint(f"{checkpoint.folder} has {run.progress.step} steps, of {run.course.steps} asked for. Give more --epochs.")
    tensors = (checkpoint.model(), checkpoint.optimizer()) if run.world.rank.rank == start.source else ({}, {})
    run.strategy.load(*tensors, checkpoint.state["strategy"], start.source)
    if start.adopts:
        adopted = run.world.on_first(lambda: keeper.adopt(checkpoint, run.progress.best))
        run.progress.best = run.progress.best if adopted else None
    else:
        run.earlier_seconds = checkpoint.state["seconds"]
    run.reporter.event("start" if start.adopts else "resume", step=run.progress.step, figures=facts, path=str(checkpoint.folder))
    run.reporter.say(f"{files.stem} goes on after step {run.progress.step}, from {checkpoint.folder}.")


def train(run: Run, files: RunFiles, keeper: Keeper) -> None:
    """All steps, with validation and a checkpoint after each epoch."""
    watcher = RunWatcher(run.reporter, files, run.course, run.strategy, run.world, run.progress.step)
    rows = evaluation_rows(run.store, "validate", run.config)

    def validate() -> dict[str, Any]:
        return evaluate(run, rows)[1]

    def save() -> None:
        watcher.saved(run.progress, keeper.save(run.strategy, run.progress, run.seconds))

    strategy = run.strategy
    if run.config.profile:
        strategy = Profiled(strategy, run.course, run.model, run.config.dtype, files.trace, run.reporter.say)
    try:
        with run.requests:
            fit(strategy, run.course, run.progress, validate, save, watcher)
    except StoppedBySignal as stopped:
        stopped.exit_code = run.requests.exit_code
        raise


def evaluate(run: Run, rows: Rows) -> tuple[Predictions | None, dict[str, Any]]:
    """Predictions for the samples of these rows, on rank 0, and their figures, on every rank."""
    outputs = run.strategy.outputs(rows)
    task = task_of(run.store.task_type)
    predictions: Predictions | None = None

    def figures() -> dict[str, Any]:
        nonlocal predictions
        assert outputs is not None
        predictions = task.combine(outputs, rows, run.config.combine)
        return json_figures(task.figures(predictions, run.store.label_names))

    found = run.world.on_first(figures)
    return predictions, found


def conclude(run: Run, files: RunFiles, keeper: Keeper) -> dict[str, Any]:
    """Test the best model, and write what the run leaves."""
    load_best(run, keeper)
    predictions, tested = evaluate(run, evaluation_rows(run.store, "test", run.config))
    run.reporter.event("test", step=run.progress.step, figures=tested)
    result = run.world.on_first(lambda: write_all(run, files, predictions, tested))
    shown = [
        f"{name} {figure_words(tested[name])}"
        for name in ("accuracy", "macro_f1", "mse", "pearson", "loss")
        if tested.get(name) is not None
    ]
    on = f"{'  '.join(shown)}  on {tested['samples']} samples" if tested["samples"] else "no samples"
    run.reporter.say(f"test: {on}, with the model of epoch {result['best_epoch']}")
    run.reporter.say(f"done in {duration(result['seconds'])}: {files.result}")
    run.reporter.event("finished", step=run.progress.step, figures={"seconds": result["seconds"]}, path=str(files.result))
    return result


def load_best(run: Run, keeper: Keeper) -> None:
    """The model of the best epoch; where its checkpoint does not verify, the last one stays, and takes its place."""
    best: Checkpoint | None = None

    def find() -> bool:
        nonlocal best
        try:
            best = keeper.best(run.progress)
        except BadCheckpoint as error:
            run.reporter.say(f"The best model is lost, the last one takes its place: {error}")
            return False
        return True

    if not run.world.on_first(find):
        last = run.progress.epochs[-1]
        run.progress.best = {"epoch": last["epoch"], "step": last["step"], "figure": None, "figures": last["Validation"]}
    if run.progress.best and run.progress.best["step"] != run.progress.step:
        run.strategy.load_model(best.model() if best else {})


def write_all(run: Run, files: RunFiles, predictions: Predictions | None, tested: Mapping[str, Any]) -> dict[str, Any]:
    """Every file of the run's end, RESULT last; what RESULT says."""
    store, config, progress = run.store, run.config, run.progress
    assert predictions is not None
    task_of(store.task_type).write(predictions, store.label_names, store, files.predictions)
    outcome.write_stats(files, progress, run.strategy.description(), tested)
    if config.export:
        reading = config.model_dump(mode="json") | read_as(store, config) | {"task_type": store.task_type}
        save_model(run.model, files, run.tokenizer, store.label_names, reading)
    best = progress.best or {"epoch": 0, "figures": {}}
    result = {
        "key": run.facts["key"],
        "run": files.stem,
        "task_type": store.task_type,
        "label_names": list(store.label_names),
        "settings": config.model_dump(mode="json"),
        "asked": run.facts["asked"],
        "origin": run.facts["origin"],
        "figures": {"test": dict(tested), "validate": best["figures"]},
        "best_epoch": best["epoch"],
        "steps": progress.step,
        "fingerprints": {"data": store.fingerprint, "tokenizer": store.tokenizer_fingerprint, "model": outcome.fingerprint(run.model)},
        "world": world_facts(run),
        "seconds": round(run.seconds, 3),
        "versions": outcome.versions(),
        "files": outcome.file_names(files, store),
    }
    run.reporter.say(outcome.add_to_store(store, result))
    write_json(files.result, result)
    return result


def read_as(store: Store, config: TrainConfig) -> dict[str, Any]:
    """How texts are read, for whoever uses the model: as they were when the store was built, of which a later run need not be told."""
    return {name: store.spec[name] for name in ("text", "text_pair", "max_cell_bytes")} | ({"text": config.text} if config.text else {})


def world_facts(run: Run) -> dict[str, Any]:
    """What the run ran on, as JSON values."""
    world = run.world
    nodes = {host: world.hosts.count(host) for host in world.hosts}
    return {"ranks": world.size, "nodes": nodes, **run.facts["resolved"], "threads": torch.get_num_threads(), **run.strategy.description()}

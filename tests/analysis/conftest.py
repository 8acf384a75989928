"""Runs as training leaves them, made of real stores and made-up logits."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.preparation import prepare
from bert_train_parallel.data.store import Store
from bert_train_parallel.progress import Event, append_event
from bert_train_parallel.run_files import RunFiles, run_files, write_json
from bert_train_parallel.tasks import task_of

MakeRun = Callable[..., RunFiles]


@pytest.fixture
def make_run(tiny_tokenizer: Path, tmp_path: Path) -> MakeRun:
    """`make_run(["ham", "spam"], run="lr5")`: a store of made-up texts, and the files of a run over it."""

    def make(
        names: Sequence[str] = ("ham", "spam"),
        run: str | None = None,
        samples: int = 150,
        skill: float = 2.0,
        epochs: int = 2,
        seed: int = 0,
        stem: str = "leanings",
        **settings: object,
    ) -> RunFiles:
        source = tmp_path / f"{stem}.csv"
        if not source.exists():
            write_source(source, names, samples)
        kind = "classification" if names else "regression"
        config = DataConfig(model=str(tiny_tokenizer), text="text", label="label", task_type=kind, split=(0.4, 0.2, 0.4), sequence_len=16)
        files = run_files(str(source), run=run)
        with prepare(config, str(source), say=lambda _: None) as store:
            write_run(files, store, skill, epochs, seed, {**config.model_dump(mode="json"), "epochs": epochs, "seed": seed, **settings})
        return files

    return make


@pytest.fixture
def a_run(make_run: MakeRun) -> RunFiles:
    """One finished run with its store."""
    return make_run()


def write_source(path: Path, names: Sequence[str], samples: int) -> None:
    """Texts of 2 to 40 words; labels in turn, or numbers where there are no names."""
    rng = random.Random(0)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(samples):
            words = " ".join(rng.choice(["the dog", "a cat", "helped", "hated", "soup"]) for _ in range(rng.randint(1, 20)))
            writer.writerow([f"{words} {number}", names[number % len(names)] if names else round(rng.gauss(0, 3), 3)])


def write_run(files: RunFiles, store: Store, skill: float, epochs: int, seed: int, settings: dict[str, object]) -> None:
    """The files of a run whose logits favour the truth by `skill`."""
    task = task_of(store.task_type)
    figures = {}
    for split in ("validate", "test"):
        rows, rng = store.rows(split), np.random.default_rng(seed)
        if store.label_names:
            logits = rng.normal(size=(len(rows), len(store.label_names)))
            logits[np.arange(len(rows)), rows.targets[:, 0]] += skill
        else:
            logits = rows.targets + rng.normal(size=(len(rows), 1)) / skill
        predictions = task.combine(logits, rows, "mean")
        figures[split] = task.figures(predictions, store.label_names)
    task.write(predictions, store.label_names, store, files.predictions)
    loss = [1 / epoch for epoch in range(1, epochs + 1)]
    training = [{"epoch": number, "Training Loss": value, "Validation Loss": value + 0.1} for number, value in enumerate(loss, 1)]
    write_json(files.stats, {"Training": training, "Testing": figures["test"]})
    for step in range(1, 4 * epochs + 1):
        append_event(files.progress, Event("step", step=step, steps=4 * epochs, figures={"loss": 1 / step}))
    result = {
        "key": f"{seed:032x}",
        "run": files.stem,
        "task_type": store.task_type,
        "label_names": list(store.label_names),
        "settings": settings,
        "figures": figures,
        "fingerprints": {"data": store.fingerprint},
        "world": {"world_size": 2},
        "seconds": 12.5,
    }
    write_json(files.result, result)

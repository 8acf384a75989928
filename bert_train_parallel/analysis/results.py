"""Finds the files of a run from any one of them, reads them, and sees that they are of one run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bert_train_parallel.analysis.predictions_file import PredictionsFile, read_predictions
from bert_train_parallel.data.store import Store
from bert_train_parallel.errors import BadRun, BadStore
from bert_train_parallel.progress import Event, read_events
from bert_train_parallel.run_files import RunFiles, owner, store_stem
from bert_train_parallel.run_files import read_object as lenient_object

# what analysis reads of the JSON files, and the types that it relies on
_RESULT_SHAPE = {
    "settings": dict,
    "figures": dict,
    "fingerprints": dict,
    "world": dict,
    "files": dict,
    "label_names": list,
    "task_type": str,
}
_STATS_SHAPE = {"Training": list, "Testing": dict}
_RUN_PARTS = ("_RESULT.json", "_train_test_stats.json", "_testset_predictions.csv", "_progress.jsonl")


@dataclass(frozen=True, slots=True)
class RunResults:
    """What the files of one run say; `missing` tells which were not there, and what is lost by it."""

    files: RunFiles
    result: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # as RESULT says; of an unfinished run those that decide what is learned
    stats: dict[str, Any] = field(default_factory=dict)
    predictions: PredictionsFile | None = None
    events: tuple[Event, ...] = ()
    store: Path | None = None
    task_type: str = "classification"  # as RESULT says, else the store, else the look of the predictions
    label_names: tuple[str, ...] = ()  # as RESULT says, else the store; none in files of the 2020 tool alone
    missing: tuple[str, ...] = ()


def find_runs(path: Path, output_dir: Path | None = None) -> list[RunFiles]:
    """The runs that a file or folder can mean, oldest first: one for a result file, all of its runs for a store or a source.

    Args:
        output_dir: where training was told to put the runs of a source; those beside it are taken where there are none.
    Raises:
        BadRun: there is no such file, or no run of it.
    """
    if not os.path.exists(path):  # unlike Path's own, false for names that no file can have
        raise BadRun(f"{path}: there is no such file.{_near(path)}")
    named = RunFiles.of(path)
    if named.stem != path.stem and named.stem != path.name:  # the name ends like a file of a run
        return [named]
    if path.is_dir():
        runs = _runs_in(path, None)
        sentence = f"{path} holds no result of a run. Name a result file, the store, or a folder with *_RESULT.json files."
    else:
        runs = (_runs_of_source(output_dir / path.name) if output_dir else []) or _runs_of_source(path)
        if not runs and path.suffix == ".sqlite":
            return [RunFiles(path.parent, path.stem)]  # not trained on yet: its labels can be counted all the same
        sentence = (
            f"{path}: no run of it has written results beside it. If it was trained with --output_dir DIR, type that here, too, or name "
            f"DIR/{store_stem(str(path))}_RESULT.json; else train first: launch.py bert_train_parallel.py {path}"
        )
    if not runs:
        raise BadRun(sentence)
    return runs


def choose_run(runs: list[RunFiles], wanted: str | None) -> RunFiles:
    """The newest run, or the one that `--run` names: by its number in the list, its whole name or its end (`lr5` of `leanings-lr5`).

    Raises:
        BadRun: no run, or more than one, has this name.
    """
    if wanted is None:
        return runs[-1]
    exact = [files for files in runs if files.stem == wanted]
    ending = [files for files in runs if files.stem.endswith(f"-{wanted}")]
    numbered = [runs[int(wanted) - 1]] if wanted.isdecimal() and 1 <= int(wanted) <= len(runs) else []
    found = exact or numbered or ending
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{number} {name}" for number, name in enumerate(names_apart(runs), 1))
    raise BadRun(f"--run {wanted}: {'several runs end so' if found else 'there is no such run'}. The runs are: {names}.")


def read_run(files: RunFiles) -> RunResults:
    """Reads all files of a run that are there.

    Raises:
        BadRun: a file is damaged, none is there, or they are of different runs.
    """
    result, stats = read_object(files.result, _RESULT_SHAPE), read_object(files.stats, _STATS_SHAPE)
    events = tuple(event for event in read_events(files.progress) if isinstance(event.figures, dict) and isinstance(event.step, int))
    has_samples = numbers_of(result.get("figures", {}).get("test")).get("samples") != 0  # none where the split gives the test none
    predictions = read_predictions(files.predictions) if files.predictions.exists() and has_samples else None
    store, why = _find_store(files, result)
    if not (result or stats or predictions or events or store):
        raise BadRun(f"{files.folder / files.stem}: none of the run's files is there. Name one that is, such as *_RESULT.json.")
    lost = {
        f"{files.result.name}: settings, speed and validation figures": not result,
        f"{files.stats.name}: figures of each epoch": not stats,
        f"{files.predictions.name}: confusion matrix, figures of each class, errors": predictions is None,
        f"{_store_name(files)}: label distribution and texts{why}": store is None,
    }
    found = RunResults(
        files=files,
        result=result,
        settings=result.get("settings") or _settings_so_far(files, events),
        stats=stats,
        predictions=predictions,
        events=events,
        store=store.path if store else None,
        task_type=str(
            result.get("task_type") or (store and store.task_type) or (predictions and predictions.task_type) or "classification"
        ),
        label_names=tuple(map(str, result.get("label_names") or (store and store.label_names) or ())),
        missing=tuple(words for words, is_lost in lost.items() if is_lost),
    )
    _check_one_run(found)
    return found


def _settings_so_far(files: RunFiles, events: Sequence[Event]) -> dict[str, Any]:
    """The settings of an unfinished run: what was asked, as its checkpoints say, with what `auto` came to, as its events do."""
    asked = lenient_object(files.claim).get("asked")
    if not isinstance(asked, dict):
        return {}
    started = next((event.figures for event in events if event.kind == "start"), {})
    values = {name: value for name, value in asked.items() if name not in ("data", "format")}
    return values | {name: started[name] for name in ("dtype", "matmul", "device") if started.get(name)}


def names_apart(runs: Sequence[RunFiles]) -> list[str]:
    """What to call each run beside the others: its name, with the folder in front where another in another folder has that name, too.

    >>> names_apart([RunFiles(Path("lr/a"), "ads"), RunFiles(Path("lr/b"), "ads"), RunFiles(Path("lr"), "spam")])
    ['a/ads', 'b/ads', 'spam']
    """

    def name(files: RunFiles) -> str:
        folders = {os.path.abspath(other.folder) for other in runs if other.stem == files.stem}
        return os.path.normpath(os.path.join(os.path.relpath(files.folder, os.path.commonpath(folders)), files.stem))

    return [name(files) for files in runs]


def _near(path: Path) -> str:
    """Names of result files beside a path that does not exist."""
    beside = sorted(path.parent.glob("*_RESULT.json")) if os.path.isdir(path.parent) else []
    return f" Beside it: {', '.join(found.name for found in beside[:5])}." if beside else ""


def _runs_in(folder: Path, source: str | None) -> list[RunFiles]:
    """Runs with any of their files in a folder, those of one source where its stem is given; oldest first."""
    found = {RunFiles.of(file) for part in _RUN_PARTS for file in folder.glob(f"*{part}") if not file.name.startswith(".")}
    chosen = [files for files in found if source is None or owner(files, {source})[0] == source]
    return sorted(chosen, key=lambda files: (_last_written(files), files.stem))


def _last_written(files: RunFiles) -> float:
    """When the run last wrote anything, in seconds since 1970."""
    there = [files.result, files.stats, files.predictions, files.progress]
    return max((file.stat().st_mtime for file in there if file.exists()), default=0.0)


def _runs_of_source(path: Path) -> list[RunFiles]:
    """Runs beside a store or a source, and those elsewhere that the store remembers."""
    runs = _runs_in(path.parent, store_stem(str(path)))
    store = path if path.suffix == ".sqlite" else path.with_name(f"{store_stem(str(path))}.sqlite")
    if store.exists():
        with Store.open(store) as opened:
            elsewhere = {
                RunFiles(Path(folder), record["run"]) for record in opened.runs() if (folder := record["settings"].get("output_dir"))
            }
        known = {files.result.resolve() for files in runs}
        runs += [files for files in elsewhere if files.is_finished and files.result.resolve() not in known]
        runs.sort(key=lambda files: (_last_written(files), files.stem))
    return runs


def read_object(path: Path, shape: Mapping[str, type] = _RESULT_SHAPE) -> dict[str, Any]:
    """A JSON object, {} where the file is missing; infinite and NaN values become None.

    Raises:
        BadRun: not JSON, not an object, or one whose members have other types than `shape` says.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadRun(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise BadRun(f"{path} is damaged: not JSON ({error}). Remove it to see what the other files say, or train again.") from None
    if not isinstance(found, dict):
        raise BadRun(f"{path} holds a {type(found).__name__} where an object is expected; it is not the file of a run.")
    for name, kind in shape.items():
        if found.get(name) is not None and not isinstance(found[name], kind):
            raise BadRun(f'{path}: "{name}" is a {type(found[name]).__name__}, a {kind.__name__} is expected; it is not the file of a run.')
    return {name: value for name, value in found.items() if value is not None}


def numbers_of(figures: Any) -> dict[str, Any]:
    """The figures of a split that are numbers, or intervals of two."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def is_figure(name: str, value: Any) -> bool:
        if name.endswith("_interval"):
            return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))
        return is_number(value)

    return {name: value for name, value in figures.items() if is_figure(name, value)} if isinstance(figures, dict) else {}


def _stores_by_name(files: RunFiles) -> Iterator[Path]:
    """`a-b-2.sqlite`, `a-b.sqlite`, `a.sqlite` for the run `a-b-2`; before them that of its owner."""
    source, _ = owner(files)
    if source is not None:
        yield files.folder / f"{source}.sqlite"
    stem = files.stem
    while stem:
        yield files.folder / f"{stem}.sqlite"
        stem = stem.rpartition("-")[0]


@dataclass(frozen=True, slots=True)
class _FoundStore:
    path: Path
    task_type: str
    label_names: tuple[str, ...]


def _find_store(files: RunFiles, result: dict[str, Any]) -> tuple[_FoundStore | None, str]:
    """The store that the run was made from; or None, and why one that is there is not taken."""
    told = [files.folder / str(result["files"]["store"])] if "store" in result.get("files", {}) else []
    there = [path for path in [*told, *_stores_by_name(files)] if path.is_file()]
    if not there:
        return None, ""
    wanted = result.get("fingerprints", {}).get("data")
    for path in there:
        try:
            with Store.open(path) as store:
                if wanted in (None, store.fingerprint):
                    return _FoundStore(path, store.task_type, tuple(store.label_names)), ""
        except BadStore:
            return None, " (it cannot be read)"
    return None, " (it has been rebuilt since)"


def _store_name(files: RunFiles) -> str:
    """How the store is called that is there, or should be."""
    return next((path.name for path in _stores_by_name(files) if path.is_file()), f"{files.stem}.sqlite")


def _check_one_run(found: RunResults) -> None:
    """Raises BadRun where the predictions are not those that RESULT has the figures of."""
    contradiction = _contradiction(found.predictions, found) if found.predictions else None
    if contradiction:
        other = found.files.result.name if found.result else found.store.name if found.store else "the run"
        raise BadRun(
            f"{found.files.predictions.name} has {contradiction[0]}, {other} {contradiction[1]}: they are of different runs. "
            f"Put the files of one run together again, or remove the one that does not belong."
        )


def _contradiction(file: PredictionsFile, run: RunResults) -> tuple[str, str] | None:
    """What the predictions file says, and what RESULT or the store says instead; None where they agree."""
    predictions, names = file.predictions, run.label_names
    if file.has_samples and file.task_type != run.task_type:
        return f"predictions of a {file.task_type}", f"a {run.task_type}"
    if run.task_type == "classification" and names:
        if file.label_names and file.label_names != names:
            return f"the classes {', '.join(file.label_names)[:80]}", f"the classes {', '.join(names)[:80]}"
        greatest = max(int(predictions.truth.max()), int(predictions.predicted.max()))
        if greatest >= len(names):
            return f"the class code {greatest}", f"names for {len(names)} classes"
    figures = numbers_of(run.result.get("figures", {}).get("test"))
    if figures.get("samples", len(predictions)) != len(predictions):
        return f"{len(predictions)} samples", f"{figures['samples']}"
    if run.task_type == "regression":
        key, computed = "mse", float(((predictions.predicted - predictions.truth) ** 2).mean())
    else:
        key, computed = "accuracy", float((predictions.predicted == predictions.truth).mean())
    if not math.isclose(computed, figures.get(key, computed), rel_tol=1e-5, abs_tol=1e-9):
        return f"{key} {computed:.4f}", f"{figures[key]:.4f}"
    return None

"""The tables of a report, made once for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bert_train_parallel import metrics
from bert_train_parallel.analysis.report import Analysis, largest_confusions
from bert_train_parallel.analysis.results import names_apart, numbers_of, read_object
from bert_train_parallel.analysis.tables import Table
from bert_train_parallel.data.batches import first_places
from bert_train_parallel.errors import BadRun
from bert_train_parallel.run_files import RunFiles

# name in figures -> how a reader knows it
FIGURES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "mcc": "MCC (Matthews)",
    "kappa": "kappa (Cohen)",
    "pearson": "Pearson r",
    "spearman": "Spearman rho",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "r2": "R2",
    "loss": "loss, nats per sample",
    "row_accuracy": "accuracy of single rows",
    "row_mse": "mean squared error of single rows",
    "samples": "samples",
    "rows": "folded rows",
}
_SETTINGS = (
    ("model", ("model",)),
    ("training", ("epochs", "batch_size", "learning_rate", "schedule", "seed")),
    ("samples", ("max_train_samples", "max_eval_samples", "max_steps", "class_weights")),
    ("rows", ("sequence_len", "long_texts", "stride", "combine", "row_weights")),
    ("arithmetic", ("dtype", "dropout", "attention_dropout")),
)
_OFF = (None, "none", "", 0)  # and False, which is equal to 0
_WORLD = ("ranks", "nodes", "device", "backend", "matmul", "threads")


def tables_of(analysis: Analysis, most_classes: int) -> list[Table]:
    """All tables of a report, in reading order; a matrix of more classes than `most_classes` becomes a list."""
    parts = [settings_table(analysis), labels_table(analysis), figures_table(analysis), epochs_table(analysis)]
    if analysis.counts is not None:
        parts += [*confusion_tables(analysis.counts, analysis.label_names, most_classes), classes_table(analysis)]
    parts += [mistakes_table(analysis), missing_table(analysis)]
    return [part for part in parts if part.rows]


def runs_table(runs: Sequence[RunFiles], shown: RunFiles) -> Table:
    """All runs that a file could mean, with their number for `--run`; oldest first."""
    numbered = zip(names_apart(runs), runs, strict=True)
    rows = [
        (f"{number} {name}", *_state(files), "shown here" if files == shown else "") for number, (name, files) in enumerate(numbered, 1)
    ]
    order = "the newest" if shown == runs[-1] else "one"
    note = f"Shown is {order} of {len(runs)} runs; --run NUMBER or NAME shows another, --compare all side by side."
    return Table("Runs, the newest last", ("", "", "", ""), tuple(rows), note, frozenset({1, 2, 3}))


def _state(files: RunFiles) -> tuple[str, str]:
    """The figure of a run, and whether it is finished; a damaged one must not hide the others."""
    try:
        result = read_object(files.result)
    except BadRun:
        return "", "damaged"
    test = numbers_of(result.get("figures", {}).get("test"))
    figure = next((f"{FIGURES[name]} {_figure(test[name])}" for name in ("accuracy", "pearson") if name in test), "")
    return figure, "finished" if result else "not finished"


def settings_table(analysis: Analysis) -> Table:
    """The run in brief: what was asked, where it ran, how long it took."""
    settings = analysis.settings
    rows = [(title, _said(settings, names).removeprefix("model ")) for title, names in _SETTINGS if _said(settings, names)]
    world = analysis.result.get("world", {})
    if _said(world, _WORLD):
        rows.append(("ran on", _said(world, _WORLD)))
    parts = world.get("parts")
    if isinstance(parts, list) and len(parts) > 1:
        rows.append(("shares", _value(parts)))
    if _is_number(analysis.result.get("seconds")):
        rows.append(("took", _duration(analysis.result["seconds"])))
    state = "" if analysis.finished else ", not finished"
    return Table(f"Run {analysis.name}{state}", ("", ""), tuple(rows), left=frozenset({1}))


def _said(values: dict[str, Any], names: Sequence[str]) -> str:
    """Names and values in a line; what is off is left out."""
    said = [
        f"{_plain(name)} {_value(values[name])}" for name in names if values.get(name) not in _OFF or (name == "seed" and name in values)
    ]
    return ", ".join(said)


def labels_table(analysis: Analysis) -> Table:
    """How many samples each label has, in all and in each split, of those that the run has used; for regression where the numbers lie."""
    if not analysis.labels:
        return Table("Labels", (), ())
    splits, note = _used(analysis)
    splits = {"all": np.concatenate(list(splits.values())), **splits} if len(splits) > 1 else splits
    if analysis.task_type == "regression":
        measures: dict[str, Callable[[Any], Any]] = {
            "mean": np.mean,
            "standard deviation": np.std,
            "least": np.min,
            "median": np.median,
            "greatest": np.max,
        }
        rows = [("samples", *(f"{len(values):,}" for values in splits.values()))]
        for name, measure in measures.items():
            rows.append((name, *(metrics.figure_words(float(measure(values))) if len(values) else "" for values in splits.values())))
        return Table("Labels", ("", *splits), tuple(rows), note)
    names = analysis.label_names
    counts = [np.bincount(codes.astype(np.int64), minlength=len(names)) for codes in splits.values()]
    rows = [(class_name(code, name), *_counts_and_shares([found[code] for found in counts], counts)) for code, name in enumerate(names)]
    rows.append(("all labels", *_counts_and_shares([found.sum() for found in counts], counts)))
    return Table("Labels", ("", *(head for split in splits for head in (split, "%"))), tuple(rows), note)


def _used(analysis: Analysis) -> tuple[dict[str, Any], str]:
    """The labels of those samples of each split that the caps of the run leave; and a note where they leave some out."""
    settings = analysis.settings
    caps = {split: settings.get("max_train_samples" if split == "train" else "max_eval_samples") for split in analysis.labels}
    seed = settings["seed"] if settings.get("shuffle_before_select") and isinstance(settings.get("seed"), int) else None
    found = {
        split: labels[first_places(len(labels), caps[split], seed)] if isinstance(caps[split], int) else labels
        for split, labels in analysis.labels.items()
    }
    there, used = (sum(map(len, labels.values())) for labels in (analysis.labels, found))
    return found, f"Of the samples that the run has used; the store has {there:,}." if used < there else ""


def figures_table(analysis: Analysis) -> Table:
    """The figures over the test samples, those of the validation samples beside them."""
    splits = [split for split in ("test", "validate") if analysis.figures.get(split)]
    rows = []
    for name, title in FIGURES.items():
        values = [analysis.figures[split].get(name) for split in splits]
        if any(isinstance(value, int | float) for value in values):
            title = "loss (mean squared error)" if name == "loss" and analysis.task_type == "regression" else title
            rows.append((title, *(_figure(value) for value in values)))
        if name == "accuracy":
            intervals = [analysis.figures[split].get("accuracy_interval") for split in splits]
            if any(intervals):
                rows.append(("95 % interval of it", *(_interval(found) for found in intervals)))
    note = "The interval is Wilson's, over samples." if analysis.task_type == "classification" else ""
    return Table("Figures", ("", *splits), tuple(rows), note if rows else "")


def epochs_table(analysis: Analysis) -> Table:
    """What each epoch came to; only figures that are numbers."""
    names = list(dict.fromkeys(name for epoch in analysis.epochs for name, value in epoch.items() if _is_number(value) and name != "epoch"))
    shown = [name for name in names if name.startswith(("Training", "Validation"))] or names
    rows = tuple(
        (str(epoch.get("epoch", number)), *(_figure(epoch.get(name)) for name in shown)) for number, epoch in enumerate(analysis.epochs, 1)
    )
    best = analysis.result.get("best_epoch")
    return Table("Epochs", ("epoch", *shown), rows, f"The model is that of epoch {best}." if best and len(rows) > 1 else "")


def confusion_tables(counts: metrics.Ints, names: Sequence[str], most_classes: int) -> Iterator[Table]:
    """Counts, and shares of each true class; for many classes the confusions that were made most often."""
    shares = metrics.normalised_by_truth(counts)
    rows: tuple[tuple[str, ...], ...]
    if len(names) > most_classes:
        rows = tuple(
            (class_name(true, names[true]), class_name(taken, names[taken]), f"{number:,}", _percent(shares[true, taken]))
            for true, taken, number in largest_confusions(counts, 30)
        )
        columns = ("truth", "taken for", "samples", "of the truth")
        note = f"The most frequent ones; a matrix of {len(names)} classes is too wide here, --charts draws it."
        yield Table("Confusions", columns, rows or (("none", "", "", ""),), note, frozenset({1}))
        return
    labels = [class_name(code, name) for code, name in enumerate(names)]
    heads = [str(code) for code in range(len(names))]
    rows = tuple((label, *(f"{number:,}" for number in line), f"{line.sum():,}") for label, line in zip(labels, counts, strict=True))
    total = ("all", *(f"{number:,}" for number in counts.sum(axis=0)), f"{counts.sum():,}")
    yield Table("Confusion matrix: rows the truth, columns the prediction", ("", *heads, "all"), (*rows, total))
    rows = tuple((label, *(f"{share:.3f}" for share in line)) for label, line in zip(labels, shares, strict=True))
    yield Table("Confusion matrix, normalised by truth: each row sums to 1", ("", *heads), rows)


def classes_table(analysis: Analysis) -> Table:
    """Precision, recall, F1 and support of each class, and their means."""
    found, counts = analysis.classes, analysis.counts
    assert found is not None
    assert counts is not None
    columns = ("", "precision", "recall", "F1", "samples", "predicted")
    parts = zip(found.precision, found.recall, found.f1, found.support, found.predicted, strict=True)
    rows = [
        (class_name(code, name), f"{precision:.4f}", f"{recall:.4f}", f"{f1:.4f}", f"{support:,}", f"{predicted:,}")
        for code, (name, (precision, recall, f1, support, predicted)) in enumerate(zip(analysis.label_names, parts, strict=True))
    ]
    absent = [
        name for name, support, taken in zip(analysis.label_names, found.support, found.predicted, strict=True) if not support + taken
    ]
    occur, are = ("occurs", "is") if len(absent) == 1 else ("occur", "are")
    note = f"{len(absent)} of them {occur} neither in the truth nor in the predictions, and {are} not in the macro F1." if absent else ""
    return Table("Classes", columns, tuple(rows), note)


def mistakes_table(analysis: Analysis) -> Table:
    """The mistakes that the model was surest of."""
    is_regression = analysis.task_type == "regression"
    columns = ("error" if is_regression else "probability", "predicted", "truth", "line", "text")
    rows = tuple(
        (
            _figure(mistake.size),
            mistake.predicted,
            mistake.truth,
            "" if mistake.line is None else str(mistake.line),
            " ¦ ".join(" ".join(text.split()) for text in mistake.texts) or f"(sample {mistake.sample})",
        )
        for mistake in analysis.mistakes
    )
    title = "Largest errors" if is_regression else "Mistakes that the model was surest of"
    return Table(title, columns, rows, left=frozenset({1, 2, 4}))


def missing_table(analysis: Analysis) -> Table:
    """Which files were not there, and what could not be said without them."""
    rows = tuple((file, f"without it: {lost}") for file, _, lost in (words.rpartition(": ") for words in analysis.missing))
    return Table("Missing", ("", ""), rows, left=frozenset({1}))


def class_name(code: int, name: str) -> str:
    """A class by its code in the predictions file, and its name; the code alone where that is its name."""
    return name if name == str(code) else f"{code} {name}"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={_value(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_value(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(value: Any) -> str:
    """A whole number with its thousands apart, another as a figure; nothing for none."""
    if not _is_number(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else metrics.figure_words(value)


def _interval(bounds: Any) -> str:
    return f"{bounds[0]:.4f}-{bounds[1]:.4f}" if isinstance(bounds, list | tuple) and len(bounds) == 2 else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _counts_and_shares(counts: Sequence[int], of_splits: Sequence[metrics.Ints]) -> Iterator[str]:
    """A count and its per cent of the split, for each split."""
    for count, of_split in zip(counts, of_splits, strict=True):
        yield f"{count:,}"
        yield f"{100 * count / max(of_split.sum(), 1):.1f}"


def _duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> _duration(75.2), _duration(7300)
    ('1 min 15 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def widest_matrix(columns: int, counts: metrics.Ints | None) -> int:
    """How many classes a matrix may have to stand in so many terminal columns, beside names of 20."""
    greatest = 0 if counts is None else int(counts.sum())
    return max((columns - 22) // (max(len(f"{greatest:,}"), 5) + 2) - 1, 2)

"""What a sweep leaves for people: the leaderboard as CSV, Parquet and a pandas table, RESULT, and a page."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_train_parallel.errors import BadRun, BertTrainParallelError, MissingPackage, one_line
from bert_train_parallel.launching.plan import LaunchRequest
from bert_train_parallel.run_files import write_json, write_text, written_aside
from bert_train_parallel.sweeps import launches, outcomes
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.history import read_history
from bert_train_parallel.sweeps.keys import home_of
from bert_train_parallel.sweeps.messages import ExportRequest, SweepRequest, SweepResult, TrialResult, counted
from bert_train_parallel.sweeps.rungs import best_first

if TYPE_CHECKING:
    import pandas

RESULT, SO_FAR, REQUEST = "RESULT.json", "so_far.json", "request.json"
PAGE = "report/report.html"
_DRAW = (sys.executable, "-P", "-m", "bert_train_parallel.analysis.sweep_page")
_FIRST = ("rank", "number", "rung", "run_id", "state", "score")
_LAST = ("gpu_seconds", "rows_seen", "first_step", "steps", "attempts", "promoted_from", "same_as", "host", "error")


async def export(request: ExportRequest, folder: SharedFolder, tick: Callable[[], None], is_over: bool = True) -> str:
    """Write everything; gives the page's path inside the folder, or that of the table where no page can be drawn.

    Args:
        is_over: False for a sweep that still runs: it gets no RESULT.

    Raises:
        BadRun: the history of the sweep is damaged.
        NotWritable: the folder is read-only or the disk is full.
    """
    sweep, result = request.request, request.result
    known = {trial.run_id: trial for trial in (*read_history(result.history, folder), *result.leaderboard)}
    trials = ordered(list(known.values()), sweep.maximise)
    place = folder.sweep(sweep.experiment_id)
    place.mkdir(parents=True, exist_ok=True)
    rows = leaderboard_rows(trials, read_history(result.comparison.randoms if result.comparison else None, folder))
    write_text(place / "leaderboard.csv", as_csv(rows))
    _write_parquet(place / "leaderboard.parquet", rows)
    write_json(place / REQUEST, sweep.model_dump(mode="json"))
    found = _for_the_page(sweep, result, trials, folder)
    write_json(place / SO_FAR, found)
    no_page = await _draw(place / SO_FAR, tick)
    write_json(place / (RESULT if is_over else SO_FAR), found | {"no_page": no_page})  # last: a sweep that has a RESULT is over
    if is_over:
        (place / SO_FAR).unlink(missing_ok=True)
    return folder.relative(place / ("leaderboard.csv" if no_page else PAGE))


async def draw_page(place: Path) -> None:
    """Draw the page of a sweep that has ended anew; where that cannot be done, RESULT says why."""
    no_page = await _draw(place / RESULT, lambda: None)
    write_json(place / RESULT, _read_json(place / RESULT) | {"no_page": no_page})


async def _draw(source: Path, tick: Callable[[], None]) -> str:
    """Draw the page in a launch of its own; why that cannot be done, or nothing."""
    output = source.parent / "output.log"
    before = output.stat().st_size if output.exists() else 0
    command = LaunchRequest((*_DRAW, str(source)), str(source.parent), here=1, device="cpu", log_dir=str(source.parent / "logs"))
    try:
        verdict = outcomes.verdict(await launches.launch(command, output, tick))
    except BertTrainParallelError as error:  # the tables stand without a page
        return str(error).rstrip(".")
    said = output.read_bytes()[before:].decode(errors="replace").splitlines()
    own = [line.partition("sweep_page: ")[2] for line in said if "sweep_page: " in line]
    return (own[-1] if own else verdict.words).rstrip(".") if verdict.outcome != "finished" else ""


def places_of(place: Path) -> dict[str, str]:
    """Where a sweep that has ended has its table and its page, or why it has no page."""
    no_page, page = why_no_page(place), place / PAGE
    gone = "" if page.is_file() else "it is gone; bert_sweep export draws it anew"
    return {"leaderboard": str(place / "leaderboard.csv"), "page": f"none: {no_page or gone}" if no_page or gone else str(page)}


def why_no_page(place: Path, is_over: bool = True) -> str:
    """Why the page could not be drawn when the sweep was last written out; empty where it could."""
    return one_line(str(_read_json(place / (RESULT if is_over else SO_FAR)).get("no_page", "")))


def _for_the_page(sweep: SweepRequest, result: SweepResult, trials: Sequence[TrialResult], folder: SharedFolder) -> dict[str, Any]:
    """RESULT: what the page is drawn from, and what the command prints when it is run again."""
    return {
        "result": result.model_dump(mode="json"),
        "request": sweep.model_dump(mode="json"),
        "importance": importances(sweep, trials),
        "trials": [trial.model_dump(mode="json", exclude_none=True) for trial in trials],
        "folders": {trial.run_id: f"../bert_runs/{home_of(folder, trial.run_id)}" for trial in trials},
    }


def importances(sweep: SweepRequest, trials: Sequence[TrialResult]) -> dict[str, float]:
    """How much each parameter explains of the first rung's scores, where all trials were trained alike."""
    from bert_train_parallel.sweeps.suggest import importance

    try:
        return importance(sweep.space, [trial for trial in trials if trial.rung == 0], sweep.maximise)
    except MissingPackage:
        return {}


def ordered(trials: Sequence[TrialResult], maximise: bool) -> list[TrialResult]:
    """Trials best first, those of a later rung before those of an earlier one, those without a score last."""
    found: list[TrialResult] = []
    for rung in sorted({trial.rung for trial in trials}, reverse=True):
        by_number = {trial.number: trial for trial in trials if trial.rung == rung}
        best = best_first([(number, trial.score) for number, trial in by_number.items()], maximise)
        found += [by_number[number] for number in best]
    rest = [trial for trial in trials if trial.score is None]
    return found + sorted(rest, key=lambda trial: (-trial.rung, trial.number))


def leaderboard_rows(trials: Sequence[TrialResult], beside: Sequence[TrialResult] = ()) -> list[dict[str, Any]]:
    """One flat row a trial, all with the same columns: `value.` what was drawn, `figure.` of the validation split.

    Args:
        beside: random trials that these are compared with, which have no rank among them.
    """
    everyone = [*trials, *beside]
    values = sorted({name for trial in everyone for name in trial.values})
    figures = sorted({name for trial in everyone for name in trial.figures})
    rows = []
    for rank, trial in enumerate(everyone, 1):
        row: dict[str, Any] = {"rank": rank if trial.score is not None and rank <= len(trials) else None}
        row |= {name: getattr(trial, name) for name in _FIRST if name != "rank"}
        row |= {f"value.{name}": trial.values.get(name) for name in values}
        row |= {f"figure.{name}": trial.figures.get(name) for name in figures}
        rows.append(row | {name: getattr(trial, name) for name in _LAST})
    return rows


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """
    >>> as_csv([{"rank": 1, "score": 0.5}, {"rank": None, "score": None}])
    'rank,score\\n1,0.5\\n,\\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else list(_FIRST + _LAST), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Where pyarrow is installed: the CSV says the same."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return
    columns = {name: [_plain(row[name], mixed) for row in rows] for name in rows[0] for mixed in [_is_mixed(rows, name)]} if rows else {}
    with written_aside(path) as aside:
        pyarrow.parquet.write_table(pyarrow.table(columns), aside)


def _is_mixed(rows: Sequence[dict[str, Any]], name: str) -> bool:
    kinds = {type(row[name]) for row in rows if row[name] is not None}
    return len(kinds) > 1 and not kinds <= {int, float}


def _plain(value: Any, as_text: bool) -> Any:
    return str(value) if as_text and value is not None else value


def leaderboard(folder: str | Path) -> pandas.DataFrame:
    """The leaderboard of a sweep that has ended, one row a trial.

    Args:
        folder: the sweep's own, such as `bert_sweeps/my-sweep`.
    Raises:
        BadRun: there is none.
    """
    import pandas

    path = Path(folder) / "leaderboard.csv"
    if not path.is_file():
        raise BadRun(f"{path}: there is no such file. Name the folder of a sweep that has ended.")
    return pandas.read_csv(path)


def why_ended(place: Path, most: int = 3) -> list[str]:
    """Why trials of a sweep have no score, the commonest reasons first; nothing where all have one."""
    try:
        with open(place / "leaderboard.csv", encoding="utf-8", newline="") as file:
            found = Counter(f"{row['state']}: {row['error']}" for row in csv.DictReader(file) if not row["score"])
    except FileNotFoundError:
        return []
    lines = [f"  {count} {reason.removesuffix(': ')}" for reason, count in found.most_common(most)]
    others = sum(found.values()) - sum(count for _, count in found.most_common(most))
    lines += [f"  {others} for other reasons; see {place / 'leaderboard.csv'}"] if others else []
    return [f"without a score: {counted(sum(found.values()), 'trial')}", *lines] if found else []


def read_result(place: Path) -> tuple[SweepRequest, SweepResult] | None:
    """What a sweep was asked and found; None for one that has not ended."""
    found = _read_json(place / RESULT)
    try:
        return (SweepRequest.model_validate(found["request"]), SweepResult.model_validate(found["result"])) if found else None
    except (KeyError, ValueError):
        raise _unreadable(place / RESULT) from None


def _read_json(path: Path) -> dict[str, Any]:
    """A file of a sweep; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        raise _unreadable(path) from None
    if not isinstance(found, dict) or not found:
        raise _unreadable(path)
    return found


def _unreadable(path: Path) -> BadRun:
    return BadRun(f"{path} is damaged, or of another version. Remove it, and run the sweep again: what was trained is kept.")

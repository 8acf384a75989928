"""The page of a sweep: what was found, how it was found, and a link to the report of each trial.

`python -m bert_train_parallel.analysis.sweep_page FILE` writes it beside FILE, the RESULT of a sweep.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from bert_train_parallel.analysis.charts import BLUE, GREY, ORANGE
from bert_train_parallel.analysis.drawing import drawn
from bert_train_parallel.analysis.page import html_words, page_of, pictures, write_page, write_report
from bert_train_parallel.analysis.report import analyse
from bert_train_parallel.data.batches import FloatArray
from bert_train_parallel.errors import BadRun, BertTrainParallelError, run_command
from bert_train_parallel.run_files import RunFiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 2000  # of the table on the page, each with a report of its own; the CSV beside it has all
MOST_CHARTS = 40  # trials whose reports have charts, the best ones: those take about half a second each, figures some milliseconds
Trial = Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """What RESULT says, for charts and tables."""

    name: str
    metric: str
    maximise: bool
    trials: tuple[Trial, ...]  # best first
    result: Mapping[str, Any]
    request: Mapping[str, Any]
    importance: Mapping[str, float] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)  # of each run, from the folder of RESULT

    @property
    def scored(self) -> list[Trial]:
        """Trials with a score, in the order of their numbers and rungs."""
        return sorted(
            (trial for trial in self.trials if trial.get("score") is not None), key=lambda one: (one.get("rung", 0), one["number"])
        )

    @property
    def comparable(self) -> list[Trial]:
        """The scored trials of the rung that has most of them: scores of different rungs are of different trainings."""
        rungs = [trial.get("rung", 0) for trial in self.scored]
        most = max(sorted(set(rungs)), key=rungs.count, default=0)
        return [trial for trial in self.scored if trial.get("rung", 0) == most]


def read_sweep(path: Path) -> Sweep:
    """
    Raises:
        BadRun: the file is missing or is not the RESULT of a sweep.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        result = found["result"]
        return Sweep(
            name=result["experiment_id"],
            metric=result["metric"],
            maximise=result["metric"] not in ("loss", "mse"),
            trials=tuple(found["trials"]),
            result=result,
            request=found["request"],
            importance=found.get("importance") or {},
            folders=found.get("folders") or {},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRun(f"{path} cannot be read as the RESULT of a sweep: {error}.") from None


def best_so_far(scores: FloatArray, maximise: bool) -> FloatArray:
    """(n,) the best of the scores up to each.

    >>> best_so_far(np.array([0.5, 0.4, 0.7]), True).tolist()
    [0.5, 0.5, 0.7]
    """
    found: FloatArray = np.maximum.accumulate(scores) if maximise else np.minimum.accumulate(scores)
    return found


@dataclass(frozen=True)
class Axis:
    """One axis of parallel coordinates: places in [0, 1] of each trial (nan: not in force), and what is written where."""

    name: str
    places: FloatArray
    ticks: tuple[tuple[float, str], ...]


def axis_of(name: str, values: Sequence[Any], is_log: bool = False) -> Axis:
    """Numbers on a line, words one above the other.

    >>> axis_of("schedule", ["linear", None, "cosine"]).places.tolist()
    [1.0, nan, 0.0]
    """
    known = [value for value in values if value is not None]
    if any(isinstance(value, str | bool) for value in known):
        words = sorted(map(str, set(known)))
        step = 1 / max(len(words) - 1, 1)
        place = {word: number * step for number, word in enumerate(words)}
        places = [np.nan if value is None else place[str(value)] for value in values]
        return Axis(name, np.array(places), tuple((at, word) for word, at in place.items()))
    numbers = np.array([np.nan if value is None else float(value) for value in values])
    low, high = (np.nanmin(numbers), np.nanmax(numbers)) if known else (0.0, 1.0)
    scaled, ends = (np.log(numbers), (np.log(low), np.log(high))) if is_log else (numbers, (low, high))
    span = (ends[1] - ends[0]) or 1.0
    shares = np.linspace(0, 1, 5 if ends[1] > ends[0] else 1)
    words = _apart([float(np.exp(ends[0] + at * span) if is_log else ends[0] + at * span) for at in shares])
    return Axis(name, (scaled - ends[0]) / span, tuple(zip(shares.tolist(), words, strict=True)))


def _apart(numbers: Sequence[float]) -> list[str]:
    """Numbers in as few digits, three at least, as tell them apart.

    >>> _apart([0.69, 0.6905, 0.691]), _apart([1e-5, 1e-3])
    (['0.69', '0.6905', '0.691'], ['1e-05', '0.001'])
    """
    for digits in range(3, 16):
        words = [f"{number:.{digits}g}" for number in numbers]
        if len(set(words)) == len(set(numbers)):
            break
    return words


def draw_best_so_far(sweep: Sweep, ax: Axes) -> Axes:
    """Scores in the order of the trials, and the best up to each."""
    from matplotlib.ticker import MaxNLocator

    trials = sweep.comparable
    scores = np.array([float(trial["score"]) for trial in trials])
    numbers = [trial["number"] for trial in trials]
    ax.plot(numbers, scores, "o", color=GREY, markersize=5, label="trial")
    ax.step(numbers, best_so_far(scores, sweep.maximise), where="post", color=BLUE, label="best so far")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("trial")
    ax.set_ylabel(f"{sweep.metric} of the validation split")
    ax.legend(frameon=False)
    return ax


def draw_parallel(sweep: Sweep, ax: Axes) -> Axes:
    """One line a trial through its values, coloured by its score."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    sign = 1 if sweep.maximise else -1
    trials = sorted(sweep.comparable, key=lambda trial: (sign * float(trial["score"]), -trial["number"]))  # the best is drawn last
    scores = np.array([float(trial["score"]) for trial in trials])
    names = sorted({name for trial in trials for name in trial.get("values", {})})
    space = sweep.request.get("space", {})
    axes = [axis_of(name, [trial.get("values", {}).get(name) for trial in trials], space.get(name, {}).get("log", False)) for name in names]
    axes.append(axis_of(sweep.metric, scores.tolist()))
    norm = Normalize(scores.min(), scores.max() if scores.max() > scores.min() else scores.min() + 1)
    colours = colormaps["viridis" if sweep.maximise else "viridis_r"]
    for number, score in enumerate(scores):
        best = number == len(scores) - 1
        places = [axis.places[number] for axis in axes]
        ax.plot(places, color=ORANGE if best else colours(norm(score)), linewidth=2.6 if best else 1.1, alpha=1 if best else 0.75)
    for place, axis in enumerate(axes):
        ax.axvline(place, color="#cbd5e0", linewidth=0.8, zorder=0)
        for at, word in axis.ticks:
            box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.6}
            ax.text(place + 0.03, at, word, fontsize=8, va="center", color="#2d3748", bbox=box, zorder=5)
    ax.set_xticks(range(len(axes)), [axis.name for axis in axes])
    ax.set_xlim(-0.15, len(axes) - 0.6)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.spines["bottom"].set_visible(False)
    return ax


def draw_importance(importance: Mapping[str, float], ax: Axes) -> Axes:
    """Shares of the spread of the scores, the largest on top."""
    names = list(importance)[::-1]
    bars = ax.barh(names, [importance[name] for name in names], color=BLUE)
    ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    ax.set_xlim(0, 1.08 * max(importance.values()))
    ax.set_xlabel("share of what parameters explain")
    return ax


def draw_rungs(sweep: Sweep, ax: Axes) -> Axes:
    """Scores by rung, with a line from each trial to itself on the next."""
    by_trial: dict[int, list[Trial]] = {}
    for trial in sweep.scored:
        by_trial.setdefault(trial["number"], []).append(trial)
    best = sweep.trials[0]["number"] if sweep.trials else None
    for number, on_rungs in by_trial.items():
        rungs = [trial.get("rung", 0) + 1 for trial in on_rungs]
        scores = [float(trial["score"]) for trial in on_rungs]
        colour = ORANGE if number == best else BLUE if len(on_rungs) > 1 else GREY
        ax.plot(
            rungs, scores, "o-", color=colour, linewidth=2.4 if number == best else 1.2, markersize=5, zorder=3 if number == best else 2
        )
    ax.set_xticks(sorted({trial.get("rung", 0) + 1 for trial in sweep.scored}))
    ax.set_xlabel("rung")
    ax.set_ylabel(f"{sweep.metric} of the validation split")
    return ax


def _figures(sweep: Sweep) -> Iterator[tuple[str, str, Figure]]:
    from matplotlib.figure import Figure

    def axes(width: float, height: float) -> tuple[Figure, Any]:
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()

    has_rungs = len({trial.get("rung", 0) for trial in sweep.scored}) > 1
    where = f" on rung {sweep.comparable[0].get('rung', 0) + 1}" if has_rungs else ""
    if len(sweep.comparable) > 1:
        figure, ax = axes(6, 3.8)
        draw_best_so_far(sweep, ax)
        yield "best_so_far", f"Best so far{where}", figure
    if sweep.importance:
        figure, ax = axes(6, 1.2 + 0.4 * len(sweep.importance))
        draw_importance(sweep.importance, ax)
        yield "importance", "Importance of the parameters", figure
    if has_rungs:
        figure, ax = axes(6, 3.8)
        draw_rungs(sweep, ax)
        yield "rungs", "Rungs", figure
    if len(sweep.comparable) > 1:
        parameters = {name for trial in sweep.comparable for name in trial.get("values", {})}
        figure, ax = axes(max(6.0, 2.2 * (len(parameters) + 1)), 4.2)
        draw_parallel(sweep, ax)
        yield "parallel_coordinates", f"Parallel coordinates{where} (the best trial{' there' * has_rungs} in orange)", figure


def write_sweep_page(path: Path) -> Path:
    """The page of a sweep, its charts beside it; complete or not at all."""
    sweep = read_sweep(path)
    reports = dict(_reports(sweep, path.parent))
    charts = drawn([], lambda _: _figures(sweep))
    parts = [_cards(sweep), _comparison(sweep), pictures(charts), _trials_table(sweep, reports), _request(sweep)]
    return write_page(path.parent / "report", charts, page_of(f"Sweep {sweep.name}", parts))


def _reports(sweep: Sweep, folder: Path) -> Iterator[tuple[str, str]]:
    """The report of each finished trial in the table, by run id, from the page; a missing one is written, for the best with charts."""
    for place, trial in enumerate(sweep.trials[:MOST_ROWS]):
        run = folder / sweep.folders.get(trial["run_id"], trial["run_id"])
        result = next(iter(sorted(run.glob("*_RESULT.json"))), None)
        if result is None:
            continue
        report = RunFiles.of(result).report / "report.html"
        if not report.is_file():
            try:
                write_report(analyse(result), has_charts=place < MOST_CHARTS)
            except BertTrainParallelError:  # a trial whose files are damaged or gone has no report; the sweep's page has its figures
                continue
        yield trial["run_id"], os.path.relpath(report, folder / "report")


def _cards(sweep: Sweep) -> str:
    result = sweep.result
    best = "none" if result.get("best_score") is None else f"{result['best_score']:.4f}"
    states = ", ".join(f"{count} {state}" for state, count in result.get("states", {}).items())
    values = ", ".join(f"{name} {_shown(value)}" for name, value in (result.get("best_values") or {}).items())
    spent = (result.get("comparison") or {}).get("random_gpu_hours")
    compared = f", and {spent:.3g} of random trials to compare with" if spent else ""
    cards = [
        (f"best {sweep.metric}", best, result.get("best_run_id") or ""),
        ("its values", "", values),
        ("trials", f"{result['trials']:,}", states),
        ("GPU-hours", f"{result['gpu_hours']:.3g}", f"failed attempts are in it{compared}"),
    ]
    if result.get("stopped"):
        cards.append(("ended early", "", result["stopped"]))
    if result.get("note"):
        cards.append(("fewer trials than asked for", "", result["note"]))
    shown = "".join(
        f"<div>{html_words(name)}<b>{html_words(value)}</b><small>{html_words(small)}</small></div>" for name, value, small in cards
    )
    return f'<div class="cards">{shown}</div>'


def _trials_table(sweep: Sweep, reports: Mapping[str, str]) -> str:
    names = sorted({name for trial in sweep.trials for name in trial.get("values", {})})
    head = _head(("", "trial", sweep.metric, *names, "steps", "attempts", "state"), left=("trial", "state"))
    rows = []
    for place, trial in enumerate(sweep.trials[:MOST_ROWS], 1):
        run_id = html_words(trial["run_id"])
        report = reports.get(trial["run_id"])
        link = f'<a href="{quote(os.fsencode(report))}">{run_id}</a>' if report else run_id
        score = "" if trial.get("score") is None else f"{trial['score']:.4f}"
        state = trial.get("state", "finished") + (f": {trial['error']}" if trial.get("error") else "")
        cells = [_shown(trial.get("values", {}).get(name)) for name in names] + [trial.get("steps", 0), trial.get("attempts", 1)]
        shown = "".join(f"<td>{html_words(str(cell))}</td>" for cell in (score, *cells))
        rank = place if score else ""
        rows.append(f'<tr><td>{rank}</td><td class="left">{link}</td>{shown}<td class="left">{html_words(state)}</td></tr>')
    more = len(sweep.trials) - MOST_ROWS
    note = f'<p class="note">{more:,} more in leaderboard.csv</p>' if more > 0 else ""
    return f'<h2>Trials</h2><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>{note}'


def _comparison(sweep: Sweep) -> str:
    found = sweep.result.get("comparison")
    if not found:
        return ""
    rows = []
    planned = f" of {found['random_planned']:,} planned" if found.get("random_planned", 0) > found["random_trials"] else ""
    randoms = f"best of {found['random_trials']:,} random trial{'s' * (found['random_trials'] != 1)}{planned}"
    for words, run, figures, rows_seen in (
        ("ladder", found["winner"], found["winner_figures"], found["rows_seen"]),
        (randoms, found["random_best"], found["random_figures"], found["random_rows_seen"]),
    ):
        figure = figures.get(found["metric"])
        ends = [figures.get(f"{found['metric']}_interval_{end}") for end in ("low", "high")]
        shown = "" if figure is None else f"{figure:.4f}" + (f" ({ends[0]:.4f} to {ends[1]:.4f})" if None not in ends else "")
        cells = (words, run or "", shown, f"{rows_seen:,}")
        rows.append("<tr>" + "".join(f'<td class="left">{html_words(cell)}</td>' for cell in cells) + "</tr>")
    columns = ("", "run", f"{found['metric']} of the test split (95 %)", "rows seen")
    head = _head(columns, left=columns)
    return (
        f"<h2>Ladder and random trials at equal rows seen</h2><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _head(columns: Sequence[str], left: Sequence[str]) -> str:
    kinds = [' class="left"' if word in left else "" for word in columns]
    return "".join(f"<th{kind}>{html_words(word)}</th>" for kind, word in zip(kinds, columns, strict=True))


def _request(sweep: Sweep) -> str:
    words = json.dumps({name: value for name, value in sweep.request.items() if value is not None}, indent=2, ensure_ascii=False)
    lines = "\n".join(html_words(line) if line.strip() else "" for line in words.split("\n"))
    return f"<h2>What was asked</h2><details><summary>the sweep's file</summary><pre>{lines}</pre></details>"


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page of a sweep beside its RESULT."""
    parser = argparse.ArgumentParser(prog="sweep_page", description=main.__doc__)
    parser.add_argument("result", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)

    def body() -> None:
        print(write_sweep_page(arguments.result))

    return run_command("sweep_page", body)


if __name__ == "__main__":
    raise SystemExit(main())

"""The page of a sweep, from its RESULT."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

import pytest

from bert_train_parallel.analysis import sweep_page
from bert_train_parallel.analysis.sweep_page import write_sweep_page


def headings(folder: Path, scores: Sequence[tuple[int, int, float | None]]) -> list[str]:
    """The titles of the charts on the page of a sweep whose trials have this number, rung and score."""
    trials: list[dict[str, Any]] = []
    for number, rung, score in sorted(scores, key=lambda one: (-one[1], -(one[2] or 0))):
        values = {"learning_rate": 1e-4 / (number + 1)}
        trials.append({"number": number, "rung": rung, "run_id": f"mine-t{number:04d}-r{rung}", "score": score, "values": values})
    result = {"experiment_id": "mine", "metric": "accuracy", "trials": len(trials), "gpu_hours": 0.1}
    result |= {"best_run_id": trials[0]["run_id"], "best_score": trials[0]["score"]}
    (folder / "RESULT.json").write_text(json.dumps({"result": result, "trials": trials, "request": {}}))
    page = write_sweep_page(folder / "RESULT.json").read_text()
    found = [html.unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", page)]
    return [title for title in found if title.startswith(("Best so far", "Rungs", "Parallel"))]


@pytest.mark.parametrize(
    ("scores", "rung"),
    [
        ([(0, 0, 0.5), (1, 0, 0.6), (2, 0, 0.7), (2, 1, 0.8)], 1),
        ([(0, 0, 0.5), (1, 0, 0.6), (0, 1, 0.7), (2, 1, 0.6), (3, 1, 0.9), (3, 2, 0.9)], 2),  # most were on the second
        ([(0, 0, 0.5), (1, 0, 0.6), (1, 1, 0.7), (2, 1, 0.6)], 1),  # as many on both: the lower
        ([(0, 0, None), (1, 0, 0.6), (2, 0, None), (1, 1, 0.7), (3, 1, 0.6)], 2),  # those without a score do not count
    ],
)
def test_charts_of_one_rung_of_a_ladder_say_which(scores: list[tuple[int, int, float | None]], rung: int, tmp_path: Path) -> None:
    assert headings(tmp_path, scores) == [
        f"Best so far on rung {rung}",
        "Rungs",
        f"Parallel coordinates on rung {rung} (the best trial there in orange)",
    ]


def test_charts_of_a_sweep_without_rungs_name_none(tmp_path: Path) -> None:
    found = headings(tmp_path, [(0, 0, 0.5), (1, 0, 0.6)])
    assert found == ["Best so far", "Parallel coordinates (the best trial in orange)"]


def finished(folder: Path, stem: str = "leanings") -> None:
    """The files of a run that has ended, with three test samples."""
    folder.mkdir(parents=True)
    (folder / f"{stem}_testset_predictions.csv").write_text("prediction,true_label\n0,0\n0,1\n1,1\n")
    figures = {"accuracy": 2 / 3, "samples": 3}
    found = {
        "task_type": "classification",
        "label_names": ["bad", "good"],
        "settings": {},
        "figures": {"test": figures, "validate": figures},
    }
    (folder / f"{stem}_RESULT.json").write_text(json.dumps(found))


def test_every_finished_trial_has_a_page_and_only_the_best_have_charts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_page, "MOST_CHARTS", 1)
    place = tmp_path / "mine"
    place.mkdir()
    trials: list[dict[str, Any]] = [
        {"number": number, "rung": 0, "run_id": f"mine-t{number:04d}", "score": score, "values": {"learning_rate": 1e-4}}
        for number, score in enumerate([0.9, 0.8, 0.7, None, None])
    ]
    for trial in trials[:4]:  # the last one was lost: its folder has no RESULT
        finished(tmp_path / "bert_runs" / trial["run_id"])
    folders = {trial["run_id"]: f"../bert_runs/{trial['run_id']}" for trial in trials}
    result = {"experiment_id": "mine", "metric": "accuracy", "trials": 5, "gpu_hours": 0.1, "best_run_id": "mine-t0000", "best_score": 0.9}
    (place / "RESULT.json").write_text(json.dumps({"result": result, "trials": trials, "request": {}, "folders": folders}))
    page = write_sweep_page(place / "RESULT.json")
    links = re.findall(r'<a href="(.*?)">(.*?)</a>', page.read_text())
    assert [name for _, name in links] == [trial["run_id"] for trial in trials[:4]]
    pages = [(page.parent / link).read_text() for link, _ in links]
    assert [text.count("<img") > 0 for text in pages] == [True, False, False, False]
    assert all("0.6667" in text for text in pages)


def test_links_lead_to_reports_whatever_the_name_of_the_data_and_trials_without_a_score_have_no_rank(tmp_path: Path) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    trials = [{"number": 0, "run_id": "mine-t0000", "score": 0.5}, {"number": 1, "run_id": "mine-t0001", "score": None, "state": "oom"}]
    finished(tmp_path / "bert_runs" / "mine-t0000", "тексти é #1 50% ready?")
    comparison = {"random_trials": 1, "random_planned": 3, "metric": "accuracy", "winner": "mine-t0000", "random_best": None}
    comparison |= {"winner_figures": {}, "random_figures": {}, "rows_seen": 10, "random_rows_seen": 5}
    result = {"experiment_id": "mine", "metric": "accuracy", "trials": 2, "gpu_hours": 0.1, "comparison": comparison}
    folders = {"mine-t0000": "../bert_runs/mine-t0000"}
    (place / "RESULT.json").write_text(json.dumps({"result": result, "trials": trials, "request": {}, "folders": folders}))
    page = write_sweep_page(place / "RESULT.json")
    (link,) = re.findall(r'<a href="(.*?)">', page.read_text())
    assert Path(url2pathname(urlsplit(urljoin(page.as_uri(), link)).path)).is_file()  # as a browser finds it
    assert re.findall(r"<tr><td>(.*?)</td>", page.read_text()) == ["1", ""]
    assert "best of 1 random trial of 3 planned" in page.read_text()

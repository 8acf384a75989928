"""What a run's files say, from any one of them, and what is said when they do not fit together."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_train_parallel import metrics
from bert_train_parallel.analysis import analyse
from bert_train_parallel.analysis.cli import main
from bert_train_parallel.analysis.contents import tables_of
from bert_train_parallel.analysis.predictions_file import read_predictions
from bert_train_parallel.analysis.results import find_runs
from bert_train_parallel.data.store import Store
from bert_train_parallel.errors import BadRun
from bert_train_parallel.progress import Event, append_event
from bert_train_parallel.run_files import RunFiles, write_json

from .conftest import MakeRun


def test_any_file_of_a_run_leads_to_all_of_it(make_run: MakeRun) -> None:
    files = make_run()
    expected = analyse(files.result)
    assert expected.missing == ()
    for path in (
        files.stats,
        files.predictions,
        files.progress,
        files.folder / "leanings.sqlite",
        files.folder / "leanings.csv",
        files.folder,
    ):
        found = analyse(path)
        assert (found.name, found.figures, found.mistakes) == ("leanings", expected.figures, expected.mistakes), path


def test_figures_are_those_that_training_wrote_and_those_of_the_predictions_file(make_run: MakeRun) -> None:
    files = make_run(["left", "right", "neutral"])
    found = analyse(files.result)
    assert found.figures == json.loads(files.result.read_text())["figures"]
    predictions = read_predictions(files.predictions).predictions
    assert found.counts is not None
    assert found.counts.tolist() == metrics.confusion_counts(predictions.truth, predictions.predicted, 3).tolist()
    assert found.counts.sum() == found.figures["test"]["samples"] == len(found.labels["test"])
    assert found.figures["test"]["rows"] > found.figures["test"]["samples"], "long texts are several rows of one sample"


def test_mistakes_are_the_surest_wrong_predictions_with_their_texts(make_run: MakeRun) -> None:
    files = make_run()
    found = analyse(files.result, errors=3)
    predictions = read_predictions(files.predictions).predictions
    wrong = np.flatnonzero(predictions.predicted != predictions.truth)
    assert predictions.probabilities is not None
    surest = sorted((predictions.probabilities[at].max() for at in wrong), reverse=True)[:3]
    assert [mistake.size for mistake in found.mistakes] == pytest.approx(surest)
    source = files.folder.joinpath("leanings.csv").read_text().splitlines()
    for mistake in found.mistakes:
        assert mistake.line is not None
        assert source[mistake.line - 1] == f"{mistake.texts[0]},{mistake.truth}"
        assert mistake.predicted != mistake.truth
    assert analyse(files.result, errors=0).mistakes == ()


def test_lengths_are_the_tokens_of_all_rows_of_a_sample(make_run: MakeRun) -> None:
    files = make_run()
    found = analyse(files.result)
    with Store.open(files.folder / "leanings.sqlite") as store:
        rows = store.rows("test")
    assert found.lengths is not None
    assert found.predictions is not None
    assert found.lengths.sum() == len(rows.tokens)
    assert found.lengths[3] == rows.lengths[rows.sample == found.predictions.samples[3]].sum()


def test_regression_has_its_own_figures_and_its_largest_errors(make_run: MakeRun) -> None:
    found = analyse(make_run(names=()).result)
    assert found.task_type == "regression"
    assert found.figures["test"]["pearson"] > 0.9
    assert found.counts is None
    sizes = [mistake.size for mistake in found.mistakes]
    assert sizes == sorted(sizes, reverse=True)
    assert found.mistakes[0].texts


def test_of_several_runs_the_newest_is_shown_and_another_by_name_or_number(make_run: MakeRun) -> None:
    first, second = make_run(run="lr5"), make_run(run="lr2", seed=1)
    os.utime(second.result, (2e9, 2e9))
    store = first.folder / "leanings.sqlite"
    assert analyse(store).name == "leanings-lr2"
    assert analyse(store, run="lr5").name == analyse(store, run="1").name == analyse(store, run="leanings-lr5").name == "leanings-lr5"
    with pytest.raises(BadRun, match=r"--run lr9: there is no such run. The runs are: 1 leanings-lr5, 2 leanings-lr2"):
        analyse(store, run="lr9")


def test_runs_of_another_store_whose_name_begins_alike_are_not_taken_for_ones_own(make_run: MakeRun) -> None:
    make_run(stem="leanings")
    other = make_run(stem="leanings-new")
    assert analyse(other.folder / "leanings.csv").name == "leanings"
    assert analyse(other.folder / "leanings-new.csv").name == "leanings-new"


def test_a_second_run_is_not_taken_for_one_of_another_file_of_that_name(make_run: MakeRun) -> None:
    first, other, second = make_run(), make_run(stem="leanings-2"), make_run(run="2-2")
    for files in (first, other, second):
        store = "leanings-2.sqlite" if files == other else "leanings.sqlite"
        write_json(files.result, json.loads(files.result.read_text()) | {"files": {"store": store}})
    assert [files.stem for files in find_runs(first.folder / "leanings.csv")] == ["leanings", "leanings-2-2"]
    assert [files.stem for files in find_runs(first.folder / "leanings-2.csv")] == ["leanings-2"]


def test_a_store_without_a_run_still_tells_its_labels(make_run: MakeRun) -> None:
    files = make_run(["ham", "spam"])
    for path in (files.result, files.stats, files.predictions, files.progress):
        path.unlink()
    found = analyse(files.folder / "leanings.sqlite")
    assert found.label_names == ("ham", "spam")
    assert sum(len(labels) for labels in found.labels.values()) == 150
    assert found.figures == {}


def test_labels_are_counted_of_the_samples_that_a_run_has_used(make_run: MakeRun) -> None:
    files = make_run(["ham", "spam"], max_train_samples=10, max_eval_samples=20)
    table = next(table for table in tables_of(analyse(files.result), 10) if table.title == "Labels")
    assert table.rows[-1][1::2] == ("50", "10", "20", "20")
    assert table.note == "Of the samples that the run has used; the store has 150."


def test_files_of_the_2020_tool_are_enough(tmp_path: Path) -> None:
    predictions = tmp_path / "old_testset_predictions.csv"
    predictions.write_text("prediction,true_label\n" + "0,0\n" * 6 + "5,0\n5,5\n5,5\n0,5\n")
    write_json(tmp_path / "old_train_test_stats.json", {"Training": [{"Training Loss": 0.5, "Validation Loss": 0.4}], "Testing": {}})
    found = analyse(predictions)
    assert found.label_names == ("0", "5")
    assert found.counts is not None
    assert found.counts.tolist() == [[6, 1], [1, 2]]
    assert found.figures["test"]["accuracy"] == 0.8
    assert "loss" not in found.figures["test"]
    assert len(found.missing) == 2


def test_an_unfinished_run_tells_how_far_it_came(make_run: MakeRun) -> None:
    files = make_run()
    for path in (files.result, files.stats, files.predictions):
        path.unlink()
    append_event(files.progress, Event("start", figures={"dtype": "float32"}))
    append_event(files.progress, Event("epoch", epoch=1, figures={"Validation Loss": 0.5}))
    files.checkpoints.mkdir()
    write_json(files.claim, {"asked": {"seed": 3, "dtype": "auto", "data": "ab"}})
    found = analyse(files.progress)
    assert not found.finished
    assert found.settings == {"seed": 3, "dtype": "float32"}
    assert found.epochs == ({"Validation Loss": 0.5, "epoch": 1},)
    assert len(found.steps) == 8
    assert found.label_names == ("ham", "spam")


def test_a_run_whose_store_was_rebuilt_is_shown_without_its_texts(make_run: MakeRun) -> None:
    files = make_run()
    result = json.loads(files.result.read_text())
    write_json(files.result, result | {"fingerprints": {"data": "another"}})
    found = analyse(files.result)
    assert found.figures["test"] == result["figures"]["test"]
    assert all(mistake.texts == () for mistake in found.mistakes)
    assert "rebuilt since" in found.missing[0]


def test_a_store_that_is_damaged_inside_does_not_hide_the_results(make_run: MakeRun) -> None:
    files = make_run()
    store = files.folder / "leanings.sqlite"
    whole = store.read_bytes()
    store.write_bytes(whole[: len(whole) // 4] + bytes(len(whole) - len(whole) // 4))
    found = analyse(files.result)
    assert found.figures == json.loads(files.result.read_text())["figures"]
    assert found.missing[0].startswith("leanings.sqlite: label distribution and texts (it ")


def test_a_moved_run_is_shown_without_its_store(make_run: MakeRun, tmp_path: Path) -> None:
    files = make_run()
    moved = RunFiles(tmp_path / "elsewhere", "leanings")
    moved.folder.mkdir()
    for path in (files.result, files.predictions):
        shutil.copy(path, moved.folder)
    found = analyse(moved.result)
    assert found.figures["test"]["accuracy"] == analyse(files.result).figures["test"]["accuracy"]
    assert len(found.missing) == 2


def with_figures(files: RunFiles, **changes: object) -> None:
    result = json.loads(files.result.read_text())
    result["figures"]["test"] |= changes
    write_json(files.result, result)


def test_predictions_of_another_run_are_refused(make_run: MakeRun) -> None:
    files, other = make_run(run="one"), make_run(run="two", skill=0.2)
    shutil.copy(other.predictions, files.predictions)
    with pytest.raises(BadRun, match=r"leanings-one_testset_predictions.csv has accuracy .* of different runs"):
        analyse(files.result)
    with_figures(files, samples=7)
    with pytest.raises(BadRun, match=r"60 samples, leanings-one_RESULT.json 7: they are of different runs"):
        analyse(files.result)


def test_predictions_of_other_classes_are_refused(make_run: MakeRun) -> None:
    files = make_run()
    write_json(files.result, json.loads(files.result.read_text()) | {"label_names": ["left", "right"]})
    with pytest.raises(BadRun, match=r"the classes ham, spam, leanings_RESULT.json the classes left, right"):
        analyse(files.result)


def test_predictions_of_another_store_are_refused(make_run: MakeRun) -> None:
    files = make_run()
    lines = files.predictions.read_text().splitlines()
    cells = lines[1].split(",")
    files.predictions.write_text("\n".join([lines[0], ",".join([*cells[:2], "100000", *cells[3:]]), *lines[2:]]) + "\n")
    with pytest.raises(BadRun, match=r"sample 100000 .* leanings.sqlite do not hold it"):
        analyse(files.result)


@pytest.mark.parametrize("content", ["", "{", "[1]", '"x"', "[" * 100_000, "\x00"])
@pytest.mark.parametrize("which", ["result", "stats"])
def test_a_damaged_json_file_is_named(make_run: MakeRun, which: str, content: str) -> None:
    files = make_run()
    path: Path = getattr(files, which)
    path.write_text(content)
    with pytest.raises(BadRun, match=path.name):
        analyse(files.folder / "leanings.sqlite")


def test_a_folder_or_file_without_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadRun, match="there is no such file"):
        analyse(tmp_path / "leanings.sqlite")
    with pytest.raises(BadRun, match="holds no result"):
        analyse(tmp_path)
    (tmp_path / "texts.csv").write_text("text,label\na,b\n")
    with pytest.raises(BadRun, match=r"train first: launch.py bert_train_parallel.py .*texts.csv"):
        analyse(tmp_path / "texts.csv")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: object, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the members of a JSON value stand, those inside others too."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in inside:
        yield (*above, name)
        yield from places(member, (*above, name))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["result", "stats"]), st.data(), JSON_VALUES)
def test_any_value_in_the_json_files_is_read_or_refused_with_a_sentence(
    a_run: RunFiles, capsys: pytest.CaptureFixture[str], which: str, data: st.DataObject, value: object
) -> None:
    path: Path = getattr(a_run, which)
    before = path.read_text()
    changed = json.loads(before)
    *above, last = data.draw(st.sampled_from(list(places(changed))))
    inside = changed
    for name in above:
        inside = inside[name]
    inside[last] = value
    path.write_text(json.dumps(changed))
    try:
        codes = {main([str(path)]), main([str(path), str(path), "--errors", "0"])}
    finally:
        path.write_text(before)
    assert codes <= {0, 2}
    assert "Traceback" not in capsys.readouterr().err

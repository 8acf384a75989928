"""The command with a real server, a real worker and real trainings of a tiny model."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bert_train_parallel.processes import cores
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.cli import main
from bert_train_parallel.sweeps.evaluation import evaluate
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.run_facts import facts_of

from .seen import leaderboard, left_over

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


def test_a_given_configuration_is_trained_evaluated_and_used(
    tiny_model: Path, write_csv: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = {"model_name": str(tiny_model), "dataset_name": str(write_csv(160)), "num_epochs": 5, "batch_size": 8, "learning_rate": 8e-3}
    wrong = tuned | {"text_field": "tweet"}
    path = tmp_path / "runs.json"
    configs = [{"run_id": "mine", "fine_tune_config": tuned}, {"run_id": "wrong", "fine_tune_config": wrong}]
    path.write_text(json.dumps({"configs": configs}))
    out = ["--output_dir", str(tmp_path / "out")]
    assert main(["coordinate", str(path), *out]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("mine  ")
    assert "accuracy" in said[-2]
    assert "16 samples of validation" in said[-2]
    by_path = m.BertEvalRequest(model_path="bert_runs/mine", use_gpu=False)
    measured = asyncio.run(evaluate(by_path, SharedFolder(tmp_path / "out"), lambda: None))
    assert (measured.run_id, measured.dataset_name) == ("mine", tuned["dataset_name"])
    files = SharedFolder(tmp_path / "out").finished_files("mine")
    assert files
    facts = facts_of(m.BertFineTuneRequest(run_id="mine", config=m.BertFineTuneConfig()), files, {})
    assert facts["num_parameters"] == sum(one.numel() for one in load_file(files.model_folder / "model.safetensors").values())
    assert (facts["inferred_text_field"], facts["inferred_label_field"]) == ("text", "label")
    assert measured.baseline_accuracy is not None
    assert 0.3 < measured.baseline_accuracy < 0.8
    assert measured.improvement_vs_baseline == pytest.approx((measured.accuracy or 0) - measured.baseline_accuracy)
    assert said[-1].startswith("wrong  ")
    assert "tweet" in said[-1]
    found = json.loads(next((tmp_path / "out" / "bert_runs" / "mine").glob("*_RESULT.json")).read_text())
    assert f"accuracy {found['figures']['validate']['accuracy']:.4f}" in said[-2]

    assert main(["infer", "mine", "the dog loved the long film", "her brother hated this town", *out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["good", "bad"]
    assert main(["infer", "nobody", "some text", *out]) == 2
    assert "has no finished run" in capsys.readouterr().err


def ladder_file(folder: Path, source: Path, model: Path, **settings: object) -> Path:
    tuned = {"model_name": str(model), "dataset_name": str(source), "batch_size": 8, "use_gpu": False, "settings": settings}
    content = {
        "experiment_id": "mine",
        "base": {"fine_tune_config": tuned},
        "space": {"learning_rate": [1e-4, 1e-2]},
        "num_trials": 2,
        "max_concurrency": 2,
        "launch": {"grace_s": 2},
        "ladder": {"stages": [{"epochs": 1, "max_train_samples": 40, "keep": 1, "new": 2}, {"epochs": 2, "new": 1}]},
    }
    path = folder / "mine.json"
    path.write_text(json.dumps(content))
    return path


def predictions(folder: Path, run_id: str) -> bytes:
    return next((folder / "bert_runs" / run_id).glob("*_predictions.csv")).read_bytes()


def test_a_ladder_of_the_same_seed_finds_the_same_and_goes_on_from_what_was_trained(
    tiny_model: Path, write_csv: Callable[..., Path], tmp_path: Path
) -> None:
    path = ladder_file(tmp_path, write_csv(120), tiny_model)
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        assert main(["run", str(path), "--output_dir", str(folder)]) == 0
    rows = leaderboard(one / "mine")
    assert rows == leaderboard(other / "mine")
    assert {row["run_id"]: predictions(one, row["run_id"]) for row in rows} == {
        row["run_id"]: predictions(other, row["run_id"]) for row in rows
    }
    threads = [json.loads(path.read_text())["world"]["threads"] for path in one.glob("bert_runs/*/*_RESULT.json")]
    assert threads == [int(os.environ.get("OMP_NUM_THREADS", max(cores() // 2, 1)))] * len(rows)  # two trials at a time
    best = json.loads((one / "mine" / "RESULT.json").read_text())["result"]["leaderboard"][0]
    assert (best["fine_tune_config"]["num_epochs"], best["fine_tune_config"]["max_train_samples"]) == (2, None)
    assert best["eval_result"]["num_examples"] == 12
    assert best["eval_result"]["accuracy"] == best["score"]
    assert best["eval_result"]["baseline_accuracy"] > 0.3
    promoted = [row for row in rows if row["promoted_from"]]
    assert [row["rung"] for row in promoted] == ["1"]
    assert all(0 < int(row["first_step"]) < int(row["steps"]) for row in promoted)
    assert [row["first_step"] for row in rows if not row["promoted_from"]] == ["0"] * 3

    assert "serves training, eval of 127.0.0.1:" in (one / "worker.log").read_text()
    for gone in (*tmp_path.glob("*.csv"), *one.glob("temporal-*.db*")):  # the runs' folders and the snapshot are enough
        gone.unlink()
    assert main(["rerun", "mine", "--output_dir", str(one)]) == 0


def hears_ctrl_c() -> None:
    """A shell that starts the tests in the background has it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("how", ["Ctrl-C", "stop --now"])
def test_a_sweep_that_is_stopped_in_a_training_leaves_no_process_and_goes_on(
    how: str, tiny_model: Path, write_csv: Callable[..., Path], tmp_path: Path
) -> None:
    path, folder = ladder_file(tmp_path, write_csv(120), tiny_model, log_every=1), tmp_path / "out"
    command = [sys.executable, "-P", "-m", "bert_train_parallel.sweeps", "run", str(path), "--output_dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=hears_ctrl_c)
    try:
        deadline = time.monotonic() + 120
        while not any(folder.glob("bert_runs/*/*_progress.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.05)
        if how == "Ctrl-C":
            process.send_signal(signal.SIGINT)
        else:
            assert main(["stop", "mine", "--now", "--output_dir", str(folder)]) == 0
        exit_code = process.wait(60)
        assert left_over(folder) == []
    finally:
        process.kill()
        process.wait()
    if how == "Ctrl-C":
        assert exit_code == 130
        assert main(["run", str(path), "--output_dir", str(folder)]) == 0
        assert len(leaderboard(folder / "mine")) == 4
    else:
        assert main(["status", "mine", "--output_dir", str(folder)]) == 0
        assert json.loads((folder / "mine" / "RESULT.json").read_text())["result"]["stopped"]


def test_a_file_is_mended_after_a_failure_and_a_name_never_gives_the_results_of_another_sweep(
    tiny_model: Path, write_csv: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = ladder_file(tmp_path, tmp_path / "nowhere.csv", tiny_model), ["--output_dir", str(tmp_path / "out")]
    content = json.loads(path.read_text())
    tuned = content["base"]["fine_tune_config"]
    assert main(["run", str(path), *out]) == 2
    assert "there is no such file" in capsys.readouterr().err

    tuned |= {"dataset_name": str(write_csv(120)), "label_field": "mood"}
    path.write_text(json.dumps(content))
    assert main(["run", str(path), *out]) == 1
    assert "has no column 'mood'" in capsys.readouterr().out

    shutil.rmtree(tmp_path / "out" / "mine")
    path.write_text(json.dumps(content | {"seed": 5}))
    assert main(["run", str(path), *out]) == 2
    assert "another sweep of this name, which differs in seed (was 42, is now 5)" in capsys.readouterr().err

    path.write_text(json.dumps(content))
    assert main(["run", str(path), *out]) == 1
    assert [row["state"] for row in leaderboard(tmp_path / "out" / "mine")] == ["failed"] * 2


def test_two_sweeps_at_once_in_one_folder_find_what_each_finds_alone(
    tiny_model: Path, write_csv: Callable[..., Path], tmp_path: Path
) -> None:
    source, together, alone = write_csv(120), tmp_path / "together", tmp_path / "alone"
    paths = []
    for name, seed, trials in (("one", 1, 2), ("two", 2, 1)):
        tuned = {"model_name": str(tiny_model), "dataset_name": str(source), "batch_size": 8, "num_epochs": 1, "use_gpu": False}
        content = {
            "base": {"fine_tune_config": tuned},
            "space": {"learning_rate": [1e-4, 1e-2]},
            "num_trials": trials,
            "max_concurrency": 1,
        }
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(content | {"seed": seed, "launch": {"grace_s": 2}}))
    command = [sys.executable, "-P", "-m", "bert_train_parallel.sweeps", "run"]
    both = [
        subprocess.Popen([*command, str(path), "--output_dir", str(together)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for path in paths
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert [process.returncode for process in both] == [0, 0], said
    assert left_over(together) == []
    assert main(["run", str(paths[0]), "--output_dir", str(alone)]) == 0
    assert leaderboard(together / "one") == leaderboard(alone / "one")
    assert [row["run_id"] for row in leaderboard(together / "two")] == ["two-t0000"]

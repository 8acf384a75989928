"""The two commands of the README on two CPU processes: a CSV goes in, files of a run come out."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training import worlds

from bert_train_parallel.data.store import Store
from bert_train_parallel.progress import read_events
from bert_train_parallel.run_files import RunFiles

LAUNCH = Path(__file__).parents[2] / "launch.py"
QUICK = ("--batch_size", "16", "--lr", "3e-3", "--log_every", "1", "--shares", "equal", "--matmul", "mkl")


def launch(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, LAUNCH, *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == expected, output
    return output


@pytest.mark.slow
def test_a_csv_becomes_a_model_its_predictions_and_a_result(write_csv: Callable[..., Path], tiny_model: Path) -> None:
    source = write_csv(300, long_every=20)
    flags = ("--model", tiny_model, "--epochs", "4", "--sequence_len", "32", *QUICK)
    output = finish(launch("--here_gpus", 2, "bert_train_parallel.py", source, *flags))
    files = RunFiles(source.parent, "leanings")
    result = json.loads(files.result.read_text())
    assert result["figures"]["test"]["accuracy"] == 1.0, output  # the verb gives the label away
    with open(files.predictions, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:2] == ["prediction", "true_label"]
    with Store.open(source.with_suffix(".sqlite")) as store:
        assert len(rows) - 1 == len(store.samples("test").ids) == result["figures"]["test"]["samples"]
        assert len(store.rows("test")) > len(rows) - 1  # long texts are folded
        assert [run["run"] for run in store.runs()] == ["leanings"]
    stats = json.loads(files.stats.read_text())
    assert [epoch["epoch"] for epoch in stats["Training"]] == [1, 2, 3, 4]
    assert {"Training Loss", "Validation Loss", "Training Accuracy", "Validation Accuracy"} <= stats["Training"][0].keys()
    assert stats["Testing"]["Testing Accuracy"] == 1.0
    saved = torch.load(files.saved_model, weights_only=True)
    assert not any("module." in name for name in saved["state"])
    kinds = [event.kind for event in read_events(files.progress)]
    assert kinds[0] == "start"
    assert kinds[-1] == "finished"
    assert result["world"]["ranks"] == 2


@pytest.mark.slow
def test_a_rank_that_is_killed_is_started_again_with_its_world_and_the_result_is_the_same(
    write_csv: Callable[..., Path], tiny_model: Path
) -> None:
    source = write_csv(200)
    flags = ("--model", tiny_model, "--epochs", "6", "--checkpoint_every", "7", *QUICK)
    finish(launch("--here_gpus", 2, "bert_train_parallel.py", source, "--run", "calm", *flags))
    files = RunFiles(source.parent, "leanings-wild")
    process = launch("--here_gpus", 2, "--max_restarts", 1, "bert_train_parallel.py", source, "--run", "wild", *flags)
    worlds.wait_for_step(files, 20, timeout=100)
    os.kill(rank_of(process.pid, 1), signal.SIGKILL)
    output = finish(process)
    assert "was killed by SIGKILL" in output, output  # whether the other rank still tells that it lost this one, is chance
    assert [event.attempt for event in worlds.events(files, "resume")] == [1], output
    assert files.predictions.read_bytes() == RunFiles(source.parent, "leanings-calm").predictions.read_bytes()


@pytest.mark.slow
def test_a_launch_that_is_asked_to_stop_leaves_a_checkpoint(write_csv: Callable[..., Path], tiny_model: Path) -> None:
    source = write_csv(200)
    files = RunFiles(source.parent, "leanings")
    process = launch("--here_gpus", 2, "bert_train_parallel.py", source, "--model", tiny_model, "--epochs", "90", *QUICK)
    worlds.wait_for_step(files, 5, timeout=100)
    process.send_signal(signal.SIGTERM)
    finish(process, expected=143)
    last = worlds.events(files, "checkpoint")[-1]
    assert last.step >= 5
    assert Path(last.path).is_dir()


@pytest.mark.slow
def test_a_mistake_is_said_once_for_a_world_of_two(write_csv: Callable[..., Path], tiny_model: Path) -> None:
    source = write_csv(60)
    output = finish(launch("--here_gpus", 2, "bert_train_parallel.py", source, "--model", tiny_model, "--metric", "pearson"), expected=2)
    assert output.count("--metric pearson") == 1, output
    assert "Traceback" not in output


@pytest.mark.slow
def test_the_functions_do_what_the_commands_do(write_csv: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    source = write_csv(200)
    script = tmp_path / "script.py"
    script.write_text(
        "import bert_train_parallel as btp\n"
        f"with btp.prepare({str(source)!r}, model={str(tiny_model)!r}, quiet=True) as store:\n"
        "    print('labels', *store.label_names)\n"
        f"result = btp.train({str(source)!r}, model={str(tiny_model)!r}, epochs=8, batch_size=16, learning_rate=3e-3, quiet=True)\n"
        "print('accuracy', result['figures']['test']['accuracy'])\n"
        f"model = btp.load_model({str(source.parent / 'leanings_trained_model.sav')!r})\n"
        "print('predicted', model.predict(['the dog hated this town'])[0].label)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["labels bad good", "accuracy 1.0", "predicted bad"]


def rank_of(launcher: int, rank: int) -> int:
    """The process that works as this rank below a launcher."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (place / "environ").read_bytes().split(b"\0")
                if f"RANK={rank}".encode() in variables and launcher in ancestors(int(place.name)):
                    return int(place.name)
    raise AssertionError(f"no rank {rank}")


def ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
        found.append(process)
    return found

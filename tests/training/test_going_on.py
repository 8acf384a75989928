"""A run that was stopped, killed or damaged goes on as if nothing had been."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bert_train_parallel.run_files import RunFiles
from training import worlds

QUICK = ("--log_every", "1", "--quiet_progress", "--no_export", "--batch_size", "8", "--lr", "3e-3", "--shares", "equal", "--matmul", "mkl")


@pytest.fixture
def source(write_csv: Callable[..., Path]) -> Path:
    return write_csv(160)  # 128 rows to train on, 16 steps an epoch


def same_weights(one: RunFiles, other: RunFiles, step: int) -> bool:
    found, expected = worlds.weights(one, step), worlds.weights(other, step)
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.slow
def test_killed_within_an_epoch_and_resumed_the_weights_are_equal_to_the_bit_and_each_row_was_learned_once_an_epoch(
    source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    flags = ("--model", tiny_model, "--epochs", "3", "--checkpoint_every", "5", "--dropout", "0.3", *QUICK)
    with worlds.noted_rows(tmp_path) as rows:
        worlds.run_world(3, source, "--run", "whole", *flags, folder=tmp_path, patch=worlds.note_rows)
        assert set(Counter(rows()).values()) == {3}
    files = RunFiles(source.parent, "leanings-killed")
    world = worlds.start_world(3, source, "--run", "killed", *flags, folder=tmp_path)
    worlds.wait_for_step(files, 27)
    world.kill(signal.SIGKILL)
    assert not files.result.exists()
    worlds.run_world(3, source, "--run", "killed", "--resume", *flags, folder=tmp_path)
    (resumed,) = worlds.events(files, "resume")
    assert resumed.step % 16 != 0  # within an epoch
    whole = RunFiles(source.parent, "leanings-whole")
    assert same_weights(files, whole, 48)
    assert worlds.losses(files) == worlds.losses(whole)
    assert json.loads(files.stats.read_text())["Training"] == json.loads(whole.stats.read_text())["Training"]
    assert files.predictions.read_bytes() == whole.predictions.read_bytes()


@pytest.mark.slow
def test_a_run_that_computes_its_shares_in_parts_goes_on_with_parts_of_the_same_size_to_the_bit(
    source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    flags = ("--model", tiny_model, "--epochs", "2", "--checkpoint_every", "5", "--dropout", "0.3", *QUICK)
    scarce = {"folder": tmp_path, "patch": worlds.memory_for_few_tokens}
    worlds.run_world(1, source, "--run", "whole", *flags, **scarce)
    files, whole = RunFiles(source.parent, "leanings-killed"), RunFiles(source.parent, "leanings-whole")
    world = worlds.start_world(1, source, "--run", "killed", *flags, **scarce)
    worlds.wait_for_step(files, 11)
    world.kill(signal.SIGKILL)
    worlds.run_world(1, source, "--run", "killed", "--resume", *flags, **scarce)
    assert same_weights(files, whole, 32)
    assert worlds.losses(files) == worlds.losses(whole)


@pytest.mark.slow
def test_asked_to_stop_a_run_saves_its_step_and_ends_with_143(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    files = RunFiles(source.parent, "leanings")
    world = worlds.start_world(1, source, "--model", tiny_model, "--epochs", "50", *QUICK, folder=tmp_path)
    worlds.wait_for_step(files, 5)
    world.kill(signal.SIGTERM)
    assert world.wait() == [143]
    assert "stopped after step" in world.output()
    last = worlds.events(files, "checkpoint")[-1]
    assert Path(last.path).is_dir()
    assert last.step == max(worlds.losses(files))


@pytest.mark.slow
def test_damaged_checkpoints_are_passed_over_aloud_and_the_result_is_the_same(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--model", tiny_model, "--epochs", "2", "--checkpoint_every", "5", "--keep_checkpoints", "9", *QUICK)
    whole, damaged = RunFiles(source.parent, "leanings-whole"), RunFiles(source.parent, "leanings-damaged")
    for files in (whole, damaged):
        worlds.run_world(1, source, "--run", files.stem.removeprefix("leanings-"), *flags, folder=tmp_path)
    damaged.result.unlink()
    newest, second, third = (damaged.checkpoints / f"step_{step:08d}" for step in (32, 30, 25))
    flip_a_bit(newest / "model.safetensors")
    (second / "optimizer.safetensors").unlink()
    (third / "state.json").write_text("{}")
    world = worlds.run_world(1, source, "--run", "damaged", "--resume", *flags, folder=tmp_path)
    said = [line for line in world.output().splitlines() if line.startswith("Passed over")]
    assert [f"step_{step:08d}" in line for step, line in zip((32, 30, 25), said, strict=True)] == [True] * 3
    assert [event.step for event in worlds.events(damaged, "resume")] == [20]
    assert same_weights(damaged, whole, 32)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_and_another_may_not_take_its_place(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--model", tiny_model, "--max_steps", "3", *QUICK)
    files = RunFiles(source.parent, "leanings")
    first = worlds.run_world(1, source, *flags, folder=tmp_path)
    before = files.result.read_bytes()
    again = worlds.run_world(1, source, *flags, "--resume", folder=tmp_path)
    assert "is finished" in again.output()
    [begun] = worlds.events(files, "start")
    assert f"; {begun.figures['rows']} rows of at most" in first.output()
    other = worlds.start_world(1, source, *flags, "--lr", "0.1", "--resume", folder=tmp_path)
    assert other.wait() == [2]
    assert "learning_rate (was 0.003, is now 0.1)" in other.output()
    assert files.result.read_bytes() == before
    worlds.run_world(1, source, *flags, folder=tmp_path)
    assert RunFiles(source.parent, "leanings-2").is_finished
    assert files.result.read_bytes() == before


@pytest.mark.slow
def test_a_checkpoint_of_other_settings_is_refused_with_what_differs(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--model", tiny_model, "--epochs", "2", "--checkpoint_every", "3", *QUICK)
    files = RunFiles(source.parent, "leanings")
    worlds.run_world(1, source, *flags, folder=tmp_path)
    files.result.unlink()
    world = worlds.start_world(1, source, *flags, "--seed", "4", "--resume", folder=tmp_path)
    assert world.wait() == [2]
    assert "seed (was 0, is now 4)" in world.output()
    assert "Traceback" not in world.output()


@pytest.mark.slow
def test_an_interrupted_run_is_left_as_it_is_by_a_new_one_which_says_so(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--model", tiny_model, "--max_steps", "4", "--checkpoint_every", "2", *QUICK)
    worlds.run_world(1, source, *flags, folder=tmp_path)
    RunFiles(source.parent, "leanings").result.unlink()
    world = worlds.run_world(1, source, *flags, folder=tmp_path)
    assert "leanings was not finished" in world.output()
    assert "--resume" in world.output()
    assert RunFiles(source.parent, "leanings-2").is_finished


@pytest.mark.slow
def test_a_run_goes_on_from_an_earlier_one_for_more_epochs_under_a_key_of_its_own(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--model", tiny_model, *QUICK)
    short, long = RunFiles(source.parent, "leanings-short"), RunFiles(source.parent, "leanings-long")
    worlds.run_world(1, source, "--run", "short", "--epochs", "1", *flags, folder=tmp_path)
    with worlds.noted_rows(tmp_path) as rows:
        longer = ("--run", "long", "--epochs", "3", "--from_run", short.result)
        worlds.run_world(1, source, *longer, *flags, folder=tmp_path, patch=worlds.note_rows)
        assert set(Counter(rows()).values()) == {2}  # two more epochs
    assert min(worlds.losses(long)) == 17
    result = json.loads(long.result.read_text())
    assert result["origin"]["step"] == 16
    assert result["key"] != json.loads(short.result.read_text())["key"]
    assert [epoch["epoch"] for epoch in json.loads(long.stats.read_text())["Training"]] == [1, 2, 3]
    other = worlds.start_world(
        1, source, "--epochs", "3", "--batch_size", "9", "--from_run", short.result, "--model", tiny_model, folder=tmp_path
    )
    assert other.wait() == [2]
    assert "batch_size (was 8, is now 9)" in other.output()


@pytest.mark.slow
def test_a_restarted_world_goes_on_with_the_run_of_its_own_job(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--model", tiny_model, "--epochs", "2", "--checkpoint_every", "5", *QUICK)
    for name, job in (("leanings", "one"), ("leanings-2", "two")):
        world = worlds.start_world(1, source, *flags, folder=tmp_path, job=job)
        worlds.wait_for_step(RunFiles(source.parent, name), 12)
        world.kill()
    worlds.run_world(1, source, *flags, folder=tmp_path, job="one", attempt=1)
    first, second = RunFiles(source.parent, "leanings"), RunFiles(source.parent, "leanings-2")
    assert (first.is_finished, second.is_finished) == (True, False)
    assert [event.attempt for event in worlds.events(first, "resume")] == [1]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_a_run_goes_on_from_an_earlier_one_with_more_samples_at_the_beginning_of_an_epoch(
    source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    flags = ("--model", tiny_model, *QUICK)
    few, more = RunFiles(source.parent, "leanings-few"), RunFiles(source.parent, "leanings-more")
    worlds.run_world(1, source, "--run", "few", "--epochs", "1", "--max_train_samples", "40", *flags, folder=tmp_path)
    with worlds.noted_rows(tmp_path) as rows:
        longer = ("--run", "more", "--epochs", "2", "--from_run", few.result)
        worlds.run_world(1, source, *longer, *flags, folder=tmp_path, patch=worlds.note_rows)
        assert sorted(rows()) == list(range(128))
    assert max(worlds.losses(few)) == 5
    assert list(worlds.losses(more)) == list(range(17, 33))


@pytest.mark.slow
def test_killed_before_its_first_checkpoint_a_run_that_went_on_from_another_does_so_again(
    source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    flags = ("--model", tiny_model, *QUICK)
    short, long = RunFiles(source.parent, "leanings-short"), RunFiles(source.parent, "leanings-long")
    worlds.run_world(1, source, "--run", "short", "--epochs", "1", *flags, folder=tmp_path)
    longer = ("--run", "long", "--epochs", "3", "--from_run", short.result, "--resume")
    world = worlds.start_world(1, source, *longer, *flags, folder=tmp_path)
    worlds.wait_for_step(long, 20)
    world.kill()
    worlds.run_world(1, source, *longer, *flags, folder=tmp_path)
    assert [event.step for event in worlds.events(long, "start")] == [16, 16]
    assert long.is_finished


@pytest.mark.slow
def test_preparing_and_finding_a_run_finished_load_no_torch(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = [str(source), "--model", str(tiny_model), "--max_steps", "2", "--no_export"]
    script = "import sys\nfrom bert_train_parallel.training.cli import main\ncode = main(sys.argv[1:])\nprint('torch' in sys.modules, code)"

    def loads_torch(*more: str) -> str:
        done = subprocess.run([sys.executable, "-c", script, *flags, *more], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1]

    assert loads_torch("--preponly") == "False 0"
    worlds.run_world(1, *flags, folder=tmp_path)
    assert loads_torch("--resume") == "False 0"


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_not_resumed_beside_it(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    files = RunFiles(source.parent, "leanings")
    flags = ("--model", tiny_model, "--epochs", "400", "--checkpoint_every", "5", *QUICK)
    first = worlds.start_world(1, source, *flags, folder=tmp_path)
    worlds.wait_for_step(files, 6)
    second = worlds.start_world(2, source, *flags, "--resume", folder=tmp_path)
    assert second.wait() == [2, 2], second.output()
    assert "another process trains this run now" in second.output(0)
    first.kill(signal.SIGTERM)
    assert first.wait() == [143], first.output()
    assert not files.result.exists()
    assert len(worlds.events(files, "resume")) == 0

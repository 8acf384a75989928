"""Nodes with a disk each: what they must agree on, and what outlives the loss of one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bert_train_parallel.run_files import RunFiles
from training import worlds

FLAGS = ("--checkpoint_every", "5", "--batch_size", "8", "--log_every", "1", "--no_export", "--lr", "3e-3", "--shares", "equal")


@pytest.mark.slow
def test_a_node_with_a_disk_of_its_own_keeps_a_copy_and_a_restart_goes_on_from_it(
    write_csv: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    source = write_csv(160)
    folders = [tmp_path / "alpha", tmp_path / "beta"]
    disks = [("--output_dir", folder) for folder in folders]
    flags = (source, "--model", tiny_model, "--epochs", "2", *FLAGS)
    alpha, beta = (RunFiles(folder, "leanings") for folder in folders)
    world = worlds.start_world(2, *flags, folder=tmp_path, of_each=disks, job="one")
    worlds.wait_for_step(alpha, 12)
    world.kill()
    shutil.rmtree(alpha.checkpoints)  # the disk of the first node is lost
    world = worlds.start_world(2, *flags, folder=tmp_path, of_each=disks, job="one", attempt=1)
    assert world.wait() == [0, 0], world.output()
    (resumed,) = worlds.events(alpha, "resume")
    assert resumed.step in (10, 15)
    assert str(beta.checkpoints) in resumed.path
    assert alpha.is_finished
    assert not beta.result.exists()  # one rank writes the results


@pytest.mark.slow
def test_a_shared_disk_gets_each_checkpoint_once(write_csv: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    source = write_csv(160)
    flags = ("--model", tiny_model, "--max_steps", "5", *FLAGS)
    world = worlds.start_world(2, source, *flags, folder=tmp_path, of_each=[(), ()], patch=worlds.note_checkpoints)
    assert world.wait() == [0, 0], world.output()
    assert world.output().count("wrote step_00000005") == 1


@pytest.mark.slow
def test_nodes_with_other_data_are_told_so_by_name(write_csv: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    sources = [write_csv(rows).rename(tmp_path / f"{rows}.csv") for rows in (60, 80)]
    for source in sources:
        worlds.run_world(1, source, "--model", tiny_model, "--preponly", folder=tmp_path)
    each = [(source.with_suffix(".sqlite"), "--run", "both") for source in sources]
    world = worlds.start_world(2, "--model", tiny_model, folder=tmp_path, of_each=each)
    assert world.wait() == [2, 2]
    said = [line for line in world.output(0).splitlines() if line.startswith("bert_train_parallel: ")]
    assert len(said) == 1
    assert "The data differs between nodes" in said[0]
    assert "(node 0)" in said[0]
    assert "(node 1)" in said[0]
    assert "--send_data" in said[0]

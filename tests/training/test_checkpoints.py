"""Checkpoints are whole or absent, and prove it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from bert_train_parallel.errors import BadCheckpoint, NotWritable
from bert_train_parallel.training import checkpoints

MODEL = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2, dtype=torch.float64)}
STATE = {"progress": {"step": 1}}


def write(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoints.write(folder, step, MODEL, {"exp_avg.weight": torch.ones(2, 3).t()}, STATE)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path, 120)
    found = checkpoints.read(tmp_path / "step_00000120")
    assert (found.step, found.state["progress"]) == (120, {"step": 1})
    assert found.model().keys() == MODEL.keys()
    assert all(torch.equal(found.model()[name], MODEL[name]) for name in MODEL)
    assert torch.equal(found.optimizer()["exp_avg.weight"], torch.ones(3, 2))
    assert names(tmp_path) == ["step_00000120"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_any_damage_to_any_file_is_found_and_the_one_before_is_taken(tmp_path: Path, name: str, damage: str) -> None:
    write(tmp_path, 1, 2)
    file = tmp_path / "step_00000002" / name
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(content[:-3] if damage == "cut" else content[:20] + bytes([content[20] ^ 1]) + content[21:])
    said: list[str] = []
    found = checkpoints.newest(tmp_path, said.append)
    assert found is not None
    assert found.step == 1
    assert len(said) == 1
    assert "step_00000002" in said[0]
    with pytest.raises(BadCheckpoint):
        checkpoints.read(file.parent)


def test_the_newest_stay_and_the_best(tmp_path: Path) -> None:
    write(tmp_path, 10, 20, 30, 40)
    checkpoints.prune(tmp_path, step=40, keep=2, also=["step_00000010"])
    assert names(tmp_path) == ["step_00000010", "step_00000030", "step_00000040"]


def test_what_did_not_verify_when_the_run_went_on_from_before_it_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 10, 20, 30)
    write(tmp_path, 12)
    checkpoints.prune(tmp_path, step=12, keep=2, also=[])
    assert names(tmp_path) == ["step_00000010", "step_00000012"]


def test_what_a_killed_writer_has_left_is_no_checkpoint_and_is_swept_up(tmp_path: Path) -> None:
    write(tmp_path, 10)
    left = tmp_path / ".step_00000020.ab12cd34.part"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert [place.name for place in checkpoints.found(tmp_path)] == ["step_00000010"]
    checkpoints.sweep_up(tmp_path)
    assert names(tmp_path) == ["step_00000010"]


def test_a_step_that_is_written_again_replaces_the_one_before(tmp_path: Path) -> None:
    write(tmp_path, 10)
    checkpoints.write(tmp_path, 10, MODEL, {}, {"progress": {"step": 7}})
    assert checkpoints.read(tmp_path / "step_00000010").state["progress"]["step"] == 7
    assert names(tmp_path) == ["step_00000010"]


def test_a_full_disk_is_a_sentence_and_what_was_there_stays_whole(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], check=False).returncode:
        pytest.skip("a file system of its own needs root")
    try:
        write(small, 1)
        with pytest.raises(NotWritable, match="no space left"):
            checkpoints.write(small, 2, {"weight": torch.zeros(100_000)}, {}, STATE)
        assert names(small) == ["step_00000001"]
        assert checkpoints.read(small / "step_00000001").step == 1
    finally:
        subprocess.run(["umount", small], check=True)


def test_an_optimizer_goes_on_where_it_was() -> None:
    def fresh() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW([{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.0}], lr=0.1, fused=True)

    def step(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    layer, optimizer = fresh()
    step(layer, optimizer)
    saved = checkpoints.optimizer_tensors(optimizer, {parameter: name for name, parameter in layer.named_parameters()})
    saved = {name: tensor.clone() for name, tensor in saved.items()}
    weights = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    step(layer, optimizer)
    other, other_optimizer = fresh()
    other.load_state_dict(weights)
    checkpoints.load_optimizer(other_optimizer, {parameter: name for name, parameter in other.named_parameters()}, saved)
    step(other, other_optimizer)
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)

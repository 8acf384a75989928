"""Several ranks that compute on GPUs: over gloo they may share one, over NCCL each has its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training import worlds
from training.conftest import EXACT

from bert_train_parallel import gpus
from bert_train_parallel.run_files import RunFiles
from gpu.conftest import ON_GPU, TWO_GPUS

pytestmark = pytest.mark.slow
FLAGS = ("--batch_size", "12", "--max_steps", "5", *EXACT, "--dtype", "float32", "--matmul", "mkl")
NCCL = {"device": "cuda", "backend": "nccl"}


def run(ranks: int, shares: str, on: str, source: Path, model: Path, folder: Path, **who: object) -> RunFiles:
    """A world that kept its first gradients in this folder."""
    folder.mkdir()
    with worlds.noted_rows(folder):
        flags = ("--model", model, "--device", on, "--run", folder.name, "--shares", shares, *FLAGS)
        worlds.run_world(ranks, source, *flags, folder=folder, patch=worlds.note_gradients, **who)
    return RunFiles(source.parent, f"leanings-{folder.name}")


def assert_same_gradients(found: Path, expected: Path, rank: int) -> None:
    """Of the first step, in float32, to rounding."""
    pairs = list(zip(worlds.gradients(found, rank, 1), worlds.gradients(expected, 0, 1), strict=True))
    greatest = max(float(theirs.abs().max()) for _, theirs in pairs)
    assert greatest > 1e-3
    assert max(float((mine.cpu() - theirs.cpu()).abs().max()) for mine, theirs in pairs) <= 1e-5 * greatest


@pytest.mark.parametrize("device", [ON_GPU])  # tests/training has it for CPUs
@pytest.mark.parametrize("shares", ["3,1", "1,0", "auto"])
def test_two_ranks_that_share_one_gpu_learn_what_one_process_learns(
    device: str, shares: str, source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    one = run(1, "auto", device, source, tiny_model, tmp_path / "one")
    two = run(2, shares, device, source, tiny_model, tmp_path / "two")
    for rank in (0, 1):
        assert_same_gradients(tmp_path / "two", tmp_path / "one", rank)
    np.testing.assert_allclose(list(worlds.losses(two).values()), list(worlds.losses(one).values()), rtol=1e-3)


@pytest.mark.parametrize("device", [ON_GPU])
def test_a_rank_on_a_gpu_that_fails_alone_ends_all(device: str, source: Path, tiny_model: Path, tmp_path: Path) -> None:
    patch = worlds.second_rank_has_no_memory_where_nothing_can_be_tried_again
    world = worlds.start_world(2, source, "--model", tiny_model, "--device", device, "--shares", "equal", folder=tmp_path, patch=patch)
    assert world.wait(timeout=120) == [1, 4]


@pytest.mark.parametrize("who", [pytest.param(NCCL, marks=TWO_GPUS)])
@pytest.mark.parametrize("shares", ["3,1", "1,0", "auto"])
def test_two_gpus_over_nccl_learn_what_one_process_learns(
    who: dict[str, str], shares: str, source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run(1, "auto", "cuda", source, tiny_model, tmp_path / "one")
    run(2, shares, "cuda", source, tiny_model, tmp_path / "two", **who)
    for rank in (0, 1):
        assert_same_gradients(tmp_path / "two", tmp_path / "one", rank)


@pytest.mark.parametrize("who", [pytest.param(NCCL, marks=TWO_GPUS)])
def test_a_rank_over_nccl_that_fails_alone_ends_though_the_other_waits_for_it(
    who: dict[str, str], source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    patch = worlds.second_rank_has_no_memory_where_nothing_can_be_tried_again
    world = worlds.start_world(2, source, "--model", tiny_model, "--shares", "equal", folder=tmp_path, patch=patch, **who)
    failed = world.processes[1]
    failed.join(120)  # the other one may wait in a collective: a launcher would end it now
    world.kill()
    assert failed.exitcode == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_driver_and_torch_see_the_same_gpus_and_a_plan_names_one() -> None:
    seen = {gpu.parent.removeprefix("GPU-") for gpu in gpus.list_gpus()}
    assert str(torch.cuda.get_device_properties(0).uuid) in seen
    command = [sys.executable, "-m", "bert_train_parallel.launching", "--dry_run", "--here_gpus", "1", "any.py"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert any(uuid in told.stdout + told.stderr for uuid in seen)

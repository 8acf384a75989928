"""One process on a GPU against one on a CPU: losses, precisions, memory that is scarce, predictions, a profile."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training import worlds

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.predict.predictor import load_model
from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.training.optimizer import Updater
from bert_train_parallel.training.stopwatch import Stopwatch
from gpu.conftest import GPU, ON_EACH, ON_GPU

Trained = Callable[..., RunFiles]


def losses(files: RunFiles) -> list[float]:
    return list(worlds.losses(files).values())


@pytest.mark.slow
@pytest.mark.parametrize("device", [ON_GPU])
def test_in_float32_the_losses_are_those_of_a_cpu(trained: Trained, device: str) -> None:
    np.testing.assert_allclose(losses(trained("there", device)), losses(trained("cpu", "cpu")), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", "bfloat16"), pytest.param("cuda", "bfloat16", marks=GPU), pytest.param("cuda", "float16", marks=GPU)]
)
def test_in_half_precision_the_losses_are_near_those_in_float32(
    trained: Trained, device: str, dtype: str, gradient_checkpointing: bool
) -> None:
    half = losses(trained("half", device, dtype=dtype, gradient_checkpointing=gradient_checkpointing, max_steps=8))
    np.testing.assert_allclose(half, losses(trained("whole", device, max_steps=8)), rtol=0, atol=0.1)


@ON_EACH
def test_a_step_whose_gradients_overflow_float16_is_left_out_and_the_scale_is_halved(device: str) -> None:
    parameter = nn.Parameter(torch.ones(4, 4, device=device))
    updater = Updater([parameter], TrainConfig(dtype="float16"), torch.device(device))
    loss = updater.scaler.scale(parameter.sum())
    loss.backward()
    assert parameter.grad is not None
    parameter.grad[0, 0] = torch.inf
    scale = updater.scaler.get_scale()
    updater.update(0.1)
    assert torch.equal(parameter.detach().cpu(), torch.ones(4, 4))
    assert updater.scaler.get_scale() == scale / 2


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_with_too_little_memory_a_batch_is_computed_in_parts_with_the_same_losses(trained: Trained) -> None:
    how = {"batch_size": 128, "sequence_len": 512, "max_steps": 3, "epochs": 3}
    torch.cuda.reset_peak_memory_stats()
    plenty = trained("plenty", "cuda", **how)
    peak, total = torch.cuda.max_memory_reserved(), torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.5 * peak / total)
    try:
        scarce = trained("scarce", "cuda", **how)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(losses(scarce), losses(plenty), rtol=0, atol=1e-4)


@ON_EACH
def test_what_a_stopwatch_measures_lies_within_the_time_that_passed(device: str) -> None:
    watch = Stopwatch(torch.device(device))
    matrix = torch.ones(256, 256, device=device)
    began = time.perf_counter()
    for _ in range(3):
        watch.start()
        matrix = matrix @ matrix / 256
        watch.stop()
        watch.lap(tokens=100)
    if device == "cuda":
        torch.cuda.synchronize()
    passed = time.perf_counter() - began
    seconds, tokens = watch.read()
    assert tokens == 300
    assert 0 < seconds <= passed


@pytest.mark.slow
@pytest.mark.parametrize("device", [ON_GPU])
def test_predictions_of_a_gpu_are_those_of_a_cpu(trained: Trained, device: str) -> None:
    files = trained("there", device, export=True)
    texts = ["the dog loved the long film", "a small cat hated a cold soup. " * 9, "x"]
    found, expected = (
        [list(prediction.probabilities.values()) for prediction in load_model(files.saved_model, device=on).predict(texts)]
        for on in (device, "cpu")
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("first", "then"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_with_another_kind_of_device(first: str, then: str, source: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--model", tiny_model, "--dtype", "float32", "--epochs", "3", "--checkpoint_every", "5", "--batch_size", "8", "--no_export")
    files = RunFiles(source.parent, "leanings")
    world = worlds.start_world(1, source, *flags, "--device", first, "--log_every", "1", folder=tmp_path)
    worlds.wait_for_step(files, 7)
    world.kill(signal.SIGKILL)
    worlds.run_world(1, source, *flags, "--device", then, "--log_every", "1", "--resume", folder=tmp_path)
    assert [event.step for event in worlds.events(files, "resume")]
    assert files.is_finished


@pytest.mark.slow
@pytest.mark.parametrize("device", [ON_GPU])
def test_a_profile_names_the_kernels(device: str, source: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--model", tiny_model, "--device", device, "--max_steps", "20", "--batch_size", "8", "--epochs", "2", "--no_export")
    said = worlds.run_world(1, source, *flags, "--profile", folder=tmp_path).output()
    assert "matrix products" in said
    assert "the profiler saw no kernel" not in said

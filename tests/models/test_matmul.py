"""Matrix products by either library are those of float32, and one of them is chosen."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from bert_train_parallel.errors import BadSetting
from bert_train_parallel.models import matmul
from bert_train_parallel.models.matmul import CpuLinear, Matmul, choose_matmul, use_matmul

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 8, bias=False))


@needs_onednn
@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (0, 24), (64, 24), (131, 24)])
def test_onednn_gives_the_outputs_and_gradients_of_torch(shape: tuple[int, ...]) -> None:
    plain, other = network(), network()
    use_matmul(other, "onednn")
    assert isinstance(other[0], CpuLinear)
    assert other[0].library == "onednn"
    values = torch.randn(shape)
    inputs = [values.clone().requires_grad_() for _ in range(2)]
    for model, rows in zip((plain, other), inputs, strict=True):
        model(rows).square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_a_model_goes_back_to_torchs_own_library() -> None:
    model = network()
    use_matmul(model, "onednn")
    use_matmul(model, "mkl")
    assert [layer.library for layer in model if isinstance(layer, CpuLinear)] == ["mkl", "mkl"]
    rows = torch.randn(3, 24)
    assert torch.equal(model(rows), network()(rows))


@needs_onednn
def test_other_precisions_are_left_to_torch() -> None:
    model = network().double()
    use_matmul(model, "onednn")
    assert model(torch.randn(3, 24, dtype=torch.float64)).dtype == torch.float64
    half = network()
    use_matmul(half, "onednn")
    with torch.autocast("cpu", torch.bfloat16):
        assert half(torch.randn(3, 24)).dtype == torch.bfloat16


@needs_onednn
def test_auto_measures_both_and_says_what_it_found() -> None:
    chosen = choose_matmul("auto", network())
    assert chosen.gflops.keys() == chosen.errors.keys() == {"mkl", "onednn"}
    assert all(error < 1e-5 for error in chosen.errors.values())
    assert chosen.library in str(chosen)
    assert "GFLOP/s" in str(chosen)


def test_a_library_that_does_not_compute_in_float32_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_bfloat16(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return nn.functional.linear(rows.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16()).float()

    monkeypatch.setitem(matmul._LIBRARIES, "onednn", in_bfloat16)
    chosen = choose_matmul("auto", network())
    assert chosen.library == "mkl"
    assert chosen.errors["onednn"] > 1e-4
    with pytest.raises(BadSetting, match="--matmul onednn: on this processor it errs by"):
        choose_matmul("onednn", network())


def test_there_is_nothing_to_choose_in_float64_or_where_it_is_said() -> None:
    assert choose_matmul("auto", network().double()) == Matmul("mkl", {}, {})
    assert choose_matmul("mkl", network()) == Matmul("mkl", {}, {})


@pytest.mark.parametrize("count", [7, 64, 131])
def test_bfloat16_gives_the_outputs_and_gradients_of_autocast(count: int) -> None:
    plain, other = network(), network()
    use_matmul(other, "mkl")
    inputs = [torch.randn(count, 24, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [model(rows) for model, rows in zip((plain, other), inputs, strict=True)]
    assert outputs[1].dtype == torch.bfloat16
    for found in outputs:
        found.float().square().sum().backward()
    pairs = [
        outputs,
        [rows.grad for rows in inputs],
        *zip(*([p.grad for p in model.parameters()] for model in (plain, other)), strict=True),
    ]
    for expected, found in pairs:
        assert found.dtype == expected.dtype
        assert float(((found - expected).abs().max() / expected.abs().max()).detach()) < 0.02


@needs_onednn
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_different_sizes() -> None:
    script = """
import random, resource, torch
from torch import nn
from bert_train_parallel.models.matmul import use_matmul
torch.set_num_threads(2)
layer = nn.Sequential(nn.Linear(192, 768), nn.Linear(768, 192))
use_matmul(layer, "onednn")
draw = random.Random(0)
def steps(count, half):
    for _ in range(count):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            layer(torch.randn(draw.randint(500, 2000), 192)).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for half in (False, True):
    before = steps(80, half)
    print(round(steps(120, half) - before))
"""
    grown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert all(int(megabytes) < 80 for megabytes in grown), grown

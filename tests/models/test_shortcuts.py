"""Short cuts are exact: dropout keeps its mean, an embedding its gradient, whatever memory they use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bert_train_parallel.models.shortcuts import CpuDropout, LeanEmbedding, take_cpu_shortcuts


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cpu_dropout_keeps_the_mean_and_drops_the_share_asked_for(share: float) -> None:
    torch.manual_seed(0)
    values = torch.ones(1000, 1000, requires_grad=True)
    dropped = CpuDropout(share)(values)
    dropped.sum().backward()
    zeros = dropped == 0
    assert abs(float(zeros.double().mean()) - share) < 5 * (share * (1 - share) / 1e6) ** 0.5 + 1e-5
    assert abs(float(dropped.detach().double().mean()) - 1) < 0.02
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())
    neighbours = (zeros[1:] & zeros[:-1], zeros[:, 1:] & zeros[:, :-1])
    assert [float(both.double().mean()) for both in neighbours] == pytest.approx([share**2] * 2, abs=0.003)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cpu_dropout_keeps_the_precision(dtype: torch.dtype) -> None:
    assert CpuDropout(0.1)(torch.ones(4, 4, dtype=dtype)).dtype == dtype


def test_no_dropout_outside_of_training() -> None:
    values = torch.randn(5, 5)
    assert torch.equal(CpuDropout(0.5).eval()(values), values)


def gradient_by(embedding: nn.Embedding, tokens: torch.Tensor) -> torch.Tensor:
    """The gradient of a fixed function of the embedded tokens, in the memory that backward gave it."""
    embedding.zero_grad(set_to_none=True)
    upstream = torch.randn(*tokens.shape, embedding.embedding_dim, generator=torch.Generator().manual_seed(1))
    embedding(tokens).backward(upstream.to(embedding.weight.dtype))
    assert embedding.weight.grad is not None
    return embedding.weight.grad


@pytest.fixture(params=[torch.float32, torch.float64])
def embeddings(request: pytest.FixtureRequest) -> tuple[nn.Embedding, LeanEmbedding]:
    plain, lean = (kind(50, 8, padding_idx=0, dtype=request.param) for kind in (nn.Embedding, LeanEmbedding))
    lean.load_state_dict(plain.state_dict())
    return plain, lean


def test_a_lean_embedding_has_the_outputs_and_the_gradient_of_a_plain_one(embeddings: tuple[nn.Embedding, LeanEmbedding]) -> None:
    plain, lean = embeddings
    for tokens in (torch.tensor([[3, 3, 0, 49, 7]]), torch.tensor([[1, 2]]), torch.zeros(1, 0, dtype=torch.int64)):
        assert torch.equal(lean(tokens), plain(tokens))
        torch.testing.assert_close(gradient_by(lean, tokens), gradient_by(plain, tokens), rtol=1e-6, atol=1e-7)


def test_its_gradient_keeps_its_memory_but_never_that_of_a_tensor_in_use(embeddings: tuple[nn.Embedding, LeanEmbedding]) -> None:
    plain, lean = embeddings
    first, second = torch.tensor([[3, 4]]), torch.tensor([[5, 5]])
    place = gradient_by(lean, first).data_ptr()
    assert gradient_by(lean, second).data_ptr() == place
    held = gradient_by(lean, first)
    assert gradient_by(lean, second).data_ptr() != held.data_ptr()
    torch.testing.assert_close(held, gradient_by(plain, first))


def test_gradients_add_up_until_they_are_cleared(embeddings: tuple[nn.Embedding, LeanEmbedding]) -> None:
    plain, lean = embeddings
    for tokens in (torch.tensor([[3, 4]]), torch.tensor([[5, 4]]), torch.tensor([[3, 3]])):
        for embedding in embeddings:
            embedding(tokens).square().sum().backward()
    torch.testing.assert_close(lean.weight.grad, plain.weight.grad)


def test_only_large_plain_embeddings_are_changed() -> None:
    network = nn.ModuleList([nn.Embedding(20_000, 64), nn.Embedding(512, 64), nn.Embedding(20_000, 64, sparse=True)])
    take_cpu_shortcuts(network)
    assert [type(module) is LeanEmbedding for module in network] == [True, False, False]

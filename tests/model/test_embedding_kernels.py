"""Embeddings by the kernels against PyTorch's operations in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from alibi_reference import tiny_config
from torch import Tensor, nn

from bertchen.model import MosaicBertForMaskedLM, kernels
from bertchen.model.embedding_kernels import EmbeddingWeights, fused_embeddings

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(kernels.why_unable(DEVICE) is not None, reason=str(kernels.why_unable(DEVICE)))
VOCABULARY = 11


def weights_of(width: int) -> EmbeddingWeights:
    generator = torch.Generator().manual_seed(0)
    shapes = (VOCABULARY, width), (width,), (width,), (width,)
    return EmbeddingWeights(*(torch.randn(*shape, generator=generator).to(DEVICE).requires_grad_() for shape in shapes))


def some_ids(tokens: int) -> Tensor:
    """Each word seldom or often, so that runs of one word end within and between programs."""
    return torch.randint(VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(1)).clamp(min=3).to(DEVICE)


def seeded(ids: Tensor, weights: EmbeddingWeights, padding: int | None, p: float) -> Tensor:
    torch.manual_seed(5)
    return fused_embeddings(ids, weights, padding, 1e-5, p, torch.float32)


def kept_with(p: float, ids: Tensor, width: int) -> Tensor:
    """Which elements dropout keeps: those that aren't 0 where LayerNorm gives 1."""
    words, of_type, norm, _ = weights_of(width)
    ones = EmbeddingWeights(words, of_type, torch.zeros_like(norm), torch.ones_like(norm))
    return seeded(ids, ones, None, p).detach() != 0


@pytest.mark.parametrize(("tokens", "width"), [(1, 48), (40, 32), (37, 768), (6, 1001)])
@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("padding", [None, 3])
def test_embeddings_and_gradients(tokens: int, width: int, p: float, padding: int | None) -> None:
    weights, ids = weights_of(width), some_ids(tokens)
    upper = torch.randn(tokens, width, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    leaves = [weight.detach().double().requires_grad_() for weight in weights]
    rows = F.embedding(ids, leaves[0], padding_idx=padding) + leaves[1]
    expected = F.layer_norm(rows, (width,), leaves[2], leaves[3], 1e-5)
    if p:
        expected = expected * kept_with(p, ids, width) / (1 - p)
    got = seeded(ids, weights, padding, p)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(got, weights, upper)
    for one, other in zip(gradients, torch.autograd.grad(expected, leaves, upper.double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=2e-5)


def test_dropout_drops_its_share() -> None:
    kept = kept_with(0.1, some_ids(64), 256).double()
    assert abs(kept.mean() - 0.9) < 5 * (0.09 / kept.numel()) ** 0.5


def test_a_word_that_is_not_known_is_no_number() -> None:
    """Where PyTorch would stop the device: memory of others isn't read, nor written."""
    weights = weights_of(32)
    ids = torch.tensor([1, VOCABULARY, -1, 2], device=DEVICE)
    out = fused_embeddings(ids, weights, None, 1e-5, 0.0, torch.float32)
    assert out.isnan().all(1).tolist() == [False, True, True, False]
    (of_words,) = torch.autograd.grad(out, weights.words, torch.ones_like(out))
    assert of_words.isfinite().all()


def test_no_tokens() -> None:
    weights = weights_of(32)
    out = fused_embeddings(torch.empty(0, dtype=torch.int64, device=DEVICE), weights, None, 1e-5, 0.1, torch.float32)
    assert out.shape == (0, 32)
    gradients = torch.autograd.grad(out, weights, torch.ones_like(out))
    assert all(not gradient.any() for gradient in gradients)


def hidden_of(model: MosaicBertForMaskedLM, **given: Any) -> Tensor:
    ids = torch.randint(4, 96, (2, 12), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    return model.bert(ids, output_hidden_states=True, **given).hidden_states[0]


def test_parts_that_were_changed_are_used_as_they_are() -> None:
    """Embeddings that a library put in place, and types, which the kernels don't know."""

    class Louder(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return 3 * super().forward(ids)

    made = []
    for choice in ("triton", "torch"):
        torch.manual_seed(0)
        model = MosaicBertForMaskedLM(tiny_config(kernels=choice, attention_backend="sdpa")).to(DEVICE).eval()
        types = torch.ones(2, 12, dtype=torch.int64, device=DEVICE)
        plain, typed = hidden_of(model), hidden_of(model, token_type_ids=types)
        louder = Louder(*model.bert.embeddings.word_embeddings.weight.shape).to(DEVICE)
        louder.weight = model.bert.embeddings.word_embeddings.weight
        model.set_input_embeddings(louder)
        made.append((plain, typed, hidden_of(model)))
    for got, expected in zip(*made, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made[0][0], made[0][2])

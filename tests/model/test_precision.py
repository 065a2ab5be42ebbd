"""Models in half precision, and autocast."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from alibi_reference import mask_of, tiny_config
from torch import Tensor

from bertchen.model import (
    MosaicBertForMaskedLM,
    MosaicBertForQuestionAnswering,
    MosaicBertForSequenceClassification,
    MosaicBertForTokenClassification,
)
from bertchen.model.layers import LayerNorm

HALVES = [torch.bfloat16, torch.float16]
HEADS = [
    MosaicBertForMaskedLM,
    MosaicBertForQuestionAnswering,
    MosaicBertForSequenceClassification,
    MosaicBertForTokenClassification,
]


def ids_and_mask() -> tuple[Tensor, Tensor]:
    return torch.randint(4, 96, (3, 40), generator=torch.Generator().manual_seed(0)), mask_of([40, 7, 23])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("head", HEADS)
def test_models_run_in_half_precision(head: type, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = head(tiny_config(num_labels=3)).eval()
    ids, mask = ids_and_mask()
    with torch.no_grad():
        expected = model.bert(ids, mask).last_hidden_state
        half = model.to(dtype)
        got = half.bert(ids, mask).last_hidden_state
        outputs = half(ids, mask).to_tuple()
    assert got.dtype == dtype
    assert all(output.isfinite().all() for output in outputs)
    # Post-norm layers add the rounding of each; outputs of a LayerNorm are about 1.
    assert (got.float() - expected).abs().max() < 16 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_trains(dtype: torch.dtype) -> None:
    model = MosaicBertForMaskedLM(tiny_config()).to(dtype).train()
    ids, mask = ids_and_mask()
    model(ids, mask, labels=ids).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_autocast_keeps_the_residual_stream_in_bf16() -> None:
    torch.manual_seed(0)
    model = MosaicBertForMaskedLM(tiny_config()).train()
    ids, mask = ids_and_mask()
    dtypes = []
    for module in model.modules():
        if isinstance(module, LayerNorm):
            module.register_forward_hook(lambda _module, _inputs, output: dtypes.append(output.dtype))
    expected = model(ids, mask, labels=ids)
    assert set(dtypes) == {torch.float32}
    dtypes.clear()
    with torch.autocast("cpu", torch.bfloat16):
        got = model(ids, mask, labels=ids)
    assert len(dtypes) == 6  # embeddings, two in each of two layers, head
    assert set(dtypes) == {torch.bfloat16}
    assert got.masked_logits.dtype == torch.bfloat16
    assert got.loss.dtype == torch.float32
    assert got.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
    got.loss.backward()
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


@pytest.mark.parametrize("offset", [0.0, 200.0])
def test_layer_norm_statistics_are_float32_under_autocast(offset: float) -> None:
    """With a mean of 200, statistics in bfloat16 would be off by more than the result's own rounding."""
    torch.manual_seed(0)
    norm = LayerNorm(64, eps=1e-12)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.uniform_(-1.0, 1.0)
    x = (torch.randn(10, 64) + offset).to(torch.bfloat16)
    expected = F.layer_norm(x.double(), (64,), norm.weight.double(), norm.bias.double(), 1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.float()):
            out = norm(given)
            assert out.dtype == torch.bfloat16
            assert (out.double() - expected).abs().max() <= torch.finfo(torch.bfloat16).eps * expected.abs().max()


def test_mean_pooling_of_a_long_row_in_fp16() -> None:
    """The sum of 5,000 tokens doesn't fit into float16, their mean does."""
    model = MosaicBertForSequenceClassification(tiny_config(num_hidden_layers=1)).eval()
    with torch.no_grad():
        model.bert.encoder.layer[0].mlp.layernorm.bias += 20.0
        logits = model.to(torch.float16)(torch.randint(4, 96, (1, 5000))).logits
    assert logits.isfinite().all()

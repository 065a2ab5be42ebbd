"""Padding and neighbours in the batch change nothing for a token."""

from __future__ import annotations

import pytest
import torch
from alibi_reference import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertchen.model import MosaicBertForMaskedLM, MosaicBertForSequenceClassification, MosaicBertModel
from bertchen.model.padding import pack, remove_padding, restore_padding

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Ids and mask: rows of 0 to 12 tokens, spread over 12 to 20 places in any way; any ids at the padding."""
    width = draw(st.integers(12, 20))
    rows = draw(st.integers(1, 4))
    mask = torch.zeros(rows, width, dtype=torch.long)
    for row in range(rows):
        length = draw(st.integers(0, 12))
        how = draw(st.sampled_from(["right", "left", "gaps"]))
        places = {
            "right": range(length),
            "left": range(width - length, width),
            "gaps": draw(st.permutations(range(width)))[:length],
        }[how]
        mask[row, list(places)] = 1
    seed = draw(st.integers(0, 2**16))
    ids = torch.randint(0, 96, (rows, width), generator=torch.Generator().manual_seed(seed))
    return ids, mask


@pytest.fixture(scope="module")
def model() -> MosaicBertForMaskedLM:
    torch.manual_seed(0)
    return MosaicBertForMaskedLM(tiny_config()).train()  # no dropout: training and evaluation compute the same


@settings(deadline=None, max_examples=60)
@given(batch=batches())
def test_a_row_gets_what_it_gets_alone_without_padding(
    model: MosaicBertForMaskedLM, batch: tuple[Tensor, Tensor]
) -> None:
    ids, mask = batch
    with torch.no_grad():
        hidden = model.bert(ids, mask).last_hidden_state
        logits = model(ids, mask, output_logits=True).logits
        assert hidden.isfinite().all()
        assert not hidden[mask == 0].any()
        for row in range(ids.shape[0]):
            attended = mask[row].bool()
            if attended.any():
                alone = ids[row, attended][None]
                torch.testing.assert_close(hidden[row, attended], model.bert(alone).last_hidden_state[0], **CLOSE)
                torch.testing.assert_close(logits[row, attended], model(alone).logits[0], **CLOSE)


@settings(deadline=None, max_examples=25)
@given(batch=batches())
def test_gradients_are_the_sum_of_the_rows_gradients(
    model: MosaicBertForMaskedLM, batch: tuple[Tensor, Tensor]
) -> None:
    """Wholly padded rows give none, and no NaN."""
    ids, mask = batch
    labels = ids.masked_fill(ids % 3 != 0, -100)
    parameters = list(model.parameters())
    loss = model(ids, mask, labels=labels, num_items_in_batch=1).loss
    got = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    expected = [torch.zeros_like(parameter) for parameter in parameters]
    total = 0.0
    for row in range(ids.shape[0]):
        attended = mask[row].bool()
        if attended.any():
            alone = model(ids[row, attended][None], labels=labels[row, attended][None], num_items_in_batch=1).loss
            total += alone.item()
            gradients = torch.autograd.grad(alone, parameters, allow_unused=True, materialize_grads=True)
            expected = [so_far + gradient for so_far, gradient in zip(expected, gradients, strict=True)]
    assert loss.item() == pytest.approx(total, rel=1e-4, abs=1e-5)
    for one, other in zip(got, expected, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("max_masked", [None, 4])
def test_nothing_but_padding_trains_without_nan(max_masked: int | None) -> None:
    model = MosaicBertForMaskedLM(tiny_config()).train()
    ids = torch.zeros(2, 6, dtype=torch.long)
    loss = model(ids, torch.zeros_like(ids), labels=ids, max_masked=max_masked).loss
    loss.backward()
    assert loss.item() == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name


def test_dropout_and_padding_train_without_nan() -> None:
    model = MosaicBertForMaskedLM(tiny_config(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)).train()
    ids = torch.randint(4, 96, (3, 9))
    mask = torch.arange(9)[None, :] < torch.tensor([0, 9, 2])[:, None]
    loss = model(ids, mask, labels=ids).loss
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("pooling", ["mean", "first"])
@settings(deadline=None, max_examples=25)
@given(batch=batches())
def test_pooled_rows_do_not_see_padding(pooling: str, batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = MosaicBertForSequenceClassification(tiny_config(num_labels=3, classifier_pooling=pooling)).eval()
    ids, mask = batch
    with torch.no_grad():
        logits = model(ids, mask).logits
        assert logits.isfinite().all()
        for row in range(ids.shape[0]):
            attended = mask[row].bool()
            if attended.any():
                torch.testing.assert_close(logits[row], model(ids[row, attended][None]).logits[0], **CLOSE)


def test_layers_work_on_attended_tokens_alone() -> None:
    """Padding is taken out before the first layer and put back after the last."""
    model = MosaicBertModel(tiny_config()).eval()
    shapes = []
    for module in (model.embeddings, *model.encoder.layer):
        module.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    output = model(torch.randint(4, 96, (2, 4)), mask)
    assert shapes == [(5, 48)] * 3
    assert output.last_hidden_state.shape == (2, 4, 48)


def test_types_and_embeddings_are_unpadded_with_the_tokens(model: MosaicBertForMaskedLM) -> None:
    ids, types = torch.randint(4, 96, (2, 8)), torch.randint(0, 2, (2, 8))
    mask = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1], [1] * 8])
    attended = mask[0].bool()
    with torch.no_grad():
        both = model.bert(ids, mask, types).last_hidden_state
        alone = model.bert(ids[:1, attended], token_type_ids=types[:1, attended]).last_hidden_state
        torch.testing.assert_close(both[0, attended], alone[0], **CLOSE)
        embedded = model.get_input_embeddings()(ids)
        from_embeddings = model.bert(inputs_embeds=embedded, attention_mask=mask, token_type_ids=types)
        torch.testing.assert_close(from_embeddings.last_hidden_state, both, **CLOSE)
        assert not torch.allclose(model.bert(ids, mask).last_hidden_state, both)


@settings(deadline=None, max_examples=50)
@given(batch=batches())
def test_remove_and_restore(batch: tuple[Tensor, Tensor]) -> None:
    ids, mask = batch
    packing = pack(*ids.shape, mask, ids.device)
    tokens = remove_padding(ids, packing)
    assert tokens.tolist() == [
        token for row, keep in zip(ids, mask.bool(), strict=True) for token in row[keep].tolist()
    ]
    assert torch.equal(restore_padding(tokens, packing), ids * mask)
    assert packing.max_seqlen == mask.sum(dim=1).max()
    assert packing.cu_seqlens.tolist() == [0, *mask.sum(dim=1).cumsum(0).tolist()]


def test_a_full_mask_is_no_mask() -> None:
    assert pack(2, 5, torch.ones(2, 5), torch.device("cpu")).indices is None


@pytest.mark.parametrize("shape", [(2, 5), (3, 4), (2, 1, 1, 4)])
def test_a_mask_of_another_shape_is_refused(model: MosaicBertForMaskedLM, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"attention_mask has shape .*\(2, 4\)"):
        model(torch.ones(2, 4, dtype=torch.long), torch.ones(shape))

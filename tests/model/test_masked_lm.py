"""The MLM's loss, which positions its head computes, and `max_masked`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from alibi_reference import mask_of, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertchen.model import MosaicBertForMaskedLM
from bertchen.model.modeling_mosaicbert import masked_positions

LENGTHS = [12, 5, 0, 9]


@pytest.fixture
def model() -> MosaicBertForMaskedLM:
    torch.manual_seed(0)
    return MosaicBertForMaskedLM(tiny_config()).train()


@pytest.fixture(params=["dense", "padded"])
def batch(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 96, (4, 12), generator=generator)
    mask = torch.ones_like(ids) if request.param == "dense" else mask_of(LENGTHS)
    masked = (torch.rand(ids.shape, generator=generator) < 0.3) & mask.bool()
    batch = {"input_ids": ids, "labels": ids.masked_fill(~masked, -100)}
    return batch if request.param == "dense" else {**batch, "attention_mask": mask}


def plain_loss(model: MosaicBertForMaskedLM, batch: dict[str, Tensor], reduction: str = "mean") -> Tensor:
    """From the logits of all positions, in float64, as the textbook has it."""
    logits = model(**{name: batch[name] for name in batch if name != "labels"}).logits.double()
    log_probabilities = logits.log_softmax(dim=-1)
    losses = [
        -log_probabilities[row, column, batch["labels"][row, column]]
        for row, column in (batch["labels"] != -100).nonzero().tolist()
    ]
    return torch.stack(losses).mean() if reduction == "mean" else torch.stack(losses).sum()


def gradients(loss: Tensor, model: MosaicBertForMaskedLM) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True, allow_unused=True))


def assert_all_close(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("max_masked", [None, 48, 20])
def test_loss_and_gradients_are_those_of_all_positions(
    model: MosaicBertForMaskedLM, batch: dict[str, Tensor], max_masked: int | None
) -> None:
    assert 0 < (batch["labels"] != -100).sum() <= 20
    loss, expected = model(**batch, max_masked=max_masked).loss, plain_loss(model, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert_all_close(gradients(loss, model), gradients(expected, model))


@pytest.mark.parametrize("number", [7, 7.0, torch.tensor(7), torch.tensor(7.0)])
@pytest.mark.parametrize("max_masked", [None, 30])
def test_num_items_in_batch_divides_the_sum(
    model: MosaicBertForMaskedLM, batch: dict[str, Tensor], number: float | Tensor, max_masked: int | None
) -> None:
    loss = model(**batch, num_items_in_batch=number, max_masked=max_masked).loss
    assert loss.item() == pytest.approx(plain_loss(model, batch, "sum").item() / 7, abs=1e-5)


def test_microbatches_add_up(model: MosaicBertForMaskedLM, batch: dict[str, Tensor]) -> None:
    """With the whole batch's number of labels, gradients of its parts sum to those of the whole."""
    number = (batch["labels"] != -100).sum()
    parts = [{name: tensor[i : i + 1] for name, tensor in batch.items()} for i in range(4)]
    summed = sum(model(**part, num_items_in_batch=number).loss for part in parts)
    assert_all_close(gradients(summed, model), gradients(model(**batch).loss, model))


def test_in_training_only_masked_positions_pass_the_head(
    model: MosaicBertForMaskedLM, batch: dict[str, Tensor]
) -> None:
    rows: list[int] = []
    model.cls.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[0]))
    masked = int((batch["labels"] != -100).sum())
    output = model(**batch)
    assert rows == [masked]
    assert output.logits is None
    assert output.masked_logits.shape == (masked, 96)
    rows.clear()
    model(**batch, max_masked=25)
    assert rows == [25]


def test_logits_of_all_positions_on_request(model: MosaicBertForMaskedLM, batch: dict[str, Tensor]) -> None:
    inputs = {name: batch[name] for name in batch if name != "labels"}
    expected = model(**inputs).logits
    assert expected.shape == (4, 12, 96)
    asked = model(**batch, output_logits=True)
    torch.testing.assert_close(asked.logits, expected)
    evaluated = model.eval()(**batch)
    torch.testing.assert_close(evaluated.logits, expected)
    assert evaluated.loss.item() == pytest.approx(asked.loss.item())
    assert model(**batch, output_logits=False).logits is None
    at = batch["labels"] != -100
    torch.testing.assert_close(evaluated.masked_logits, expected[at], rtol=1e-4, atol=1e-5)
    assert torch.equal(evaluated.masked_labels, batch["labels"][at])


def test_labels_of_padding_do_not_count(model: MosaicBertForMaskedLM) -> None:
    ids = torch.randint(4, 96, (2, 6))
    mask = mask_of([6, 3])
    loss = model(ids, mask, labels=ids).loss
    assert loss.item() == pytest.approx(model(ids, mask, labels=ids.masked_fill(mask == 0, -100)).loss.item())


@pytest.mark.parametrize("max_masked", [None, 0, 10])
def test_nothing_masked_gives_zero(model: MosaicBertForMaskedLM, max_masked: int | None) -> None:
    ids = torch.randint(4, 96, (2, 6))
    loss = model(ids, labels=torch.full_like(ids, -100), max_masked=max_masked).loss
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


@settings(deadline=None, max_examples=100)
@given(labels=st.lists(st.sampled_from([-100, -100, 3, 4, 5]), max_size=30), spare=st.integers(0, 40))
def test_masked_positions(labels: list[int], spare: int) -> None:
    expected = [(position, label) for position, label in enumerate(labels) if label != -100]
    tensor = torch.tensor(labels, dtype=torch.long)
    positions, kept = masked_positions(tensor)
    assert list(zip(positions.tolist(), kept.tolist(), strict=True)) == expected

    bound = len(expected) + spare
    positions, kept = masked_positions(tensor, bound)
    assert len(positions) == len(kept) == min(bound, len(labels))
    found = list(zip(positions.tolist(), kept.tolist(), strict=True))
    assert found[: len(expected)] == expected
    assert set(found[len(expected) :]) <= {(0, -100)}


def test_as_tuple(model: MosaicBertForMaskedLM, batch: dict[str, Tensor]) -> None:
    model.eval()
    output = model(**batch, output_hidden_states=True)
    as_tuple = model(**batch, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    for one, other in zip(as_tuple, output.to_tuple(), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(as_tuple[0], output.loss)
    assert torch.equal(as_tuple[1], output.logits)


def test_cross_entropy_in_float32_for_a_bf16_model(batch: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    model = MosaicBertForMaskedLM(tiny_config()).to(torch.bfloat16).train()
    output = model(**batch)
    assert output.masked_logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    expected = F.cross_entropy(output.masked_logits.double(), output.masked_labels)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)

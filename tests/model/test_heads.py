"""Classification, question answering, token classification: logits, losses, outputs."""

from __future__ import annotations

import math

import pytest
import torch
from alibi_reference import mask_of, tiny_config
from torch import Tensor

from bertchen.model import (
    MosaicBertForMaskedLM,
    MosaicBertForQuestionAnswering,
    MosaicBertForSequenceClassification,
    MosaicBertForTokenClassification,
    MosaicBertModel,
)

LENGTHS = [9, 4, 7]
IDS = torch.randint(4, 96, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = mask_of(LENGTHS)
HEADS = {
    MosaicBertForSequenceClassification: {"labels": torch.tensor([0, 2, 1])},
    MosaicBertForQuestionAnswering: {
        "start_positions": torch.tensor([1, 0, 3]),
        "end_positions": torch.tensor([8, 3, 3]),
    },
    MosaicBertForTokenClassification: {"labels": torch.where(MASK.bool(), IDS % 3, -100)},
    MosaicBertForMaskedLM: {"labels": torch.where(MASK.bool() & (IDS % 3 == 0), IDS, -100)},
}
each_head = pytest.mark.parametrize(("head", "targets"), HEADS.items(), ids=[head.__name__ for head in HEADS])


def build(head: type, **changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return head(tiny_config(**{"num_labels": 3, **changes})).eval()


def mean_cross_entropy(logits: Tensor, labels: list[int]) -> float:
    """By hand, in float64; `logits`: (number, classes)."""
    losses = [-row.double().log_softmax(0)[label].item() for row, label in zip(logits, labels, strict=True)]
    return sum(losses) / len(losses)


# -- sequence classification ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_sequence_logits(pooling: str) -> None:
    model = build(MosaicBertForSequenceClassification, classifier_pooling=pooling)
    with torch.no_grad():
        hidden = model.bert(IDS, MASK).last_hidden_state
        logits = model(IDS, MASK).logits
        for row, length in enumerate(LENGTHS):
            pooled = hidden[row, :length].mean(dim=0) if pooling == "mean" else hidden[row, 0]
            expected = model.classifier.weight @ pooled + model.classifier.bias
            torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-5)


def test_first_is_the_first_attended_token() -> None:
    model = build(MosaicBertForSequenceClassification, classifier_pooling="first")
    left = torch.tensor([[0, 0, 1, 1, 1]])
    ids = torch.tensor([[0, 0, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids, left).logits, model(ids[:, 2:]).logits, rtol=1e-4, atol=1e-5)


def test_single_label() -> None:
    model = build(MosaicBertForSequenceClassification)
    output = model(IDS, MASK, labels=torch.tensor([0, 2, 1]))
    assert output.loss.item() == pytest.approx(mean_cross_entropy(output.logits, [0, 2, 1]), rel=1e-5)


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_multi_label(problem_type: str | None) -> None:
    model = build(MosaicBertForSequenceClassification, problem_type=problem_type)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    output = model(IDS, MASK, labels=labels)
    losses = [
        -math.log(1 / (1 + math.exp(-logit if label else logit)))
        for logit, label in zip(output.logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
    ]
    assert output.loss.item() == pytest.approx(sum(losses) / 9, rel=1e-4)


@pytest.mark.parametrize("labels", [torch.tensor([0.5, -1.0, 2.0]), torch.tensor([[0.5], [-1.0], [2.0]])])
def test_regression(labels: Tensor) -> None:
    model = build(MosaicBertForSequenceClassification, num_labels=1)
    output = model(IDS, MASK, labels=labels)
    assert output.logits.shape == (3, 1)
    errors = [(a - b) ** 2 for a, b in zip(output.logits.flatten().tolist(), [0.5, -1.0, 2.0], strict=True)]
    assert output.loss.item() == pytest.approx(sum(errors) / 3, rel=1e-5)


def test_regression_of_several_numbers() -> None:
    model = build(MosaicBertForSequenceClassification, problem_type="regression")
    output = model(IDS, MASK, labels=torch.ones(3, 3))
    assert output.loss.item() == pytest.approx((output.logits - 1).square().mean().item(), rel=1e-5)


# -- question answering --------------------------------------------------------------------------------------


def test_answers_cannot_lie_in_padding() -> None:
    output = build(MosaicBertForQuestionAnswering)(IDS, MASK)
    for logits in (output.start_logits, output.end_logits):
        assert logits.shape == (3, 9)
        probabilities = logits.softmax(dim=-1)
        assert not probabilities[MASK == 0].any()
        torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(3))


def test_answer_logits_and_loss() -> None:
    model = build(MosaicBertForQuestionAnswering)
    starts, ends = [1, 0, 3], [8, 3, 3]
    output = model(IDS, MASK, start_positions=torch.tensor(starts), end_positions=torch.tensor(ends))
    logits = model.bert(IDS, MASK).last_hidden_state @ model.qa_outputs.weight.T + model.qa_outputs.bias
    losses = []
    for column, positions, given in ((0, starts, output.start_logits), (1, ends, output.end_logits)):
        for row, length in enumerate(LENGTHS):
            own = logits[row, :length, column]
            torch.testing.assert_close(given[row, :length], own, rtol=1e-4, atol=1e-5)
            losses.append(mean_cross_entropy(own[None], [positions[row]]))
    assert output.loss.item() == pytest.approx(sum(losses) / 6, rel=1e-4)


@pytest.mark.parametrize("outside", [9, 1000, -1, -100, 4], ids=["end", "far", "-1", "-100", "padding"])
def test_answers_outside_are_ignored(outside: int) -> None:
    """Row 1 has 4 tokens of 9 places; what is outside of them leaves the loss to the other rows."""
    model = build(MosaicBertForQuestionAnswering)
    both = torch.tensor([1, outside, 3])
    others = torch.tensor([0, 2])
    loss = model(IDS, MASK, start_positions=both, end_positions=both).loss
    expected = model(IDS[others], MASK[others], start_positions=both[others], end_positions=both[others]).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_all_answers_outside_give_zero() -> None:
    model = build(MosaicBertForQuestionAnswering)
    nowhere = torch.tensor([[50], [50], [50]])
    loss = model(IDS, start_positions=nowhere, end_positions=nowhere).loss
    loss.backward()
    assert loss.item() == 0
    assert not model.qa_outputs.weight.grad.any()


# -- token classification ------------------------------------------------------------------------------------


def test_token_logits_and_loss() -> None:
    model = build(MosaicBertForTokenClassification)
    labels = torch.where(IDS % 4 == 0, -100, IDS % 3)
    output = model(IDS, MASK, labels=labels)
    hidden = model.bert(IDS, MASK).last_hidden_state
    expected = hidden @ model.classifier.weight.T + model.classifier.bias
    attended = MASK.bool()
    assert output.logits.shape == (3, 9, 3)
    torch.testing.assert_close(output.logits[attended], expected[attended], rtol=1e-4, atol=1e-5)
    counted = attended & (labels != -100)
    assert output.loss.item() == pytest.approx(
        mean_cross_entropy(expected[counted], labels[counted].tolist()), rel=1e-4
    )


def test_no_token_labels_give_zero() -> None:
    model = build(MosaicBertForTokenClassification)
    assert model(IDS, MASK, labels=torch.full_like(IDS, -100)).loss.item() == 0


# -- all heads -----------------------------------------------------------------------------------------------


@each_head
def test_gradient_reaches_every_weight(head: type, targets: dict[str, Tensor]) -> None:
    model = build(head).train()
    model(IDS, MASK, torch.ones_like(IDS), **targets).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@each_head
def test_hidden_states(head: type, targets: dict[str, Tensor]) -> None:
    model = build(head)
    assert model(IDS, MASK, **targets).hidden_states is None
    states = model(IDS, MASK, **targets, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert all(state.shape == (3, 9, 48) for state in states)
    assert not any(state[MASK == 0].any() for state in states)
    assert torch.equal(states[-1], model.bert(IDS, MASK).last_hidden_state)
    embedded = model.bert.embeddings.word_embeddings(IDS) + model.bert.embeddings.token_type_embeddings.weight[0]
    expected = torch.nn.functional.layer_norm(embedded, (48,), eps=1e-12)
    torch.testing.assert_close(states[0][MASK.bool()], expected[MASK.bool()])
    model.config.output_hidden_states = True
    assert len(model(IDS, MASK).hidden_states) == 3


@each_head
def test_tuples(head: type, targets: dict[str, Tensor]) -> None:
    model = build(head)
    output = model(IDS, MASK, **targets)
    given = model(IDS, MASK, **targets, return_dict=False)
    assert isinstance(given, tuple)
    assert torch.equal(given[0], output.loss)
    for one, other in zip(given, output.to_tuple(), strict=True):
        assert torch.equal(one, other)
    model.config.return_dict = False
    assert isinstance(model(IDS, MASK), tuple)


@pytest.mark.parametrize("head", [MosaicBertModel, *HEADS])
def test_embeddings_in_place_of_ids(head: type) -> None:
    model = build(head)
    embedded = model.get_input_embeddings()(IDS)
    got, expected = model(inputs_embeds=embedded, attention_mask=MASK), model(IDS, MASK)
    for one, other in zip(got.to_tuple(), expected.to_tuple(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("head", [MosaicBertModel, *HEADS])
def test_ids_or_embeddings_not_both_nor_neither(head: type) -> None:
    model = build(head)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(IDS, inputs_embeds=torch.zeros(3, 9, 48))


@pytest.mark.parametrize("head", [MosaicBertModel, *HEADS])
def test_arguments_in_hugging_faces_order(head: type) -> None:
    model = build(head)
    types = IDS % 2
    got, expected = model(IDS, MASK, types), model(input_ids=IDS, attention_mask=MASK, token_type_ids=types)
    assert torch.equal(got[0], expected[0])
    assert not torch.allclose(got[0], model(IDS, MASK)[0])


@each_head
def test_dropout_is_a_choice(head: type, targets: dict[str, Tensor]) -> None:
    model = build(head, hidden_dropout_prob=0.5).train()
    assert model(IDS, MASK, **targets).loss != model(IDS, MASK, **targets).loss
    model = build(head, hidden_dropout_prob=0.0).train()
    assert model(IDS, MASK, **targets).loss == model(IDS, MASK, **targets).loss


@pytest.mark.parametrize("head", [MosaicBertForSequenceClassification, MosaicBertForTokenClassification])
def test_classifier_dropout_has_its_own_choice(head: type) -> None:
    model = build(head, hidden_dropout_prob=0.0, classifier_dropout=0.5).train()
    assert torch.equal(model.bert(IDS, MASK)[0], model.bert(IDS, MASK)[0])
    assert not torch.equal(model(IDS, MASK).logits, model(IDS, MASK).logits)
    assert build(head, hidden_dropout_prob=0.3).dropout.p == 0.3


def test_hidden_states_are_the_same_without_gradients() -> None:
    """On a CPU the gated feed-forward is computed in halves then."""
    model = build(MosaicBertModel)
    expected = model(IDS, attention_mask=MASK).last_hidden_state
    with torch.inference_mode():
        got = model(IDS, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=1e-5)

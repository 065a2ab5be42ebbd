"""Layers and loss by the kernels against the same model by PyTorch's operations."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from alibi_reference import mask_of, tiny_config
from torch import Tensor, nn

from bertchen.model import BackendUnavailable, MosaicBertForMaskedLM, MosaicBertModel, fused, kernels
from bertchen.model.modeling_mosaicbert import masked_rows
from bertchen.model.padding import TakeRows, put_rows, take_rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(kernels.why_unable(DEVICE) is not None, reason=str(kernels.why_unable(DEVICE)))

LENGTHS = [12, 5, 0, 9]


def models(attention: str = "sdpa", **changes: Any) -> tuple[MosaicBertForMaskedLM, MosaicBertForMaskedLM]:
    """The same weights, by the kernels and by PyTorch, biases and LayerNorms other than at the start."""
    made = []
    for choice, backend in (("triton", attention), ("torch", "sdpa")):
        torch.manual_seed(0)
        model = MosaicBertForMaskedLM(tiny_config(kernels=choice, attention_backend=backend, **changes)).train()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
        made.append(model.to(DEVICE))
    return made[0], made[1]


def batch_of(padded: bool, spare: int | None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 96, (4, 12), generator=generator)
    mask = mask_of(LENGTHS) if padded else torch.ones_like(ids)
    masked = (torch.rand(ids.shape, generator=generator) < 0.3) & mask.bool()
    batch: dict[str, Any] = {"input_ids": ids.to(DEVICE), "labels": ids.masked_fill(~masked, -100).to(DEVICE)}
    if padded:
        batch["attention_mask"] = mask.to(DEVICE)
    if spare is not None:
        batch["max_masked"] = int(masked.sum()) + spare
    return batch


def assert_same_gradients(got: nn.Module, expected: nn.Module, **tolerance: float) -> None:
    for (name, one), other in zip(got.named_parameters(), expected.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("spare", [None, 0, 3])
def test_loss_and_gradients(padded: bool, spare: int | None) -> None:
    ours, reference = models()
    batch = batch_of(padded, spare)
    losses = [model(**batch).loss for model in (ours, reference)]
    for loss in losses:
        (3 * loss).backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    assert_same_gradients(ours, reference, rtol=2e-3, atol=2e-4)


def test_parts_of_the_loss_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "LOSS_ROWS", 4)
    ours, reference = models()
    batch = batch_of(padded=False, spare=3)
    losses = [model(**batch).loss for model in (ours, reference)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    assert_same_gradients(ours, reference, rtol=2e-3, atol=2e-4)


def test_all_hidden_states_and_their_gradients() -> None:
    ours, reference = models()
    batch = {name: value for name, value in batch_of(padded=True, spare=None).items() if name != "labels"}
    outputs = [model.bert(**batch, output_hidden_states=True) for model in (ours, reference)]
    for got, expected in zip(outputs[0].hidden_states, outputs[1].hidden_states, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn(outputs[0].last_hidden_state.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    for output in outputs:
        (output.last_hidden_state * weights).sum().backward()
    assert_same_gradients(ours, reference, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("attention", ["sdpa", "triton"])
def test_evaluation_gives_logits(attention: str) -> None:
    ours, reference = (model.eval() for model in models(attention))
    batch = batch_of(padded=True, spare=2)
    with torch.no_grad():
        got, expected = ours(**batch), reference(**batch)
    with torch.inference_mode():
        alone = ours(**batch, output_logits=False)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(got.masked_logits, expected.masked_logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(alone.masked_logits, expected.masked_logits, rtol=1e-3, atol=1e-4)


def test_gradient_of_a_loss_with_dropout_is_that_of_its_own_masks() -> None:
    """Along a random direction the loss changes as the gradient says, the seed held."""
    ours, _ = models(hidden_dropout_prob=0.2)
    batch = batch_of(padded=False, spare=2)

    def loss() -> Tensor:
        torch.manual_seed(3)
        return ours(**batch).loss

    loss().backward()
    generator = torch.Generator().manual_seed(4)
    for name in ("encoder.layer.0.mlp.gated_layers.weight", "encoder.layer.1.attention.output.dense.weight"):
        parameter = ours.bert.get_parameter(name)
        direction = torch.randn(parameter.shape, generator=generator).to(DEVICE)
        expected = (parameter.grad * direction).sum().item()
        values = []
        for step in (-1e-3, 1e-3):
            with torch.no_grad():
                parameter += step * direction
                values.append(loss().item())
                parameter -= step * direction
        assert (values[1] - values[0]) / 2e-3 == pytest.approx(expected, rel=0.05, abs=0.02)


def test_dropout_is_seeded_and_ends_with_evaluation() -> None:
    ours, reference = models(hidden_dropout_prob=0.2)
    batch = batch_of(padded=False, spare=2)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return ours(**batch).loss.item()

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)
    assert ours.eval()(**batch).loss.item() == pytest.approx(reference.eval()(**batch).loss.item(), rel=1e-5)


def number_of_tensors(shape: tuple[int, ...]) -> int:
    """How many there are in the process that begin with these sizes."""
    gc.collect()
    return sum(isinstance(thing, Tensor) and thing.shape[: len(shape)] == shape for thing in gc.get_objects())


@pytest.mark.parametrize("attention", ["sdpa", "triton"])
def test_activation_checkpointing_gives_the_same_gradients(attention: str) -> None:
    """And keeps nothing of a layer between its passes, where attention is ours too."""
    from torch.utils.checkpoint import checkpoint

    batch = batch_of(padded=False, spare=2)

    def step(checkpointed: bool) -> tuple[list[Tensor], int]:
        """Gradients, and how many tensors of queries, keys and values there are between the passes."""
        ours, _ = models(attention, hidden_dropout_prob=0.2)
        if checkpointed:
            for layer in ours.bert.encoder.layer:
                forward = layer.forward
                layer.forward = lambda *given, forward=forward: checkpoint(forward, *given, use_reentrant=False)
        torch.manual_seed(3)
        shape = (batch["input_ids"].numel(), 3, ours.config.num_attention_heads)
        before = number_of_tensors(shape)
        loss = ours(**batch).loss
        kept = number_of_tensors(shape) - before
        loss.backward()
        return [parameter.grad for parameter in ours.parameters() if parameter.grad is not None], kept

    (again, of_again), (once, of_once) = step(True), step(False)
    for one, other in zip(again, once, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    if attention == "triton":
        assert of_again == 0 < of_once


class TestChoice:
    def test_auto_takes_torch_without_a_gpu(self) -> None:
        model = MosaicBertModel(tiny_config())
        assert not model.uses_kernels(torch.device("cpu"), torch.float32)

    def test_an_activation_that_they_dont_know(self) -> None:
        model = MosaicBertModel(tiny_config(kernels="triton", hidden_act="relu"))
        with pytest.raises(
            BackendUnavailable, match=r"kernels=triton can't serve here: the kernels know gelu, not relu"
        ):
            model.uses_kernels(DEVICE, torch.float32)

    def test_a_layer_that_was_changed(self) -> None:
        model = MosaicBertModel(tiny_config(kernels="triton")).to(DEVICE)
        layer = model.encoder.layer[1]
        layer.mlp.layernorm = nn.LayerNorm(48).to(DEVICE)
        with pytest.raises(BackendUnavailable, match=r"mlp\.layernorm of a layer has been changed"):
            model(input_ids=torch.full((1, 4), 5, device=DEVICE))
        model.config.kernels = "torch"
        model(input_ids=torch.full((1, 4), 5, device=DEVICE))

    def test_unknown(self) -> None:
        with pytest.raises(ValueError, match="known: auto, triton, torch"):
            tiny_config(kernels="cuda")


@pytest.mark.parametrize("spare", [None, 0, 3])
def test_rows(spare: int | None) -> None:
    labels = torch.tensor([-100, 7, 7, -100, 9, -100], device=DEVICE)
    rows, kept = masked_rows(labels, None if spare is None else 3 + spare)
    tokens = torch.randn(6, 5, device=DEVICE, requires_grad=True)
    chosen = TakeRows.apply(tokens, *rows)
    assert torch.equal(chosen[kept != -100], tokens[labels != -100])
    weights = torch.randn(chosen.shape, device=DEVICE) * (kept != -100)[:, None]
    (gradient,) = torch.autograd.grad((chosen * weights).sum(), tokens)
    (expected,) = torch.autograd.grad((take_rows(tokens, rows) * weights).sum(), tokens)
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(put_rows(weights, rows), gradient)

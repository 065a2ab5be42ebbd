"""Evaluation on a CPU by oneDNN's linear layers against the same model by PyTorch's, and when they stand back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from alibi_reference import tiny_config
from torch import Tensor, nn

from bertchen.model import MosaicBertForMaskedLM, onednn

pytestmark = pytest.mark.skipif(onednn.why_unable() is not None, reason=str(onednn.why_unable()))


def model_of(activation: str = "gelu") -> MosaicBertForMaskedLM:
    torch.manual_seed(0)
    config = tiny_config(hidden_act=activation, initializer_range=0.3)
    return MosaicBertForMaskedLM(config).eval()


def ids() -> Tensor:
    return torch.randint(4, 96, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the weights that oneDNN was given."""
    seen: list[tuple[int, ...]] = []
    for name in ("linear", "linear_times"):
        counted = _counting(getattr(onednn, name), seen)
        monkeypatch.setattr(onednn, name, counted)
        monkeypatch.setattr(f"bertchen.model.layers.{name}", counted)
    return seen


def _counting(function: Callable[..., Tensor], seen: list[tuple[int, ...]]) -> Callable[..., Tensor]:
    def counted(x: Tensor, weight: Tensor, *given: Tensor, **options: bool) -> Tensor:
        seen.append(tuple(weight.shape))
        return function(x, weight, *given, **options)

    return counted


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_gives_what_pytorch_gives(activation: str, mode: Callable, calls: list[tuple[int, ...]]) -> None:
    model = model_of(activation)
    expected = model(input_ids=ids()).logits.detach()
    assert not calls  # with gradients it is PyTorch
    with mode():
        got = model(input_ids=ids()).logits
    assert len(calls) == 5 * model.config.num_hidden_layers + 2  # the gated one in two halves; two of the head
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_rows_that_lie_apart_and_none_at_all() -> None:
    layer = nn.Linear(16, 24)
    x = torch.randn(5, 32)[:, ::2]
    with torch.no_grad():
        torch.testing.assert_close(onednn.project(layer, x), layer(x))
        assert onednn.project(layer, x[:0]).shape == (0, 24)


def observed(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda *given: None)
    return layer


class Adapted(nn.Linear):
    """As libraries that adapt or quantize put them in a layer's place."""


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        pytest.param(observed(nn.Linear(8, 8)), torch.ones(2, 8), id="hook"),
        pytest.param(Adapted(8, 8), torch.ones(2, 8), id="subclass"),
        pytest.param(nn.Linear(8, 8).bfloat16(), torch.ones(2, 8, dtype=torch.bfloat16), id="bfloat16"),
        pytest.param(nn.Linear(8, 8, device="meta"), torch.ones(2, 8, device="meta"), id="device"),
    ],
)
def test_layers_that_are_left_to_themselves(layer: nn.Linear, x: Tensor) -> None:
    with torch.no_grad():
        assert not onednn.serves(x, layer)
        assert onednn.project(layer, x).shape == (2, 8)


def test_autocast_and_tracing_are_left_alone() -> None:
    layer, x = nn.Linear(8, 8), torch.ones(2, 8)
    with torch.no_grad():
        assert onednn.serves(x, layer)
        with torch.autocast("cpu", torch.bfloat16):
            assert onednn.project(layer, x).dtype == torch.bfloat16
        layer.requires_grad_(False)
        traced = torch.jit.trace(lambda x: onednn.project(layer, x), x)
    assert "mkldnn" not in str(traced.graph)


def test_wrong_numbers_are_found_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = onednn.linear
    monkeypatch.setattr(onednn, "linear", lambda *given, **options: 2 * linear(*given, **options))
    assert "wrong numbers" in str(onednn.why_unable.__wrapped__())

    def refuse(*given: Tensor, **options: bool) -> Tensor:
        raise RuntimeError("not built in")

    monkeypatch.setattr(onednn, "linear", refuse)
    assert "fail here: RuntimeError: not built in" in str(onednn.why_unable.__wrapped__())

"""The layer with 8-bit products against the same layer without, and its kernels against PyTorch's casts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from alibi_reference import tiny_config
from torch import Tensor

from bertchen.model import (
    BackendUnavailable,
    MosaicBertForMaskedLM,
    attention_kernels,
    float8,
    kernels,
    modeling_mosaicbert,
)
from bertchen.model.alibi import alibi_slopes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(kernels.why_unable(DEVICE) is not None, reason=str(kernels.why_unable(DEVICE)))
NARROW = [torch.float8_e4m3fn, torch.float8_e5m2]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, device=DEVICE)


def representable(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Random numbers of 8 bits, as float32, subnormal ones among them."""
    bits = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return bits.view(dtype).float().nan_to_num(0, 0, 0).to(DEVICE)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 80), (100, 16), (4, 3)])
def test_quantize(dtype: torch.dtype, given: torch.dtype, shape: tuple[int, int]) -> None:
    expected = representable(shape, dtype)
    out, turned = float8.quantize((expected / 8).to(given), scalar(1 / 8), dtype)
    assert out.dtype == turned.dtype == dtype
    assert torch.equal(out.float(), expected)
    assert torch.equal(turned.float(), expected.t())


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 50.0])
def test_quantize_rounds_as_pytorch_does(dtype: torch.dtype, magnitude: float) -> None:
    """Seldom the way over float16 meets a tie that the number itself isn't: a neighbour then."""
    x = magnitude * random(64, 64)
    out, turned = float8.quantize(x, scalar(1.0), dtype)
    expected = x.to(dtype).float()
    differs = out.float() != expected
    assert differs.float().mean() < 1e-2
    step = 2.0 ** -(3 if dtype == torch.float8_e4m3fn else 2)
    assert ((out.float() - expected).abs() <= step * expected.abs() + torch.finfo(dtype).smallest_normal * step).all()
    assert torch.equal(turned.float(), out.float().t())


@pytest.mark.parametrize("dtype", NARROW)
def test_quantize_saturates(dtype: torch.dtype) -> None:
    x = torch.tensor([[1e9, -1e9, 1.0, 0.0]] * 4, device=DEVICE)
    out, _ = float8.quantize(x, scalar(1 / 2), dtype)
    largest = torch.finfo(dtype).max
    assert out.float()[0].tolist() == [largest, -largest, 2.0, 0.0]


@pytest.mark.parametrize("p", [0.0, 0.25])
def test_glu_is_that_of_the_kernels(p: float) -> None:
    """Scales that are powers of two: multiplying by them commutes with all rounding."""
    gated, upper = random(72, 2 * 96), random(72, 96, seed=1)
    seed = torch.tensor([5], device=DEVICE) if p else None
    pairs = (
        (float8.glu(gated, scalar(1 / 4), p, seed), kernels.glu(gated, p, seed), 4.0, NARROW[0]),
        (
            float8.glu_backward(upper, gated, scalar(1 / 16), p, seed),
            kernels.glu_backward(upper, gated, p, seed),
            16.0,
            NARROW[1],
        ),
    )
    for (out, turned), exact, scale, dtype in pairs:
        assert torch.equal(turned.float(), out.float().t())
        wanted = float8.quantize(exact, scalar(1 / scale), dtype)[0].float()
        # The compiler may contract a product and a sum in one of the two kernels: a neighbour then, seldom.
        assert (out.float() != wanted).float().mean() < 1e-2
        assert (out.float() - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize(("length", "head_dim"), [(64, 16), (132, 24), (16, 16), (20, 64)])
def test_attention_gradients_in_8_bits(length: int, head_dim: int) -> None:
    """Those in wide numbers, quantized, and their transpose; what is summed of them isn't quantized."""
    rows, heads = 2, 3
    qkv, upper = random(rows * length, 3, heads, head_dim), random(rows * length, heads, head_dim, seed=1)
    starts = torch.arange(0, (rows + 1) * length, length, device=DEVICE, dtype=torch.int32)
    _, kept = attention_kernels.attention_forward(qkv, starts, length, alibi_slopes(heads, DEVICE), True)
    assert attention_kernels.can_narrow(kept)
    exact = attention_kernels.attention_backward(kept, upper)
    assert exact.turned is None
    torch.testing.assert_close(exact.of_query_bias, exact.of_qkv[:, 0].flatten(1).sum(0), rtol=1e-4, atol=1e-4)
    got = attention_kernels.attention_backward(kept, upper, scalar(1 / 64))
    assert torch.equal(got.turned.float(), got.of_qkv.flatten(1).float().t())
    wanted = float8.quantize(exact.of_qkv.flatten(1), scalar(1 / 64), NARROW[1])[0].float()
    assert torch.equal(got.of_qkv.flatten(1).float(), wanted)
    torch.testing.assert_close(got.of_query_bias, exact.of_query_bias)


@pytest.mark.parametrize(("length", "even"), [(18, True), (20, False)])
def test_attention_gradients_that_cant_be_narrowed(length: int, even: bool) -> None:
    """Where four tokens that are one number in the transpose may be of two rows."""
    qkv, starts = random(2 * length, 3, 2, 16), torch.tensor([0, length, 2 * length], device=DEVICE, dtype=torch.int32)
    _, kept = attention_kernels.attention_forward(qkv, starts, length, alibi_slopes(2, DEVICE), even)
    assert not attention_kernels.can_narrow(kept)


def exact_product(
    a: Tensor, b: Tensor, a_unit: Tensor, b_unit: Tensor, dtype: torch.dtype, bias: Tensor | None = None,
    exact_sums: bool = False,
) -> Tensor:  # fmt: skip
    """`float8.product` on a device that has none."""
    out = (a.float() * a_unit) @ (b.float() * b_unit).t()
    return (out if bias is None else out + bias.float()).to(dtype)


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """8-bit products wherever the tests run."""
    if float8.why_unable(DEVICE, (16,)) is not None:
        monkeypatch.setattr(float8, "product", exact_product)
        monkeypatch.setattr(modeling_mosaicbert, "why_no_float8", lambda device, widths: None)


def step(use_float8: bool, p: float, attention_backend: str) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(0)
    config = tiny_config(
        kernels="triton", attention_backend=attention_backend, float8=use_float8, hidden_dropout_prob=p,
        initializer_range=0.05,
    )  # fmt: skip
    model = MosaicBertForMaskedLM(config).to(DEVICE).train()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 96, (4, 16), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) > 0.3, -100)
    torch.manual_seed(3)
    batch: dict[str, Any] = {"input_ids": ids.to(DEVICE), "labels": labels.to(DEVICE), "max_masked": 30}
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
        loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(
    ("p", "attention"), [(0.2, "sdpa"), (0.2, "triton"), pytest.param(0.0, "triton", marks=pytest.mark.slow)]
)
def test_loss_and_gradients_are_near_those_without(p: float, attention: str) -> None:
    """Three bits of mantissa forward, two backward, of tensors so small that little evens out."""
    (loss, gradients), (expected_loss, expected) = step(True, p, attention), step(False, p, "sdpa")
    assert loss == pytest.approx(expected_loss, rel=2e-3)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        error = (gradient.float() - expected[name].float()).norm()
        assert error < 0.25 * expected[name].float().norm() + 1e-6, name


@pytest.mark.usefixtures("anywhere")
def test_number_of_tokens_that_cant_be_multiplied() -> None:
    model = MosaicBertForMaskedLM(tiny_config(kernels="triton", attention_backend="sdpa", float8=True)).to(DEVICE)
    with pytest.raises(BackendUnavailable, match="needs a number of tokens divisible by 16, not 15"):
        model.train()(input_ids=torch.full((3, 5), 7, device=DEVICE))


def test_without_kernels_it_says_so() -> None:
    model = MosaicBertForMaskedLM(tiny_config(kernels="torch", float8=True)).to(DEVICE)
    with pytest.raises(BackendUnavailable, match="float8=true can't serve here: it needs kernels=triton"):
        model.train()(input_ids=torch.full((1, 16), 7, device=DEVICE))
    model.eval()(input_ids=torch.full((1, 16), 7, device=DEVICE))


def test_wrong_numbers_are_found_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(x: Tensor, unit: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        out, turned = quantize(x, unit, dtype)
        return out, turned.flip(0)

    quantize = float8.quantize
    monkeypatch.setattr(float8, "product", exact_product)
    assert float8._try.__wrapped__(DEVICE) is None
    monkeypatch.setattr(float8, "product", lambda *given, **options: 2 * exact_product(*given, **options))
    assert "8-bit matrix products give wrong numbers" in str(float8._try.__wrapped__(DEVICE))
    monkeypatch.setattr(float8, "quantize", swapped)
    assert "the kernels that quantize give wrong numbers" in str(float8._try.__wrapped__(DEVICE))


def test_a_device_that_has_none() -> None:
    assert "compute capability 8.9" in str(float8.why_unable(torch.device("cpu"), (768,)))

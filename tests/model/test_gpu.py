"""On a CUDA device: all backends, and a training step that neither waits for the device nor recompiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from alibi_reference import mask_of, naive_attention, tiny_config
from torch import Tensor

from bertchen.model import MosaicBertForMaskedLM, attention, why_no_float8, why_unavailable
from bertchen.model.alibi import alibi_slopes
from bertchen.model.attention import attend, prepare_attention
from bertchen.model.attention_kernels import attention_backward, attention_forward
from bertchen.model.narrow import quantize
from bertchen.model.padding import pack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("error:flex_attention called without torch.compile"),
]

CUDA = torch.device("cuda")
LENGTHS = {
    "dense": [256, 256],
    "dense, no multiple of a block": [100, 100, 100],
    "several lengths": [5, 1, 300, 64],
    "empty rows": [0, 130, 0, 7],
    "long": [2048, 1500],
}


def needs(backend: str, dtype: torch.dtype = torch.bfloat16, head_dim: int = 64, dropout: float = 0.0) -> None:
    reason = why_unavailable(backend, CUDA, dtype, dropout, head_dim)
    if reason:
        pytest.skip(reason)


def run(backend: str, qkv: Tensor, lengths: list[int]) -> Tensor:
    mask = None if len(set(lengths)) == 1 else mask_of(lengths).to(CUDA)
    packing = pack(len(lengths), max(lengths), mask, CUDA)
    return attend(qkv, prepare_attention(backend, packing, qkv.shape[2], CUDA, qkv.dtype, 0.0, True, qkv.shape[3]))


def random_qkv(total: int, heads: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(total)
    return torch.randn(total, 3, heads, head_dim, generator=generator).to(CUDA, dtype).requires_grad_()


def gradient(out: Tensor, qkv: Tensor) -> Tensor:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.autograd.grad((out.double() * weights.to(CUDA)).sum(), qkv)[0].double()


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("heads", [3, 12])
@pytest.mark.parametrize("backend", ["triton", "flash", "flex", "sdpa"])
def test_bf16_within_its_rounding(backend: str, heads: int, lengths: list[int]) -> None:
    needs(backend)
    qkv = random_qkv(sum(lengths), heads, 64, torch.bfloat16)
    out, expected = run(backend, qkv, lengths), naive_attention(qkv, lengths)
    assert out.dtype == torch.bfloat16
    unit = torch.finfo(torch.bfloat16).eps
    assert (out.double() - expected).abs().max() < 2 * unit * expected.abs().max()
    got, wanted = gradient(out, qkv), gradient(expected, qkv)
    assert (got - wanted).abs().max() < 4 * unit * wanted.abs().max()


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("backend", ["triton", "flex", "sdpa"])
def test_float32(backend: str, lengths: list[int]) -> None:
    qkv = random_qkv(sum(lengths), 3, 32, torch.float32)
    out, expected = run(backend, qkv, lengths), naive_attention(qkv, lengths)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient(out, qkv), gradient(expected, qkv), rtol=1e-3, atol=1e-3)


@contextmanager
def no_recompilation() -> Iterator[None]:
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@contextmanager
def no_waiting() -> Iterator[None]:
    """PyTorch raises where the host would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_flex_does_not_recompile_for_other_lengths() -> None:
    """Uncompiled models compile FlexAttention alone; each batch has another number of tokens."""
    for lengths in ([100, 50], [700, 600, 5], [300, 3]):
        qkv = random_qkv(sum(lengths), 3, 64, torch.bfloat16)
        gradient(run("flex", qkv, lengths), qkv)
    with no_recompilation():
        for lengths in ([400, 399], [1000, 2, 2, 2], [129, 128], [3000, 1]):
            qkv = random_qkv(sum(lengths), 3, 64, torch.bfloat16)
            out, expected = run("flex", qkv, lengths), naive_attention(qkv, lengths)
            assert (out.double() - expected).abs().max() < 0.05
            gradient(out, qkv)


def model_of(backend: str, **changes: Any) -> MosaicBertForMaskedLM:
    torch.manual_seed(0)
    config = tiny_config(
        hidden_size=192, intermediate_size=256, attention_backend=backend, initializer_range=0.05, **changes
    )
    return MosaicBertForMaskedLM(config).to(CUDA).train()


def batch_of(rows: int, seq_len: int) -> dict[str, Tensor | int]:
    generator = torch.Generator().manual_seed(seq_len)
    ids = torch.randint(4, 96, (rows, seq_len), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) > 0.3, -100)
    return {
        "input_ids": ids.to(CUDA),
        "labels": labels.to(CUDA),
        "max_masked": rows * seq_len // 2,
        "num_items_in_batch": (labels != -100).sum().to(CUDA),
    }


def step(forward: Callable, model: MosaicBertForMaskedLM, batch: dict) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        loss = forward(**batch).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_close_steps(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> None:
    assert one[0].item() == pytest.approx(other[0].item(), rel=5e-3)
    for got, expected in zip(one[1], other[1], strict=True):
        assert (got - expected).norm() < 0.05 * expected.norm() + 1e-4


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("how", ["eager", "compiled", "compiled for any length"])
@pytest.mark.parametrize("backend", ["flash", "flex", "sdpa"])
def test_dense_training_step(backend: str, how: str) -> None:
    """One graph, the loss and gradients of uncompiled sdpa, no waiting, and no recompilation for lengths seen."""
    needs(backend)
    attention._try_flash.cache_clear()  # so that the step is the first to ask
    model, reference = model_of(backend), model_of("sdpa")
    dynamic = None if how == "compiled for any length" else False
    forward = model if how == "eager" else torch.compile(model, fullgraph=True, dynamic=dynamic)
    shapes = [(8, 64), (4, 128), (2, 256)]
    for rows, seq_len in shapes:
        batch = batch_of(rows, seq_len)
        assert_close_steps(step(forward, model, batch), step(reference, reference, batch))
    with no_recompilation():
        for rows, seq_len in shapes[::-1]:
            batch = batch_of(rows, seq_len)
            step(forward, model, batch)
            with no_waiting():
                step(forward, model, batch)


@pytest.mark.parametrize("float8", [False, True])
def test_training_step_by_the_kernels_does_not_wait(float8: bool) -> None:
    if float8 and (reason := why_no_float8(CUDA, (192, 256))):
        pytest.skip(reason)
    model = model_of("triton", kernels="triton", float8=float8, hidden_dropout_prob=0.1)
    batch = batch_of(4, 128)
    step(model, model, batch)
    with no_waiting():
        step(model, model, batch)


@pytest.mark.parametrize("length", [512, 64, 132])
def test_attention_gradients_in_8_bits(length: int) -> None:
    """Of the base model's heads: those in bfloat16, quantized, but for what is rounded twice there."""
    if reason := why_no_float8(CUDA, (768,)):
        pytest.skip(reason)
    rows = 4
    qkv, upper = random_qkv(2 * rows * length, 12, 64, torch.bfloat16).detach().split(rows * length)
    starts = torch.arange(0, (rows + 1) * length, length, device=CUDA, dtype=torch.int32)
    _, kept = attention_forward(qkv, starts, length, alibi_slopes(12, CUDA), True)
    wide = attention_backward(kept, upper[:, 0])
    unit = wide.of_qkv.abs().max().float() / 256
    got = attention_backward(kept, upper[:, 0], unit)
    assert torch.equal(got.turned.float(), got.of_qkv.flatten(1).float().t())
    expected = quantize(wide.of_qkv.flatten(1), unit, torch.float8_e5m2)[0].float()
    differs = got.of_qkv.flatten(1).float() != expected
    assert differs.float().mean() < 0.05
    assert (got.of_qkv.flatten(1).float() - expected).norm() < 0.05 * expected.norm()
    torch.testing.assert_close(got.of_query_bias, wide.of_query_bias)
    sums = wide.of_qkv[:, 0].flatten(1).float().sum(0)
    assert (got.of_query_bias - sums).norm() < 0.01 * sums.norm()


@pytest.mark.parametrize("backend", ["triton", "flash", "flex"])
def test_padded_training_step(backend: str) -> None:
    needs(backend)
    model, reference = model_of(backend), model_of("sdpa")
    batch = {**batch_of(4, 200), "attention_mask": mask_of([200, 0, 7, 131]).to(CUDA)}
    assert_close_steps(step(model, model, batch), step(reference, reference, batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_flash_serves_right_or_not_at_all(dtype: torch.dtype, head_dim: int) -> None:
    """A build without a width or dtype may compute wrong numbers without a word; then it counts as unavailable."""
    needs("flash", dtype, head_dim)
    lengths = [40, 3]
    qkv = random_qkv(sum(lengths), 3, head_dim, dtype)
    expected = naive_attention(qkv, lengths)
    out = run("flash", qkv, lengths)
    assert (out.double() - expected).abs().max() < 2 * torch.finfo(dtype).eps * expected.abs().max()


def test_flash_drops_or_says_that_it_does_not() -> None:
    needs("flash", dropout=0.5)
    qkv = random_qkv(64, 3, 64, torch.bfloat16)
    context = prepare_attention("flash", pack(1, 64, None, CUDA), 3, CUDA, qkv.dtype, 0.5, True, 64)
    assert not torch.equal(attend(qkv, context), run("flash", qkv, [64]))


def test_trying_flash_leaves_the_random_state_alone() -> None:
    needs("flash")
    before = torch.cuda.get_rng_state(), torch.get_rng_state()
    attention._try_flash.cache_clear()
    why_unavailable("flash", CUDA, torch.bfloat16, 0.1, 64)
    assert torch.equal(torch.cuda.get_rng_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])

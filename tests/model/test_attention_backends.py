"""Each attention backend against an independent float64 attention: outputs and gradients."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from alibi_reference import mask_of, naive_attention, press_slopes
from hypothesis import given, settings
from hypothesis import strategies as st

from bertchen.model import why_unavailable
from bertchen.model.alibi import alibi_bias, alibi_slopes
from bertchen.model.attention import attend, prepare_attention
from bertchen.model.attention_kernels import OWN
from bertchen.model.padding import pack

CPU = torch.device("cpu")
FLEX_HAS_NO_GRADIENT = why_unavailable("flex", CPU, torch.float32) is not None
LENGTHS = {
    "one token": [1],
    "dense": [16, 16, 16],
    "several lengths": [5, 1, 17, 9],
    "across blocks of 128": [100, 129, 3, 200],
    "empty rows": [0, 7, 0, 130, 0],
}
BACKENDS = [
    "sdpa",
    "triton",
    pytest.param(
        "flex",
        marks=pytest.mark.skipif(FLEX_HAS_NO_GRADIENT, reason="FlexAttention has no gradients on a CPU here"),
    ),
]


def random_qkv(total: int, heads: int, head_dim: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(total, 3, heads, head_dim, generator=generator).to(dtype).requires_grad_()


def run(backend: str, qkv: torch.Tensor, lengths: list[int], training: bool = True) -> torch.Tensor:
    mask = None if len(set(lengths)) == 1 else mask_of(lengths)
    packing = pack(len(lengths), max(lengths), mask, CPU)
    context = prepare_attention(backend, packing, qkv.shape[2], CPU, qkv.dtype, 0.0, training)
    return attend(qkv, context)


def gradient(out: torch.Tensor, qkv: torch.Tensor) -> torch.Tensor:
    """Of a weighted sum, so that no two outputs count alike."""
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return torch.autograd.grad((out.double() * weights).sum(), qkv)[0]


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 7, 8, 11, 12, 16, 20, 24])
def test_slopes_follow_press(heads: int) -> None:
    torch.testing.assert_close(
        alibi_slopes(heads), torch.tensor(press_slopes(heads), dtype=torch.float32), rtol=1e-6, atol=0
    )


def test_slopes_of_twelve_heads_as_published() -> None:
    """Those of 8 heads, 2^-1 … 2^-8, then every other one of 16: 2^-0.5, 2^-1.5, 2^-2.5, 2^-3.5."""
    exponents = [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]
    expected = torch.tensor([2.0**-exponent for exponent in exponents])
    torch.testing.assert_close(alibi_slopes(12), expected, rtol=1e-6, atol=0)


def test_bias_is_symmetric_and_falls_with_distance() -> None:
    bias = alibi_bias(alibi_slopes(3), 5)
    assert bias.shape == (1, 3, 5, 5)
    for head, slope in enumerate(press_slopes(3)):
        for q in range(5):
            for k in range(5):
                assert bias[0, head, q, k].item() == pytest.approx(-slope * abs(q - k))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", [1, 3, 4, 12])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_output_and_gradient_in_float32(backend: str, heads: int, lengths: list[int]) -> None:
    if backend == "triton" and heads == 12:
        pytest.skip("heads are programs of their own: 4 say as much as 12, in a third of the time")
    qkv = random_qkv(sum(lengths), heads, 16, seed=heads)
    out, expected = run(backend, qkv, lengths), naive_attention(qkv, lengths)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(out, qkv), gradient(expected, qkv), rtol=1e-4, atol=2e-5)


@pytest.mark.skipif(why_unavailable("triton", torch.device("cpu"), torch.float32) is not None, reason="no Triton")
@pytest.mark.parametrize("lengths", [[320, 320], [300, 41, 0, 333]], ids=["dense", "padded"])
@pytest.mark.parametrize("far", [False, True], ids=["", "distant tokens count"])
def test_triton_leaves_out_what_is_negligible(lengths: list[int], far: bool) -> None:
    """Blocks whose shares are all below 2^-24, and no others, aren't looked at when going backward."""
    heads = 4  # of slopes 1/4 to 1/256
    qkv = random_qkv(sum(lengths), heads, 16, seed=3)
    if far:  # the first row's last queries and first keys fit so well that their distance doesn't matter
        with torch.no_grad():
            qkv[lengths[0] - 8 : lengths[0], 0] = 8.0
            qkv[:8, 1] = 4.0
    out, expected = run("triton", qkv, lengths), naive_attention(qkv, lengths)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    reach = next(saved for saved in out.grad_fn.saved_tensors if saved.dtype == torch.int32 and saved.dim() == 4)
    torch.testing.assert_close(gradient(out, qkv), gradient(expected, qkv), rtol=1e-4, atol=2e-5)
    rows = qkv.detach().double().split(lengths)
    seen = 0
    for row, head in product([row for row, length in enumerate(lengths) if length], range(heads)):
        q, k = rows[row][:, 0, head], rows[row][:, 1, head]
        position = torch.arange(lengths[row])
        distance = (position[:, None] - position).abs()
        shares = (q @ k.T / 4 - press_slopes(heads)[head] * distance).softmax(1)
        for block in range(-(-lengths[row] // OWN)):
            begin, end = reach[:2, row, head, block].tolist()
            of_block = shares[block * OWN : (block + 1) * OWN]
            left_out = torch.cat([of_block[:, :begin], of_block[:, end:]], dim=1)
            assert not left_out.numel() or left_out.max() < 2**-24
            sees = [i for i in range(len(reach[0, row, head])) if reach[0, row, head, i] < (block + 1) * OWN
                    and reach[1, row, head, i] > block * OWN]  # fmt: skip
            begin, end = reach[2:, row, head, block].tolist()
            assert (begin, end) == (sees[0] * OWN, min((sees[-1] + 1) * OWN, lengths[row]))
            seen += (end - begin) * min(OWN, lengths[row] - block * OWN)
            if far and row == 0 and block == 0:
                assert end == lengths[0]
    assert seen < heads * sum(length * length for length in lengths)


@pytest.mark.skipif(why_unavailable("triton", torch.device("cpu"), torch.float32) is not None, reason="no Triton")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_triton_stays_within_its_rows_whatever_the_numbers(value: float) -> None:
    qkv = random_qkv(200, 1, 16, seed=5)
    with torch.no_grad():
        qkv[:100] = value
    out = run("triton", qkv, [100, 100])
    reach = next(saved for saved in out.grad_fn.saved_tensors if saved.dtype == torch.int32 and saved.dim() == 4)
    of_qkv = gradient(out, qkv)
    assert out[:100].isnan().all()
    assert out[100:].isfinite().all()
    assert of_qkv[100:].isfinite().all()
    own = torch.tensor([0, 64])
    assert ((reach[0] <= own) & (reach[1] > own) & (reach[1] <= 100)).all()
    assert ((reach[2] >= 0) & (reach[3] <= 100)).all()


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_flex_without_gradient(lengths: list[int]) -> None:
    qkv = random_qkv(sum(lengths), 3, 16, seed=1).detach()
    with torch.no_grad():
        out = run("flex", qkv, lengths, training=False)
        torch.testing.assert_close(out.double(), naive_attention(qkv, lengths), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [[64, 64], [5, 1, 200, 33]], ids=["dense", "padded"])
def test_low_precision_stays_within_its_rounding(backend: str, dtype: torch.dtype, lengths: list[int]) -> None:
    """The inputs are rounded already, so what differs is the backend's own rounding: units of the last place."""
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies no bfloat16; test_gpu.py has it")
    qkv = random_qkv(sum(lengths), 12, 64, seed=2, dtype=dtype)
    out, expected = run(backend, qkv, lengths), naive_attention(qkv, lengths)
    assert out.dtype == dtype
    unit = torch.finfo(dtype).eps
    assert (out.double() - expected).abs().max() < 2 * unit * expected.abs().max()
    got, wanted = gradient(out, qkv).double(), gradient(expected, qkv).double()
    assert (got - wanted).abs().max() < 4 * unit * wanted.abs().max()


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    heads=st.integers(1, 9),
    head_dim=st.integers(1, 20),
    seed=st.integers(0, 2**16),
)
def test_sdpa_for_any_shape(lengths: list[int], heads: int, head_dim: int, seed: int) -> None:
    qkv = random_qkv(sum(lengths), heads, head_dim, seed)
    out, expected = run("sdpa", qkv, lengths), naive_attention(qkv, lengths)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient(out, qkv), gradient(expected, qkv), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_nothing_but_padding(backend: str) -> None:
    qkv = random_qkv(0, 3, 16, seed=0)
    with torch.set_grad_enabled(backend == "sdpa"):
        packing = pack(2, 4, torch.zeros(2, 4), CPU)
        out = attend(qkv, prepare_attention(backend, packing, 3, CPU, qkv.dtype, 0.0, training=True))
    assert out.shape == (0, 3, 16)


def test_dropout_drops_probabilities_in_training_only() -> None:
    """Each draw differs, and their mean is the output without dropout."""
    lengths = [8, 8]
    qkv = random_qkv(16, 2, 4, seed=3).detach()
    packing = pack(2, 8, None, CPU)

    def once(dropout: float, training: bool) -> torch.Tensor:
        return attend(qkv, prepare_attention("sdpa", packing, 2, CPU, qkv.dtype, dropout, training))

    torch.testing.assert_close(once(0.5, training=False).double(), naive_attention(qkv, lengths), rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    draws = torch.stack([once(0.25, training=True) for _ in range(2000)])
    assert draws.std(dim=0).min() > 0
    torch.testing.assert_close(draws.mean(dim=0).double(), naive_attention(qkv, lengths), rtol=0, atol=0.1)

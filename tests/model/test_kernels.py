"""The kernels against PyTorch's operations in float64; dropout's mask by its statistics and by the mask seen in use."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bertchen.model import kernels, norm_kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(kernels.why_unable(DEVICE) is not None, reason=str(kernels.why_unable(DEVICE)))

SHAPES = [(7, 48), (4, 256), (1, 768)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def seed_of(number: int) -> Tensor:
    return torch.tensor([number], device=DEVICE)


def kept_by_glu(tokens: int, width: int, p: float, seed: Tensor) -> Tensor:
    """What dropout keeps, as seen from a gate and value that are nowhere 0."""
    return kernels.glu(torch.ones(tokens, 2 * width, device=DEVICE), p, seed) != 0


def kept_by_norm(tokens: int, width: int, p: float, seed: Tensor) -> Tensor:
    """The same of `add_norm`: of ones and zeros LayerNorm's result is above 0 exactly where a one was."""
    x, zeros = torch.ones(tokens, width, device=DEVICE), torch.zeros(tokens, width, device=DEVICE)
    ones = torch.ones(width, device=DEVICE)
    return norm_kernels.add_norm(x, 0 * ones, zeros, ones, 0 * ones, 1e-5, p, seed)[0] > 0


def reference_glu(gated: Tensor, kept: Tensor | None, p: float) -> Tensor:
    gate, value = gated.double().chunk(2, dim=-1)
    out = F.gelu(gate) * value
    return out if kept is None else out * kept / (1 - p)


@pytest.mark.parametrize(("tokens", "width"), [*SHAPES, (3, 1536)])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_glu(tokens: int, width: int, p: float) -> None:
    gated, upper = 2 * random(tokens, 2 * width), random(tokens, width, seed=1)
    seed = seed_of(5) if p else None
    kept = kept_by_glu(tokens, width, p, seed) if seed is not None else None
    leaf = gated.double().requires_grad_()
    expected = reference_glu(leaf, kept, p)
    (gradient,) = torch.autograd.grad(expected, leaf, upper.double())
    torch.testing.assert_close(kernels.glu(gated, p, seed).double(), expected, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(kernels.glu_backward(upper, gated, p, seed).double(), gradient, rtol=1e-5, atol=5e-6)


def test_gelu_over_its_range() -> None:
    x = torch.linspace(-12, 12, 4800, device=DEVICE).view(4, 1200)
    gated = torch.cat([x, torch.ones_like(x)], dim=1)
    torch.testing.assert_close(kernels.glu(gated, 0, None), F.gelu(x.double()).float(), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(("tokens", "width"), [*SHAPES, (3, 768), (5, 1001)])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_add_norm(tokens: int, width: int, p: float) -> None:
    x, residual, upper = (random(tokens, width, seed=seed) for seed in (0, 1, 2))
    bias, weight, shift = (random(width, seed=seed) for seed in (3, 4, 5))
    seed = seed_of(-7) if p else None
    kept = kept_by_norm(tokens, width, p, seed) if seed is not None else torch.ones_like(x)
    leaves = [part.double().requires_grad_() for part in (x, residual, weight, shift, bias)]
    total = (leaves[0] + leaves[4]) * kept / (1 - p) + leaves[1]
    expected = F.layer_norm(total, (width,), leaves[2], leaves[3], 1e-5)
    gradients = torch.autograd.grad(expected, leaves, upper.double())
    out, moments = norm_kernels.add_norm(x, bias, residual, weight, shift, 1e-5, p, seed)
    torch.testing.assert_close(out.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    part = random(tokens, width, seed=6)
    for given in ((upper, None), (upper - part, part)):
        of_x, of_residual, sums, largest = norm_kernels.add_norm_backward(
            given[0], x, bias, residual, weight, moments, p, seed, given[1]
        )
        for got, wanted in zip((of_x, of_residual, *sums), gradients, strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(largest.double(), gradients[1].abs().max(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("width", [2, 16, 48, 100, 128, 384, 768, 1000, 1024, 1536, 2560, 4096, 5120, 8192])
@pytest.mark.parametrize("most", [norm_kernels.FORWARD_LANE, norm_kernels.BACKWARD_LANE, norm_kernels.DROPOUT_LANE])
def test_rows_are_divided(width: int, most: int) -> None:
    """Into pieces that Triton can have, without idle lanes where the width allows it."""
    pieces, piece, warps = norm_kernels.divide(width, most)
    assert piece & (piece - 1) == 0
    assert warps in (1, 2, 4, 8, 16, 32)
    assert pieces * piece >= width
    assert pieces * piece == width or width % 128
    assert pieces * piece <= 64 * warps * most or width % 128


@pytest.mark.parametrize("kept", [kept_by_glu, kept_by_norm])
class TestDropout:
    TOKENS, WIDTH, P = 32, 512, 0.1

    def mask(self, kept, number: int, p: float = P) -> Tensor:
        return kept(self.TOKENS, self.WIDTH, p, seed_of(number)).double().cpu()

    def test_drops_its_share_everywhere(self, kept) -> None:
        mask = self.mask(kept, 1)
        deviation = (self.P * (1 - self.P)) ** 0.5
        # Five standard deviations: of all, of each token, of each column.
        assert abs(mask.mean() - 0.9) < 5 * deviation / mask.numel() ** 0.5
        assert (mask.mean(1) - 0.9).abs().max() < 5 * deviation / self.WIDTH**0.5
        assert (mask.mean(0) - 0.9).abs().max() < 5 * deviation / self.TOKENS**0.5

    @pytest.mark.parametrize("shift", [(0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 128)])
    def test_neighbours_are_independent(self, kept, shift: tuple[int, int]) -> None:
        mask = self.mask(kept, 2, 0.5) - 0.5
        moved = mask.roll(shift, (0, 1))
        assert abs((mask * moved).mean()) * 4 < 5 / mask.numel() ** 0.5

    @pytest.mark.parametrize("other", [4, 3 + (1 << 32), -3])
    def test_another_seed_is_another_mask(self, kept, other: int) -> None:
        first, second = self.mask(kept, 3, 0.5) - 0.5, self.mask(kept, other, 0.5) - 0.5
        assert abs((first * second).mean()) * 4 < 5 / first.numel() ** 0.5

    def test_the_same_seed_is_the_same_mask(self, kept) -> None:
        assert torch.equal(self.mask(kept, 3), self.mask(kept, 3))


def test_seeds_come_from_the_generator() -> None:
    torch.manual_seed(1)
    seeds = [kernels.new_seed(DEVICE).item() for _ in range(3)]
    torch.manual_seed(1)
    assert seeds == [kernels.new_seed(DEVICE).item() for _ in range(3)]
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(("rows", "classes"), [(5, 96), (3, 5000), (2, 8192)])
def test_cross_entropy(rows: int, classes: int) -> None:
    logits = 20 * random(rows, classes)
    labels = torch.randint(0, classes, (rows,), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    labels[0] = -100
    leaf = logits.double().requires_grad_()
    expected = F.cross_entropy(leaf, labels, reduction="none", ignore_index=-100)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    losses = kernels.cross_entropy_(logits, labels, -100)
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.double(), gradient, rtol=1e-4, atol=1e-6)


def test_nothing_at_all() -> None:
    empty = torch.empty(0, 64, device=DEVICE)
    ones = torch.ones(64, device=DEVICE)
    assert kernels.glu(empty, 0.1, seed_of(1)).shape == (0, 32)
    out, moments = norm_kernels.add_norm(empty, ones, empty, ones, ones, 1e-5, 0.1, seed_of(1))
    assert out.shape == (0, 64)
    sums = norm_kernels.add_norm_backward(out, empty, ones, empty, ones, moments, 0.1, seed_of(1))[2]
    assert torch.equal(sums, torch.zeros(3, 64, device=DEVICE))

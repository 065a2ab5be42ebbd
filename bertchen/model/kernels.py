"""Triton kernels for what lies between the matrix products of a layer, each a pass over memory and no more.

- `glu`, `glu_backward`: dropout(gelu(gate) * value), and its gradients.
- `add_norm`, `add_norm_backward`: LayerNorm(dropout(x + bias) + residual), and its gradients.
- `cross_entropy_`: the loss of each row, with the gradient of the logits in their place.

Dropout's mask is computed, not stored: a hash of a seed and of the element's index gives 16 random bits, of which the
share `threshold / 65536` drops. Forward and backward compute the same. The kernels run on a CPU in Triton's interpreter
(`TRITON_INTERPRET=1`), in which they are tested.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    _TRITON_ERROR = None
except Exception as error:  # some builds of PyTorch come without it, others with one that fails to load
    _TRITON_ERROR = f"Triton can't be imported: {type(error).__name__}: {error}"

RANDOM_VALUES = 1 << 16
MAX_WIDTH = 8192
_PROGRAMS_PER_PROCESSOR = 4


def triton_error() -> str | None:
    """Why there is no Triton, or None."""
    return _TRITON_ERROR


def why_unable(device: torch.device) -> str | None:
    """Why the kernels can't run on `device`, or None."""
    if _TRITON_ERROR:
        return _TRITON_ERROR
    if device.type == "cuda" or interpreted():
        return None
    return f"Triton's kernels run on CUDA, not on {device.type}"


def interpreted() -> bool:
    """Whether Triton was imported with its interpreter, which runs kernels on a CPU, for tests."""
    return not _TRITON_ERROR and not isinstance(_glu, triton.runtime.JITFunction)


def threshold(p: float) -> int:
    """How many of 65,536 random values drop an element; what is kept is scaled by what this rounds `p` to."""
    return round(p * RANDOM_VALUES)


def new_seed(device: torch.device) -> Tensor:
    """A seed from PyTorch's generator of the device, int64, (1,); the host doesn't wait for it."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, (1,), device=device)


def dropout_arguments(p: float, seed: Tensor | None, unused: Tensor) -> tuple[Tensor, int, float]:
    """What a kernel takes for its dropout: the seed, or `unused` in its place; the threshold; what scales the rest."""
    drop = threshold(p) if seed is not None else 0
    return (seed if seed is not None and drop else unused), drop, RANDOM_VALUES / (RANDOM_VALUES - drop)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _block(width: int, largest: int) -> int:
    """Columns that a program takes: the largest power of two, up to a limit, that divides them; else one that fits."""
    block = largest
    while block > 128 and width % block:
        block //= 2
    return block if width % block == 0 else min(largest, triton.next_power_of_2(width))


def glu(gated: Tensor, p: float, seed: Tensor | None) -> Tensor:
    """dropout(gelu(gate) * value), gelu by the error function.

    Args:
        gated: gate and value side by side, (tokens, 2 * width), contiguous.
        p: probability of dropout; without a seed there is none.

    Returns:
        (tokens, width) in the dtype of `gated`.
    """
    tokens, width = gated.shape[0], gated.shape[1] // 2
    out = gated.new_empty(tokens, width)
    block = _block(width, 1024)
    if tokens:
        seed, drop, scale = dropout_arguments(p, seed, gated)
        _glu[(triton.cdiv(tokens, 2), triton.cdiv(width, block))](
            gated, out, seed, tokens, width, drop, scale, block, num_warps=4
        )
    return out


def glu_backward(grad: Tensor, gated: Tensor, p: float, seed: Tensor | None) -> Tensor:
    """The gradient of `gated`, whose arguments it takes, from that of the result, (tokens, width)."""
    tokens, width = grad.shape
    out = torch.empty_like(gated)
    block = _block(width, 1024)
    if tokens:
        seed, drop, scale = dropout_arguments(p, seed, gated)
        _glu_backward[(triton.cdiv(tokens, 2), triton.cdiv(width, block))](
            grad, gated, out, seed, tokens, width, drop, scale, block, num_warps=4
        )
    return out


def add_norm(
    x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor, eps: float, p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """LayerNorm(dropout(x + bias) + residual), all sums in float32.

    Args:
        x, residual: (tokens, width), contiguous.
        bias, weight, shift: (width,); `weight` and `shift` are LayerNorm's.

    Returns:
        The result in the dtype of `x`, and of each token mean and reciprocal standard deviation, float32, (tokens, 2).
    """
    tokens, width = x.shape
    out = torch.empty_like(x)
    moments = torch.empty(tokens, 2, device=x.device, dtype=torch.float32)
    if tokens:
        seed, drop, scale = dropout_arguments(p, seed, x)
        _add_norm[(triton.cdiv(tokens, 2),)](
            x, bias, residual, weight, shift, out, moments, seed, tokens, eps, width, drop, scale,
            triton.next_power_of_2(width), num_warps=_warps(width),
        )  # fmt: skip
    return out, moments


def add_norm_backward(
    grad: Tensor, x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, moments: Tensor, p: float,
    seed: Tensor | None, more: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `add_norm`, whose arguments it takes, from that of its result, `grad`, or `grad` + `more`.

    Returns:
        The gradient of `x`; that of `residual`, the same tensor where nothing is dropped; and those of weight, shift
        and bias, float32, (3, width).
    """
    tokens, width = x.shape
    seed, drop, scale = dropout_arguments(p, seed, x)
    of_residual = torch.empty_like(x)
    of_x = torch.empty_like(x) if drop else of_residual
    programs = min(triton.cdiv(max(tokens, 1), 2), _PROGRAMS_PER_PROCESSOR * _processors(x.device))
    sums = torch.empty(programs, 3, width, device=x.device, dtype=torch.float32)
    _add_norm_backward[(programs,)](
        grad, grad if more is None else more, x, bias, residual, weight, moments, of_x, of_residual, sums,
        seed, tokens, width, more is not None, drop, scale, triton.next_power_of_2(width), num_warps=_warps(width) // 2,
    )  # fmt: skip
    return of_x, of_residual, sums.sum(0)


def cross_entropy_(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The cross entropy of each row, float32, (rows,), 0 where the label is `ignore_index`.

    `logits`, (rows, classes), contiguous, become the gradient of the sum of the rows' losses.
    """
    rows, classes = logits.shape
    losses = torch.empty(rows, device=logits.device, dtype=torch.float32)
    if rows:
        _cross_entropy[(rows,)](
            logits, labels, losses, classes, ignore_index, min(8192, triton.next_power_of_2(classes)), num_warps=16
        )
    return losses


def _warps(width: int) -> int:
    return 4 if width <= 1024 else 8


if _TRITON_ERROR is None:

    @triton.jit
    def _mix(x):
        """A permutation of 32-bit numbers in which each bit depends on all (exclusive or, shift, multiply; twice)."""
        x = (x ^ (x >> 16)) * 0x7FEB352D
        x = (x ^ (x >> 15)) * 0x846CA68B
        return x ^ (x >> 16)

    @triton.jit
    def _random_pair(seed, index):
        """Two numbers of 16 bits each for an index."""
        value = tl.load(seed)
        key = _mix(_mix((value >> 32).to(tl.uint32)) + value.to(tl.uint32))
        x = _mix(index.to(tl.uint32) * 0x9E3779B1 + key)
        return x & 0xFFFF, x >> 16

    @triton.jit
    def _normal(x):
        """Distribution and density of the standard normal at x.

        The error function is Abramowitz and Stegun's 7.1.26, whose absolute error is below 1.5e-7; it shares its
        exponential with the density.
        """
        e = tl.exp2(x * x * -0.7213475204444817)  # log2(e) / 2
        # A reciprocal as a square: one instruction where a division is many.
        root = tl.rsqrt(1.0 + 0.23164189 * tl.abs(x))  # 0.3275911 / sqrt(2)
        t = root * root
        tail = 0.5307027145 * t - 0.7265760135  # the coefficients, halved
        tail = tail * t + 0.7107068705
        tail = tail * t - 0.142248368
        tail = tail * t + 0.127414796
        tail = tail * t * e
        return tl.where(x >= 0, 1.0 - tail, tail), 0.3989422804014327 * e

    @triton.jit
    def _glu(
        gated, out, seed, tokens, width, DROP: tl.constexpr, SCALE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        pair = tl.program_id(0)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        if DROP:
            first, second = _random_pair(seed, pair * width + column)
        for i in tl.static_range(2):
            token = (pair * 2 + i).to(tl.int64)
            inside = (column < width) & (token < tokens)
            x = tl.load(gated + token * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
            value = tl.load(gated + token * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
            distribution, _ = _normal(x)
            result = x * distribution * value
            if DROP:
                bits = first if i == 0 else second
                result = tl.where(bits >= DROP, result * SCALE, 0.0)
            tl.store(out + token * width + column, result.to(out.dtype.element_ty), mask=inside)

    @triton.jit
    def _glu_backward(
        grad, gated, out, seed, tokens, width, DROP: tl.constexpr, SCALE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        pair = tl.program_id(0)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        if DROP:
            first, second = _random_pair(seed, pair * width + column)
        for i in tl.static_range(2):
            token = (pair * 2 + i).to(tl.int64)
            inside = (column < width) & (token < tokens)
            x = tl.load(gated + token * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
            value = tl.load(gated + token * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
            upper = tl.load(grad + token * width + column, mask=inside, other=0.0).to(tl.float32)
            if DROP:
                bits = first if i == 0 else second
                upper = tl.where(bits >= DROP, upper * SCALE, 0.0)
            distribution, density = _normal(x)
            of_gate = upper * value * (distribution + x * density)
            of_value = upper * x * distribution
            tl.store(out + token * 2 * width + column, of_gate.to(out.dtype.element_ty), mask=inside)
            tl.store(out + token * 2 * width + width + column, of_value.to(out.dtype.element_ty), mask=inside)

    @triton.jit
    def _add_norm(
        x, bias, residual, weight, shift, out, moments, seed, tokens, eps, WIDTH: tl.constexpr, DROP: tl.constexpr,
        SCALE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        pair = tl.program_id(0)
        column = tl.arange(0, BLOCK)
        within = column < WIDTH
        b = tl.load(bias + column, mask=within, other=0.0).to(tl.float32)
        w = tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
        s = tl.load(shift + column, mask=within, other=0.0).to(tl.float32)
        if DROP:
            first, second = _random_pair(seed, pair * WIDTH + column)
        for i in tl.static_range(2):
            token = (pair * 2 + i).to(tl.int64)
            inside = within & (token < tokens)
            total = tl.load(x + token * WIDTH + column, mask=inside, other=0.0).to(tl.float32) + b
            if DROP:
                bits = first if i == 0 else second
                total = tl.where(bits >= DROP, total * SCALE, 0.0)
            total += tl.load(residual + token * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
            mean = tl.sum(total, 0) / WIDTH
            centred = tl.where(within, total - mean, 0.0)
            reciprocal = tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
            tl.store(out + token * WIDTH + column, (centred * reciprocal * w + s).to(out.dtype.element_ty), mask=inside)
            tl.store(moments + token * 2, mean, mask=token < tokens)
            tl.store(moments + token * 2 + 1, reciprocal, mask=token < tokens)

    @triton.jit
    def _norm_gradient(scaled, normed, reciprocal, WIDTH: tl.constexpr):
        """LayerNorm's gradient from that of its result times the weight, and from what it normed."""
        along = tl.sum(scaled * normed, 0) / WIDTH
        average = tl.sum(scaled, 0) / WIDTH
        return (scaled - normed * along - average) * reciprocal

    @triton.jit
    def _add_norm_backward(
        grad, more, x, bias, residual, weight, moments, of_x, of_residual, sums, seed, tokens, WIDTH: tl.constexpr,
        MORE: tl.constexpr, DROP: tl.constexpr, SCALE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0)
        column = tl.arange(0, BLOCK)
        within = column < WIDTH
        b = tl.load(bias + column, mask=within, other=0.0).to(tl.float32)
        w = tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
        of_weight = tl.zeros([BLOCK], dtype=tl.float32)
        of_shift = tl.zeros([BLOCK], dtype=tl.float32)
        of_bias = tl.zeros([BLOCK], dtype=tl.float32)
        for turn in range(tl.cdiv(tl.cdiv(tokens, 2), tl.num_programs(0))):
            pair = program + turn * tl.num_programs(0)
            token = (pair * 2).to(tl.int64)
            place = token * WIDTH + column
            next_place = place + WIDTH
            inside = within & (token < tokens)
            next_inside = within & (token + 1 < tokens)
            # All of both tokens is loaded before anything is stored: a load doesn't pass a store.
            upper = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
            next_upper = tl.load(grad + next_place, mask=next_inside, other=0.0).to(tl.float32)
            if MORE:
                upper += tl.load(more + place, mask=inside, other=0.0).to(tl.float32)
                next_upper += tl.load(more + next_place, mask=next_inside, other=0.0).to(tl.float32)
            total = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + b
            next_total = tl.load(x + next_place, mask=next_inside, other=0.0).to(tl.float32) + b
            other = tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
            next_other = tl.load(residual + next_place, mask=next_inside, other=0.0).to(tl.float32)
            mean = tl.load(moments + token * 2, mask=token < tokens, other=0.0)
            next_mean = tl.load(moments + token * 2 + 2, mask=token + 1 < tokens, other=0.0)
            reciprocal = tl.load(moments + token * 2 + 1, mask=token < tokens, other=0.0)
            next_reciprocal = tl.load(moments + token * 2 + 3, mask=token + 1 < tokens, other=0.0)
            if DROP:
                first, second = _random_pair(seed, pair * WIDTH + column)
                total = tl.where(first >= DROP, total * SCALE, 0.0)
                next_total = tl.where(second >= DROP, next_total * SCALE, 0.0)
            normed = tl.where(inside, (total + other - mean) * reciprocal, 0.0)
            next_normed = tl.where(next_inside, (next_total + next_other - next_mean) * next_reciprocal, 0.0)
            of_weight += upper * normed + next_upper * next_normed
            of_shift += upper + next_upper
            result = _norm_gradient(upper * w, normed, reciprocal, WIDTH)
            next_result = _norm_gradient(next_upper * w, next_normed, next_reciprocal, WIDTH)
            tl.store(of_residual + place, result.to(of_residual.dtype.element_ty), mask=inside)
            tl.store(of_residual + next_place, next_result.to(of_residual.dtype.element_ty), mask=next_inside)
            if DROP:
                result = tl.where(first >= DROP, result * SCALE, 0.0)
                next_result = tl.where(second >= DROP, next_result * SCALE, 0.0)
                tl.store(of_x + place, result.to(of_x.dtype.element_ty), mask=inside)
                tl.store(of_x + next_place, next_result.to(of_x.dtype.element_ty), mask=next_inside)
            of_bias += tl.where(inside, result, 0.0) + tl.where(next_inside, next_result, 0.0)
        place = sums + program * 3 * WIDTH + column
        tl.store(place, of_weight, mask=within)
        tl.store(place + WIDTH, of_shift, mask=within)
        tl.store(place + 2 * WIDTH, of_bias, mask=within)

    @triton.jit
    def _cross_entropy(logits, labels, losses, classes, ignore_index, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        label = tl.load(labels + row)
        counts = label != ignore_index
        start = logits + row * classes
        column = tl.arange(0, BLOCK)
        largest = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
        total = tl.zeros([BLOCK], dtype=tl.float32)
        # Each lane keeps its own maximum and sum, which are joined at the end.
        for first in range(0, classes, BLOCK):
            x = tl.load(start + first + column, mask=first + column < classes, other=-1e30).to(tl.float32)
            above = tl.maximum(largest, x)
            total = total * tl.exp(largest - above) + tl.exp(x - above)
            largest = above
        top = tl.max(largest, 0)
        logarithm = top + tl.log(tl.sum(total * tl.exp(largest - top), 0))
        at_label = tl.load(start + tl.where(counts, label, 0)).to(tl.float32)
        tl.store(losses + row, tl.where(counts, logarithm - at_label, 0.0))
        # A row without a label has no gradient.
        factor = tl.where(counts, 1.0, 0.0)
        for first in range(0, classes, BLOCK):
            inside = first + column < classes
            x = tl.load(start + first + column, mask=inside, other=-1e30).to(tl.float32)
            share = tl.exp(x - logarithm) - tl.where(first + column == label, 1.0, 0.0)
            tl.store(start + first + column, (share * factor).to(logits.dtype.element_ty), mask=inside)

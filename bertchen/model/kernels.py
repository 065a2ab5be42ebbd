"""Triton kernels for what lies between the matrix products of a layer, each a pass over memory and no more.

- `glu`, `glu_backward`: dropout(gelu(gate) * value), and its gradients.
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
def processors(device: torch.device) -> int:
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


if _TRITON_ERROR is None:

    @triton.jit
    def _mix(x):
        """A permutation of 32-bit numbers in which each bit depends on all (exclusive or, shift, multiply; twice)."""
        x = (x ^ (x >> 16)) * 0x7FEB352D
        x = (x ^ (x >> 15)) * 0x846CA68B
        return x ^ (x >> 16)

    @triton.jit
    def _random_key(seed):
        """32 bits of a seed."""
        value = tl.load(seed)
        return _mix(_mix((value >> 32).to(tl.uint32)) + value.to(tl.uint32))

    @triton.jit
    def _random_pair(key, index):
        """Two numbers of 16 bits each for an index."""
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
            first, second = _random_pair(_random_key(seed), pair * width + column)
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
            first, second = _random_pair(_random_key(seed), pair * width + column)
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

"""Triton kernels for what lies between the matrix products of a layer, each a pass over memory and no more.

- `glu`, `glu_backward`: dropout(gelu(gate) * value), and its gradients.
- `add_norm`, `add_norm_backward`: LayerNorm(dropout(x + bias) + residual), and its gradients.
- `cross_entropy_`: the loss of each row, with the gradient of the logits in their place.

Dropout's mask is computed, not stored: a hash of a seed and of the element's index gives 16 random bits, of which the
share `threshold / 65536` drops. Forward and backward compute the same. The kernels run on a CPU in Triton's interpreter
(`TRITON_INTERPRET=1`), in which they are tested.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

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
MAX_PIECES, MAX_WARPS = 8, 32
WARP_LOAD = 256  # numbers that the 32 lanes of a warp load at once, 8 each
# Numbers of a row that a lane has registers for, where LayerNorm's kernels hold two rows: forward, backward, and
# backward with dropout; and warps that a processor has registers for at once, going backward.
FORWARD_LANE, BACKWARD_LANE, DROPOUT_LANE = 32, 12, 6
BACKWARD_WARPS, DROPOUT_WARPS = 12, 16


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
        pieces, piece, warps = divide(width, FORWARD_LANE)
        _add_norm[(triton.cdiv(tokens, 2),)](
            x, bias, residual, weight, shift, out, moments, seed, tokens, eps, width, drop, scale,
            pieces, piece, num_warps=warps,
        )  # fmt: skip
    return out, moments


class NormGradients(NamedTuple):
    """What `add_norm_backward` gives.

    Attributes:
        of_x: (tokens, width).
        of_residual: the same tensor where nothing is dropped.
        of_parameters: of weight, shift and bias, float32, (3, width).
        largest: absolute value in `of_residual`, before it is rounded, float32, a scalar.
    """

    of_x: Tensor
    of_residual: Tensor
    of_parameters: Tensor
    largest: Tensor


def add_norm_backward(
    grad: Tensor, x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, moments: Tensor, p: float,
    seed: Tensor | None, more: Tensor | None = None,
) -> NormGradients:  # fmt: skip
    """The gradients of `add_norm`, whose arguments it takes, from that of its result, `grad`, or `grad` + `more`."""
    tokens, width = x.shape
    seed, drop, scale = dropout_arguments(p, seed, x)
    of_residual = torch.empty_like(x)
    of_x = torch.empty_like(x) if drop else of_residual
    pieces, piece, warps = divide(width, DROPOUT_LANE if drop else BACKWARD_LANE)
    at_once = max(1, (DROPOUT_WARPS if drop else BACKWARD_WARPS) // warps) * processors(x.device)
    programs = min(triton.cdiv(max(tokens, 1), 2), at_once)
    sums = torch.empty(programs, 3, width, device=x.device, dtype=torch.float32)
    largest = torch.empty(programs, device=x.device, dtype=torch.float32)
    _add_norm_backward[(programs,)](
        grad, grad if more is None else more, x, bias, residual, weight, moments, of_x, of_residual, sums, largest,
        seed, tokens, width, more is not None, drop, scale, pieces, piece, num_warps=warps,
    )  # fmt: skip
    return NormGradients(of_x, of_residual, sums.sum(0), largest.amax())


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


def divide(width: int, most: int) -> tuple[int, int, int]:
    """The number of pieces that a row is divided into, their length, and warps.

    A length is a power of two, which most models' widths aren't: 768 is 3 pieces of 256, without idle lanes.

    Args:
        most: values of a row that a lane of a warp has room for.
    """
    warps = min(MAX_WARPS, triton.next_power_of_2(triton.cdiv(width, 32 * most)))
    piece = math.gcd(width, WARP_LOAD * warps)
    if width // piece > MAX_PIECES:
        return 1, triton.next_power_of_2(width), warps
    return width // piece, piece, warps


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
    def _load_pieces(place, inside, WIDTH: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
        """A row as a tuple of its pieces, float32, zeros where it isn't `inside`."""
        pieces = ()
        for i in tl.static_range(PIECES):
            column = i * PIECE + tl.arange(0, PIECE)
            pieces = pieces + (tl.load(place + column, mask=inside & (column < WIDTH), other=0.0).to(tl.float32),)
        return pieces

    @triton.jit
    def _zero_pieces(PIECES: tl.constexpr, PIECE: tl.constexpr):
        pieces = ()
        for _ in tl.static_range(PIECES):
            pieces = pieces + (tl.zeros([PIECE], dtype=tl.float32),)
        return pieces

    @triton.jit
    def _store_pieces(place, inside, pieces, WIDTH: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
        for i in tl.static_range(PIECES):
            column = i * PIECE + tl.arange(0, PIECE)
            tl.store(place + column, pieces[i].to(place.dtype.element_ty), mask=inside & (column < WIDTH))

    @triton.jit
    def _drop_pieces(pieces, kept, SCALE: tl.constexpr, PIECES: tl.constexpr):
        dropped = ()
        for i in tl.static_range(PIECES):
            dropped = dropped + (tl.where(kept[i], pieces[i] * SCALE, 0.0),)
        return dropped

    @triton.jit
    def _sums_of_pieces(a, b, PIECES: tl.constexpr):
        sums = ()
        for i in tl.static_range(PIECES):
            sums = sums + (a[i] + b[i],)
        return sums

    @triton.jit
    def _sums_of_products(a, b, c, PIECES: tl.constexpr):
        sums = ()
        for i in tl.static_range(PIECES):
            sums = sums + (a[i] + b[i] * c[i],)
        return sums

    @triton.jit
    def _moments(row, eps, WIDTH: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
        """Mean and reciprocal standard deviation."""
        total = row[0]
        for i in tl.static_range(1, PIECES):
            total += row[i]
        mean = tl.sum(total, 0) / WIDTH
        squares = tl.zeros([PIECE], dtype=tl.float32)
        for i in tl.static_range(PIECES):
            centred = tl.where(i * PIECE + tl.arange(0, PIECE) < WIDTH, row[i] - mean, 0.0)
            squares += centred * centred
        return mean, tl.rsqrt(tl.sum(squares, 0) / WIDTH + eps)

    @triton.jit
    def _store_norm(
        totals, inside, token, weight, shift, out, moments, eps, WIDTH: tl.constexpr, PIECES: tl.constexpr,
        PIECE: tl.constexpr,
    ):  # fmt: skip
        """LayerNorm of a row, and its moments."""
        mean, reciprocal = _moments(totals, eps, WIDTH, PIECES, PIECE)
        for i in tl.static_range(PIECES):
            column = i * PIECE + tl.arange(0, PIECE)
            w = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
            s = tl.load(shift + column, mask=column < WIDTH, other=0.0).to(tl.float32)
            result = (totals[i] - mean) * reciprocal * w + s
            tl.store(out + token * WIDTH + column, result.to(out.dtype.element_ty), mask=inside & (column < WIDTH))
        tl.store(moments + token * 2, mean, mask=inside)
        tl.store(moments + token * 2 + 1, reciprocal, mask=inside)

    @triton.jit
    def _add_norm(
        x, bias, residual, weight, shift, out, moments, seed, tokens, eps, WIDTH: tl.constexpr, DROP: tl.constexpr,
        SCALE: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr,
    ):  # fmt: skip
        pair = tl.program_id(0)
        token = pair.to(tl.int64) * 2
        place = token * WIDTH
        inside, next_inside = token < tokens, token + 1 < tokens
        # All of both tokens is loaded before anything is stored: a load doesn't pass a store.
        values = _load_pieces(x + place, inside, WIDTH, PIECES, PIECE)
        next_values = _load_pieces(x + place + WIDTH, next_inside, WIDTH, PIECES, PIECE)
        others = _load_pieces(residual + place, inside, WIDTH, PIECES, PIECE)
        next_others = _load_pieces(residual + place + WIDTH, next_inside, WIDTH, PIECES, PIECE)
        totals, next_totals = (), ()
        if DROP:
            key = _random_key(seed)
        for i in tl.static_range(PIECES):
            column = i * PIECE + tl.arange(0, PIECE)
            b = tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)
            total = values[i] + b
            next_total = next_values[i] + b
            if DROP:
                first, second = _random_pair(key, pair * WIDTH + column)
                total = tl.where(first >= DROP, total * SCALE, 0.0)
                next_total = tl.where(second >= DROP, next_total * SCALE, 0.0)
            totals = totals + (total + others[i],)
            next_totals = next_totals + (next_total + next_others[i],)
        _store_norm(totals, inside, token, weight, shift, out, moments, eps, WIDTH, PIECES, PIECE)
        _store_norm(next_totals, next_inside, token + 1, weight, shift, out, moments, eps, WIDTH, PIECES, PIECE)

    @triton.jit
    def _norm_gradient(
        uppers, normed, reciprocal, weight, WIDTH: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr
    ):
        """LayerNorm's gradient from that of its result and from what it normed."""
        scaled = ()
        along = tl.zeros([PIECE], dtype=tl.float32)
        average = tl.zeros([PIECE], dtype=tl.float32)
        for i in tl.static_range(PIECES):
            column = i * PIECE + tl.arange(0, PIECE)
            scaled = scaled + (uppers[i] * tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32),)
            along += scaled[i] * normed[i]
            average += scaled[i]
        along = tl.sum(along, 0) / WIDTH
        average = tl.sum(average, 0) / WIDTH
        results = ()
        for i in tl.static_range(PIECES):
            result = (scaled[i] - normed[i] * along - average) * reciprocal
            results = results + (tl.where(i * PIECE + tl.arange(0, PIECE) < WIDTH, result, 0.0),)
        return results

    @triton.jit
    def _add_norm_backward(
        grad, more, x, bias, residual, weight, moments, of_x, of_residual, sums, largest, seed, tokens,
        WIDTH: tl.constexpr, MORE: tl.constexpr, DROP: tl.constexpr, SCALE: tl.constexpr, PIECES: tl.constexpr,
        PIECE: tl.constexpr,
    ):  # fmt: skip
        of_weight = _zero_pieces(PIECES, PIECE)
        of_shift = _zero_pieces(PIECES, PIECE)
        of_bias = _zero_pieces(PIECES, PIECE)
        highest = tl.zeros([PIECE], dtype=tl.float32)
        if DROP:
            key = _random_key(seed)
        for turn in range(tl.cdiv(tl.cdiv(tokens, 2), tl.num_programs(0))):
            pair = tl.program_id(0) + turn * tl.num_programs(0)
            token = pair.to(tl.int64) * 2
            place = token * WIDTH
            inside, next_inside = token < tokens, token + 1 < tokens
            # All of both tokens is loaded before anything is stored: a load doesn't pass a store.
            uppers = _load_pieces(grad + place, inside, WIDTH, PIECES, PIECE)
            next_uppers = _load_pieces(grad + place + WIDTH, next_inside, WIDTH, PIECES, PIECE)
            if MORE:
                others = _load_pieces(more + place, inside, WIDTH, PIECES, PIECE)
                next_others = _load_pieces(more + place + WIDTH, next_inside, WIDTH, PIECES, PIECE)
                uppers = _sums_of_pieces(uppers, others, PIECES)
                next_uppers = _sums_of_pieces(next_uppers, next_others, PIECES)
            values = _load_pieces(x + place, inside, WIDTH, PIECES, PIECE)
            next_values = _load_pieces(x + place + WIDTH, next_inside, WIDTH, PIECES, PIECE)
            others = _load_pieces(residual + place, inside, WIDTH, PIECES, PIECE)
            next_others = _load_pieces(residual + place + WIDTH, next_inside, WIDTH, PIECES, PIECE)
            # Of a token that isn't there both moments are 0, and so is what they norm.
            mean = tl.load(moments + token * 2, mask=inside, other=0.0)
            next_mean = tl.load(moments + token * 2 + 2, mask=next_inside, other=0.0)
            reciprocal = tl.load(moments + token * 2 + 1, mask=inside, other=0.0)
            next_reciprocal = tl.load(moments + token * 2 + 3, mask=next_inside, other=0.0)
            normed, next_normed, kept, next_kept = (), (), (), ()
            for i in tl.static_range(PIECES):
                column = i * PIECE + tl.arange(0, PIECE)
                b = tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)
                total = values[i] + b
                next_total = next_values[i] + b
                if DROP:
                    first, second = _random_pair(key, pair * WIDTH + column)
                    kept = kept + (first >= DROP,)
                    next_kept = next_kept + (second >= DROP,)
                    total = tl.where(kept[i], total * SCALE, 0.0)
                    next_total = tl.where(next_kept[i], next_total * SCALE, 0.0)
                normed = normed + ((total + others[i] - mean) * reciprocal,)
                next_normed = next_normed + ((next_total + next_others[i] - next_mean) * next_reciprocal,)
            of_weight = _sums_of_products(of_weight, uppers, normed, PIECES)
            of_weight = _sums_of_products(of_weight, next_uppers, next_normed, PIECES)
            of_shift = _sums_of_pieces(_sums_of_pieces(of_shift, uppers, PIECES), next_uppers, PIECES)
            results = _norm_gradient(uppers, normed, reciprocal, weight, WIDTH, PIECES, PIECE)
            next_results = _norm_gradient(next_uppers, next_normed, next_reciprocal, weight, WIDTH, PIECES, PIECE)
            _store_pieces(of_residual + place, inside, results, WIDTH, PIECES, PIECE)
            _store_pieces(of_residual + place + WIDTH, next_inside, next_results, WIDTH, PIECES, PIECE)
            for i in tl.static_range(PIECES):
                highest = tl.maximum(highest, tl.maximum(tl.abs(results[i]), tl.abs(next_results[i])))
            if DROP:
                results = _drop_pieces(results, kept, SCALE, PIECES)
                next_results = _drop_pieces(next_results, next_kept, SCALE, PIECES)
                _store_pieces(of_x + place, inside, results, WIDTH, PIECES, PIECE)
                _store_pieces(of_x + place + WIDTH, next_inside, next_results, WIDTH, PIECES, PIECE)
            of_bias = _sums_of_pieces(_sums_of_pieces(of_bias, results, PIECES), next_results, PIECES)
        place = sums + tl.program_id(0) * 3 * WIDTH
        _store_pieces(place, True, of_weight, WIDTH, PIECES, PIECE)
        _store_pieces(place + WIDTH, True, of_shift, WIDTH, PIECES, PIECE)
        _store_pieces(place + 2 * WIDTH, True, of_bias, WIDTH, PIECES, PIECE)
        tl.store(largest + tl.program_id(0), tl.max(highest, 0))

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

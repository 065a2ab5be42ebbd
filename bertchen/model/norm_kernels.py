"""LayerNorm(dropout(x + bias) + residual) in Triton, and its gradients, each a pass over memory.

A row is a tuple of pieces whose lengths are powers of two, and few warps, mostly one or two, have it in their
registers: so no lane idles at widths such as 768, and little is waited for. A program takes two rows, which share their
random bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .kernels import dropout_arguments, processors, triton_error

if triton_error() is None:
    import triton
    import triton.language as tl

    from .kernels import _random_key, _random_pair

MAX_PIECES, MAX_WARPS = 8, 32
WARP_LOAD = 256  # numbers that the 32 lanes of a warp load at once, 8 each
# Numbers of a row that a lane has registers for, where LayerNorm's kernels hold two rows: forward, backward, and
# backward with dropout; and warps that a processor has registers for at once, going backward.
FORWARD_LANE, BACKWARD_LANE, DROPOUT_LANE = 32, 12, 6
BACKWARD_WARPS, DROPOUT_WARPS = 12, 16


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
    programs = programs_at_once(triton.cdiv(tokens, 2), DROPOUT_WARPS if drop else BACKWARD_WARPS, warps, x.device)
    sums = torch.empty(programs, 3, width, device=x.device, dtype=torch.float32)
    largest = torch.empty(programs, device=x.device, dtype=torch.float32)
    _add_norm_backward[(programs,)](
        grad, grad if more is None else more, x, bias, residual, weight, moments, of_x, of_residual, sums, largest,
        seed, tokens, width, more is not None, drop, scale, pieces, piece, num_warps=warps,
    )  # fmt: skip
    return NormGradients(of_x, of_residual, sums.sum(0), largest.amax())


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


def programs_at_once(pieces_of_work: int, most_warps: int, warps: int, device: torch.device) -> int:
    """The number of programs to share out work among, so that none waits for a processor.

    Args:
        most_warps: that a processor has registers for at once.
        warps: of a program.
    """
    return max(1, min(pieces_of_work, max(1, most_warps // warps) * processors(device)))


if triton_error() is None:

    @triton.jit
    def _load_pieces(place, inside, WIDTH: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
        """A row as a tuple of its pieces, float32, zeros where it isn't `inside`."""
        pieces = ()
        for i in tl.static_range(PIECES):
            column = i * PIECE + tl.arange(0, PIECE)
            pieces = pieces + (tl.load(place + column, mask=inside & (column < WIDTH), other=0.0).to(tl.float32),)
        return pieces

    @triton.jit
    def _load_both(
        place, inside, next_inside, WIDTH: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr
    ):  # fmt: skip
        """A row and the next."""
        return (
            _load_pieces(place, inside, WIDTH, PIECES, PIECE),
            _load_pieces(place + WIDTH, next_inside, WIDTH, PIECES, PIECE),
        )

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
        row, known, inside, token, weight, shift, out, moments, eps, bits, WIDTH: tl.constexpr, DROP: tl.constexpr,
        SCALE: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr,
    ):  # fmt: skip
        """LayerNorm of a row, then dropout by its bits, and the moments; NaN of a row that isn't known."""
        mean, reciprocal = _moments(row, eps, WIDTH, PIECES, PIECE)
        mean = tl.where(known, mean, float("nan"))
        for i in tl.static_range(PIECES):
            column = i * PIECE + tl.arange(0, PIECE)
            w = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
            s = tl.load(shift + column, mask=column < WIDTH, other=0.0).to(tl.float32)
            result = (row[i] - mean) * reciprocal * w + s
            if DROP:
                result = tl.where(bits[i] >= DROP, result * SCALE, 0.0)
            tl.store(out + token * WIDTH + column, result.to(out.dtype.element_ty), mask=inside & (column < WIDTH))
        tl.store(moments + token * 2, mean, mask=inside)
        tl.store(moments + token * 2 + 1, reciprocal, mask=inside)

    @triton.jit
    def _biased(
        values, next_values, bias, key, pair, WIDTH: tl.constexpr, DROP: tl.constexpr, SCALE: tl.constexpr,
        PIECES: tl.constexpr, PIECE: tl.constexpr,
    ):  # fmt: skip
        """dropout(x + bias) of two rows, and what was kept of each."""
        biased, next_biased, kept, next_kept = (), (), (), ()
        for i in tl.static_range(PIECES):
            column = i * PIECE + tl.arange(0, PIECE)
            b = tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)
            biased = biased + (values[i] + b,)
            next_biased = next_biased + (next_values[i] + b,)
            if DROP:
                first, second = _random_pair(key, pair * WIDTH + column)
                kept = kept + (first >= DROP,)
                next_kept = next_kept + (second >= DROP,)
        if DROP:
            biased = _drop_pieces(biased, kept, SCALE, PIECES)
            next_biased = _drop_pieces(next_biased, next_kept, SCALE, PIECES)
        return biased, next_biased, kept, next_kept

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
        values, next_values = _load_both(x + place, inside, next_inside, WIDTH, PIECES, PIECE)
        others, next_others = _load_both(residual + place, inside, next_inside, WIDTH, PIECES, PIECE)
        key = _random_key(seed) if DROP else 0
        values, next_values, _, _ = _biased(values, next_values, bias, key, pair, WIDTH, DROP, SCALE, PIECES, PIECE)
        totals = _sums_of_pieces(values, others, PIECES)
        next_totals = _sums_of_pieces(next_values, next_others, PIECES)
        _store_norm(totals, True, inside, token, weight, shift, out, moments, eps, (), WIDTH, 0, SCALE, PIECES, PIECE)
        _store_norm(
            next_totals, True, next_inside, token + 1, weight, shift, out, moments, eps, (), WIDTH, 0, SCALE, PIECES,
            PIECE,
        )  # fmt: skip

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
        key = _random_key(seed) if DROP else 0
        for turn in range(tl.cdiv(tl.cdiv(tokens, 2), tl.num_programs(0))):
            pair = tl.program_id(0) + turn * tl.num_programs(0)
            token = pair.to(tl.int64) * 2
            place = token * WIDTH
            inside, next_inside = token < tokens, token + 1 < tokens
            # All of both tokens is loaded before anything is stored: a load doesn't pass a store.
            uppers, next_uppers = _load_both(grad + place, inside, next_inside, WIDTH, PIECES, PIECE)
            if MORE:
                others, next_others = _load_both(more + place, inside, next_inside, WIDTH, PIECES, PIECE)
                uppers = _sums_of_pieces(uppers, others, PIECES)
                next_uppers = _sums_of_pieces(next_uppers, next_others, PIECES)
            values, next_values = _load_both(x + place, inside, next_inside, WIDTH, PIECES, PIECE)
            others, next_others = _load_both(residual + place, inside, next_inside, WIDTH, PIECES, PIECE)
            # Of a token that isn't there both moments are 0, and so is what they norm.
            mean = tl.load(moments + token * 2, mask=inside, other=0.0)
            next_mean = tl.load(moments + token * 2 + 2, mask=next_inside, other=0.0)
            reciprocal = tl.load(moments + token * 2 + 1, mask=inside, other=0.0)
            next_reciprocal = tl.load(moments + token * 2 + 3, mask=next_inside, other=0.0)
            values, next_values, kept, next_kept = _biased(
                values, next_values, bias, key, pair, WIDTH, DROP, SCALE, PIECES, PIECE
            )
            normed, next_normed = (), ()
            for i in tl.static_range(PIECES):
                normed = normed + ((values[i] + others[i] - mean) * reciprocal,)
                next_normed = next_normed + ((next_values[i] + next_others[i] - next_mean) * next_reciprocal,)
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

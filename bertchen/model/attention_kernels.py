"""Attention with ALiBi over unpadded tokens in Triton, forward and backward.

The forward pass is FlashAttention's (Dao, 2023): blocks of keys pass by a block of queries, whose softmax is kept up to
date. The backward pass has one kernel whose programs own queries and one whose programs own keys, so that nothing is
added up in memory; the first also computes what the second needs of the outputs. Gradients of queries, keys and values
lie side by side as they do themselves.

ALiBi makes distant tokens' shares of the steeper heads so small that float32 loses them. The forward pass notes for
each block of queries which keys have a share that counts; the backward pass reads those alone.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .kernels import triton_error
from .narrow import room

if triton_error() is None:
    import triton
    import triton.language as tl

    from .narrow import rows_in_fours, store_fours

MAX_HEAD_DIM = 128
MIN_HEAD_DIM = 16
_LOG2_E = math.log2(math.e)


class Shape(NamedTuple):
    """How a kernel divides its work: tokens that pass by a program's own at once, warps, stages."""

    pass_by: int
    warps: int
    stages: int


OWN = 64  # tokens that a program owns
FORWARD = Shape(64, 4, 3)
QUERIES = Shape(32, 4, 3)
KEYS = Shape(32, 4, 3)


def attention(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Tensor, even: bool) -> Tensor:
    """softmax(q k' / sqrt(head_dim) - slope |i - j|) v within each row.

    Args:
        qkv: (tokens, 3, heads, head_dim), contiguous.
        cu_seqlens: where rows start, and the number of tokens last, int32, (rows + 1,).
        max_seqlen: the most tokens of a row.
        slopes: (heads,), float32.
        even: whether all rows have `max_seqlen` tokens.

    Returns:
        (tokens, heads, head_dim).
    """
    return _Attention.apply(qkv.contiguous(), cu_seqlens, max_seqlen, slopes, even)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Tensor, even: bool) -> Tensor:
        out, kept = attention_forward(qkv, cu_seqlens, max_seqlen, slopes, even)
        ctx.save_for_backward(*kept.tensors)
        ctx.rows = kept.rows
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gradients = attention_backward(Kept(*ctx.saved_tensors, *ctx.rows), grads[0])
        return gradients.of_qkv, None, None, None, None


class Kept(NamedTuple):
    """What `attention_backward` needs of the forward pass."""

    qkv: Tensor
    out: Tensor
    log_sums: Tensor
    reach: Tensor
    cu_seqlens: Tensor
    slopes: Tensor
    max_seqlen: int
    even: bool

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All but the last two."""
        return self[:-2]

    @property
    def rows(self) -> tuple[int, bool]:
        """The last two."""
        return self[-2:]


class Gradients(NamedTuple):
    """What `attention_backward` gives.

    Attributes:
        of_qkv: (tokens, 3, heads, head_dim), in the dtype of `qkv` or of 8 bits.
        turned: of 8 bits, (3 * heads * head_dim, tokens); or None.
        of_query_bias: the sum of the queries' gradients over tokens, float32, (heads * head_dim,).
    """

    of_qkv: Tensor
    turned: Tensor | None
    of_query_bias: Tensor


def attention_forward(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Tensor, even: bool
) -> tuple[Tensor, Kept]:
    """`attention`, whose arguments it takes, not differentiating itself: the result, and what going back needs."""
    tokens, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(tokens, heads, head_dim)
    log_sums = torch.empty(heads, tokens, device=qkv.device, dtype=torch.float32)
    arguments, options = _arguments(FORWARD, qkv, max_seqlen, even)
    grid = triton.cdiv(max_seqlen, options["OWN"]), heads, cu_seqlens.numel() - 1
    # For each block of queries the first of the keys that count and what is behind the last; then the same of
    # queries for each block of keys, which going backward adds.
    reach = torch.empty(4, *grid[::-1], device=qkv.device, dtype=torch.int32)
    _forward[grid](qkv, out, log_sums, reach, cu_seqlens, slopes, *arguments, **options)
    return out, Kept(qkv, out, log_sums, reach, cu_seqlens, slopes, max_seqlen, even)


def attention_backward(kept: Kept, grad: Tensor, unit: Tensor | None = None) -> Gradients:
    """The gradients of `qkv` from those of the result, (tokens, heads, head_dim).

    Args:
        unit: what 1 stands for, float32, a scalar: with it they are e5m2, where `can_narrow`.
    """
    qkv, out, log_sums, reach, cu_seqlens, slopes, max_seqlen, even = kept
    tokens, _, heads, head_dim = qkv.shape
    grad = grad.contiguous()
    deltas = torch.empty_like(log_sums)
    grid = tuple(reach.shape[:0:-1])
    query_sums = torch.empty(grid[2] * grid[0], heads * head_dim, device=qkv.device, dtype=torch.float32)
    of_qkv, turned = (torch.empty_like(qkv), qkv) if unit is None else room(tokens, 3 * heads * head_dim, qkv.device)
    given = qkv if unit is None else unit, unit is not None
    arguments, options = _arguments(QUERIES, qkv, max_seqlen, even)
    _of_queries[grid](
        qkv, out, grad, of_qkv, turned, query_sums, log_sums, deltas, reach, cu_seqlens, slopes, *arguments, *given,
        **options, OWNERS=triton.next_power_of_2(grid[0]),
    )  # fmt: skip
    arguments, options = _arguments(KEYS, qkv, max_seqlen, even)
    _of_keys[grid](
        qkv, grad, of_qkv, turned, log_sums, deltas, reach, cu_seqlens, slopes, *arguments, *given, **options
    )
    if unit is None:
        return Gradients(of_qkv, None, query_sums.sum(0))
    dtype = torch.float8_e5m2
    return Gradients(of_qkv.view(dtype).view_as(qkv), turned.view(dtype), query_sums.sum(0))


def can_narrow(kept: Kept) -> bool:
    """Whether gradients can be written in 8 bits: rows begin where the transpose has four tokens' numbers in one."""
    return kept.even and kept.max_seqlen % 4 == 0


def _arguments(shape: Shape, qkv: Tensor, max_seqlen: int, even: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    longest = max(16, triton.next_power_of_2(max_seqlen))
    own, pass_by = min(OWN, longest), min(shape.pass_by, longest)
    tokens, _, heads, head_dim = qkv.shape
    masked = not even or max_seqlen % own != 0 or max_seqlen % pass_by != 0
    # Float32 takes twice the shared memory; it serves comparisons, not speed.
    stages = shape.stages if qkv.element_size() == 2 else 1
    scale = head_dim**-0.5
    options = {"HEADS": heads, "WIDTH": head_dim, "BLOCK": triton.next_power_of_2(head_dim), "OWN": own,
               "PASS": pass_by, "MASKED": masked, "num_warps": shape.warps, "num_stages": stages}  # fmt: skip
    return (tokens, scale, scale * _LOG2_E), options


if triton_error() is None:
    # A share of softmax below 2^-24 is lost in a float32 that holds a row's sum.
    _NEGLIGIBLE = tl.constexpr(-24.0)

    @triton.jit
    def _load(place, inside, MASKED: tl.constexpr):
        """Zeros outside; without a mask where all is inside, which is faster."""
        if MASKED:  # noqa: SIM108 - a constant decides which of both is compiled
            values = tl.load(place, mask=inside, other=0.0)
        else:
            values = tl.load(place)
        return values

    @triton.jit
    def _program():
        """The number of a program, in the order of the grid (blocks, heads, rows)."""
        return (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)

    @triton.jit
    def _programs():
        return tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2)

    @triton.jit
    def _forward(
        qkv, out, log_sums, reach, cu_seqlens, slopes, tokens, scale, scale2, HEADS: tl.constexpr,
        WIDTH: tl.constexpr, BLOCK: tl.constexpr, OWN: tl.constexpr, PASS: tl.constexpr, MASKED: tl.constexpr,
    ):  # fmt: skip
        head = tl.program_id(1)
        start = tl.load(cu_seqlens + tl.program_id(2)).to(tl.int64)
        length = (tl.load(cu_seqlens + tl.program_id(2) + 1) - start).to(tl.int32)
        own = tl.program_id(0) * OWN + tl.arange(0, OWN)
        if tl.program_id(0) * OWN < length:
            column = tl.arange(0, BLOCK)
            within = column[None, :] < WIDTH
            slope = tl.load(slopes + head) / scale  # as what is added to q k' before it is scaled
            queries = qkv + start * 3 * HEADS * WIDTH + head * WIDTH
            keys = queries + HEADS * WIDTH
            values = keys + HEADS * WIDTH
            offsets = own[:, None] * (3 * HEADS * WIDTH) + column[None, :]
            own_inside = (own[:, None] < length) & within
            q = tl.load(queries + offsets, mask=own_inside, other=0.0)
            position = own.to(tl.float32) * slope
            largest = tl.full([OWN], -1e30, dtype=tl.float32)
            total = tl.zeros([OWN], dtype=tl.float32)
            result = tl.zeros([OWN, BLOCK], dtype=tl.float32)
            # From a token's own block on, whose shares are large, then around the end: a block whose shares are
            # negligible against what came before is so in the end.
            blocks = tl.cdiv(length, PASS)
            nearest = tl.program_id(0) * OWN // PASS
            least = tl.zeros([OWN], dtype=tl.int32) + nearest  # what stays where numbers aren't finite
            most = least + 1
            for turn in range(blocks):
                block = nearest + turn
                block = tl.where(block < blocks, block, block - blocks)
                other = block * PASS + tl.arange(0, PASS)
                others = other[:, None] * (3 * HEADS * WIDTH) + column[None, :]
                inside = (other[:, None] < length) & within
                k = _load(keys + others, inside, MASKED or BLOCK != WIDTH)
                v = _load(values + others, inside, MASKED or BLOCK != WIDTH)
                bias = tl.abs(position[:, None] - (other.to(tl.float32) * slope)[None, :])
                scores = tl.dot(q, tl.trans(k), input_precision="ieee") - bias
                if MASKED:
                    scores = tl.where((other < length)[None, :], scores, -1e30)
                highest = tl.max(scores, 1) * scale2
                above = tl.maximum(largest, highest)
                counts = highest - above > _NEGLIGIBLE
                least = tl.where(counts, tl.minimum(least, block), least)
                most = tl.where(counts, tl.maximum(most, block + 1), most)
                share = tl.exp2(scores * scale2 - above[:, None])
                shrink = tl.exp2(largest - above)
                total = total * shrink + tl.sum(share, 1)
                result = result * shrink[:, None] + tl.dot(share.to(v.dtype), v, input_precision="ieee")
                largest = above
            result = result / total[:, None]
            place = (start + own)[:, None] * (HEADS * WIDTH) + head * WIDTH + column[None, :]
            tl.store(out + place, result.to(out.dtype.element_ty), mask=own_inside)
            tl.store(log_sums + head * tokens + start + own, largest + tl.log2(total), mask=own < length)
            first = tl.min(tl.where(own < length, least, nearest), 0) * PASS
            end = tl.minimum(tl.max(tl.where(own < length, most, 0), 0) * PASS, length)
            place = reach + _program()
            tl.store(place, first)
            tl.store(place + _programs(), end)
        else:  # no token is there: it sees none
            place = reach + _program()
            tl.store(place, 0)
            tl.store(place + _programs(), 0)

    @triton.jit
    def _store_gradient(
        gradient, of_qkv, turned, factor, start, length, tokens, place, HEADS: tl.constexpr, WIDTH: tl.constexpr,
        BLOCK: tl.constexpr, OWN: tl.constexpr, NARROW: tl.constexpr,
    ):  # fmt: skip
        """Stores the gradient of a program's queries, keys or values, times a factor.

        Args:
            place: of its first column in a token's numbers.
        """
        column = tl.arange(0, BLOCK)
        if NARROW:
            a, b, c, d = rows_in_fours(gradient * factor, OWN, BLOCK)
            quad = tl.program_id(0) * (OWN // 4) + tl.arange(0, OWN // 4)
            inside = (quad * 4 < length)[:, None] & (column < WIDTH)[None, :]
            store_fours(
                a, b, c, d, of_qkv, turned, tokens // 4, 3 * HEADS * WIDTH, start // 4 + quad, place + column, inside,
                False,
            )  # fmt: skip
        else:
            own = tl.program_id(0) * OWN + tl.arange(0, OWN)
            inside = (own < length)[:, None] & (column < WIDTH)[None, :]
            offsets = (start + own)[:, None] * (3 * HEADS * WIDTH) + place + column[None, :]
            tl.store(of_qkv + offsets, (gradient * factor).to(of_qkv.dtype.element_ty), mask=inside)

    @triton.jit
    def _of_queries(
        qkv, out, grad, of_qkv, turned, query_sums, log_sums, deltas, reach, cu_seqlens, slopes, tokens, scale, scale2,
        unit, NARROW: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, OWN: tl.constexpr,
        PASS: tl.constexpr, MASKED: tl.constexpr, OWNERS: tl.constexpr,
    ):  # fmt: skip
        head = tl.program_id(1)
        start = tl.load(cu_seqlens + tl.program_id(2)).to(tl.int64)
        length = (tl.load(cu_seqlens + tl.program_id(2) + 1) - start).to(tl.int32)
        own = tl.program_id(0) * OWN + tl.arange(0, OWN)
        column = tl.arange(0, BLOCK)
        sums = query_sums + (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * (HEADS * WIDTH)
        sums += head * WIDTH + column
        if tl.program_id(0) * OWN < length:
            within = column[None, :] < WIDTH
            slope = tl.load(slopes + head) / scale  # as what is added to q k' before it is scaled
            queries = start * 3 * HEADS * WIDTH + head * WIDTH
            keys = qkv + queries + HEADS * WIDTH
            values = keys + HEADS * WIDTH
            offsets = own[:, None] * (3 * HEADS * WIDTH) + column[None, :]
            place = (start + own)[:, None] * (HEADS * WIDTH) + head * WIDTH + column[None, :]
            own_inside = (own[:, None] < length) & within
            q = tl.load(qkv + queries + offsets, mask=own_inside, other=0.0)
            upper = tl.load(grad + place, mask=own_inside, other=0.0)
            outputs = tl.load(out + place, mask=own_inside, other=0.0)
            delta = tl.sum(upper.to(tl.float32) * outputs.to(tl.float32), 1)
            tl.store(deltas + head * tokens + start + own, delta, mask=own < length)
            log_sum = tl.load(log_sums + head * tokens + start + own, mask=own < length, other=0.0)
            position = own.to(tl.float32) * slope
            result = tl.zeros([OWN, BLOCK], dtype=tl.float32)
            # What of_keys is to read: those blocks of queries whose reach has tokens of this block.
            owner = tl.arange(0, OWNERS)
            place = reach + _program()
            there = owner < tl.num_programs(0)
            begins = tl.load(place - tl.program_id(0) + owner, mask=there, other=0)
            ends = tl.load(place - tl.program_id(0) + _programs() + owner, mask=there, other=0)
            see = (begins < (tl.program_id(0) + 1) * OWN) & (ends > tl.program_id(0) * OWN)
            tl.store(place + 2 * _programs(), tl.min(tl.where(see, owner, OWNERS), 0) * OWN)
            tl.store(place + 3 * _programs(), tl.minimum(tl.max(tl.where(see, owner + 1, 0), 0) * OWN, length))
            for first in range(tl.load(place) // PASS * PASS, tl.load(place + _programs()), PASS):
                other = first + tl.arange(0, PASS)
                others = other[:, None] * (3 * HEADS * WIDTH) + column[None, :]
                inside = (other[:, None] < length) & within
                k = _load(keys + others, inside, MASKED or BLOCK != WIDTH)
                v = _load(values + others, inside, MASKED or BLOCK != WIDTH)
                bias = tl.abs(position[:, None] - (other.to(tl.float32) * slope)[None, :])
                scores = tl.dot(q, tl.trans(k), input_precision="ieee") - bias
                share = tl.exp2(scores * scale2 - log_sum[:, None])
                if MASKED:
                    share = tl.where((other < length)[None, :], share, 0.0)
                of_share = tl.dot(upper, tl.trans(v), input_precision="ieee")
                of_scores = share * (of_share - delta[:, None])
                result += tl.dot(of_scores.to(k.dtype), k, input_precision="ieee")
            result *= scale
            tl.store(sums, tl.sum(result, 0), mask=column < WIDTH)
            factor = 1.0 / tl.load(unit) if NARROW else 1.0
            _store_gradient(
                result, of_qkv, turned, factor, start, length, tokens, head * WIDTH, HEADS, WIDTH, BLOCK, OWN, NARROW
            )
        else:
            tl.store(sums, tl.zeros([BLOCK], dtype=tl.float32), mask=column < WIDTH)

    @triton.jit
    def _of_keys(
        qkv, grad, of_qkv, turned, log_sums, deltas, reach, cu_seqlens, slopes, tokens, scale, scale2, unit,
        NARROW: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, OWN: tl.constexpr,
        PASS: tl.constexpr, MASKED: tl.constexpr,
    ):  # fmt: skip
        head = tl.program_id(1)
        start = tl.load(cu_seqlens + tl.program_id(2)).to(tl.int64)
        length = (tl.load(cu_seqlens + tl.program_id(2) + 1) - start).to(tl.int32)
        own = tl.program_id(0) * OWN + tl.arange(0, OWN)
        if tl.program_id(0) * OWN < length:
            column = tl.arange(0, BLOCK)
            within = column[None, :] < WIDTH
            slope = tl.load(slopes + head) / scale  # as what is added to q k' before it is scaled
            queries = qkv + start * 3 * HEADS * WIDTH + head * WIDTH
            keys = start * 3 * HEADS * WIDTH + (HEADS + head) * WIDTH
            values = keys + HEADS * WIDTH
            uppers = grad + start * HEADS * WIDTH + head * WIDTH
            offsets = own[:, None] * (3 * HEADS * WIDTH) + column[None, :]
            own_inside = (own[:, None] < length) & within
            k = tl.load(qkv + keys + offsets, mask=own_inside, other=0.0)
            v = tl.load(qkv + values + offsets, mask=own_inside, other=0.0)
            position = own.to(tl.float32) * slope
            place = reach + 2 * _programs() + _program()
            of_k = tl.zeros([OWN, BLOCK], dtype=tl.float32)
            of_v = tl.zeros([OWN, BLOCK], dtype=tl.float32)
            for first in range(tl.load(place), tl.load(place + _programs()), PASS):
                other = first + tl.arange(0, PASS)
                if MASKED or BLOCK != WIDTH:
                    inside = (other[:, None] < length) & within
                    q = tl.load(
                        queries + other[:, None] * (3 * HEADS * WIDTH) + column[None, :], mask=inside, other=0.0
                    )
                    upper = tl.load(uppers + other[:, None] * (HEADS * WIDTH) + column[None, :], mask=inside, other=0.0)
                    # Queries beyond the end: softmax's sum is infinite, so that their shares are 0.
                    log_sum = tl.load(log_sums + head * tokens + start + other, mask=other < length, other=float("inf"))
                    delta = tl.load(deltas + head * tokens + start + other, mask=other < length, other=0.0)
                else:
                    q = tl.load(queries + other[:, None] * (3 * HEADS * WIDTH) + column[None, :])
                    upper = tl.load(uppers + other[:, None] * (HEADS * WIDTH) + column[None, :])
                    log_sum = tl.load(log_sums + head * tokens + start + other)
                    delta = tl.load(deltas + head * tokens + start + other)
                bias = tl.abs(position[:, None] - (other.to(tl.float32) * slope)[None, :])
                scores = tl.dot(k, tl.trans(q), input_precision="ieee") - bias
                share = tl.exp2(scores * scale2 - log_sum[None, :])
                of_v += tl.dot(share.to(upper.dtype), upper, input_precision="ieee")
                of_share = tl.dot(v, tl.trans(upper), input_precision="ieee")
                of_scores = share * (of_share - delta[None, :])
                of_k += tl.dot(of_scores.to(q.dtype), q, input_precision="ieee")
            factor = 1.0 / tl.load(unit) if NARROW else 1.0
            first = (HEADS + head) * WIDTH
            _store_gradient(
                of_k, of_qkv, turned, scale * factor, start, length, tokens, first, HEADS, WIDTH, BLOCK, OWN, NARROW
            )
            first += HEADS * WIDTH
            _store_gradient(
                of_v, of_qkv, turned, factor, start, length, tokens, first, HEADS, WIDTH, BLOCK, OWN, NARROW
            )

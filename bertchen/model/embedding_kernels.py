"""dropout(LayerNorm(words + type)) in Triton, forward and backward, each in one pass over the tokens.

The gradient of the words is a sum over the tokens that have a word. Going backward in the order of the words, a program
adds up a word's gradients in its registers and memory sees sums alone; a quarter of all tokens in training are the same
one, the mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .kernels import dropout_arguments, new_seed, triton_error
from .norm_kernels import FORWARD_LANE, divide, programs_at_once

if triton_error() is None:
    import triton
    import triton.language as tl

    from .kernels import _random_key, _random_pair
    from .norm_kernels import (
        _load_pieces,
        _norm_gradient,
        _store_norm,
        _store_pieces,
        _sums_of_pieces,
        _sums_of_products,
        _zero_pieces,
    )

# Numbers of a row that a lane has registers for, and warps that a processor has registers for at once, going backward.
BACKWARD_LANE, BACKWARD_WARPS = 12, 16


class EmbeddingWeights(NamedTuple):
    """Words (vocabulary, hidden); the type of all tokens, LayerNorm's weight and shift, (hidden,)."""

    words: Tensor
    type: Tensor
    norm: Tensor
    norm_shift: Tensor


@torch.compiler.disable
def fused_embeddings(
    ids: Tensor, weights: EmbeddingWeights, padding: int | None, eps: float, p: float, dtype: torch.dtype
) -> Tensor:
    """dropout(LayerNorm(words[ids] + type)), (tokens, hidden), in `dtype`; all sums in float32.

    Args:
        ids: (tokens,); one that no word has gives NaN.
        padding: a word whose gradient is zero.
        p: probability of dropout, 0 where not training.
    """
    return _Embed.apply(ids.contiguous(), padding, eps, p, dtype, *weights)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, padding: int | None, eps: float, p: float, dtype: torch.dtype, *parameters: Tensor
    ) -> Tensor:
        weights = EmbeddingWeights(*(parameter.contiguous() for parameter in parameters))
        (tokens,), width = ids.shape, weights.words.shape[1]
        out = torch.empty(tokens, width, device=ids.device, dtype=dtype)
        moments = torch.empty(tokens, 2, device=ids.device, dtype=torch.float32)
        seed = new_seed(ids.device) if p else None
        if tokens:
            given, drop, scale = dropout_arguments(p, seed, ids)
            pieces, piece, warps = divide(width, FORWARD_LANE)
            _embed[(triton.cdiv(tokens, 2),)](
                ids, *weights, out, moments, given, tokens, len(weights.words), eps, width, drop, scale, pieces, piece,
                num_warps=warps,
            )  # fmt: skip
        ctx.padding, ctx.p = padding, p
        ctx.save_for_backward(ids, moments, seed, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ids, moments, seed, *parameters = ctx.saved_tensors
        weights = EmbeddingWeights(*parameters)
        (tokens,), width = ids.shape, weights.words.shape[1]
        seed, drop, scale = dropout_arguments(ctx.p, seed, ids)
        words, order = ids.sort()
        pieces, piece, warps = divide(width, BACKWARD_LANE)
        programs = programs_at_once(tokens, BACKWARD_WARPS, warps, ids.device)
        of_words = torch.zeros(weights.words.shape, device=ids.device, dtype=torch.float32)
        sums = torch.empty(programs, 3, width, device=ids.device, dtype=torch.float32)
        _embed_backward[(programs,)](
            grads[0].contiguous(), words, order, *weights[:3], moments, of_words, sums, seed, tokens,
            len(weights.words), -1 if ctx.padding is None else ctx.padding, width, drop, scale, pieces, piece,
            num_warps=warps,
        )  # fmt: skip
        of_norm, of_norm_shift, of_type = sums.sum(0)
        given = (of_words, of_type, of_norm, of_norm_shift)
        return None, None, None, None, None, *(of.to(to.dtype) for of, to in zip(given, weights, strict=True))


if triton_error() is None:

    @triton.jit
    def _is_known(word, vocabulary):
        return (word >= 0) & (word < vocabulary)

    @triton.jit
    def _embed(
        ids, words, type_row, weight, shift, out, moments, seed, tokens, vocabulary, eps, WIDTH: tl.constexpr,
        DROP: tl.constexpr, SCALE: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr,
    ):  # fmt: skip
        pair = tl.program_id(0)
        token = pair.to(tl.int64) * 2
        inside, next_inside = token < tokens, token + 1 < tokens
        word = tl.load(ids + token, mask=inside, other=0).to(tl.int64)
        next_word = tl.load(ids + token + 1, mask=next_inside, other=0).to(tl.int64)
        known, next_known = _is_known(word, vocabulary), _is_known(next_word, vocabulary)
        row = _load_pieces(words + word * WIDTH, inside & known, WIDTH, PIECES, PIECE)
        next_row = _load_pieces(words + next_word * WIDTH, next_inside & next_known, WIDTH, PIECES, PIECE)
        of_type = _load_pieces(type_row, True, WIDTH, PIECES, PIECE)
        bits, next_bits = (), ()
        if DROP:
            key = _random_key(seed)
            for i in tl.static_range(PIECES):
                first, second = _random_pair(key, pair * WIDTH + i * PIECE + tl.arange(0, PIECE))
                bits = bits + (first,)
                next_bits = next_bits + (second,)
        row = _sums_of_pieces(row, of_type, PIECES)
        next_row = _sums_of_pieces(next_row, of_type, PIECES)
        _store_norm(
            row, known, inside, token, weight, shift, out, moments, eps, bits, WIDTH, DROP, SCALE, PIECES, PIECE
        )
        _store_norm(
            next_row, next_known, next_inside, token + 1, weight, shift, out, moments, eps, next_bits, WIDTH, DROP,
            SCALE, PIECES, PIECE,
        )  # fmt: skip

    @triton.jit
    def _embed_backward(
        grad, sorted_ids, order, words, type_row, weight, moments, of_words, sums, seed, tokens, vocabulary, padding,
        WIDTH: tl.constexpr, DROP: tl.constexpr, SCALE: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr,
    ):  # fmt: skip
        # A program has a run of tokens in the order of their words.
        each = tl.cdiv(tokens, tl.num_programs(0))
        begin = tl.program_id(0) * each
        end = tl.minimum(begin + each, tokens)
        of_weight = _zero_pieces(PIECES, PIECE)
        of_shift = _zero_pieces(PIECES, PIECE)
        of_type = _zero_pieces(PIECES, PIECE)
        of_word = _zero_pieces(PIECES, PIECE)
        if DROP:
            key = _random_key(seed)
        token = tl.load(order + begin, mask=begin < end, other=0)
        word = tl.load(sorted_ids + begin, mask=begin < end, other=0).to(tl.int64)
        for at in range(begin, end):
            # What the next turn needs is on its way in this one.
            more = at + 1 < end
            next_token = tl.load(order + at + 1, mask=more, other=0)
            next_word = tl.load(sorted_ids + at + 1, mask=more, other=-1).to(tl.int64)
            uppers = _load_pieces(grad + token * WIDTH, True, WIDTH, PIECES, PIECE)
            known = _is_known(word, vocabulary)
            rows = _load_pieces(words + word * WIDTH, known, WIDTH, PIECES, PIECE)
            mean = tl.load(moments + token * 2)
            reciprocal = tl.load(moments + token * 2 + 1)
            dropped, normed = (), ()
            for i in tl.static_range(PIECES):
                column = i * PIECE + tl.arange(0, PIECE)
                upper = uppers[i]
                if DROP:
                    first, second = _random_pair(key, (token // 2).to(tl.int32) * WIDTH + column)
                    upper = tl.where(tl.where(token % 2 == 0, first, second) >= DROP, upper * SCALE, 0.0)
                total = rows[i] + tl.load(type_row + column, mask=column < WIDTH, other=0.0).to(tl.float32)
                dropped = dropped + (upper,)
                normed = normed + ((total - mean) * reciprocal,)
            of_weight = _sums_of_products(of_weight, dropped, normed, PIECES)
            of_shift = _sums_of_pieces(of_shift, dropped, PIECES)
            results = _norm_gradient(dropped, normed, reciprocal, weight, WIDTH, PIECES, PIECE)
            of_type = _sums_of_pieces(of_type, results, PIECES)
            of_word = _sums_of_pieces(of_word, results, PIECES)
            ends = next_word != word
            _add_pieces(of_words + word * WIDTH, ends & known & (word != padding), of_word, WIDTH, PIECES, PIECE)
            of_word = _zero_where(of_word, ends, PIECES)
            token = next_token
            word = next_word
        place = sums + tl.program_id(0) * 3 * WIDTH
        _store_pieces(place, True, of_weight, WIDTH, PIECES, PIECE)
        _store_pieces(place + WIDTH, True, of_shift, WIDTH, PIECES, PIECE)
        _store_pieces(place + 2 * WIDTH, True, of_type, WIDTH, PIECES, PIECE)

    @triton.jit
    def _add_pieces(place, wanted, pieces, WIDTH: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
        """Adds a row to one in memory, where another program may do so too."""
        if wanted:
            for i in tl.static_range(PIECES):
                column = i * PIECE + tl.arange(0, PIECE)
                tl.atomic_add(place + column, pieces[i], mask=column < WIDTH, sem="relaxed")

    @triton.jit
    def _zero_where(pieces, condition, PIECES: tl.constexpr):
        zeroed = ()
        for i in tl.static_range(PIECES):
            zeroed = zeroed + (tl.where(condition, 0.0, pieces[i]),)
        return zeroed

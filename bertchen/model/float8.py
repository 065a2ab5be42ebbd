"""A layer whose large matrix products, forward and backward, multiply numbers of 8 bits.

Activations and weights are e4m3, gradients e5m2, each tensor in multiples of one unit: a weight's from its largest
value at each step, the gradients' of a layer from the largest behind its last LayerNorm, and a fixed one for
activations, which LayerNorm bounds. Nothing is remembered between steps. Sums are in 32 bits; the residual stream,
LayerNorms, attention and its projection stay as they are, and so does the head, whose loss 8 bits would raise. A GPU
multiplies 8-bit matrices in one layout alone, so what quantizes a matrix writes it twice, the second time transposed,
for the product in which the tokens are summed over.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import fused, kernels
from .kernels import triton_error
from .narrow import TILE_COLUMNS, TILE_ROWS, quantize, room
from .norm_kernels import add_norm, add_norm_backward

if triton_error() is None:
    import triton
    import triton.language as tl

    from .kernels import _normal, _random_key, _random_pair
    from .narrow import store_fours

ROWS_MULTIPLE = 16
MIN_CAPABILITY = (8, 9)
E4M3_LIMIT = 448.0
# What LayerNorm gives lies within ±sqrt(width) times its weight; here the range ends at ±56, after the GLU at ±112.
NORM_UNIT = 1 / 8
GLU_UNIT = 1 / 4
# The largest gradient behind a layer's last LayerNorm becomes this much: 7 powers of two below e5m2's end, 22 above its
# least.
GRADIENT_AT = 256.0


def why_unable(device: torch.device, widths: tuple[int, ...]) -> str | None:
    """Why products of 8 bits can't serve, or None.

    Args:
        widths: of the matrices.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return "8-bit matrix products need a GPU of compute capability 8.9 or newer"
    odd = [width for width in widths if width % ROWS_MULTIPLE]
    if odd:
        return f"8-bit matrix products need widths divisible by {ROWS_MULTIPLE}, not {odd[0]}"
    return _try(device)


@cache
def _try(device: torch.device) -> str | None:
    """Why the kernels or the products can't be trusted here, or None; found by trying them on small matrices.

    An earlier way to write the transposes compiled everywhere and gave wrong numbers on one GPU.
    """
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(96, 160, generator=generator).bfloat16().to(device) for _ in range(2)]
    unit = torch.tensor(1 / 8, device=device)
    narrow = []
    try:
        with torch.no_grad():
            for matrix, dtype in zip(given, (torch.float8_e5m2, torch.float8_e4m3fn), strict=True):
                out, turned = quantize(matrix, unit, dtype)
                expected = (8 * matrix.float()).to(dtype).float()
                if not torch.equal(turned.float(), out.float().t()) or (out.float() != expected).float().mean() > 0.01:
                    return f"the kernels that quantize give wrong numbers here ({where})"
                narrow.append(out)
            got = product(narrow[0], narrow[1], unit, unit, torch.float32, exact_sums=True)
            expected = (narrow[0].float() / 8) @ (narrow[1].float() / 8).t()
            if not (got - expected).norm() < 0.01 * expected.norm():
                return f"8-bit matrix products give wrong numbers here ({where})"
    except Exception as error:
        return f"8-bit matrix products fail here ({where}): {type(error).__name__}: {error}"
    return None


def glu(gated: Tensor, unit: Tensor, p: float, seed: Tensor | None) -> tuple[Tensor, Tensor]:
    """`kernels.glu`, quantized to e4m3: (tokens, width) and (width, tokens)."""
    tokens, width = gated.shape[0], gated.shape[1] // 2
    out, turned = room(tokens, width, gated.device)
    seed, drop, scale = kernels.dropout_arguments(p, seed, gated)
    _glu[(triton.cdiv(tokens, TILE_ROWS), triton.cdiv(width, TILE_COLUMNS))](
        gated, out, turned, unit, seed, tokens // 4, width, True, drop, scale, TILE_ROWS // 4, TILE_COLUMNS, num_warps=4
    )
    return out.view(torch.float8_e4m3fn), turned.view(torch.float8_e4m3fn)


def glu_backward(grad: Tensor, gated: Tensor, unit: Tensor, p: float, seed: Tensor | None) -> tuple[Tensor, Tensor]:
    """`kernels.glu_backward`, quantized to e5m2: (tokens, 2 * width) and (2 * width, tokens)."""
    tokens, width = grad.shape
    out, turned = room(tokens, 2 * width, gated.device)
    seed, drop, scale = kernels.dropout_arguments(p, seed, gated)
    _glu_backward[(triton.cdiv(tokens, TILE_ROWS), triton.cdiv(width, TILE_COLUMNS))](
        grad, gated, out, turned, unit, seed, tokens // 4, width, False, drop, scale, TILE_ROWS // 4, TILE_COLUMNS,
        num_warps=8,
    )  # fmt: skip
    return out.view(torch.float8_e5m2), turned.view(torch.float8_e5m2)


def product(
    a: Tensor, b: Tensor, a_unit: Tensor, b_unit: Tensor, dtype: torch.dtype, bias: Tensor | None = None,
    exact_sums: bool = False,
) -> Tensor:  # fmt: skip
    """a b' of 8-bit matrices (m, k) and (n, k), in multiples of the product of their units.

    Args:
        exact_sums: in 32 bits throughout; else in the 8-bit units' own, faster and a little coarser.
    """
    return torch._scaled_mm(
        a, b.t(), scale_a=a_unit, scale_b=b_unit, bias=bias, out_dtype=dtype,
        use_fast_accum=not exact_sums,
    )  # fmt: skip


class Twins(NamedTuple):
    """A tensor twice, so that its gradient comes in two parts, which the kernel that takes them adds up.

    Attributes:
        x: (tokens, hidden).
        again: `x`, or None, where its gradient is to come in one.
    """

    x: Tensor
    again: Tensor | None


@torch.compiler.disable
def float8_layer(twins: Twins, weights: fused.LayerWeights, settings: fused.LayerSettings) -> Twins:
    """`fused_layer` with 8-bit products for queries, keys and values and for both projections of the feed-forward."""
    return Twins(*_Float8Layer.apply(twins.x.contiguous(), twins.again, settings, *weights))


class _Float8Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, again: Tensor | None, settings: fused.LayerSettings, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        _, _, _, attention_p, mlp_p, eps, last_eps, _ = settings
        weights = fused.LayerWeights(*parameters)
        dtype = x.dtype
        dense_weight = weights.dense.to(dtype)
        large = [weights.qkv, weights.gated, weights.wo]
        largest = torch._foreach_norm(large, float("inf"))
        weight_units = [norm.float().clamp(min=1e-12) / E4M3_LIMIT for norm in largest]
        (qkv_8, qkv_turned), (gated_8, gated_turned), (wo_8, wo_turned) = (
            quantize(weight, unit, torch.float8_e4m3fn) for weight, unit in zip(large, weight_units, strict=True)
        )
        norm_unit, glu_unit = (x.new_full((), value, dtype=torch.float32) for value in (NORM_UNIT, GLU_UNIT))
        seeds = [kernels.new_seed(x.device) if p else None for p in (attention_p, mlp_p)]

        x_8, x_turned = quantize(x, norm_unit, torch.float8_e4m3fn)
        qkv = product(x_8, qkv_8, norm_unit, weight_units[0], dtype, weights.qkv_bias.to(dtype))
        held, flat, residual = fused.attend_apart(qkv, x, settings)
        dense = flat @ dense_weight.t()
        middle, moments = add_norm(
            dense, weights.dense_bias, residual, weights.norm, weights.norm_shift, eps, attention_p, seeds[0]
        )
        middle_8, middle_turned = quantize(middle, norm_unit, torch.float8_e4m3fn)
        gated = product(middle_8, gated_8, norm_unit, weight_units[1], dtype)
        hidden_8, hidden_turned = glu(gated, glu_unit, mlp_p, seeds[1])
        out = product(hidden_8, wo_8, glu_unit, weight_units[2], dtype)
        result, last_moments = add_norm(
            out, weights.wo_bias, middle, weights.last_norm, weights.last_norm_shift, last_eps, 0.0, None
        )
        ctx.rest, ctx.settings = held.rest, settings
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            x_turned, flat, residual, dense, middle, middle_turned, moments, gated, hidden_turned, out, last_moments,
            *seeds, norm_unit, glu_unit, *weight_units, qkv_turned, gated_turned, wo_turned, dense_weight,
            weights.dense_bias, weights.norm, weights.wo_bias, weights.last_norm, *held.tensors,
        )  # fmt: skip
        return result, result.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        settings, attention_p, mlp_p = ctx.settings, ctx.settings.attention_p, ctx.settings.mlp_p
        (
            x_turned, flat, residual, dense, middle, middle_turned, moments, gated, hidden_turned, out, last_moments,
            seed, mlp_seed, norm_unit, glu_unit, qkv_unit, gated_unit, wo_unit, qkv_turned, gated_turned,
            wo_turned, dense_weight, dense_bias, norm, wo_bias, last_norm, *kept,
        ) = ctx.saved_tensors  # fmt: skip
        grad, more = (*(grad.contiguous() for grad in grads if grad is not None), None)[:2]
        dtype = out.dtype

        of_out, _, (of_last_norm, of_last_shift, of_wo_bias), largest = add_norm_backward(
            grad, out, wo_bias, middle, last_norm, last_moments, 0.0, None, more
        )
        unit = largest.clamp(min=1e-30) / GRADIENT_AT
        of_out_8, of_out_turned = quantize(of_out, unit, torch.float8_e5m2)
        of_hidden = product(of_out_8, wo_turned, unit, wo_unit, dtype)
        of_wo = product(of_out_turned, hidden_turned, unit, glu_unit, torch.float32, exact_sums=True)
        of_gated_8, of_gated_turned = glu_backward(of_hidden, gated, unit, mlp_p, mlp_seed)
        of_middle = product(of_gated_8, gated_turned, unit, gated_unit, dtype)
        of_gated_weight = product(of_gated_turned, middle_turned, unit, norm_unit, torch.float32, exact_sums=True)
        of_dense, of_x, (of_norm, of_shift, of_dense_bias), _ = add_norm_backward(
            of_out, dense, dense_bias, residual, norm, moments, attention_p, seed, of_middle
        )
        of_dense_weight = fused.weight_gradient(of_dense, flat)
        held, ctx.rest = fused.Attended(tuple(kept), ctx.rest), None
        gradients, of_x = fused.attend_apart_backward(held, of_dense @ dense_weight, of_x, settings, unit)
        of_qkv_bias = fused.attention_bias_gradient(gradients, of_dense_bias, dense_weight, settings.context.dropout_p)
        of_qkv_8, of_qkv_turned = gradients.of_qkv.flatten(1), gradients.turned
        if of_qkv_turned is None:
            of_qkv_8, of_qkv_turned = quantize(of_qkv_8, unit, torch.float8_e5m2)
        of_qkv_weight = product(of_qkv_turned, x_turned, unit, norm_unit, torch.float32, exact_sums=True)
        of_again = product(of_qkv_8, qkv_turned, unit, qkv_unit, dtype)
        if not ctx.needs_input_grad[1]:
            of_x, of_again = of_x.add_(of_again), None
        return (
            of_x, of_again, None, of_qkv_weight, of_qkv_bias, of_dense_weight, of_dense_bias, of_norm, of_shift,
            of_gated_weight, of_wo, of_wo_bias, of_last_norm, of_last_shift,
        )  # fmt: skip


if triton_error() is None:

    @triton.jit
    def _drop(a, b, c, d, seed, quad, column, width, DROP: tl.constexpr):
        """Dropout of four rows, that of `kernels`, whose rows come in pairs; what is kept isn't scaled."""
        pair = (quad * 2)[:, None] * width + column[None, :]
        key = _random_key(seed)
        first, second = _random_pair(key, pair)
        third, fourth = _random_pair(key, pair + width)
        a = tl.where(first >= DROP, a, 0.0)
        b = tl.where(second >= DROP, b, 0.0)
        c = tl.where(third >= DROP, c, 0.0)
        d = tl.where(fourth >= DROP, d, 0.0)
        return a, b, c, d

    @triton.jit
    def _glu_of(place, width, inside):
        x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        distribution, _ = _normal(x)
        return x * distribution * tl.load(place + width, mask=inside, other=0.0).to(tl.float32)

    @triton.jit
    def _glu(
        gated, out, turned, unit, seed, quarter, width, E4M3: tl.constexpr, DROP: tl.constexpr, SCALE: tl.constexpr,
        QUADS: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        quad = tl.program_id(0) * QUADS + tl.arange(0, QUADS)
        column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        inside = (quad < quarter)[:, None] & (column < width)[None, :]
        place = gated + (quad * 8)[:, None].to(tl.int64) * width + column[None, :]
        factor = SCALE / tl.load(unit)
        a = _glu_of(place, width, inside) * factor
        b = _glu_of(place + 2 * width, width, inside) * factor
        c = _glu_of(place + 4 * width, width, inside) * factor
        d = _glu_of(place + 6 * width, width, inside) * factor
        if DROP:
            a, b, c, d = _drop(a, b, c, d, seed, quad, column, width, DROP)
        store_fours(a, b, c, d, out, turned, quarter, width, quad, column, inside, E4M3)

    @triton.jit
    def _glu_gradient(place, width, upper, inside):
        x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
        distribution, density = _normal(x)
        return upper * value * (distribution + x * density), upper * x * distribution

    @triton.jit
    def _glu_backward(
        grad, gated, out, turned, unit, seed, quarter, width, E4M3: tl.constexpr, DROP: tl.constexpr,
        SCALE: tl.constexpr, QUADS: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        quad = tl.program_id(0) * QUADS + tl.arange(0, QUADS)
        column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        inside = (quad < quarter)[:, None] & (column < width)[None, :]
        place = gated + (quad * 8)[:, None].to(tl.int64) * width + column[None, :]
        upper = grad + (quad * 4)[:, None].to(tl.int64) * width + column[None, :]
        factor = SCALE / tl.load(unit)
        a = tl.load(upper, mask=inside, other=0.0).to(tl.float32) * factor
        b = tl.load(upper + width, mask=inside, other=0.0).to(tl.float32) * factor
        c = tl.load(upper + 2 * width, mask=inside, other=0.0).to(tl.float32) * factor
        d = tl.load(upper + 3 * width, mask=inside, other=0.0).to(tl.float32) * factor
        if DROP:
            a, b, c, d = _drop(a, b, c, d, seed, quad, column, width, DROP)
        a, of_a = _glu_gradient(place, width, a, inside)
        b, of_b = _glu_gradient(place + 2 * width, width, b, inside)
        c, of_c = _glu_gradient(place + 4 * width, width, c, inside)
        d, of_d = _glu_gradient(place + 6 * width, width, d, inside)
        store_fours(a, b, c, d, out, turned, quarter, 2 * width, quad, column, inside, E4M3)
        store_fours(of_a, of_b, of_c, of_d, out, turned, quarter, 2 * width, quad, column + width, inside, E4M3)

"""A layer, and the loss, with forward and backward written out: matrix products, attention, and `kernels` between them.

The same mathematics as `layers`, in fewer passes over memory. What automatic differentiation would do in kernels of its
own is part of others here: residual gradients are added up by the matrix product that ends a branch, gradients of
biases are summed where LayerNorm's backward passes anyhow, dropout's masks are computed again instead of stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .attention import AttentionContext, attend, rows_for_kernels
from .attention_kernels import Gradients, Kept, attention_backward, attention_forward, can_narrow
from .norm_kernels import add_norm, add_norm_backward
from .padding import Rows, put_rows, take_rows

LOSS_ROWS = 1 << 15
_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


class LayerWeights(NamedTuple):
    """The parameters of a layer, in the order of their use."""

    qkv: Tensor
    qkv_bias: Tensor
    dense: Tensor
    dense_bias: Tensor
    norm: Tensor
    norm_shift: Tensor
    gated: Tensor
    wo: Tensor
    wo_bias: Tensor
    last_norm: Tensor
    last_norm_shift: Tensor


class LayerSettings(NamedTuple):
    """What else a layer depends on.

    Attributes:
        context: of the attention.
        num_heads: of the attention.
        rows: the only tokens whose result is wanted, or None for all.
        attention_p, mlp_p: probabilities of dropout on the attention's output and in the feed-forward, 0 where not
            training.
        eps, last_eps: of the two LayerNorms.
        differentiate: whether gradients may be asked for.
    """

    context: AttentionContext
    num_heads: int
    rows: Rows | None
    attention_p: float
    mlp_p: float
    eps: float
    last_eps: float
    differentiate: bool


@torch.compiler.disable
def fused_layer(x: Tensor, weights: LayerWeights, settings: LayerSettings) -> Tensor:
    """The layer's result, (tokens or chosen rows, hidden), in the dtype of `x`, (tokens, hidden)."""
    return _Layer.apply(x.contiguous(), settings, *weights)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: LayerSettings, *parameters: Tensor) -> Tensor:
        _, _, _, attention_p, mlp_p, eps, last_eps, _ = settings
        weights = LayerWeights(*parameters)
        dtype = x.dtype
        qkv_weight, dense_weight, gated_weight, wo_weight = (
            weight.to(dtype) for weight in (weights.qkv, weights.dense, weights.gated, weights.wo)
        )
        seeds = [kernels.new_seed(x.device) if p else None for p in (attention_p, mlp_p)]
        qkv = F.linear(x, qkv_weight, weights.qkv_bias.to(dtype))
        held, flat, residual = attend_apart(qkv, x, settings)
        dense = flat @ dense_weight.t()
        middle, moments = add_norm(
            dense, weights.dense_bias, residual, weights.norm, weights.norm_shift, eps, attention_p, seeds[0]
        )
        gated = middle @ gated_weight.t()
        hidden = kernels.glu(gated, mlp_p, seeds[1])
        out = hidden @ wo_weight.t()
        result, last_moments = add_norm(
            out, weights.wo_bias, middle, weights.last_norm, weights.last_norm_shift, last_eps, 0.0, None
        )
        ctx.rest, ctx.settings = held.rest, settings
        ctx.save_for_backward(
            x, flat, residual, dense, middle, moments, gated, hidden, out, last_moments, *seeds,
            qkv_weight, dense_weight, gated_weight, wo_weight,
            weights.dense_bias, weights.norm, weights.wo_bias, weights.last_norm, *held.tensors,
        )  # fmt: skip
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        settings, attention_p, mlp_p = ctx.settings, ctx.settings.attention_p, ctx.settings.mlp_p
        (
            x, flat, residual, dense, middle, moments, gated, hidden, out, last_moments, seed, mlp_seed,
            qkv_weight, dense_weight, gated_weight, wo_weight, dense_bias, norm, wo_bias, last_norm, *kept,
        ) = ctx.saved_tensors  # fmt: skip
        of_out, _, (of_last_norm, of_last_shift, of_wo_bias), _ = add_norm_backward(
            grads[0].contiguous(), out, wo_bias, middle, last_norm, last_moments, 0.0, None
        )
        of_wo = weight_gradient(of_out, hidden)
        of_gated = kernels.glu_backward(of_out @ wo_weight, gated, mlp_p, mlp_seed)
        of_gated_weight = weight_gradient(of_gated, middle)
        of_middle = of_out.addmm_(of_gated, gated_weight)
        of_dense, of_x, (of_norm, of_shift, of_dense_bias), _ = add_norm_backward(
            of_middle, dense, dense_bias, residual, norm, moments, attention_p, seed
        )
        of_dense_weight = weight_gradient(of_dense, flat)
        held, ctx.rest = Attended(tuple(kept), ctx.rest), None
        gradients, of_x = attend_apart_backward(held, of_dense @ dense_weight, of_x, settings)
        of_qkv = gradients.of_qkv.flatten(1)
        of_qkv_weight = weight_gradient(of_qkv, x)
        of_qkv_bias = attention_bias_gradient(gradients, of_dense_bias, dense_weight, settings.context.dropout_p)
        # The dense product's gradient, where nothing drops, is the residual's too: it has been used by now.
        of_x = of_x.addmm_(of_qkv, qkv_weight)
        return (
            of_x, None, of_qkv_weight, of_qkv_bias, of_dense_weight, of_dense_bias, of_norm, of_shift, of_gated_weight,
            of_wo, of_wo_bias, of_last_norm, of_last_shift,
        )  # fmt: skip


class Attended(NamedTuple):
    """What `attend_apart_backward` needs.

    Attributes:
        tensors: of `Kept`, for autograd to keep, or to compute again if it is told so; of other backends none.
        rest: of `Kept`; or the ends of a graph, by which other backends differentiate themselves.
    """

    tensors: tuple[Tensor, ...]
    rest: tuple[Any, ...]


def attend_apart(qkv: Tensor, x: Tensor, settings: LayerSettings) -> tuple[Attended, Tensor, Tensor]:
    """Attention within a forward that is written out.

    Args:
        qkv: (tokens, 3 * hidden).
        x: the layer's input, (tokens, hidden).

    Returns:
        What going backward needs, and attention's result and `x` at the rows that are wanted.
    """
    context, differentiate = settings.context, settings.differentiate
    leaf = qkv.unflatten(-1, (3, settings.num_heads, -1))
    if context.backend == "triton" and qkv.shape[0]:
        attended, kept = attention_forward(leaf, *rows_for_kernels(context))
        held = Attended(kept.tensors, kept.rows)
    else:
        with torch.set_grad_enabled(differentiate):
            attended = attend(leaf.requires_grad_(differentiate), context)
        held = Attended((), (leaf, attended))
    flat = attended.detach().flatten(1)
    if settings.rows is not None:
        flat, x = take_rows(flat, settings.rows), take_rows(x, settings.rows)
    return held, flat, x


def attend_apart_backward(
    held: Attended, of_attended: Tensor, of_x: Tensor, settings: LayerSettings, unit: Tensor | None = None
) -> tuple[Gradients, Tensor]:  # fmt: skip
    """The gradients of `qkv` and of `x` from those of `attend_apart`'s results.

    Args:
        unit: see `attention_backward`; where that can't narrow them, gradients stay in the dtype of `qkv`.
    """
    if settings.rows is not None:
        of_attended, of_x = put_rows(of_attended, settings.rows), put_rows(of_x, settings.rows)
    of_attended = of_attended.unflatten(-1, (settings.num_heads, -1))
    if held.tensors:
        kept = Kept(*held.tensors, *held.rest)
        return attention_backward(kept, of_attended, unit if can_narrow(kept) else None), of_x
    leaf, attended = held.rest
    (of_qkv,) = torch.autograd.grad(attended, leaf, of_attended)
    return Gradients(of_qkv, None, of_qkv[:, 0].flatten(1).sum(0, dtype=torch.float32)), of_x


def attention_bias_gradient(
    gradients: Gradients, of_dense_bias: Tensor, dense_weight: Tensor, dropout_p: float
) -> Tensor:
    """The gradient of the biases of queries, keys and values, float32, (3 * hidden,), from as few sums as it takes.

    A bias of the keys moves all scores of a query alike, which softmax doesn't see: no gradient. Softmax's shares add
    up to 1, so that a bias of the values comes out as it is, and its gradient is the sum of the outputs' gradients: the
    projection of the sum that is the gradient of the projection's bias. Dropout of shares would change their sum.
    """
    if dropout_p:
        return gradients.of_qkv.flatten(1).sum(0, dtype=torch.float32)
    of_queries = gradients.of_query_bias
    of_values = of_dense_bias @ dense_weight.float()
    return torch.cat([of_queries, torch.zeros_like(of_queries), of_values])


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """grad' x, (out, in): in float32 where PyTorch can give it from narrower factors."""
    if grad.is_cuda and grad.dtype != torch.float32 and _TORCH >= (2, 8):
        return torch.mm(grad.t(), x, out_dtype=torch.float32)
    return grad.t() @ x


@torch.compiler.disable
def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The sum of cross entropies of x weight' + bias, float32, without logits of all rows at once, or in float32.

    Args:
        x: (rows, hidden).
        weight, bias: (classes, hidden), (classes,).
        labels: (rows,); rows with `ignore_index` don't count.
    """
    return _LinearCrossEntropy.apply(x.contiguous(), weight, bias, labels, ignore_index)


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients with the loss, while a part of the logits is there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        cast, cast_bias = weight.to(x.dtype), bias.to(x.dtype)
        differentiate = any(ctx.needs_input_grad)
        of_x = torch.empty_like(x)
        total = x.new_zeros((), dtype=torch.float32)
        of_weight = of_bias = None
        for part, labels_of_part, grad in zip(
            x.split(LOSS_ROWS), labels.split(LOSS_ROWS), of_x.split(LOSS_ROWS), strict=True
        ):
            logits = F.linear(part, cast, cast_bias)
            total = total + kernels.cross_entropy_(logits, labels_of_part, ignore_index).sum()
            if not differentiate:
                continue
            torch.mm(logits, cast, out=grad)
            weight_part, bias_part = weight_gradient(logits, part), logits.sum(0, dtype=torch.float32)
            of_weight = weight_part if of_weight is None else of_weight.add_(weight_part)
            of_bias = bias_part if of_bias is None else of_bias.add_(bias_part)
        if differentiate:
            ctx.save_for_backward(of_x, of_weight, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        of_x, of_weight, of_bias = ctx.saved_tensors
        (grad,) = grads
        return of_x * grad, of_weight * grad, of_bias * grad, None, None


def why_unfused(device: torch.device, hidden_act: str, hidden_size: int) -> str | None:
    """Why layers and loss of this kind can't be computed by the kernels on this device, or None."""
    if hidden_act != "gelu":
        return f"the kernels know gelu, not {hidden_act}"
    if hidden_size > kernels.MAX_WIDTH:
        return f"the kernels' LayerNorm holds at most {kernels.MAX_WIDTH} values, not {hidden_size}"
    return kernels.why_unable(device)

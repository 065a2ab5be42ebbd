"""Self-attention with ALiBi over unpadded tokens: one function, `attend`, and four backends behind it.

`prepare_attention` does once a forward pass what all layers share (bias, mask, choice of backend); `attend`
runs once a layer. The backends:

- `triton`: this project's kernels (`attention_kernels.py`), of variable length; CUDA.
- `flash`: flash-attn's variable-length kernel; CUDA, float16 or bfloat16.
- `flex`: PyTorch's FlexAttention, compiled; CUDA (on a CPU it runs unfused, which serves tests only, and from
  PyTorch 2.10 on without gradients).
- `sdpa`: `scaled_dot_product_attention` with the bias written out; any device, any dtype.

A backend that was asked for and can't serve raises `BackendUnavailable` with the reason. Only `auto` chooses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .alibi import alibi_bias, alibi_slopes
from .attention_kernels import MAX_HEAD_DIM, MIN_HEAD_DIM, attention
from .padding import Packing, pack, row_of_tokens

try:
    from flash_attn import flash_attn_varlen_qkvpacked_func

    _FLASH_ERROR = None
except ModuleNotFoundError as error:
    _FLASH_ERROR = (
        "flash-attn is not installed (pip install flash-attn, with a CUDA tool chain)"
        if error.name == "flash_attn"
        else f"flash-attn can't be imported: {error}"
    )
except Exception as error:  # a build for another torch fails in many ways
    _FLASH_ERROR = f"flash-attn can't be imported: {type(error).__name__}: {error}"

try:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    _FLEX_ERROR = None
except ImportError:
    _FLEX_ERROR = f"PyTorch {torch.__version__} has no FlexAttention (2.5 or newer has)"

log = logging.getLogger(__name__)

FLEX_BLOCK = 128
FLEX_MIN_HEAD_DIM = 16
FLEX_VARIANTS = 64
FLASH_TOLERANCE = 0.05
_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


class BackendUnavailable(ValueError):
    """An attention backend was asked for by name and can't serve; the message says why."""


class AttentionContext(NamedTuple):
    """What all layers of one forward pass share.

    Attributes:
        backend: `triton`, `flash`, `flex` or `sdpa`.
        packing: where the tokens are.
        slopes: ALiBi's slopes, float32, (heads,).
        dropout_p: dropout on the probabilities.
        extra: what `prepare` of the backend returned.
    """

    backend: str
    packing: Packing
    slopes: Tensor
    dropout_p: float
    extra: Any


class _Need(NamedTuple):
    """What a backend has to serve."""

    device: torch.device
    dtype: torch.dtype
    dropout_p: float
    head_dim: int | None


def why_unavailable(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    dropout_p: float = 0.0,
    head_dim: int | None = None,
) -> str | None:
    """The reason why `backend` can't serve these tensors, or None if it can.

    Args:
        head_dim: width of a head; without it what depends on the width isn't checked.
    """
    if backend not in _BACKENDS:
        return f"there is no such backend (known: {', '.join(_BACKENDS)})"
    return _BACKENDS[backend].reason(_Need(device, dtype, dropout_p, head_dim))


def _able(device: torch.device, dtype: torch.dtype, dropout_p: float, head_dim: int | None) -> list[str]:
    return [name for name in _BACKENDS if why_unavailable(name, device, dtype, dropout_p, head_dim) is None]


@torch.compiler.assume_constant_result
def choose_backend(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    dropout_p: float = 0.0,
    training: bool = False,
    head_dim: int | None = None,
    fused: bool = False,
) -> str:
    """The backend to use.

    `auto` takes `triton` where layers run in this project's kernels (`fused`), else `flash` where it can serve, else
    `flex` in training on a GPU (its compilation pays then), else `sdpa`, and logs the choice once.

    Raises:
        BackendUnavailable: a backend was named and can't serve.
    """
    if backend != "auto":
        reason = why_unavailable(backend, device, dtype, dropout_p, head_dim)
        if reason:
            able = ", ".join(_able(device, dtype, dropout_p, head_dim))
            raise BackendUnavailable(
                f"attention_backend={backend} can't serve here: {reason}. Choose auto or one that can: {able}"
            )
        return backend
    able = _able(device, dtype, dropout_p, head_dim)
    if fused and "triton" in able:
        choice = "triton"
    elif "flash" in able:
        choice = "flash"
    elif "flex" in able and training and device.type == "cuda":
        choice = "flex"
    else:
        choice = "sdpa"
    _log_choice(choice, device.type, str(dtype))
    return choice


def prepare_attention(
    backend: str,
    packing: Packing,
    num_heads: int,
    device: torch.device,
    dtype: torch.dtype,
    dropout_p: float,
    training: bool,
    head_dim: int | None = None,
    fused: bool = False,
) -> AttentionContext:
    """Everything that the layers of one forward pass share; see `AttentionContext` and `choose_backend`."""
    dropout_p = dropout_p if training else 0.0
    chosen = choose_backend(backend, device, dtype, dropout_p, training, head_dim, fused)
    slopes = alibi_slopes(num_heads, device)
    extra = _BACKENDS[chosen].prepare(packing, slopes, dtype)
    return AttentionContext(chosen, packing, slopes, dropout_p, extra)


def attend(qkv: Tensor, context: AttentionContext) -> Tensor:
    """softmax(q k' / sqrt(head_dim) - slope |i - j|) v, for each token over the tokens of its own row.

    Args:
        qkv: (total_tokens, 3, heads, head_dim).

    Returns:
        (total_tokens, heads, head_dim).
    """
    if not qkv.shape[0]:  # nothing but padding; kernels don't launch on nothing
        return qkv[:, 0]
    return _BACKENDS[context.backend].attend(qkv, context)


# -- sdpa ----------------------------------------------------------------------------------------------------


def _sdpa_prepare(packing: Packing, slopes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The bias, (1 or batch, heads, max_seqlen, max_seqlen), and where each token lies in a padded batch."""
    bias = alibi_bias(slopes, packing.max_seqlen).to(dtype)
    if packing.indices is None:
        return bias, None
    lengths = packing.cu_seqlens.diff()[:, None]
    beyond = torch.arange(packing.max_seqlen, device=slopes.device)[None, :] >= lengths
    # A row without any token would give softmax(-inf, …) = NaN, and NaN gradients for all: it sees padding.
    hidden = beyond & (lengths > 0)
    row = row_of_tokens(packing, packing.indices.numel())
    position = torch.arange(packing.indices.numel(), device=slopes.device) - packing.cu_seqlens[row]
    return bias.masked_fill(hidden[:, None, None, :], float("-inf")), row * packing.max_seqlen + position


def _sdpa_attend(qkv: Tensor, context: AttentionContext) -> Tensor:
    packing = context.packing
    bias, place = context.extra
    if place is not None:
        padded = qkv.new_zeros(packing.batch * packing.max_seqlen, *qkv.shape[1:])
        qkv = padded.index_copy(0, place, qkv)
    qkv = qkv.view(packing.batch, packing.max_seqlen, *qkv.shape[1:])
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=context.dropout_p)
    out = out.transpose(1, 2).flatten(0, 1)
    return out if place is None else out[place]


def _sdpa_reason(need: _Need) -> str | None:
    return None


# -- flex ----------------------------------------------------------------------------------------------------


def _flex_prepare(packing: Packing, slopes: Tensor, dtype: torch.dtype) -> tuple[Callable[..., Tensor], Any]:
    def alibi(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score - slopes[h] * (q_idx - kv_idx).abs()

    return alibi, None if packing.indices is None else _flex_block_mask(packing)


def _flex_block_mask(packing: Packing) -> Any:
    """Tokens of one row see each other. The blocks come from the rows' ends, not from trying all pairs."""
    assert packing.indices is not None
    total = packing.indices.numel()
    blocks = max(1, -(-total // FLEX_BLOCK))
    device = packing.cu_seqlens.device
    # What fills up the last block belongs to a row of its own, number `batch`.
    row = row_of_tokens(packing, blocks * FLEX_BLOCK)
    ends = F.pad(packing.cu_seqlens, (0, 1), value=blocks * FLEX_BLOCK).long()
    first_token = torch.arange(0, blocks * FLEX_BLOCK, FLEX_BLOCK, device=device)
    first = ends[row[first_token]] // FLEX_BLOCK
    last = (ends[row[first_token + FLEX_BLOCK - 1] + 1] - 1) // FLEX_BLOCK
    number = (last - first + 1).to(torch.int32)
    indices = (first[:, None] + torch.arange(blocks, device=device)[None, :]).clamp(max=blocks - 1).to(torch.int32)

    def same_row(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return row[q_idx] == row[kv_idx]

    return BlockMask.from_kv_blocks(number[None, None], indices[None, None], BLOCK_SIZE=FLEX_BLOCK, mask_mod=same_row)


def _flex_attend(qkv: Tensor, context: AttentionContext) -> Tensor:
    packing = context.packing
    score_mod, block_mask = context.extra
    total = qkv.shape[0]
    if packing.indices is None:
        qkv = qkv.view(packing.batch, packing.seq_len, *qkv.shape[1:])
    else:
        qkv = F.pad(qkv, (0, 0, 0, 0, 0, 0, 0, -total % FLEX_BLOCK))[None]
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    out = _flex_function(qkv.device.type)(q, k, v, score_mod=score_mod, block_mask=block_mask)
    return out.transpose(1, 2).flatten(0, 1)[:total]


def _flex_function(device_type: str) -> Callable[..., Tensor]:
    # Inside a compiled model FlexAttention is lowered with it; a CPU has no backward of the compiled kernel.
    if torch.compiler.is_compiling() or device_type == "cpu":
        return flex_attention
    return _flex_compiled


def _flex_compiled(*args: Any, **kwargs: Any) -> Tensor:
    # Lengths, heads, dtypes, masks and gradients make variants; past PyTorch's limit of 8 it would go on unfused,
    # silently. More are allowed here, and too many are an error.
    with torch._dynamo.config.patch(recompile_limit=FLEX_VARIANTS):
        return _compiled_flex_attention()(*args, **kwargs)


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, fullgraph=True)


def _flex_reason(need: _Need) -> str | None:
    if _FLEX_ERROR:
        return _FLEX_ERROR
    if need.dropout_p:
        return f"FlexAttention has no dropout (attention_probs_dropout_prob={need.dropout_p})"
    if need.device.type not in ("cuda", "cpu"):
        return f"FlexAttention runs on CUDA, not on {need.device.type}"
    if need.device.type == "cpu":
        if torch.is_grad_enabled() and _TORCH >= (2, 10):
            return "FlexAttention computes no gradients on a CPU from PyTorch 2.10 on"
    elif need.head_dim is not None and need.head_dim < FLEX_MIN_HEAD_DIM:
        return f"FlexAttention needs heads at least {FLEX_MIN_HEAD_DIM} wide, not {need.head_dim}"
    return None


# -- flash ---------------------------------------------------------------------------------------------------


def _flash_prepare(packing: Packing, slopes: Tensor, dtype: torch.dtype) -> None:
    return None


def _flash_attend(qkv: Tensor, context: AttentionContext) -> Tensor:
    packing = context.packing
    return flash_attn_varlen_qkvpacked_func(
        qkv, packing.cu_seqlens, packing.max_seqlen, dropout_p=context.dropout_p, alibi_slopes=context.slopes
    )


def _flash_reason(need: _Need) -> str | None:
    if need.device.type != "cuda":
        return f"flash-attn runs on CUDA, not on {need.device.type}"
    if need.dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn computes in float16 or bfloat16, not in {str(need.dtype).removeprefix('torch.')}"
    if _FLASH_ERROR or need.head_dim is None:
        return _FLASH_ERROR
    return _try_flash(need.device, need.dtype, need.head_dim, need.dropout_p > 0)


@cache
def _try_flash(device: torch.device, dtype: torch.dtype, head_dim: int, dropout: bool) -> str | None:
    """Why flash-attn can't serve these, or None; found by trying it on a few tokens.

    Its builds leave out devices, dtypes, head widths or dropout. What was left out fails in some builds; others go on
    with wrong numbers (seen with flash-attn 2.8.3 built for bfloat16 and 64 wide heads without dropout).
    """
    what = f"{str(dtype).removeprefix('torch.')}, heads {head_dim} wide, {torch.cuda.get_device_name(device)}"

    def outcome(backend: str, dropout_p: float = 0.0) -> tuple[Tensor, Tensor]:
        prepared = _BACKENDS[backend].prepare(packing, slopes, dtype)
        out = _BACKENDS[backend].attend(qkv, AttentionContext(backend, packing, slopes, dropout_p, prepared))
        return out.detach(), torch.autograd.grad(out.square().sum(), qkv)[0]

    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng([device]):
        packing, slopes = pack(2, 16, None, device), alibi_slopes(2, device)
        qkv = torch.randn(32, 3, 2, head_dim, device=device).to(dtype).requires_grad_()
        try:
            results = outcome("flash")
            for got, expected in zip(results, outcome("sdpa"), strict=True):
                if not (got - expected).abs().max() < FLASH_TOLERANCE * expected.abs().max():
                    return f"flash-attn computes wrong numbers here ({what})"
            if dropout and torch.equal(outcome("flash", 0.5)[0], results[0]):
                return f"flash-attn was built without dropout ({what})"
        except Exception as error:
            return f"flash-attn fails ({what}): {error}"
    return None


# -- triton --------------------------------------------------------------------------------------------------


def _triton_prepare(packing: Packing, slopes: Tensor, dtype: torch.dtype) -> None:
    return None


@torch.compiler.disable
def _triton_attend(qkv: Tensor, context: AttentionContext) -> Tensor:
    return attention(qkv, *rows_for_kernels(context))


def rows_for_kernels(context: AttentionContext) -> tuple[Tensor, int, Tensor, bool]:
    """What `attention_kernels.attention` takes besides queries, keys and values."""
    packing = context.packing
    return packing.cu_seqlens, packing.max_seqlen, context.slopes, packing.indices is None


def _triton_reason(need: _Need) -> str | None:
    if need.dropout_p:
        return f"this project's kernels have no dropout of attention (attention_probs_dropout_prob={need.dropout_p})"
    if need.head_dim is not None and not MIN_HEAD_DIM <= need.head_dim <= MAX_HEAD_DIM:
        return f"heads should be {MIN_HEAD_DIM} to {MAX_HEAD_DIM} wide, not {need.head_dim}"
    return kernels.why_unable(need.device)


# -- the table -----------------------------------------------------------------------------------------------


class _Backend(NamedTuple):
    reason: Callable[[_Need], str | None]
    prepare: Callable[[Packing, Tensor, torch.dtype], Any]
    attend: Callable[[Tensor, AttentionContext], Tensor]


_BACKENDS = {
    "triton": _Backend(_triton_reason, _triton_prepare, _triton_attend),
    "flash": _Backend(_flash_reason, _flash_prepare, _flash_attend),
    "flex": _Backend(_flex_reason, _flex_prepare, _flex_attend),
    "sdpa": _Backend(_sdpa_reason, _sdpa_prepare, _sdpa_attend),
}


@cache
def _log_choice(choice: str, device_type: str, dtype: str) -> None:
    log.info("attention_backend=auto: using %s (%s, %s)", choice, device_type, dtype)

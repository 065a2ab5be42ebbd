"""Self-attention with ALiBi over unpadded tokens: one function, `attend`, and three backends behind it.

`prepare_attention` does once a forward pass what all layers share (bias, mask, choice of backend); `attend` runs
once a layer. `sdpa` is plain PyTorch and the reference that the other two are tested against:

- `flash`: flash-attn's variable-length kernel; CUDA, float16 or bfloat16.
- `flex`: PyTorch's FlexAttention, compiled; CUDA (on a CPU it runs unfused, which serves tests only).
- `sdpa`: `scaled_dot_product_attention` with the bias written out; any device, any dtype.

A backend that was asked for and can't serve raises `BackendUnavailable` with the reason. Only `auto` chooses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .alibi import alibi_bias, alibi_slopes
from .padding import Packing, row_of_tokens

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


class BackendUnavailable(ValueError):
    """An attention backend was asked for by name and can't serve; the message says why."""


class AttentionContext(NamedTuple):
    """What all layers of one forward pass share.

    Attributes:
        backend: `flash`, `flex` or `sdpa`.
        packing: where the tokens are.
        slopes: ALiBi's slopes, float32, (heads,).
        dropout_p: dropout on the probabilities.
        extra: `sdpa`: the additive bias and the tokens' places; `flex`: the score function and the block mask; `flash`: None.
    """

    backend: str
    packing: Packing
    slopes: Tensor
    dropout_p: float
    extra: Any


def why_unavailable(backend: str, device: torch.device, dtype: torch.dtype, dropout_p: float = 0.0) -> str | None:
    """The reason why `backend` can't serve these tensors, or None if it can."""
    return _REASONS[backend](device, dtype, dropout_p)


@torch.compiler.assume_constant_result
def choose_backend(
    backend: str, device: torch.device, dtype: torch.dtype, dropout_p: float = 0.0, training: bool = False
) -> str:
    """The backend to use.

    `auto` takes `flash` where it can serve, else `flex` in training on a GPU (its compilation pays off there), else
    `sdpa`, and logs the choice once.

    Raises:
        BackendUnavailable: a backend was named and can't serve.
    """
    if backend != "auto":
        reason = why_unavailable(backend, device, dtype, dropout_p)
        if reason:
            raise BackendUnavailable(
                f"attention_backend={backend} can't serve here: {reason}. Choose auto, or one that can: "
                f"{', '.join(_able(device, dtype, dropout_p))}"
            )
        return backend
    able = _able(device, dtype, dropout_p)
    if "flash" in able:
        choice = "flash"
    elif "flex" in able and training and device.type == "cuda":
        choice = "flex"
    else:
        choice = "sdpa"
    _log_choice(choice, str(device.type), str(dtype))
    return choice


def prepare_attention(
    backend: str, packing: Packing, num_heads: int, device: torch.device, dtype: torch.dtype, dropout_p: float,
    training: bool,
) -> AttentionContext:  # fmt: skip
    """Everything that the layers of one forward pass share; see `AttentionContext`."""
    dropout_p = dropout_p if training else 0.0
    chosen = choose_backend(backend, device, dtype, dropout_p, training)
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
    return _BACKENDS[context.backend].attend(qkv, context)


# -- sdpa ---------------------------------------------------------------------------------------------------------


def _sdpa_prepare(packing: Packing, slopes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The bias, (1 or batch, heads, max_seqlen, max_seqlen), and where each token lies in a padded batch."""
    bias = alibi_bias(slopes, packing.max_seqlen)
    if packing.is_dense:
        return bias.to(dtype), None
    assert packing.indices is not None
    lengths = packing.cu_seqlens.diff()
    attended = torch.arange(packing.max_seqlen, device=slopes.device)[None, :] < lengths[:, None]
    bias = bias.masked_fill(~attended[:, None, None, :], float("-inf"))
    # A row without any token would give softmax(-inf, …) = NaN, and NaN gradients for all: let it see its padding.
    bias = bias.masked_fill((lengths == 0)[:, None, None, None], 0.0)
    row = row_of_tokens(packing, packing.indices.numel())
    position = torch.arange(packing.indices.numel(), device=slopes.device) - packing.cu_seqlens[row]
    return bias.to(dtype), row * packing.max_seqlen + position


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


def _sdpa_reason(device: torch.device, dtype: torch.dtype, dropout_p: float) -> str | None:
    return None


# -- flex ---------------------------------------------------------------------------------------------------------


def _flex_prepare(packing: Packing, slopes: Tensor, dtype: torch.dtype) -> tuple[Callable[..., Tensor], Any]:
    def alibi(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score - slopes[h] * (q_idx - kv_idx).abs()

    return alibi, None if packing.is_dense else _flex_block_mask(packing)


def _flex_block_mask(packing: Packing) -> Any:
    """Tokens of one row see each other. The blocks are computed from the rows' ends, not by trying all pairs."""
    assert packing.indices is not None
    total = packing.indices.numel()
    blocks = -(-total // FLEX_BLOCK)
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

    return BlockMask.from_kv_blocks(
        number[None, None], indices[None, None], BLOCK_SIZE=FLEX_BLOCK, mask_mod=same_row
    )


def _flex_attend(qkv: Tensor, context: AttentionContext) -> Tensor:
    packing = context.packing
    score_mod, block_mask = context.extra
    total = qkv.shape[0]
    if packing.is_dense:
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
    return _compiled_flex_attention()


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


def _flex_reason(device: torch.device, dtype: torch.dtype, dropout_p: float) -> str | None:
    if _FLEX_ERROR:
        return _FLEX_ERROR
    if dropout_p:
        return f"FlexAttention has no dropout on attention probabilities (attention_probs_dropout_prob={dropout_p})"
    if device.type not in ("cuda", "cpu"):
        return f"FlexAttention runs on CUDA, not on {device.type}"
    return None


# -- flash --------------------------------------------------------------------------------------------------------


def _flash_prepare(packing: Packing, slopes: Tensor, dtype: torch.dtype) -> None:
    return None


def _flash_attend(qkv: Tensor, context: AttentionContext) -> Tensor:
    packing = context.packing
    return flash_attn_varlen_qkvpacked_func(
        qkv, packing.cu_seqlens, packing.max_seqlen, dropout_p=context.dropout_p, alibi_slopes=context.slopes
    )


def _flash_reason(device: torch.device, dtype: torch.dtype, dropout_p: float) -> str | None:
    if device.type != "cuda":
        return f"flash-attn runs on CUDA, not on {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn computes in float16 or bfloat16, not in {str(dtype).removeprefix('torch.')}"
    return _FLASH_ERROR


# -- the table ----------------------------------------------------------------------------------------------------


class _Backend(NamedTuple):
    prepare: Callable[[Packing, Tensor, torch.dtype], Any]
    attend: Callable[[Tensor, AttentionContext], Tensor]


_BACKENDS = {
    "flash": _Backend(_flash_prepare, _flash_attend),
    "flex": _Backend(_flex_prepare, _flex_attend),
    "sdpa": _Backend(_sdpa_prepare, _sdpa_attend),
}
_REASONS = {"flash": _flash_reason, "flex": _flex_reason, "sdpa": _sdpa_reason}


def _able(device: torch.device, dtype: torch.dtype, dropout_p: float) -> list[str]:
    return [name for name in _BACKENDS if why_unavailable(name, device, dtype, dropout_p) is None]


@lru_cache(maxsize=None)
def _log_choice(choice: str, device_type: str, dtype: str) -> None:
    log.info("attention_backend=auto: using %s (%s, %s)", choice, device_type, dtype)

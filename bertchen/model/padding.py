"""Unpadding: from (batch, seq_len, …) with padding to (total_tokens, …) without, and back; and a choice of tokens.

Token-wise layers then work on real tokens only (Zeng et al., 2022; MosaicBERT). Within a row the order of the
attended tokens is kept and gaps close: the distance of two tokens doesn't depend on where padding lies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Packing(NamedTuple):
    """Where the tokens of a batch are.

    Attributes:
        batch: rows.
        seq_len: length of a row as it was given, padding included.
        max_seqlen: the most attended tokens in a row.
        indices: positions of the attended tokens in the flattened batch, (total_tokens,); None: all are.
        cu_seqlens: where each row starts among the tokens, and their number last, int32, (batch + 1,).
    """

    batch: int
    seq_len: int
    max_seqlen: int
    indices: Tensor | None
    cu_seqlens: Tensor


def pack(batch: int, seq_len: int, attention_mask: Tensor | None, device: torch.device) -> Packing:
    """The packing of a batch. Without a mask all tokens are attended; the host doesn't wait for the device.

    Args:
        attention_mask: (batch, seq_len), not zero where a token is attended.

    Raises:
        ValueError: if the mask isn't of the batch's shape.
    """
    if attention_mask is None:
        cu_seqlens = torch.arange(0, (batch + 1) * seq_len, seq_len, dtype=torch.int32, device=device)
        return Packing(batch, seq_len, seq_len, None, cu_seqlens)
    if tuple(attention_mask.shape) != (batch, seq_len):
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}, the tokens {(batch, seq_len)}")
    attended = attention_mask != 0
    lengths = attended.sum(dim=1, dtype=torch.int32)
    indices = attended.flatten().nonzero().flatten()
    if indices.numel() == batch * seq_len:
        return pack(batch, seq_len, None, device)
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return Packing(batch, seq_len, int(lengths.max()), indices, cu_seqlens)


def remove_padding(padded: Tensor, packing: Packing) -> Tensor:
    """(batch, seq_len, …) to (total_tokens, …)."""
    flat = padded.flatten(0, 1)
    return flat if packing.indices is None else flat[packing.indices]


def restore_padding(tokens: Tensor, packing: Packing) -> Tensor:
    """(total_tokens, …) to (batch, seq_len, …), with zeros at padding."""
    shape = (packing.batch, packing.seq_len, *tokens.shape[1:])
    if packing.indices is None:
        return tokens.view(shape)
    padded = tokens.new_zeros(packing.batch * packing.seq_len, *tokens.shape[1:])
    return padded.index_copy(0, packing.indices, tokens).view(shape)


class Rows(NamedTuple):
    """Some of the tokens, in order.

    Attributes:
        positions: which, (rows,); surplus ones point at token 0.
        slots: for each token its place in `positions`, their number where it is not among them, (total_tokens,).
    """

    positions: Tensor
    slots: Tensor


def take_rows(tokens: Tensor, rows: Rows) -> Tensor:
    """(total_tokens, …) to (rows, …)."""
    return tokens.index_select(0, rows.positions)


def put_rows(chosen: Tensor, rows: Rows) -> Tensor:
    """(rows, …) to (total_tokens, …), zeros where a token is not among them: the gradient of `take_rows`."""
    return F.pad(chosen, (0, 0) * (chosen.ndim - 1) + (0, 1)).index_select(0, rows.slots)


class TakeRows(torch.autograd.Function):
    """`take_rows` whose gradient is a gather too: PyTorch's sorts the positions, or adds with atomic operations."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(positions, slots)
        return take_rows(tokens, Rows(positions, slots))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return put_rows(grad, Rows(*ctx.saved_tensors)), None, None


def row_of_tokens(packing: Packing, total_tokens: int) -> Tensor:
    """The row that each token belongs to, (total_tokens,)."""
    position = torch.arange(total_tokens, device=packing.cu_seqlens.device)
    return torch.searchsorted(packing.cu_seqlens[1:].contiguous(), position, right=True)

"""ALiBi (Press et al., 2022), symmetric: every head subtracts its slope times the distance of two tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def alibi_slopes(num_heads: int, device: torch.device | str | None = None) -> Tensor:
    """Slopes of all heads, float32, (heads,).

    For a power of two n they are 2^(-8 i / n), i = 1 … n; for other counts those of the next lower power of
    two, then every other one of the next higher (Press et al., 2022, section 3 and their code). Computed on
    the device, without a copy from the host, so that nothing waits and graphs can be captured.
    """
    lower = 2 ** math.floor(math.log2(num_heads))
    head = torch.arange(1, num_heads + 1, device=device, dtype=torch.float32)
    interleaved = (2 * (head - lower) - 1) / (2 * lower)
    return torch.exp2(-8 * torch.where(head <= lower, head / lower, interleaved))


def alibi_bias(slopes: Tensor, seq_len: int) -> Tensor:
    """The additive bias -slope_h * |q - k|, float32, (1, heads, seq_len, seq_len)."""
    position = torch.arange(seq_len, device=slopes.device)
    distance = (position[:, None] - position[None, :]).abs()
    return -slopes[None, :, None, None] * distance

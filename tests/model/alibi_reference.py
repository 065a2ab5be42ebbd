"""An independent ALiBi attention to test against, and a small configuration. Slow, plain, float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bertchen.model import MosaicBertConfig


def press_slopes(heads: int) -> list[float]:
    """Press et al. (2022): a geometric sequence from 2^(-8/n) with that ratio for a power of two n.

    Other head counts take those of the next lower power of two and fill up with every other one of the next higher.
    """
    if heads & (heads - 1) == 0:
        ratio = 2.0 ** (-8.0 / heads)
        slopes = [ratio]
        while len(slopes) < heads:
            slopes.append(slopes[-1] * ratio)
        return slopes
    lower = 1
    while lower * 2 < heads:
        lower *= 2
    return press_slopes(lower) + press_slopes(2 * lower)[::2][: heads - lower]


def naive_attention(qkv: Tensor, lengths: list[int]) -> Tensor:
    """Sequence by sequence and head by head. `qkv`: (total_tokens, 3, heads, head_dim); differentiable."""
    heads, head_dim = qkv.shape[2:]
    slopes = press_slopes(heads)
    rows = []
    for row in qkv.double().split(lengths):
        n = row.shape[0]
        distance = torch.tensor([[abs(i - j) for j in range(n)] for i in range(n)], dtype=torch.float64).view(n, n)
        per_head = []
        for head in range(heads):
            q, k, v = row[:, 0, head], row[:, 1, head], row[:, 2, head]
            scores = q @ k.T / head_dim**0.5 - slopes[head] * distance.to(qkv.device)
            weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
            per_head.append(weights @ v)
        rows.append(torch.stack(per_head, dim=1))
    return torch.cat(rows)


def mask_of(lengths: list[int], seq_len: int | None = None) -> Tensor:
    """An attention mask for rows padded on the right, (batch, seq_len)."""
    position = torch.arange(seq_len or max(lengths))
    return (position[None, :] < torch.tensor(lengths)[:, None]).long()


def tiny_config(**changes: Any) -> MosaicBertConfig:
    """Three heads (no power of two), two layers, no dropout, weights large enough for attention to matter."""
    values: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 64,
        "hidden_dropout_prob": 0.0,
        "initializer_range": 0.2,
    }
    return MosaicBertConfig(**{**values, **changes})

"""What `scripts/benchmark_kernels.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

IN_16_BITS = ("attention", "embeddings", "glu", "add_norm", "cross_entropy")
IN_8_BITS = ("attention_float8", "quantize", "glu_float8")


@dataclass
class BenchmarkKernelsConfig:
    """This project's kernels, one by one, beside PyTorch's operations at the same work.

    Attributes:
        kernels: to time; the last three are those of `model.float8=true`, which PyTorch has nothing for.
        backends: of attention, to time in place of PyTorch's operations.
        model: fields of `MosaicBertConfig`, for the widths; empty is the base model.
        tokens: that pass at once.
        length: of the rows that attention sees.
        dropout: probability, in `embeddings`, `glu` and `add_norm`.
        mlm_probability: share of the tokens for which `cross_entropy` has logits; most are the mask in `embeddings`.
        compile: torch.compile for PyTorch's operations; null: on a GPU.
        repetitions: timed passes, after `warmup` that aren't.
        seed: of all numbers.
    """

    kernels: list[str] = field(default_factory=lambda: [*IN_16_BITS, *IN_8_BITS])
    backends: list[str] = field(default_factory=lambda: ["flex"])
    model: dict[str, Any] = field(default_factory=dict)
    tokens: int = 131072
    length: int = 512
    dropout: float = 0.1
    mlm_probability: float = 0.30
    compile: bool | None = None
    repetitions: int = 20
    warmup: int = 3
    seed: int = 42

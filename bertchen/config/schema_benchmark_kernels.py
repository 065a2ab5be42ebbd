"""What `scripts/benchmark_kernels.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class BenchmarkKernelsConfig:
    """This project's kernels, one by one, beside PyTorch's operations at the same work.

    Attributes:
        kernels: to time; `glu_float8` and `quantize` are those of `model.float8=true`, which PyTorch has nothing for.
        backends: of attention, to time in place of PyTorch's operations.
        model: fields of `MosaicBertConfig`, for the widths; empty is the base model.
        tokens: that pass at once.
        length: of the rows that attention sees.
        dropout: probability, in `glu` and `add_norm`.
        mlm_probability: share of the tokens for which `cross_entropy` has logits.
        compile: torch.compile for PyTorch's operations; null: on a GPU.
        repetitions: timed passes, after `warmup` that aren't.
        seed: of all numbers.
    """

    kernels: list[str] = field(
        default_factory=lambda: ["attention", "glu", "add_norm", "cross_entropy", "quantize", "glu_float8"]
    )
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

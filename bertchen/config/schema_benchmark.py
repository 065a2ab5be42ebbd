"""What `scripts/benchmark_pretrain.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class BenchmarkConfig:
    """The bare pretraining step, without Trainer and loader, by backend and shape.

    Attributes:
        model: fields of `MosaicBertConfig`; empty is the base model.
        backends: attention backends to time.
        sequence_lengths: to time each backend at.
        microbatch_tokens: tokens that pass the model at once, each to be timed.
        tokens_per_step: of the global batch.
        mlm_probability: share of masked tokens.
        precision, compile: as in training.
        steps: timed steps, after `warmup` that aren't.
        references: other models at the same work: `bert` is Hugging Face's, of the same width and depth.
        seed: of weights and random tokens.
        peak_flops: of the device [FLOP/s]; null looks it up.
    """

    model: dict[str, Any] = field(default_factory=dict)
    backends: list[str] = field(default_factory=lambda: ["auto"])
    sequence_lengths: list[int] = field(default_factory=lambda: [512])
    microbatch_tokens: list[int] = field(default_factory=lambda: [65536])
    tokens_per_step: int = 524288
    mlm_probability: float = 0.30
    precision: str = "auto"
    compile: bool | None = None
    steps: int = 10
    warmup: int = 3
    references: list[str] = field(default_factory=list)
    seed: int = 42
    peak_flops: float | None = None

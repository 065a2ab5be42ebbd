"""What `scripts/benchmark_pretrain.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class BenchmarkConfig:
    """The pretraining step by kernels, backend, precision and shape, beside other models at the same work.

    Attributes:
        model: fields of `MosaicBertConfig`; empty is the base model.
        parts: what to time: `step`, the bare training step; `evaluate`, a validation batch's loss; `trainer`, whole
            training runs through `main.py`.
        kernels: choices of `MosaicBertConfig.kernels` to time; `float8` is `triton` with 8-bit matrix products.
        backends: attention backends to time with each.
        sequence_lengths: to time each at.
        microbatch_tokens: tokens that pass the model at once, each to be timed.
        tokens_per_step: of the global batch.
        mlm_probability: share of masked tokens.
        precision, compile: as in training.
        steps: timed steps, after `warmup` that aren't.
        references: other models at the same work: `bert` and `modernbert` are Hugging Face's, of the same width and
            depth, compiled where ours is.
        profile: adds where the time of a step goes, by kind of kernel; on a GPU.
        trainer: keys of `yamls/pretrain.yaml` for the runs of `parts=[trainer]`; data.local and tokenizer are needed.
        folder: of those runs.
        seed: of weights and random tokens.
        peak_flops: of the device [FLOP/s]; null looks it up.
    """

    model: dict[str, Any] = field(default_factory=dict)
    parts: list[str] = field(default_factory=lambda: ["step"])
    kernels: list[str] = field(default_factory=lambda: ["auto"])
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
    profile: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    folder: str = "runs/benchmark"
    seed: int = 42
    peak_flops: float | None = None

"""What `scripts/benchmark_inference.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class BenchmarkInferenceConfig:
    """Hidden states of an exported model, loaded as its users load it, beside Hugging Face's BERT.

    Attributes:
        model: fields of `MosaicBertConfig`; empty is the base model.
        exported: a folder that `scripts/export_hf.py` made, in place of `model`, whose weights are random.
        references: BERTs to compare with: `width` has the same width, depth and feed-forward, `parameters` a
            feed-forward so wide that its layers have the parameters of ours.
        batch_sizes, lengths: each to be timed with each.
        padded: rows of several lengths, half of `lengths` on average, instead of full ones.
        precision, compile: `fp32` or `bf16`; torch.compile for all or none.
        threads: of PyTorch; null leaves its choice.
        repetitions: timed forward passes of each, the models in turns, after `warmup` that aren't timed.
        seed: of weights and tokens.
    """

    model: dict[str, Any] = field(default_factory=dict)
    exported: str | None = None
    references: list[str] = field(default_factory=lambda: ["width", "parameters"])
    batch_sizes: list[int] = field(default_factory=lambda: [1, 32])
    lengths: list[int] = field(default_factory=lambda: [16, 512])
    padded: bool = False
    precision: str = "fp32"
    compile: bool = False
    threads: int | None = None
    repetitions: int = 10
    warmup: int = 2
    seed: int = 42

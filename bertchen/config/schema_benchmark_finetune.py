"""What `scripts/benchmark_finetune.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class BenchmarkFinetuneConfig:
    """Fine-tuning on short texts: without padding, and with all rows padded to one length.

    Attributes:
        texts: file, folder or glob of texts, as in scripts/convert_dataset.py; null generates posts.
        text_column: key or column of the text.
        tokenizer: folder or hub name of a fast tokenizer; null trains one of `vocab_size` entries on the texts.
        vocab_size: of that tokenizer.
        examples: texts that are used.
        max_length: tokens of an input; longer ones are cut.
        padded_to: `batch` (the longest input of the batch), `longest` (that of all), or a number of tokens.
        model: fields of `MosaicBertConfig`; empty is the base model. Weights are random.
        labels: classes; which text has which is random.
        batch_size: inputs a step.
        precision: as in training.
        steps: a turn, after `warmup` that aren't timed.
        repetitions: turns of every setting, one after the other.
        seed: of texts, weights, labels and order.
    """

    texts: Any = None
    text_column: str = "text"
    tokenizer: str | None = None
    vocab_size: int = 8192
    examples: int = 4096
    max_length: int = 512
    padded_to: list[str] = field(default_factory=lambda: ["batch", "longest", "512"])
    model: dict[str, Any] = field(default_factory=dict)
    labels: int = 5
    batch_size: int = 16
    precision: str = "auto"
    steps: int = 20
    warmup: int = 5
    repetitions: int = 5
    seed: int = 42

"""Metrics of masked language modelling over a whole set: sums over all masked tokens, divided once at the end.

`MaskedSums.of` reduces a batch to three numbers; the metrics add these up over batches and processes. A metric's class
name is its name in the logs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from bertchen.data.masking import IGNORE_INDEX


class MaskedSums(NamedTuple):
    """Sums over the masked tokens of a batch, float64 scalars: cross entropy [nats], correct predictions, tokens."""

    cross_entropy: Tensor
    correct: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> MaskedSums:
        """From logits (masked, vocab_size) and labels (masked,); a label of -100 doesn't count."""
        losses = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
        counted = labels != IGNORE_INDEX
        correct = (logits.argmax(dim=-1) == labels) & counted
        return cls(losses.double().sum(), correct.sum().double(), counted.sum().double())


class _MaskedMean(Metric):
    """Adds up one of the sums and the number of tokens."""

    full_state_update = False
    which: str

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, sums: MaskedSums) -> None:
        """Adds a batch."""
        self.total += getattr(sums, self.which)
        self.tokens += sums.tokens

    def compute(self) -> Tensor:
        """The mean over all masked tokens so far; NaN if there was none."""
        return self.total / self.tokens


class MaskedCrossEntropy(_MaskedMean):
    """Mean cross entropy of the masked tokens, in nats."""

    which = "cross_entropy"


class MaskedPerplexity(_MaskedMean):
    """exp of the mean cross entropy."""

    which = "cross_entropy"

    def compute(self) -> Tensor:
        """exp(mean cross entropy)."""
        return super().compute().exp()


class MaskedAccuracy(_MaskedMean):
    """Share of the masked tokens whose most likely prediction is the token itself."""

    which = "correct"


def masked_lm_metrics() -> list[Metric]:
    """New instances of the three."""
    return [MaskedCrossEntropy(), MaskedPerplexity(), MaskedAccuracy()]

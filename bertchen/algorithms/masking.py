"""Hides tokens of each training batch, on the device, by seed and step."""

from __future__ import annotations

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist

from bertchen.data.masking import IGNORE_INDEX, MaskingVocabulary, mask_tokens, max_masked_per_row


class Masking(Algorithm):
    """`mask_tokens` on every training batch, after anything that changes its rows.

    Needs no state of its own: what is hidden depends on seed, step and rows alone. The batch gets `labels`, the bound
    `max_masked_per_row` and, for each row, `masked_per_row`, the mean number of hidden tokens of a row in the global
    batch, by which the loss is normalized: so it is the mean over all hidden tokens of the global batch, however
    this is divided into microbatches and devices.

    Args:
        vocabulary: what masking must know of the tokenizer.
        rate: share of the tokens to hide.
        seed: of the run.
        mask_share, random_share: of the chosen, see `mask_tokens`.
    """

    def __init__(
        self, vocabulary: MaskingVocabulary, rate: float, seed: int, mask_share: float = 0.8, random_share: float = 0.1
    ) -> None:
        self.vocabulary = vocabulary
        self.rate = rate
        self.seed = seed
        self.mask_share = mask_share
        self.random_share = random_share

    def match(self, event: Event, state: State) -> bool:
        return event == Event.AFTER_DATALOADER

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        batch = state.device.batch_to_device(state.batch)
        input_ids = batch["input_ids"]
        if self.vocabulary.special.device != input_ids.device:
            self.vocabulary = self.vocabulary.to(input_ids.device)
        input_ids, labels = mask_tokens(
            input_ids, batch["row_ids"], self.vocabulary, self.rate, self.seed, state.timestamp.batch.value,
            self.mask_share, self.random_share,
        )  # fmt: skip
        rows = len(labels)
        counts = torch.stack([(labels != IGNORE_INDEX).sum(), torch.tensor(rows, device=labels.device)]).double()
        dist.all_reduce(counts)
        state.batch = {
            "input_ids": input_ids,
            "labels": labels,
            "masked_per_row": (counts[0] / counts[1]).clamp(min=1e-9).float().expand(rows),
            "max_masked_per_row": max_masked_per_row(self.rate, labels.shape[1]),
        }

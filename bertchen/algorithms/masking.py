"""Hides tokens of each training batch, on the device, by seed and step."""

from __future__ import annotations

from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist

from bertchen.algorithms.curricula import MaskingRate, plain
from bertchen.algorithms.length_curriculum import LengthCurriculum, refuse_other
from bertchen.callbacks.throughput import elapsed_share
from bertchen.data.masking import IGNORE_INDEX, MaskingVocabulary, mask_tokens, max_masked_per_row


class Masking(Algorithm):
    """`mask_tokens` on every training batch, after anything that changes its rows.

    What is hidden depends on seed, step, rows and rate alone, and the rate on step and stage. The batch gets `labels`,
    the bound `max_masked_per_row` and, for each row, `masked_per_row`, the mean number of hidden tokens of a row in the
    global batch, by which the loss is normalized: so it is the mean over all hidden tokens of the global batch, however
    this is divided into microbatches and devices. Logs `curriculum/masking_rate` with each step.

    Args:
        vocabulary: what masking must know of the tokenizer.
        rate: share of the tokens to hide.
        seed: of the run.
        mask_share, random_share: of the chosen, see `mask_tokens`.
        curriculum: has the stage that the rate may depend on.
    """

    def __init__(
        self,
        vocabulary: MaskingVocabulary,
        rate: float | MaskingRate,
        seed: int,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        curriculum: LengthCurriculum | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.rate = rate if isinstance(rate, MaskingRate) else MaskingRate(rate)
        self.seed = seed
        self.mask_share = mask_share
        self.random_share = random_share
        self.curriculum = curriculum

    def match(self, event: Event, state: State) -> bool:
        return event == Event.AFTER_DATALOADER

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        batch = state.device.batch_to_device(state.batch)
        input_ids = batch["input_ids"]
        if self.vocabulary.special.device != input_ids.device:
            self.vocabulary = self.vocabulary.to(input_ids.device)
        stage, stages = (
            (self.curriculum.stage, self.curriculum.stages_of_this_length()) if self.curriculum else (0, [0])
        )
        rate = self.rate.at(stage, elapsed_share(state))
        input_ids, labels = mask_tokens(
            input_ids, batch["row_ids"], self.vocabulary, rate, self.seed, state.timestamp.batch.value,
            self.mask_share, self.random_share,
        )  # fmt: skip
        rows = len(labels)
        counts = torch.stack([(labels != IGNORE_INDEX).sum(), torch.tensor(rows, device=labels.device)]).double()
        dist.all_reduce(counts)
        del batch["row_ids"]
        state.batch = {
            **batch,
            "input_ids": input_ids,
            "labels": labels,
            "masked_per_row": (counts[0] / counts[1]).clamp(min=1e-9).float().expand(rows),
            # The same in all steps of a length, so that a compiled model isn't compiled again for another rate.
            "max_masked_per_row": max_masked_per_row(self.rate.highest(stages), labels.shape[1]),
        }
        logger.log_metrics({"curriculum/masking_rate": rate})

    def state_dict(self) -> dict[str, Any]:
        return plain(self.rate)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.refuse_other(state)

    def refuse_other(self, saved: dict[str, Any]) -> None:
        """Raises a UserError if a checkpoint's state is that of another rate."""
        refuse_other("masking", saved, plain(self.rate))

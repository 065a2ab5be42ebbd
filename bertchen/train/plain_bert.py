"""A plain BERT to compare MosaicBERT with: Hugging Face's, with learned positions and a feed-forward without a gate.

Notable: weights, their names and their first distribution are `BertForMaskedLM`'s own; only the way through it is
another. In training the head sees the masked positions alone, as MosaicBERT's does, and rows have no padding, so that
no attention mask keeps PyTorch from its fast kernels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from transformers import BertForMaskedLM

from bertchen.model.modeling_mosaicbert import IGNORE_INDEX, MosaicBertMaskedLMOutput, masked_positions


class PlainBertForMaskedLM(BertForMaskedLM):
    """`BertForMaskedLM`, called as `MosaicBertForMaskedLM` is in pretraining."""

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
        max_masked: int | None = None,
        output_logits: bool | None = None,
    ) -> MosaicBertMaskedLMOutput:
        """Predicts the masked tokens of rows without padding.

        Args:
            input_ids: (rows, seq_len), all attended.
            labels: (rows, seq_len), -100 where there is nothing to predict.
            num_items_in_batch: the loss is the sum divided by this number, by default the labels' own.
            max_masked: the most labels there can be; makes shapes fixed, see `MosaicBertForMaskedLM.forward`.
            output_logits: logits of all positions too. By default so, unless in training with labels.
        """
        if output_logits is None:
            output_logits = labels is None or not self.training
        hidden = self.bert.encoder(self.bert.embeddings(input_ids))[0]
        logits = self.cls(hidden) if output_logits else None
        if labels is None:
            return MosaicBertMaskedLMOutput(logits=logits)
        positions, masked_labels = masked_positions(labels.flatten(), max_masked)
        masked_logits = self.cls(hidden.flatten(0, 1)[positions])
        total = F.cross_entropy(masked_logits.float(), masked_labels, ignore_index=IGNORE_INDEX, reduction="sum")
        number = (
            (masked_labels != IGNORE_INDEX).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        )
        return MosaicBertMaskedLMOutput(total / number, logits, masked_logits, masked_labels)

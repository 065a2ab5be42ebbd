"""The ComposerModel around the model: loss over the global batch in training, sums over the set in evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from composer.models import HuggingFaceModel, huggingface
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertchen.metrics import MaskedSums, masked_lm_metrics


@contextmanager
def _known_not_causal() -> Iterator[None]:
    """Answers a question of HuggingFaceModel in advance.

    To know whether the model is causal, it imports every causal model of Transformers: 5 s of CPU time at each start,
    and a pool of compile workers that one of them starts.
    """
    asked = huggingface._is_registered_causal_lm
    huggingface._is_registered_causal_lm = lambda model: False
    try:
        yield
    finally:
        huggingface._is_registered_causal_lm = asked


class ComposerMaskedLM(HuggingFaceModel):
    """A model with its MLM head for Composer.

    Batches are those of `bertchen.algorithms.Masking` and `bertchen.data.blocks.EvaluationBatches`: `input_ids` and
    `labels` (rows, seq_len), without padding, `max_masked_per_row`, and in training `masked_per_row`.

    Args:
        model: `MosaicBertForMaskedLM`, or another that takes and returns the same.
        tokenizer: saved in checkpoints with the model's configuration.
        facts: what a checkpoint should say about its run, in plain containers.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any]) -> None:
        with _known_not_causal():
            super().__init__(model, tokenizer=tokenizer, eval_metrics=masked_lm_metrics())  # type: ignore[arg-type]
        self.facts = facts
        self._class = f"{type(model).__module__}.{type(model).__qualname__}"

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The loss of a microbatch, such that Composer's weighting by rows gives the mean over the global batch."""
        rows = len(batch["input_ids"])
        output = self.model(
            input_ids=batch["input_ids"],
            labels=batch["labels"],
            num_items_in_batch=batch["masked_per_row"][0] * rows,
            max_masked=batch["max_masked_per_row"] * rows,
        )
        # Logits are left out: keeping them until the next microbatch would cost more memory than the model.
        return {"loss": output.loss}

    def loss(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
        return outputs["loss"]

    def eval_forward(self, batch: dict[str, Any], outputs: Any | None = None) -> MaskedSums:
        output = self.model(
            input_ids=batch["input_ids"],
            labels=batch["labels"],
            max_masked=batch["max_masked_per_row"] * len(batch["input_ids"]),
            output_logits=False,
        )
        return MaskedSums.of(output.masked_logits, output.masked_labels)

    def update_metric(self, batch: Any, outputs: MaskedSums, metric: Metric) -> dict[str, Any]:
        metric.update(outputs)
        return {}

    def get_metadata(self) -> dict[str, Any]:
        """Composer's (configuration and tokenizer) and ours, for `integrations.huggingface` in a checkpoint."""
        metadata = super().get_metadata()
        metadata["model"]["config"]["class"] = self._class  # what it is where FSDP has wrapped it, too
        return {**metadata, "bertchen": self.facts}

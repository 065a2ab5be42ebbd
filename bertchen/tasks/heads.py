"""One class for every task: an encoder and the head that its kind of task needs; and its export."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from bertchen.errors import UserError
from bertchen.export.hf import add_code
from bertchen.model import (
    MosaicBertForQuestionAnswering,
    MosaicBertForSequenceClassification,
    MosaicBertForTokenClassification,
    MosaicBertModel,
)
from bertchen.model.configuration_mosaicbert import POOLINGS
from bertchen.model.modeling_mosaicbert import IGNORE_INDEX
from bertchen.tasks.encoder import Encoder
from bertchen.tasks.examples import Kind
from bertchen.text.staging import staged_folder

_INITIALIZER_RANGE = 0.02
_ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class TaskModel(nn.Module):
    """An encoder with a new head.

    classification: hidden states pooled over the attended tokens → dropout → linear to labels.
    tagging: dropout → linear to levels x tags, for each token.
    question_answering: linear to two logits a token, of the answer's start and of its end.

    Args:
        encoder: returns `last_hidden_state`; see `Encoder.model`.
        kind: of the task.
        num_labels: labels, or tags of one level; not looked at for question answering.
        levels: of tags.
        dropout: before the linear layer, but for question answering.
        pooling: `mean` of the attended tokens, or the `first` of them.

    Raises:
        ValueError: an unknown kind or pooling.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        kind: Kind,
        num_labels: int,
        levels: int = 1,
        dropout: float = 0.1,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        if kind not in _HEADS:
            raise ValueError(f"{kind=} is unknown; known: {', '.join(_HEADS)}")
        if pooling not in POOLINGS:
            raise ValueError(f"{pooling=} is unknown; known: {', '.join(POOLINGS)}")
        self.kind, self.num_labels, self.levels, self.pooling = kind, num_labels, levels, pooling
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        width = {"classification": num_labels, "tagging": levels * num_labels, "question_answering": 2}[kind]
        self.head = nn.Linear(encoder.config.hidden_size, width)
        spread = getattr(encoder.config, "initializer_range", None) or _INITIALIZER_RANGE
        nn.init.normal_(self.head.weight, std=spread)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Logits of a batch, float32, and the loss if the batch has what it needs.

        Args:
            batch: `input_ids`, `attention_mask` and perhaps `token_type_ids`, (batch, seq_len), and for the loss
                classification: `labels`, (batch,);
                tagging: `tags`, (batch, seq_len, levels), -100 where a token begins no word;
                question_answering: `start_positions` and `end_positions`, (batch,), -100 to leave a row out.

        Returns:
            classification: `logits`, (batch, num_labels).
            tagging: `logits`, (batch, seq_len, levels, num_labels).
            question_answering: `start_logits` and `end_logits`, (batch, seq_len), -inf at padding.
            `loss`: mean cross entropy, a scalar: of the rows, of the words on all levels, of starts and ends.
        """
        inputs = {name: batch[name] for name in _ENCODER_INPUTS if name in batch}
        hidden = self.encoder(**inputs).last_hidden_state
        return _HEADS[self.kind](self, hidden, batch)


def _classify(model: TaskModel, hidden: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
    pooled = pool(hidden, batch["attention_mask"], model.pooling)
    output = {"logits": model.head(model.dropout(pooled)).float()}
    if "labels" in batch:
        output["loss"] = _cross_entropy(output["logits"], batch["labels"])
    return output


def _tag(model: TaskModel, hidden: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
    logits = model.head(model.dropout(hidden)).float()
    output = {"logits": logits.unflatten(-1, (model.levels, model.num_labels))}
    if "tags" in batch:
        output["loss"] = _cross_entropy(output["logits"].flatten(0, 2), batch["tags"].flatten())
    return output


def _answer(model: TaskModel, hidden: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
    """A window without the answer has its first token as start and end, as is usual for SQuAD (see `encoding`)."""
    logits = model.head(hidden).float().masked_fill((batch["attention_mask"] == 0)[..., None], float("-inf"))
    start, end = logits.unbind(-1)
    output = {"start_logits": start.contiguous(), "end_logits": end.contiguous()}
    if "start_positions" in batch:
        losses = (_cross_entropy(output[f"{which}_logits"], batch[f"{which}_positions"]) for which in ("start", "end"))
        output["loss"] = sum(losses) / 2
    return output


_HEADS = {"classification": _classify, "tagging": _tag, "question_answering": _answer}


def pool(hidden: Tensor, attention_mask: Tensor, how: str = "mean") -> Tensor:
    """(batch, seq_len, hidden) to (batch, hidden): the mean over attended tokens, in float32, or the first of them."""
    attended = attention_mask != 0
    if how == "first":
        return hidden[torch.arange(len(hidden), device=hidden.device), attended.int().argmax(dim=1)]
    total = hidden.masked_fill(~attended[..., None], 0).sum(dim=1, dtype=torch.float32)
    return (total / attended.sum(dim=1, keepdim=True).clamp(min=1)).to(hidden.dtype)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labels that aren't -100; 0, with gradients, where there are none."""
    total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)


# -- export --------------------------------------------------------------------------------------------------

_CLASSES = {
    "classification": MosaicBertForSequenceClassification,
    "tagging": MosaicBertForTokenClassification,
    "question_answering": MosaicBertForQuestionAnswering,
}


def export_finetuned(
    model: TaskModel, encoder: Encoder, folder: str, labels: Sequence[str], overwrite: bool = False
) -> str | None:
    """Writes a fine-tuned model of our architecture as a Hugging Face folder, with its code, tokenizer and labels.

    Args:
        model: on any device; it isn't changed.
        encoder: the one that it was made from.
        folder: missing or empty, unless `overwrite`.
        labels: names of the logits in their order: labels, or tags (`bertchen.tasks.encoding.output_names`). Of several
            levels of tags the outer one is written: the class has no more.
        overwrite: replace what an earlier export wrote.

    Returns:
        The folder, or None for a model of another architecture, of which nothing is written.

    Raises:
        UserError: the folder can't be written; then nothing is left behind.
    """
    if not isinstance(model.encoder, MosaicBertModel):
        return None
    if model.kind != "question_answering" and len(labels) != model.num_labels:
        raise UserError(f"{len(labels)} names for {model.num_labels} labels: give one for each")
    exported = _hugging_face_model(model, list(labels))
    with staged_folder(folder, holds="config.json", overwrite=overwrite) as temporary:
        add_code(temporary, exported.config)
        exported.config.architectures = [type(exported).__name__]
        exported.save_pretrained(temporary)
        encoder.tokenizer.save_pretrained(temporary)
    return folder


def _hugging_face_model(model: TaskModel, labels: list[str]) -> PreTrainedModel:
    config = copy.deepcopy(model.encoder.config)
    config.classifier_dropout = model.dropout.p
    config.classifier_pooling = model.pooling
    config.dtype = torch.float32
    rows = 2
    if model.kind != "question_answering":
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: index for index, name in enumerate(labels)}
        rows = model.num_labels
    with torch.device("meta"):
        exported = _CLASSES[model.kind](config)
    head = "qa_outputs" if model.kind == "question_answering" else "classifier"
    weights = {f"bert.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    weights |= {f"{head}.weight": model.head.weight[:rows], f"{head}.bias": model.head.bias[:rows]}
    weights = {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in weights.items()}
    exported.load_state_dict(weights, assign=True)
    return exported.eval()

"""What the Trainer trains for a task: the ComposerModel around its model, and the batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from composer.core import DataSpec
from composer.models import ComposerModel
from torch import Tensor

from bertchen.config import Config
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.tasks.batches import train_loader
from bertchen.tasks.data import TaskData
from bertchen.tasks.encoder import Encoder
from bertchen.tasks.encoding import encode, output_names
from bertchen.tasks.heads import TaskModel
from bertchen.train.finetune_results import TRAIN


class ComposerTask(ComposerModel):
    """A `TaskModel` for Composer's Trainer, which trains it; it is evaluated by `bertchen.tasks.batches.predict`."""

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"loss": self.model(batch)["loss"]}

    def loss(self, outputs: dict[str, Tensor], batch: Mapping[str, Any]) -> Tensor:
        return outputs["loss"]


def build_task_model(config: Config[FinetuneConfig], data: TaskData, encoder: Encoder) -> ComposerTask:
    """The encoder with a new head by `seed`."""
    cfg = config.value
    torch.manual_seed(cfg.seed)
    outputs = len(output_names(data))
    model = TaskModel(encoder.model, data.kind, outputs, data.levels, cfg.dropout, cfg.pooling)
    if cfg.compile:
        model.compile(dynamic=True)  # every batch has a length of its own
    return ComposerTask(model)


def build_task_loader(
    config: Config[FinetuneConfig], batch_per_device: int, data: TaskData, encoder: Encoder
) -> DataSpec:
    """Training batches in an order by `seed` and epoch, counted in inputs and attended tokens."""
    features = encode(data.splits[TRAIN], encoder, data, config.value.encoding, training=True)
    loader = train_loader(features, encoder.pad_id, batch_per_device, config.value.seed)
    return DataSpec(
        loader,
        split_batch=_split,
        get_num_samples_in_batch=_count_inputs,
        get_num_tokens_in_batch=_count_tokens,
    )


def _split(batch: Mapping[str, Tensor], microbatch_size: int | float) -> list[dict[str, Tensor]]:
    """Microbatches; Composer's own way warns of an epoch's last batch, which is smaller."""
    size = int(microbatch_size)
    starts = range(0, _count_inputs(batch), size)
    return [{name: tensor[start : start + size] for name, tensor in batch.items()} for start in starts]


def _count_inputs(batch: Mapping[str, Any]) -> int:
    return len(batch["input_ids"])


def _count_tokens(batch: Mapping[str, Any]) -> int:
    return int(batch["attention_mask"].sum())

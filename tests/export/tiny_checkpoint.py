"""A real checkpoint, made by Composer on the CPU in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from composer import Trainer
from composer.models import HuggingFaceModel
from composer.optim import LinearWithWarmupScheduler
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertchen.model import MosaicBertConfig, MosaicBertForMaskedLM
from bertchen.tokenizer import train_tokenizer

TEXTS = [
    "Der schnelle braune Fuchs springt über den faulen Hund.\n",
    "Die Hauptstadt von Deutschland ist Berlin.\n",
]
RUN = {
    "seed": 42,
    "save_folder": "/home/someone/runs/first",
    "data": {"local": "/home/someone/mds"},
    "sequence_length": 256,
    "global_train_batch_size": 8,
    "optimizer": {"name": "adamw", "lr": 5e-4, "betas": [0.9, 0.98]},
    "masking": {"mlm_probability": 0.3, "eval_mlm_probability": 0.15},
    "stop_after": None,
    "loggers": {"wandb": {"entity": "someone"}},
}
MANIFEST = {
    "version": 2,
    "block_size": 512,
    "documents": {"read": 1300000, "kept": 1234567},
    "unigram_entropy_nats": 7.654321,
    "tokenizer": {"name": "/home/someone/tokenizer", "fingerprint": "f1n9e2", "vocab_size": 512},
    "splits": {"train": {"blocks": 7, "tokens": 3584}, "val": {"blocks": 1, "tokens": 512}},
    "config": {
        "source": {"path": "/home/someone/texts/*.jsonl", "hub": None, "drop_rows": {"column": None, "values": []}},
        "strategy": "naive",
    },
}


class Checkpoint(NamedTuple):
    """A checkpoint's file and what it was made from; `model` is in evaluation mode."""

    path: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class Model(HuggingFaceModel):
    """Adds to a checkpoint what main.py adds."""

    def get_metadata(self) -> dict[str, Any]:
        return {
            **super().get_metadata(),
            "bertchen": {"config": RUN, "manifest": MANIFEST, "parameters": 98765},
        }


# Large initial weights, so that the logits differ from token to token and from place to place.
SIZES = {
    "vocab_size": 512,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}


def tiny_mosaicbert() -> PreTrainedModel:
    return MosaicBertForMaskedLM(MosaicBertConfig(**SIZES, attention_backend="sdpa"))


def train_tiny(folder: Path, build: Callable[[], PreTrainedModel] = tiny_mosaicbert) -> Checkpoint:
    """Two steps of training, with metrics saved too; `metrics.jsonl` lies beside the file."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([text * 50 for text in TEXTS], 512)
    model = build()
    ids = torch.randint(4, len(tokenizer), (16, 32))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    trainer = Trainer(
        model=Model(model, tokenizer, metrics=[], eval_metrics=[MeanMetric()]),
        train_dataloader=DataLoader(rows, batch_size=8),
        optimizers=torch.optim.AdamW(model.parameters(), lr=1e-3),
        schedulers=LinearWithWarmupScheduler("1ba"),
        max_duration="2ba",
        device="cpu",
        save_folder=str(folder),
        save_metrics=True,
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    write_metrics(folder / "metrics.jsonl")
    return Checkpoint(folder / "latest-rank0.pt", model.eval(), tokenizer)


def write_metrics(path: Path) -> None:
    """Validation after steps 1, 2 and 3, that of step 2 on two lines; the last line is cut off."""
    lines = [
        {"step": 1, "metrics/eval_64/MaskedCrossEntropy": 9.0},
        {"step": 2, "loss/train": 1.0, "metrics/eval_512/MaskedCrossEntropy": 2.5, "lr": 0.1},
        {"step": 2, "metrics/eval_64/MaskedCrossEntropy": 3.25, "metrics/eval_64/MaskedAccuracy": 0.375},
        {"step": 2, "loss/train": 7.0},
        {"step": 3, "metrics/eval_512/MaskedCrossEntropy": 8.0},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": 4, "metr', encoding="utf-8")

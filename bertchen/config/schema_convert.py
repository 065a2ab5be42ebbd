"""Schema of scripts/convert_dataset.py; yamls/data/local.yaml explains the keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class SourceConfig:
    path: Any = MISSING
    text_column: str = "text"


@dataclass
class ConvertConfig:
    source: SourceConfig = field(default_factory=SourceConfig)
    tokenizer: str = MISSING
    out: str = MISSING
    block_size: int = 512
    strategy: str = "naive"
    split_by: str = "document"
    val_blocks: int = 2500
    seed: int = 42
    workers: int = 0
    shard_size: int = 67108864
    compression: str | None = None
    overwrite: bool = False

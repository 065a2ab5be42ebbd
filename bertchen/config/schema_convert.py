"""Schema of scripts/convert_dataset.py; the files in yamls/data/ explain the keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class SampleConfig:
    """A seeded part of a source: at most one of `fraction`, `documents` and `tokens`."""

    fraction: float | None = None
    documents: int | None = None
    tokens: int | None = None
    by: str = "document"


@dataclass
class DropRowsConfig:
    column: str | None = None
    values: list[str] = field(default_factory=list)


@dataclass
class SourceConfig:
    """Where documents come from: exactly one of `path` and `hub`."""

    path: Any = None
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    files: Any = None
    text_column: str = "text"
    group_rows: bool = False
    drop_rows: DropRowsConfig = field(default_factory=DropRowsConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    weight: float | None = None


@dataclass
class EngineConfig:
    name: str = "local"
    tasks: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ConvertConfig:
    source: SourceConfig = field(default_factory=SourceConfig)
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    interleave: bool = False
    on_bad_rows: str = "fail"
    clean: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = MISSING
    out: str = MISSING
    keep_local: bool = True
    work: str | None = None
    block_size: int = 512
    strategy: str = "naive"
    stages: dict[int, float] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    split_by: str = "document"
    val_blocks: int = 2500
    seed: int = 42
    workers: int = 0
    shard_size: int = 67108864
    compression: str | None = None
    overwrite: bool = False
    restart: bool = False
    engine: EngineConfig = field(default_factory=EngineConfig)

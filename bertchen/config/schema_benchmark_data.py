"""What `scripts/benchmark_data.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class BenchmarkReadConfig:
    """Reading for training, with masking, against a bare StreamingDataset and StreamingDataLoader.

    Attributes:
        data: folder that scripts/convert_dataset.py wrote.
        split: which of its splits.
        sequence_lengths: to cut the blocks to.
        workers: loader processes; each number is measured.
        blocks_per_batch: the batch of a device.
        blocks: of an epoch; null reads the whole split.
        mlm_probability: share of masked tokens.
    """

    data: str | None = None
    split: str = "train"
    sequence_lengths: list[int] = field(default_factory=lambda: [512, 64])
    workers: list[int] = field(default_factory=lambda: [0, 2])
    blocks_per_batch: int = 1024
    blocks: int | None = None
    mlm_probability: float = 0.30


@dataclass
class BenchmarkConvertConfig:
    """Text to shards, against bare tokenizing and against `datasets.map`; each a process of its own.

    Attributes:
        files: a file, a folder, a glob or a list of these, as `source.path` of scripts/convert_dataset.py.
        text_column: key or column of the text.
        tokenizer: folder or hub name of a fast tokenizer.
        ways: encode (the files read, `encode_batch_fast` of the tokenizers library, the ids dropped), datasets
            (`load_dataset`, a batched map that tokenizes, one that groups into blocks), convert (the command).
        cores: that a way may use; 0: all.
        block_size: tokens of a block.
        options: further `key=value` or YAML files for scripts/convert_dataset.py.
        scratch: folder for what is written meanwhile; null: the system's folder for temporary files.
        sample_seconds: memory is looked at so often.
    """

    files: Any = None
    text_column: str = "text"
    tokenizer: str | None = None
    ways: list[str] = field(default_factory=lambda: ["encode", "datasets", "convert"])
    cores: int = 0
    block_size: int = 512
    options: list[str] = field(default_factory=list)
    scratch: str | None = None
    sample_seconds: float = 0.2


@dataclass
class BenchmarkDataConfig:
    """Data on the way in and out.

    Attributes:
        parts: read, convert.
        repetitions: of everything, in turns.
        seed: of shuffling and masking.
        way: used by the command itself: do only this one, in this process.
    """

    parts: list[str] = field(default_factory=lambda: ["read", "convert"])
    read: BenchmarkReadConfig = field(default_factory=BenchmarkReadConfig)
    convert: BenchmarkConvertConfig = field(default_factory=BenchmarkConvertConfig)
    repetitions: int = 5
    seed: int = 42
    way: str | None = None

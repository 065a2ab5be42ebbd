"""What `scripts/benchmark_streaming.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class BenchmarkStreamReadConfig:
    """Reading with masking, as training does it.

    Attributes:
        blocks_per_batch: the batch of a device.
        blocks: of a pass; null reads the whole split.
        workers: loader processes.
        mlm_probability: share of masked tokens.
    """

    blocks_per_batch: int = 256
    blocks: int | None = None
    workers: int = 0
    mlm_probability: float = 0.30


@dataclass
class BenchmarkStreamTrainConfig:
    """`main.py` on local shards and on those of the store.

    Attributes:
        tokenizer: the one that the data were made with.
        steps: of each run.
        options: further YAML files or `key=value` for main.py, those of a small model say.
    """

    tokenizer: str | None = None
    steps: int = 40
    options: list[str] = field(default_factory=list)


@dataclass
class BenchmarkStreamResumeConfig:
    """Going on in mid-epoch of a large data set, on a machine that has nothing of it; made for the purpose.

    Attributes:
        shards: in the index; all are links to a few files.
        blocks_per_shard: in each.
        block_size: tokens of a block.
        blocks_per_batch: the batch of a device.
        workers: loader processes.
    """

    shards: int = 100_000
    blocks_per_shard: int = 256
    block_size: int = 64
    blocks_per_batch: int = 64
    workers: int = 0


@dataclass
class BenchmarkStreamingConfig:
    """Data from a store against the same data on the disk.

    Attributes:
        parts: read, train, resume.
        data: folder that scripts/convert_dataset.py wrote, for `read` and `train`.
        split: of training blocks.
        remote: URL of the same data in a store (with S3_ENDPOINT_URL, if it isn't Amazon's); null starts a server that
            speaks S3 on this machine (moto's, of requirements-dev.txt) and uploads the data to it.
        warm_up: batches or steps that are left out of a figure.
        repetitions: of everything, in turns.
        seed: of shuffling and masking.
        scratch: folder for caches and runs; null: the system's folder for temporary files.
    """

    parts: list[str] = field(default_factory=lambda: ["read", "train", "resume"])
    data: str | None = None
    split: str = "train"
    remote: str | None = None
    read: BenchmarkStreamReadConfig = field(default_factory=BenchmarkStreamReadConfig)
    train: BenchmarkStreamTrainConfig = field(default_factory=BenchmarkStreamTrainConfig)
    resume: BenchmarkStreamResumeConfig = field(default_factory=BenchmarkStreamResumeConfig)
    warm_up: int = 8
    repetitions: int = 3
    seed: int = 42
    scratch: str | None = None

"""What a training YAML can say: every key of `main.py`, its type and its default (the paper's baseline)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class DataConfig:
    """MDS shards made by `scripts/convert_dataset.py`.

    Attributes:
        local: folder with `train/`, `val/` and `manifest.json`; with `remote`, the cache.
        remote: where the shards are fetched from (`s3://…`, `gs://…`, a path), or null.
        num_workers: loader processes on each device; null takes 0 on one or two cores, else at most 4.
        prefetch_factor: batches that each worker reads ahead.
        shuffle: shuffle the training blocks, by `seed`.
        num_canonical_nodes: StreamingDataset's; null takes the number of nodes.
        predownload, cache_limit, download_retry, download_timeout: StreamingDataset's.
        check_hashes: compare the shards' xxh64 with the index before training: null does so up to 4 GiB.
    """

    local: str = MISSING
    remote: str | None = None
    num_workers: int | None = None
    prefetch_factor: int = 2
    shuffle: bool = True
    num_canonical_nodes: int | None = None
    predownload: int | None = None
    cache_limit: str | None = None
    download_retry: int = 2
    download_timeout: float = 60.0
    check_hashes: bool | None = None


@dataclass
class MaskingConfig:
    """Shares in masking: of the tokens, and of these to `[MASK]` and to random tokens (the rest stays)."""

    mlm_probability: float = 0.30
    mask_share: float = 0.8
    random_share: float = 0.1
    eval_mlm_probability: float = 0.30


@dataclass
class OptimizerConfig:
    """`name`: adamw (PyTorch's) or decoupled_adamw (Composer's). Biases and LayerNorms have no weight decay."""

    name: str = "adamw"
    lr: float = 5.0e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1.0e-6
    weight_decay: float = 1.0e-5


@dataclass
class SchedulerConfig:
    """`name`: linear_with_warmup, cosine_with_warmup, constant_with_warmup; `t_warmup` and `alpha_f`: Composer's."""

    name: str = "linear_with_warmup"
    t_warmup: str = "0.06dur"
    alpha_f: float = 0.0


@dataclass
class EvalConfig:
    """Validation: every `interval`, at each of `lengths`, on the first `blocks` blocks (null: all), `at_start` too."""

    interval: str = "100ba"
    at_start: bool = False
    lengths: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    blocks: int | None = None
    batch_tokens: int | None = None


@dataclass
class TrainConfig:
    """A training run.

    Attributes:
        task: what is trained; `pretrain`.
        seed: of everything that is random.
        run_name: in the logs; null takes the name of `save_folder`.
        save_folder: checkpoints, metrics.jsonl, config.yaml and the exported model.
        tokenizer: folder or hub name of any Hugging Face tokenizer with a mask token.
        data: see `DataConfig`.
        init_from: a folder or hub name of MosaicBERT weights to start from; null starts anew.
        model: fields of `MosaicBertConfig`; `vocab_size: null` takes the tokenizer's, rounded up to 64.
        sequence_length: rows are cut to it; must divide the data's block size.
        max_duration: goal of the run and of the schedule, as in Composer: 2500ba, 1ep, 1000000000tok.
        stop_after: wall-clock limit (4h, 90m, …) or null. The schedule stays that of `max_duration`.
        global_train_batch_size: data blocks a step over all devices; shorter rows mean more of them, not fewer tokens.
        microbatch_tokens: tokens that pass the model at once on a device.
        precision: auto (bf16 on a GPU, float32 on a CPU), fp32 or amp_bf16.
        compile: torch.compile: null on a GPU only.
        peak_flops: of one device [FLOP/s], for MFU; null looks it up by name.
        algorithms, callbacks, loggers: name to arguments, see `docs/architecture.md`.
        save_interval, save_num_checkpoints_to_keep: checkpoints.
        autoresume: go on from the last checkpoint of `save_folder` if there is one.
        overwrite: remove an earlier run in `save_folder`.
        export: write a Hugging Face folder to `save_folder`/hf at the end.
        dry_run: check everything, run one step, print what would be trained, leave nothing.
        progress_bar: show one; else log to the console every `console_log_interval`.
    """

    task: str = "pretrain"
    seed: int = 42
    run_name: str | None = None
    save_folder: str = MISSING
    tokenizer: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    init_from: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    sequence_length: int = 512
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    max_duration: str = "2500ba"
    stop_after: str | None = None
    global_train_batch_size: int = 1024
    microbatch_tokens: int = 65536
    precision: str = "auto"
    compile: bool | None = None
    peak_flops: float | None = None
    eval: EvalConfig = field(default_factory=EvalConfig)
    algorithms: dict[str, Any] = field(
        default_factory=lambda: {"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}}
    )
    callbacks: dict[str, Any] = field(default_factory=lambda: {"throughput": {}, "lr_monitor": {}, "peak_memory": {}})
    loggers: dict[str, Any] = field(default_factory=dict)
    save_interval: str = "500ba"
    save_num_checkpoints_to_keep: int = 2
    autoresume: bool = False
    overwrite: bool = False
    export: bool = True
    dry_run: bool = False
    progress_bar: bool = True
    console_log_interval: str = "10ba"

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
        train_split, val_split: folders of the two; `train_64`, say, of data that is divided into stages.
        num_workers: loader processes on each device; null takes 0 on one or two cores, else at most 4.
        prefetch_factor: batches that each worker reads ahead.
        stage_splits: folders of training blocks (`train_64`, …), one a stage of the curriculum; empty: `train_split`
            for all.
        when_stage_ends: when all blocks of a stage have been read: `next` goes on to the next stage, `restart` reads
            them again, in another order, as the last stage does in either case.
        shuffle: shuffle the training blocks, by `seed`.
        num_canonical_nodes: parts of the data that a batch has equal shares of, StreamingDataset's canonical nodes.
            Each node fetches the shards of its parts, so it should be a multiple of the number of nodes, and divide
            `global_train_batch_size`; otherwise some shards are fetched by several. The order of blocks depends on it,
            and not on nodes and processes. null takes 8, or what divides the batch; and 1 without `shuffle`, so that
            blocks keep their order, and each node fetches all shards. A checkpoint's goes before it.
        predownload: blocks that each loader process has fetched ahead; null takes eight batches.
        cache_limit: most that the cache of each folder may take (200gb), or null: until the disk is full.
        download_timeout: seconds without an answer after which a download is tried again.
        download_patience: seconds that a store may be gone; then the run ends with a checkpoint and code 75.
        check_hashes: compare the shards' xxh64 with the index before training, those of a cache too: null does so up
            to 4 GiB. What is fetched is compared in any case.
    """

    local: str = MISSING
    remote: str | None = None
    train_split: str = "train"
    val_split: str = "val"
    stage_splits: list[str] = field(default_factory=list)
    when_stage_ends: str = "next"
    num_workers: int | None = None
    prefetch_factor: int = 2
    shuffle: bool = True
    num_canonical_nodes: int | None = None
    predownload: int | None = None
    cache_limit: str | None = None
    download_timeout: float = 60.0
    download_patience: float = 300.0
    check_hashes: bool | None = None


@dataclass
class StaticConfig:
    """Each of `lengths` begins at one of `begins`: steps (500ba), tokens (1000000tok), shares of the run (0.25dur)."""

    lengths: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    begins: list[str] = field(default_factory=lambda: ["0dur", "0.25dur", "0.5dur", "0.75dur"])


@dataclass
class HybridConfig:
    """The paper's: the next length when the validation loss stands still (Sadrieh, 2024, Algorithm 1).

    Attributes:
        lengths: one after the other.
        patience: evaluations in a row without an improvement that end a stage.
        delta: an improvement is a value more than this below the best one so far.
        metric: what is watched, as eval_512/MaskedCrossEntropy; null takes the loss at the longest of `eval.lengths`.
        max_steps: a stage ends after so many steps at the latest; null has no limit.
    """

    lengths: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    patience: int = 2
    delta: float = 1.0
    metric: str | None = None
    max_steps: int | None = None


@dataclass
class DynamicConfig:
    """The longest length until the training loss stands still, then the shortest until it moves, and back.

    Attributes:
        lengths: the shortest and the longest.
        smoothing: weight of the past in the moving average of the loss, which begins anew with each stage.
        window: the average is compared with itself so many steps before; a stage has more than two windows.
        threshold: to stand still is to change by at most this [nats] over the window, to move is to change by more.
    """

    lengths: list[int] = field(default_factory=lambda: [64, 512])
    smoothing: float = 0.98
    window: int = 50
    threshold: float = 0.01


@dataclass
class CurriculumConfig:
    """Sequence length over the run: at most one; `seq_length_warmup` has the arguments of Composer's algorithm."""

    static: StaticConfig | None = None
    hybrid: HybridConfig | None = None
    dynamic: DynamicConfig | None = None
    seq_length_warmup: dict[str, Any] | None = None


@dataclass
class MaskingConfig:
    """Shares in masking.

    Attributes:
        mlm_probability: of the tokens, in training.
        stage_rates: one for each length of the curriculum, in the place of `mlm_probability`.
        final_rate: the share falls linearly over the run, from `mlm_probability` to this one.
        mask_share, random_share: of the chosen tokens, to `[MASK]` and to random tokens (the rest stays).
        eval_mlm_probability: of the tokens, in evaluation.
    """

    mlm_probability: float = 0.30
    stage_rates: list[float] | None = None
    final_rate: float | None = None
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
class FsdpConfig:
    """Weights, gradients and the optimizer's state divided between processes, each on a GPU; Composer's keys.

    Attributes:
        sharding_strategy: FULL_SHARD, or SHARD_GRAD_OP, which keeps weights whole between forward and backward.
        data_parallel_replicate_degree: so many copies, each divided between the processes of some nodes (HSDP); null
            divides one between all.
        mixed_precision: Composer's: FULL gathers weights in float32 and computes what DDP computes; DEFAULT gathers
            them, and computes LayerNorms and residuals too, in that of `precision`, for half the traffic; PURE sends
            gradients so too.
        activation_checkpointing: compute each layer's forward again in the backward, for memory.
        forward_prefetch, limit_all_gathers: PyTorch's.
    """

    sharding_strategy: str = "FULL_SHARD"
    data_parallel_replicate_degree: int | None = None
    mixed_precision: str = "FULL"
    activation_checkpointing: bool = False
    forward_prefetch: bool = False
    limit_all_gathers: bool = True


@dataclass
class ParallelismConfig:
    """How the model is spread over processes: whole on each (DDP), or divided, where `fsdp` is given."""

    fsdp: FsdpConfig | None = None


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
        save_folder: checkpoints, metrics.jsonl, config.yaml and the exported model; on this machine.
        save_remote: a folder in an object store (s3://…, gs://…) or a shared path, to which the run is copied while it
            trains, and from which autoresume=true goes on, also on a machine that has never seen the run; or null.
        save_patience: seconds that this store may be gone at a time. Training goes on in any case, and the next
            checkpoint is tried; if at the end the last one can't be copied for so long, the exit code is 75.
        tokenizer: folder or hub name of any Hugging Face tokenizer with a mask token.
        data: see `DataConfig`.
        init_from: a folder or hub name of weights to start from, of the same architecture; null starts anew.
        model: `architecture` (mosaicbert or bert) and the fields of its configuration, `MosaicBertConfig` or
            `BertConfig`; `vocab_size: null` takes the tokenizer's, rounded up to 64.
        curriculum: see `CurriculumConfig`.
        sequence_length: rows are cut to it, where no curriculum is named; must divide the data's block size.
        max_duration: goal of the run and of the schedule, as in Composer: 2500ba, 1ep, 1000000000tok.
        stop_after: wall-clock limit (4h, 90m, …) or null. The schedule stays that of `max_duration`.
        global_train_batch_size: data blocks a step over all devices; shorter rows mean more of them, not fewer tokens.
        microbatch_tokens: tokens that pass the model at once on a device.
        precision: auto (bf16 on a GPU, float32 on a CPU), fp32 or amp_bf16.
        compile: torch.compile: null on a GPU only.
        parallelism: see `ParallelismConfig`.
        dist_timeout: seconds that processes wait for one another before they give up.
        peak_flops: of one device [FLOP/s], for MFU; null looks it up by name.
        algorithms, callbacks, loggers: name to arguments, see `docs/architecture.md`.
        save_interval, save_num_checkpoints_to_keep: checkpoints.
        autoresume: go on from the last checkpoint of `save_folder`, or of `save_remote` if that is later.
        overwrite: remove an earlier run in `save_folder` and `save_remote`.
        export: write a Hugging Face folder to `save_folder`/hf at the end.
        finetune_after: tasks that the model is fine-tuned for when pretraining has ended: names of YAMLs in
            yamls/finetune/, or paths; results land in `save_folder`/finetune.
        dry_run: check everything, run one step, print what would be trained, leave nothing.
        progress_bar: show one; else log to the console every `console_log_interval`.
    """

    task: str = "pretrain"
    seed: int = 42
    run_name: str | None = None
    save_folder: str = MISSING
    save_remote: str | None = None
    save_patience: float = 300.0
    tokenizer: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    init_from: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
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
    parallelism: ParallelismConfig = field(default_factory=ParallelismConfig)
    dist_timeout: float = 1800.0
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
    finetune_after: list[str] = field(default_factory=list)
    dry_run: bool = False
    progress_bar: bool = True
    console_log_interval: str = "10ba"

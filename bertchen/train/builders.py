"""Builds what `main.py` puts together: model, loaders, evaluators, optimizer, scheduler, loggers, callbacks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from composer.callbacks import LRMonitor, MemoryMonitor, NaNMonitor, OptimizerMonitor
from composer.core import Callback, DataSpec, Evaluator
from composer.loggers import LoggerDestination, TensorboardLogger, WandBLogger
from composer.optim import (
    ComposerScheduler,
    ConstantWithWarmupScheduler,
    CosineAnnealingWithWarmupScheduler,
    DecoupledAdamW,
    LinearWithWarmupScheduler,
)
from composer.utils import dist
from torch import nn

from bertchen.algorithms import LOSS_GUARD, LengthCurriculum, Masking, apply_surgeries
from bertchen.algorithms.loss_guard import BAD_BATCHES_FILE
from bertchen.callbacks import (
    Checkpoints,
    FiniteLoss,
    MetricsFile,
    OwedEvaluation,
    PeakMemory,
    RemoteCopy,
    SampleIds,
    StageData,
    StepSeed,
    StopAfter,
    Throughput,
)
from bertchen.callbacks.stage_data import Stages
from bertchen.config import Config
from bertchen.config.load import nearest
from bertchen.config.resolve import build_named, call_checked
from bertchen.config.schema_train import TrainConfig
from bertchen.data.blocks import BlockDataset, EvaluationBatches, train_loader
from bertchen.data.cutting import split_by_tokens
from bertchen.data.masking import MaskingVocabulary, mask_tokens
from bertchen.data.order import default_parts
from bertchen.data.shared_memory import note_segments, one_run_at_a_time
from bertchen.data.stages import StageBlocks, StagedBlocks, staged_loader
from bertchen.errors import UserError
from bertchen.metrics import masked_lm_metrics
from bertchen.tokenizer import require_mask_token, special_token_ids
from bertchen.train.architectures import architecture_of, load_weights
from bertchen.train.composer_model import ComposerMaskedLM
from bertchen.train.devices import compute_dtype, default_num_workers
from bertchen.train.parallelism import compile_model, mark_layers
from bertchen.train.preflight import Checked, train_splits
from bertchen.train.run_folder import CHECKPOINT_FILE, LATEST_FILE, METRICS_FILE, SAMPLES_FILE

Blocks = TypeVar("Blocks", bound=BlockDataset)

NO_DECAY_BELOW_DIMENSIONS = 2


def build_model(config: Config[TrainConfig], checked: Checked) -> ComposerMaskedLM:
    """The model in a ComposerModel: new, or from `init_from` with its vocabulary made to fit the tokenizer.

    The algorithms that change a model's layers have done so.
    """
    cfg = config.value
    torch.manual_seed(cfg.seed)
    if cfg.init_from is None:
        model = architecture_of(checked.model_config).model_class(checked.model_config)
    else:
        model = load_weights(config, checked.model_config, checked.manifest["block_size"])
    wants_compile = torch.cuda.is_available() if cfg.compile is None else cfg.compile
    mark_layers(config, model)
    facts = {"config": config.to_dict(), "manifest": checked.manifest}
    composer_model = ComposerMaskedLM(model, checked.tokenizer, facts)
    apply_surgeries(config, composer_model, checked.precision)
    # What is compiled depends on the layers, which a surgery may have changed.
    if wants_compile:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        compile_model(config, model, device, compute_dtype(checked.precision))
    facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return composer_model


def masking_vocabulary(checked: Checked) -> MaskingVocabulary:
    """What masking must know of the run's tokenizer."""
    tokenizer = checked.tokenizer
    return MaskingVocabulary.build(len(tokenizer), special_token_ids(tokenizer), require_mask_token(tokenizer))


def build_curriculum(checked: Checked) -> LengthCurriculum:
    """The algorithm that cuts training batches to the length of the time."""
    return LengthCurriculum(checked.curriculum.rule, checked.curriculum.name)


def build_masking(config: Config[TrainConfig], checked: Checked, curriculum: LengthCurriculum | None = None) -> Masking:
    """The algorithm that hides tokens of training batches, which `curriculum` has cut before."""
    masking = config.value.masking
    return Masking(
        masking_vocabulary(checked),
        checked.curriculum.rate,
        config.value.seed,
        masking.mask_share,
        masking.random_share,
        curriculum,
    )


def build_dataset(
    config: Config[TrainConfig], split: str, blocks_per_device: int, kind: type[Blocks] = BlockDataset
) -> Blocks:
    """The blocks of a split; only training is shuffled."""
    data = config.value.data
    shuffle = data.shuffle and split in train_splits(config)
    parts = data.num_canonical_nodes or default_parts(shuffle, config.value.global_train_batch_size)
    try:
        with one_run_at_a_time():
            dataset = kind(
                local=data.local,
                remote=data.remote,
                split=split,
                shuffle=shuffle,
                shuffle_seed=config.value.seed,
                batch_size=blocks_per_device,
                num_canonical_nodes=parts,
                predownload=data.predownload,
                cache_limit=data.cache_limit,
                download_timeout=data.download_timeout,
                download_patience=data.download_patience,
            )
            note_segments(dataset._shm_prefix_int)
            return dataset
    except ValueError as error:  # a limit of the cache that is too low, say
        raise UserError(f"data (from {config.source('data')}): {error}") from error


def build_train_loader(config: Config[TrainConfig], checked: Checked) -> DataSpec:
    """Training batches, counted in blocks and tokens, divided into microbatches by tokens."""
    cfg = config.value
    block_size = checked.manifest["block_size"]
    workers = default_num_workers() if cfg.data.num_workers is None else cfg.data.num_workers
    load = partial(
        train_loader,
        blocks_per_device=checked.blocks_per_device,
        seq_len=checked.curriculum.loader_length or block_size,
        num_workers=workers,
        prefetch_factor=cfg.data.prefetch_factor,
    )
    if cfg.data.stage_splits:
        splits = train_splits(config)
        stages = [build_dataset(config, split, checked.blocks_per_device, StageBlocks) for split in splits]
        loader = staged_loader(StagedBlocks(stages, load, cfg.global_train_batch_size))
    else:
        loader = load(build_dataset(config, cfg.data.train_split, checked.blocks_per_device))
    return DataSpec(
        loader,
        split_batch=partial(_split_by_tokens, tokens=cfg.microbatch_tokens),
        get_num_samples_in_batch=partial(_count_blocks, block_size=block_size),
    )


def _split_by_tokens(batch: Any, microbatch_size: int | float, tokens: int) -> Any:
    return split_by_tokens(batch, tokens)


def _one_batch(batch: Any, microbatch_size: int | float | None) -> Any:
    return [batch]


def _count_blocks(batch: Any, block_size: int) -> int | float:
    """Samples are blocks, however short the rows: so Composer's counts resume the stream at the right sample."""
    blocks = batch["input_ids"].numel() / block_size
    return int(blocks) if blocks.is_integer() else blocks


def build_evaluators(config: Config[TrainConfig], checked: Checked) -> list[Evaluator]:
    """`eval_64` … `eval_512`: the same validation blocks at each length, masked the same way every time."""
    cfg = config.value
    block_size = checked.manifest["block_size"]
    blocks_per_batch = max(1, (cfg.eval.batch_tokens or cfg.microbatch_tokens) // block_size)
    dataset = build_dataset(config, cfg.data.val_split, blocks_per_batch)
    masking = partial(
        mask_tokens,
        vocabulary=masking_vocabulary(checked),
        rate=cfg.masking.eval_mlm_probability,
        seed=cfg.seed,
        mask_share=cfg.masking.mask_share,
        random_share=cfg.masking.random_share,
    )
    # Small sets get small batches: what fills up the last one is computed for nothing.
    blocks = min(cfg.eval.blocks or dataset.num_samples, dataset.num_samples)
    per_process = -(-blocks // dist.get_world_size())
    blocks_per_batch = min(blocks_per_batch, per_process)
    return [
        Evaluator(
            label=f"eval_{length}",
            dataloader=DataSpec(
                EvaluationBatches(
                    dataset, block_size, length, blocks_per_batch, masking, cfg.masking.eval_mlm_probability,
                    dist.get_global_rank(), dist.get_world_size(), cfg.eval.blocks,
                ),
                split_batch=_one_batch,
                get_num_samples_in_batch=partial(_count_blocks, block_size=block_size),
            ),
            metric_names=[type(metric).__name__ for metric in masked_lm_metrics()],
            eval_interval=cfg.eval.interval,
            device_eval_microbatch_size=blocks_per_batch,
        )
        for length in cfg.eval.lengths
    ]  # fmt: skip


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases and LayerNorms, all that have one dimension, without."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [parameter for _, parameter in named if parameter.ndim >= NO_DECAY_BELOW_DIMENSIONS]
    others = [parameter for _, parameter in named if parameter.ndim < NO_DECAY_BELOW_DIMENSIONS]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _adamw(groups: list[dict[str, Any]], **arguments: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=torch.cuda.is_available(), **arguments)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": _adamw, "decoupled_adamw": DecoupledAdamW}


def build_optimizer(config: Config[Any], model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that `optimizer.name` names."""
    optimizer = config.value.optimizer
    if optimizer.name not in OPTIMIZERS:
        config.fail("optimizer.name", f"unknown; {nearest(optimizer.name, OPTIMIZERS)}")
    first, second = optimizer.betas
    return OPTIMIZERS[optimizer.name](
        parameter_groups(model, optimizer.weight_decay), lr=optimizer.lr, betas=(first, second), eps=optimizer.eps
    )


def _constant_with_warmup(t_warmup: str, alpha_f: float) -> ComposerScheduler:
    return ConstantWithWarmupScheduler(t_warmup=t_warmup, alpha=alpha_f or 1.0)


SCHEDULERS: dict[str, Callable[..., ComposerScheduler]] = {
    "linear_with_warmup": LinearWithWarmupScheduler,
    "cosine_with_warmup": CosineAnnealingWithWarmupScheduler,
    "constant_with_warmup": _constant_with_warmup,
}


def build_scheduler(config: Config[Any]) -> ComposerScheduler:
    """The scheduler that `scheduler.name` names."""
    scheduler = config.value.scheduler
    if scheduler.name not in SCHEDULERS:
        config.fail("scheduler.name", f"unknown; {nearest(scheduler.name, SCHEDULERS)}")
    arguments = {"t_warmup": scheduler.t_warmup, "alpha_f": scheduler.alpha_f}
    return call_checked(config, "scheduler", SCHEDULERS[scheduler.name], arguments)


def _wandb(folder: str, name: str) -> Callable[..., LoggerDestination]:
    def build(**arguments: Any) -> LoggerDestination:
        # Without a key wandb would ask for one; a run must never wait for an answer.
        if not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") or _has_netrc_entry()):
            os.environ["WANDB_MODE"] = "offline"
        _keep_url_method()
        options = {"name": name, "init_kwargs": {"dir": folder}, **arguments}
        return WandBLogger(**options)

    return build


def _keep_url_method() -> None:
    """Composer 0.32 asks a run for `get_url()`, which later versions of wandb have as a property only."""
    import wandb

    if not hasattr(wandb.Run, "get_url"):
        wandb.Run.get_url = lambda run: run.url


def _has_netrc_entry() -> bool:
    import netrc

    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def build_loggers(config: Config[Any], run_name: str) -> list[LoggerDestination]:
    """`metrics.jsonl` always; W&B (offline without a key, never a prompt) and TensorBoard by name."""
    cfg = config.value
    folder = cfg.save_folder
    table: dict[str, Callable[..., LoggerDestination]] = {
        "wandb": _wandb(folder, run_name),
        "tensorboard": partial(TensorboardLogger, log_dir=os.path.join(folder, "tensorboard")),
    }
    return [MetricsFile(os.path.join(folder, METRICS_FILE)), *build_named(config, "loggers", table)]


def build_callbacks(config: Config[TrainConfig], checked: Checked, parameters: int) -> list[Callback]:
    """The callbacks under `callbacks`, the seeding of each step, what a stop owes, and the wall-clock limit if any."""
    stop = StopAfter(checked.stop_after, str(config.value.stop_after)) if checked.stop_after else None
    left = (lambda: stop.seconds - stop.elapsed()) if stop else None
    samples = partial(SampleIds, os.path.join(config.value.save_folder, SAMPLES_FILE))
    named = named_callbacks(config, parameters, checked.peak_flops, left, {"sample_ids": samples})
    return [*named, OwedEvaluation(), *([stop] if stop else [])]


def named_callbacks(
    config: Config[Any],
    parameters: int,
    peak_flops: float | None,
    seconds_left: Callable[[], float] | None = None,
    others: Mapping[str, Callable[..., Callback]] | None = None,
) -> list[Callback]:
    """The callbacks under `callbacks`, and before them every run's: the seeding of each step, a look at its loss.

    Args:
        parameters: of the model.
        peak_flops: of one device [FLOP/s], if known.
        seconds_left: what another limit than `max_duration` leaves, if there is one.
        others: callbacks that this kind of run has, and others don't.
    """

    def throughput(window: int = 10) -> Throughput:
        return Throughput(parameters, peak_flops, window, seconds_left)

    table: dict[str, Callable[..., Callback]] = {
        "throughput": throughput,
        "peak_memory": PeakMemory,
        "lr_monitor": LRMonitor,
        "memory_monitor": MemoryMonitor,
        "nan_monitor": NaNMonitor,
        "optimizer_monitor": OptimizerMonitor,
        **(others or {}),
    }
    guarded = config.value.algorithms.get(LOSS_GUARD) is not None
    ours = [StepSeed(config.value.seed), *([] if guarded else [FiniteLoss()])]
    return [*ours, *build_named(config, "callbacks", table)]


def build_saving(config: Config[TrainConfig], checked: Checked) -> list[Callback]:
    """What saves the run, here and, on the first process, in a store; they come last of the callbacks."""
    cfg, remote = config.value, None
    folder = Path(cfg.save_folder)
    logs = [folder / METRICS_FILE, folder / SAMPLES_FILE, folder / BAD_BATCHES_FILE]
    if checked.store is not None and dist.get_global_rank() == 0:
        remote = RemoteCopy(checked.store, folder, cfg.save_num_checkpoints_to_keep, logs, checked.load_path)
    checkpoints = Checkpoints(
        folder=cfg.save_folder,
        filename=CHECKPOINT_FILE,
        latest_filename=LATEST_FILE,
        save_interval=cfg.save_interval,
        num_checkpoints_to_keep=cfg.save_num_checkpoints_to_keep,
        logs=logs,
        on_saved=remote.checkpoint_saved if remote else lambda saved: None,
    )
    return [checkpoints, *([remote] if remote else [])]


def build_stage_data(config: Config[TrainConfig], loader: DataSpec, curriculum: Stages | None) -> list[Callback]:
    """What gives each stage of the curriculum its own data, where `data.stage_splits` says so."""
    data = config.value.data
    if not data.stage_splits or curriculum is None:
        return []
    return [StageData(loader.dataloader.dataset, curriculum, data.when_stage_ends)]

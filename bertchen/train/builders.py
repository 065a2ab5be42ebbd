"""Builds what `main.py` puts together: model, loaders, evaluators, optimizer, scheduler, loggers, callbacks."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

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
from torch.utils.data import DataLoader

from bertchen.algorithms import Masking
from bertchen.callbacks import MetricsFile, PeakMemory, StepSeed, StopAfter, Throughput
from bertchen.config import Config
from bertchen.config.load import nearest
from bertchen.config.resolve import build_named, call_checked
from bertchen.config.schema_train import TrainConfig
from bertchen.data.blocks import BlockDataset, EvaluationBatches, train_loader
from bertchen.data.cutting import split_by_tokens
from bertchen.data.masking import MaskingVocabulary, mask_tokens
from bertchen.data.shared_memory import one_run_at_a_time
from bertchen.errors import UserError
from bertchen.metrics import masked_lm_metrics
from bertchen.model import MosaicBertForMaskedLM
from bertchen.tokenizer import require_mask_token, special_token_ids
from bertchen.train.composer_model import ComposerMaskedLM
from bertchen.train.devices import default_num_workers
from bertchen.train.preflight import Checked
from bertchen.train.run_folder import METRICS_FILE, is_remote

NO_DECAY_BELOW_DIMENSIONS = 2


def build_model(config: Config[TrainConfig], checked: Checked) -> ComposerMaskedLM:
    """MosaicBERT in a ComposerModel: new, or from `init_from` with its vocabulary made to fit the tokenizer."""
    cfg = config.value
    torch.manual_seed(cfg.seed)
    model = MosaicBertForMaskedLM(checked.model_config) if cfg.init_from is None else _load_weights(config, checked)
    facts = {
        "config": config.to_dict(),
        "manifest": checked.manifest,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    wants_compile = torch.cuda.is_available() if cfg.compile is None else cfg.compile
    if wants_compile:
        # Shapes are fixed, so each sequence length is compiled once, without symbolic shapes.
        model.compile(dynamic=False)
    return ComposerMaskedLM(model, checked.tokenizer, facts)


def _load_weights(config: Config[TrainConfig], checked: Checked) -> MosaicBertForMaskedLM:
    choices = {name: value for name, value in config.value.model.items() if name != "vocab_size" and value is not None}
    try:
        return MosaicBertForMaskedLM.from_pretrained(
            config.value.init_from, vocab_size=checked.model_config.vocab_size, **choices
        )
    except (OSError, RuntimeError, ValueError) as error:
        config.fail("init_from", f"can't be loaded as MosaicBERT: {str(error).splitlines()[0]}")


def masking_vocabulary(checked: Checked) -> MaskingVocabulary:
    """What masking must know of the run's tokenizer."""
    tokenizer = checked.tokenizer
    return MaskingVocabulary.build(len(tokenizer), special_token_ids(tokenizer), require_mask_token(tokenizer))


def build_masking(config: Config[TrainConfig], checked: Checked) -> Masking:
    """The algorithm that hides tokens of training batches."""
    masking = config.value.masking
    return Masking(
        masking_vocabulary(checked),
        masking.mlm_probability,
        config.value.seed,
        masking.mask_share,
        masking.random_share,
    )


def build_dataset(config: Config[TrainConfig], split: str, blocks_per_device: int) -> BlockDataset:
    """The blocks of a split; only training is shuffled."""
    data = config.value.data
    try:
        with one_run_at_a_time():
            return BlockDataset(
                local=data.local,
                remote=data.remote,
                split=split,
                shuffle=data.shuffle and split == "train",
                shuffle_seed=config.value.seed,
                batch_size=blocks_per_device,
                num_canonical_nodes=data.num_canonical_nodes,
                predownload=data.predownload,
                cache_limit=data.cache_limit,
                download_retry=data.download_retry,
                download_timeout=data.download_timeout,
                validate_hash="xxh64" if data.remote else None,
            )
    except ValueError as error:  # a limit of the cache that is too low, say
        raise UserError(f"data (from {config.source('data')}): {error}") from error


def build_train_loader(config: Config[TrainConfig], checked: Checked) -> DataSpec:
    """Training batches, counted in blocks and tokens, divided into microbatches by tokens."""
    cfg = config.value
    block_size = checked.manifest["block_size"]
    workers = default_num_workers() if cfg.data.num_workers is None else cfg.data.num_workers
    loader: DataLoader[Any] = train_loader(
        build_dataset(config, "train", checked.blocks_per_device),
        checked.blocks_per_device,
        cfg.sequence_length,
        workers,
        cfg.data.prefetch_factor,
    )
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
    dataset = build_dataset(config, "val", blocks_per_batch)
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


def build_optimizer(config: Config[TrainConfig], model: nn.Module) -> torch.optim.Optimizer:
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


def build_scheduler(config: Config[TrainConfig]) -> ComposerScheduler:
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


def build_loggers(config: Config[TrainConfig], run_name: str) -> list[LoggerDestination]:
    """`metrics.jsonl` always; W&B (offline without a key, never a prompt) and TensorBoard by name."""
    cfg = config.value
    folder = "." if is_remote(cfg.save_folder) else cfg.save_folder
    table: dict[str, Callable[..., LoggerDestination]] = {
        "wandb": _wandb(folder, run_name),
        "tensorboard": partial(TensorboardLogger, log_dir=os.path.join(folder, "tensorboard")),
    }
    return [MetricsFile(os.path.join(folder, METRICS_FILE)), *build_named(config, "loggers", table)]


def build_callbacks(config: Config[TrainConfig], checked: Checked, parameters: int) -> list[Callback]:
    """The callbacks under `callbacks`, the seeding of each step, and the wall-clock limit if there is one."""
    stop = StopAfter(checked.stop_after, str(config.value.stop_after)) if checked.stop_after else None

    def throughput(window: int = 10) -> Throughput:
        left = (lambda: stop.seconds - stop.elapsed()) if stop else None
        return Throughput(parameters, checked.peak_flops, window, left)

    table: dict[str, Callable[..., Callback]] = {
        "throughput": throughput,
        "peak_memory": PeakMemory,
        "lr_monitor": LRMonitor,
        "memory_monitor": MemoryMonitor,
        "nan_monitor": NaNMonitor,
        "optimizer_monitor": OptimizerMonitor,
    }
    chosen = build_named(config, "callbacks", table)
    return [StepSeed(config.value.seed), *chosen, *([stop] if stop else [])]


def check_task(config: Config[TrainConfig], known: list[str]) -> None:
    """Raises the `UserError` for a task that isn't known."""
    if config.value.task not in known:
        config.fail("task", f"unknown; {nearest(config.value.task, known)}")

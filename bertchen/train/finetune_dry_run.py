"""`dry_run=true` of a fine-tuning: what it would be, after one real step on the device, and nothing left behind."""

from __future__ import annotations

import time

import torch
from composer.core import DataSpec, get_precision_context
from composer.utils import dist, get_device
from omegaconf import OmegaConf

from bertchen.callbacks.peak_memory import peak_memory
from bertchen.config import Config
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.errors import UserError
from bertchen.train.checks import CHECKPOINT_BYTES_PER_PARAMETER, show_bytes
from bertchen.train.devices import device_name
from bertchen.train.finetune_checks import Settings
from bertchen.train.finetune_evaluation import Evaluator, describe_inputs
from bertchen.train.finetune_model import ComposerTask


def dry_run_task(
    config: Config[FinetuneConfig],
    settings: Settings,
    evaluator: Evaluator,
    model: ComposerTask,
    train_loader: DataSpec,
) -> None:
    """Passes one microbatch forward and back and prints what would be trained and evaluated.

    Raises:
        UserError: the device's memory doesn't hold the step.
    """
    cfg = config.value
    device = get_device(None)
    model = device.module_to_device(model)
    batch = device.batch_to_device(next(iter(train_loader.dataloader)))
    micro = train_loader.split_batch(batch, cfg.microbatch_size or settings.batch_per_device)[0]
    started = time.monotonic()
    try:
        model.train()
        with get_precision_context(settings.precision):
            loss = model.loss(model(micro), micro)
        loss.backward()
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"the step doesn't fit into the memory of {device_name()}: give a microbatch_size smaller than "
            f"{len(micro['input_ids'])}, or a smaller encoding.max_length"
        ) from None
    if dist.get_global_rank() == 0:
        print(OmegaConf.to_yaml(OmegaConf.create(config.to_dict())))
        print(_describe(cfg, settings, evaluator, loss.item(), time.monotonic() - started))


def _describe(cfg: FinetuneConfig, settings: Settings, evaluator: Evaluator, loss: float, seconds: float) -> str:
    splits = evaluator.data.splits
    inputs = {split: evaluator.features(split) for split in splits}
    parameters = evaluator.encoder.parameters
    steps = -(-len(inputs["train"]) // cfg.global_train_batch_size)
    return "\n".join(
        [
            f"device: {dist.get_world_size()} x {device_name()}, precision {settings.precision}",
            f"model: {cfg.model}, {parameters:,} parameters, "
            + (f"at most {evaluator.encoder.max_length} tokens" if evaluator.encoder.max_length else "of any length"),
            *(f"{split}: {describe_inputs(examples, inputs[split])}" for split, examples in splits.items()),
            f"an epoch: {steps} steps; max_duration {cfg.max_duration}",
            f"protocol: {cfg.protocol}; records to be written: {', '.join(settings.missing)}",
            f"one microbatch: loss {loss:.4f}, {seconds:.2f} s with start-up, peak memory {show_bytes(peak_memory())}",
            f"a checkpoint: about {show_bytes(parameters * CHECKPOINT_BYTES_PER_PARAMETER)}",
            "dry run: everything checked, nothing written",
        ]
    )

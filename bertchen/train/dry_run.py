"""`dry_run=true`: everything a run would be, after one real step on the device, and nothing left behind."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from composer.core import Algorithm, DataSpec, Event, State, get_precision_context
from composer.loggers import Logger
from composer.utils import dist, get_device
from omegaconf import OmegaConf

from bertchen.callbacks.peak_memory import peak_memory
from bertchen.config import Config
from bertchen.config.schema_train import TrainConfig
from bertchen.errors import UserError
from bertchen.model import MosaicBertConfig
from bertchen.train.architectures import ModelConfig
from bertchen.train.checks import CHECKPOINT_BYTES_PER_PARAMETER, show_bytes
from bertchen.train.composer_model import ComposerMaskedLM
from bertchen.train.devices import device_name
from bertchen.train.preflight import Checked, train_splits


def flops_per_token(model: ModelConfig, parameters: int, seq_len: int, rate: float) -> float:
    """Training FLOPs a token, forward and backward: 6 for each weight it passes, and attention's.

    Embeddings of words and positions are looked up, not multiplied; the head sees the masked share of tokens only,
    and so does what follows attention in MosaicBERT's last layer.
    Attention takes 2 * 2 * seq_len * hidden FLOPs a layer forward (scores and mix) and twice that backward (Kaplan et
    al., 2020, 2.1).
    """
    hidden = model.hidden_size
    head = hidden * hidden + hidden * model.vocab_size
    positions = getattr(model, "max_position_embeddings", 0)  # a plain BERT's
    embeddings = (model.vocab_size + positions) * hidden
    passed = parameters - embeddings - hidden * hidden + rate * head
    if isinstance(model, MosaicBertConfig):
        after_attention = hidden * hidden + 3 * hidden * model.intermediate_size + 6 * hidden
        passed -= (1 - rate) * after_attention
    return 6 * passed + 12 * model.num_hidden_layers * seq_len * hidden


def dry_run(
    config: Config[TrainConfig],
    checked: Checked,
    model: ComposerMaskedLM,
    optimizer: torch.optim.Optimizer,
    train_loader: DataSpec,
    algorithms: Sequence[Algorithm],
) -> None:
    """Takes one step of one microbatch and prints what would be trained.

    Raises:
        UserError: the device's memory doesn't hold the step.
    """
    cfg = config.value
    device = get_device(None)
    model = device.module_to_device(model)
    state = State(
        model=model, rank_zero_seed=cfg.seed, run_name="dry-run", device=device, max_duration=cfg.max_duration,
        precision=checked.precision, optimizers=optimizer,
    )  # fmt: skip
    state.set_dataloader(train_loader.dataloader, "train")
    state.batch = next(iter(train_loader.dataloader))
    for algorithm in reversed(algorithms):  # as Composer does after the loader
        if algorithm.match(Event.AFTER_DATALOADER, state):
            algorithm.apply(Event.AFTER_DATALOADER, state, Logger(state))
    micro = train_loader.split_batch(state.batch, checked.blocks_per_device)[0]
    started = time.monotonic()
    try:
        model.train()
        with get_precision_context(checked.precision):
            loss = model.loss(model(micro), micro)
        loss.backward()
        optimizer.step()
        loss_value = loss.item()
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"microbatch_tokens={cfg.microbatch_tokens} (from {config.source('microbatch_tokens')}): the step doesn't "
            f"fit into the memory of {device_name()}; halve it"
        ) from None
    if dist.get_global_rank() == 0:
        print(OmegaConf.to_yaml(OmegaConf.create(config.to_dict())))
        print(describe(config, checked, model, micro, loss_value, time.monotonic() - started))


def describe(
    config: Config[TrainConfig], checked: Checked, model: ComposerMaskedLM, micro: dict, loss: float, seconds: float
) -> str:
    """The step's shape, the model's size, FLOPs, memory and checkpoint sizes, a line each."""
    cfg, block_size = config.value, checked.manifest["block_size"]
    length = micro["input_ids"].shape[1]
    rows = cfg.global_train_batch_size * block_size // length
    parameters = model.facts["parameters"]
    rate = checked.curriculum.rate.at(checked.curriculum.rule.begin().stage, 0.0)
    flops = flops_per_token(checked.model_config, parameters, length, rate)
    steps = {
        split: checked.manifest["splits"][split]["blocks"] // cfg.global_train_batch_size
        for split in train_splits(config)
    }
    if cfg.data.stage_splits:
        data = f"data a stage: {', '.join(f'{split} {count} steps' for split, count in steps.items())}"
    else:
        data = f"an epoch: {steps[cfg.data.train_split]} steps"
    checkpoint = parameters * CHECKPOINT_BYTES_PER_PARAMETER
    return "\n".join(
        [
            f"device: {dist.get_world_size()} x {device_name()}, precision {checked.precision}",
            checked.curriculum.in_words(),
            f"a step: {rows} rows x {length} = {rows * length:,} tokens "
            f"({tuple(micro['input_ids'].shape)} a microbatch)",
            f"{data}; max_duration {cfg.max_duration}",
            f"parameters: {parameters:,}",
            f"training FLOPs a token: {flops:.4g} (6 * parameters, the paper's: {6 * parameters:.4g})",
            f"one microbatch: loss {loss:.4f}, {seconds:.2f} s with start-up, peak memory {show_bytes(peak_memory())}",
            f"a checkpoint: about {show_bytes(checkpoint)}, {cfg.save_num_checkpoints_to_keep} kept; "
            f"the export: {show_bytes(parameters * 4)}",
            "dry run: everything checked, nothing written",
        ]
    )

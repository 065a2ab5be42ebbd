"""Everything that can be checked before anything expensive: each complaint is one message for the user."""

from __future__ import annotations

import os
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from composer.core import Time, TimeUnit
from composer.utils import dist
from transformers import PreTrainedTokenizerBase

from bertchen.callbacks.stage_data import WHEN_STAGE_ENDS
from bertchen.config import Config, parse_seconds
from bertchen.config.load import nearest
from bertchen.config.schema_train import TrainConfig
from bertchen.data.manifest import read_manifest
from bertchen.data.shards import check_shards
from bertchen.data.shared_memory import claim_cache
from bertchen.data.streams import fetch_manifest, prepare_cache
from bertchen.errors import UserError
from bertchen.model import MosaicBertConfig, why_no_float8, why_unavailable, why_unfused
from bertchen.run_store import RunStore
from bertchen.stores import hidden, is_remote
from bertchen.tokenizer import load_tokenizer, require_mask_token, tokenizer_fingerprint
from bertchen.train.architectures import ModelConfig, build_model_config, count_parameters
from bertchen.train.checks import (
    COUNTED,
    check_disk,
    check_not_negative,
    check_positive,
    check_seed_and_betas,
    check_time,
    check_warmup,
    checked,
)
from bertchen.train.curriculum import Curriculum, check_curriculum
from bertchen.train.devices import compute_dtype, device_name, peak_flops, resolve_precision
from bertchen.train.parallelism import check_parallelism, check_processes
from bertchen.train.resume import check_store, checkpoint_to_load
from bertchen.train.run_folder import check_run_folder

# Keys whose value, where there is one, must be positive, and those that may be 0 too.
_POSITIVE = (
    "sequence_length",
    "global_train_batch_size",
    "microbatch_tokens",
    "save_num_checkpoints_to_keep",
    "save_patience",
    "optimizer.lr",
    "data.prefetch_factor",
    "data.num_canonical_nodes",
    "data.download_timeout",
    "eval.blocks",
    "eval.batch_tokens",
    "peak_flops",
)
_NOT_NEGATIVE = ("optimizer.weight_decay", "optimizer.eps", "data.num_workers", "data.download_patience")

# The units that Composer takes for each key.
_TIME_UNITS = {
    "max_duration": COUNTED,
    "save_interval": (*COUNTED, TimeUnit.DURATION, TimeUnit.SECOND),
    "eval.interval": (*COUNTED, TimeUnit.DURATION, TimeUnit.SECOND),
    "console_log_interval": (TimeUnit.BATCH, TimeUnit.EPOCH),
}


@dataclass
class Checked:
    """What the checks found out.

    Attributes:
        tokenizer: loaded.
        manifest: of the data.
        model_config: complete.
        curriculum: of sequence length and masking rate.
        blocks_per_device: data blocks in a device's batch.
        precision: Composer's name.
        peak_flops: of one device [FLOP/s], if known.
        stop_after: [s], if there is a limit.
        load_path: the checkpoint to go on from, if there is one.
        store: to which the run is copied, if there is one.
    """

    tokenizer: PreTrainedTokenizerBase
    manifest: dict[str, Any]
    model_config: ModelConfig
    curriculum: Curriculum
    blocks_per_device: int
    precision: str
    peak_flops: float | None
    stop_after: float | None
    load_path: str | None
    store: RunStore | None


def preflight(config: Config[TrainConfig]) -> Checked:
    """Checks configuration, tokenizer, data, model, device, run folder and disk, cheapest first.

    Raises:
        UserError: the first thing that is wrong.
    """
    cfg = config.value
    _check_numbers(config)
    _check_stages(config)
    stop_after = _duration_limit(config)
    precision = checked(config, "precision", resolve_precision, cfg.precision)
    check_processes()
    check_parallelism(config)
    _check_folders(config)
    store = _open_store(config)
    tokenizer = load_tokenizer(cfg.tokenizer)
    require_mask_token(tokenizer)
    manifest = _check_data(config, tokenizer)
    model_config = build_model_config(config, tokenizer, manifest["block_size"])
    _check_backend(config, model_config, precision)
    _check_kernels(config, model_config, precision)
    blocks_per_device = _check_batch(config, manifest)
    steps_an_epoch = manifest["splits"][train_splits(config)[0]]["blocks"] // cfg.global_train_batch_size
    curriculum = check_curriculum(config, manifest["block_size"], steps_an_epoch)
    # One that is uploaded is there until it is, also when it is no longer kept.
    checkpoints = cfg.save_num_checkpoints_to_keep + (store is not None)
    check_disk(config, count_parameters(model_config), checkpoints, "lower save_num_checkpoints_to_keep")
    _check_shards(config)
    return Checked(
        tokenizer=tokenizer,
        manifest=manifest,
        model_config=model_config,
        curriculum=curriculum,
        blocks_per_device=blocks_per_device,
        precision=precision,
        peak_flops=cfg.peak_flops or peak_flops(device_name()),
        stop_after=stop_after,
        load_path=checkpoint_to_load(cfg, store) if cfg.autoresume else None,
        store=store,
    )


def _check_folders(config: Config[TrainConfig]) -> None:
    cfg = config.value
    if is_remote(cfg.save_folder):
        config.fail("save_folder", "should be a folder on this machine; save_remote takes one in a store")
    if not cfg.dry_run:
        check_run_folder(cfg.save_folder, cfg.autoresume, cfg.overwrite)


def _open_store(config: Config[TrainConfig]) -> RunStore | None:
    cfg = config.value
    if cfg.save_remote is None:
        return None
    try:
        store = RunStore(cfg.save_remote, cfg.save_patience)
    except ValueError as error:
        config.fail("save_remote", str(error), hidden(cfg.save_remote))
    check_store(cfg, store)
    return store


def _check_numbers(config: Config[TrainConfig]) -> None:
    cfg = config.value
    for key in ("mlm_probability", "eval_mlm_probability", "mask_share", "random_share"):
        value = getattr(cfg.masking, key)
        if not 0 <= value <= 1 or (key.endswith("mlm_probability") and value == 0):
            config.fail(f"masking.{key}", "should be a share between 0 and 1")
    if cfg.masking.mask_share + cfg.masking.random_share > 1:
        config.fail("masking.random_share", f"together with mask_share={cfg.masking.mask_share} it is over 1")
    check_positive(config, _POSITIVE)
    check_not_negative(config, _NOT_NEGATIVE)
    check_seed_and_betas(config)
    if cfg.data.remote and cfg.dist_timeout <= cfg.data.download_patience:
        patience = f"data.download_patience={cfg.data.download_patience:g}"
        config.fail("dist_timeout", f"should be longer than {patience}, for which one process may wait for the store")
    for key, units in _TIME_UNITS.items():
        check_time(config, key, units)
    check_warmup(config)
    if not cfg.eval.lengths:
        config.fail("eval.lengths", "should name at least one length")
    if len(set(cfg.eval.lengths)) < len(cfg.eval.lengths):
        config.fail("eval.lengths", "names a length twice")


def _check_stages(config: Config[TrainConfig]) -> None:
    cfg = config.value
    splits, ends = cfg.data.stage_splits, cfg.data.when_stage_ends
    if ends not in WHEN_STAGE_ENDS:
        config.fail("data.when_stage_ends", f"unknown; {nearest(ends, WHEN_STAGE_ENDS)}")
    if not splits:
        return
    if all(given is None for given in vars(cfg.curriculum).values()):
        config.fail("data.stage_splits", "needs a curriculum, which has stages; data.train_split is one folder for all")
    if len(set(splits)) < len(splits):
        config.fail("data.stage_splits", "names a folder twice")
    if cfg.data.val_split in splits:
        config.fail("data.stage_splits", f"names the validation data, data.val_split={cfg.data.val_split}")
    for key in (*_TIME_UNITS, "scheduler.t_warmup"):
        text = attrgetter(key)(cfg)
        if Time.from_timestring(text).unit == TimeUnit.EPOCH:
            config.fail(key, "there are no epochs with data.stage_splits: give steps, as 100ba, or tokens", text)


def _duration_limit(config: Config[TrainConfig]) -> float | None:
    return (
        None
        if config.value.stop_after is None
        else checked(config, "stop_after", parse_seconds, config.value.stop_after)
    )


def _check_data(config: Config[TrainConfig], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    cfg = config.value
    if cfg.data.remote is None:
        _check_folder(config)
    elif os.path.abspath(cfg.data.remote) == os.path.abspath(cfg.data.local):
        config.fail("data.remote", "is data.local itself: leave it out where the data is local")
    else:
        if dist.get_local_rank() == 0:
            claim_cache(cfg.data.local, _splits(config))
        fetch_manifest(cfg.data.remote, cfg.data.local, cfg.data.download_timeout, cfg.data.download_patience)
    manifest = read_manifest(cfg.data.local)
    made_with, given = manifest["tokenizer"], tokenizer_fingerprint(tokenizer)
    if made_with["fingerprint"] != given:
        raise UserError(
            f"data.local={cfg.data.local} was made with another tokenizer ({made_with['name']}, fingerprint "
            f"{made_with['fingerprint']}) than tokenizer={cfg.tokenizer} (fingerprint {given}): give that tokenizer, "
            "or convert the text again with this one"
        )
    for key in ("stage_splits" if cfg.data.stage_splits else "train_split", "val_split"):
        named = getattr(cfg.data, key)
        missing = {named} - set(manifest["splits"]) if isinstance(named, str) else set(named) - set(manifest["splits"])
        if missing:
            config.fail(f"data.{key}", f"the data in {cfg.data.local} has: {', '.join(manifest['splits'])}")
    for length in cfg.eval.lengths:
        if length < 1 or manifest["block_size"] % length:
            config.fail("eval.lengths", f"{length} doesn't divide the data's blocks of {manifest['block_size']} tokens")
    return manifest


def _check_shards(config: Config[TrainConfig]) -> None:
    """Refuses damaged shards of local data, removes those of a cache."""
    data, splits = config.value.data, _splits(config)
    if data.remote is not None:
        prepare_cache(data.remote, data.local, splits, data.check_hashes, data.download_timeout, data.download_patience)
    elif dist.get_local_rank() == 0:
        for split in splits:
            check_shards(os.path.join(data.local, split), "auto" if data.check_hashes is None else data.check_hashes)


def train_splits(config: Config[TrainConfig]) -> list[str]:
    """The folders of training blocks: one a stage, or one for all."""
    data = config.value.data
    return list(data.stage_splits) or [data.train_split]


def _splits(config: Config[TrainConfig]) -> list[str]:
    return [*train_splits(config), config.value.data.val_split]


def _check_folder(config: Config[TrainConfig]) -> None:
    folder = Path(config.value.data.local)
    advice = "make it with scripts/convert_dataset.py"
    if not folder.is_dir():
        config.fail("data.local", f"no such folder; {advice}")
    if not any(folder.iterdir()):
        config.fail("data.local", f"the folder is empty; {advice}")


def _check_backend(config: Config[TrainConfig], model: ModelConfig, precision: str) -> None:
    backend = config.value.model.get("attention_backend", "auto")
    if backend == "auto":
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head_dim = model.hidden_size // model.num_attention_heads
    dropout = model.attention_probs_dropout_prob
    reason = why_unavailable(backend, device, compute_dtype(precision), dropout, head_dim)
    if reason:
        config.fail("model.attention_backend", f"{reason}; take auto or sdpa", backend)


def _check_kernels(config: Config[TrainConfig], model: ModelConfig, precision: str) -> None:
    if not isinstance(model, MosaicBertConfig):
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = why_unfused(device, model.hidden_act, model.hidden_size)
    if reason and model.kernels == "triton":
        config.fail("model.kernels", f"{reason}; take auto or torch", model.kernels)
    if not model.float8:
        return
    if model.kernels == "torch":
        reason = "needs model.kernels=triton or auto"
    reason = reason or why_no_float8(device, model.float8_widths)
    if reason is None and precision != "amp_bf16":
        reason = f"needs precision=amp_bf16, not {precision}"
    if reason:
        config.fail("model.float8", f"{reason}; leave it out", model.float8)


def _check_batch(config: Config[TrainConfig], manifest: dict[str, Any]) -> int:
    cfg, devices = config.value, dist.get_world_size()
    if cfg.global_train_batch_size % devices:
        config.fail("global_train_batch_size", f"should be divisible by the number of processes, {devices}")
    per_device = cfg.global_train_batch_size // devices
    tokens = per_device * manifest["block_size"]
    if tokens > cfg.microbatch_tokens and tokens % cfg.microbatch_tokens:
        config.fail(
            "microbatch_tokens",
            f"a device's batch of {per_device} blocks of {manifest['block_size']} = {tokens} tokens "
            "isn't divisible by it",
        )
    blocks, split = min((manifest["splits"][split]["blocks"], split) for split in train_splits(config))
    if blocks < cfg.global_train_batch_size:
        config.fail("global_train_batch_size", f"{split} has {blocks} blocks only: give at most that many")
    if (cfg.data.num_canonical_nodes or 1) > blocks:
        config.fail("data.num_canonical_nodes", f"{split} has {blocks} blocks only: give at most that many")
    return per_device

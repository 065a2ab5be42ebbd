"""What is checked before a fine-tuning loads a model: the configuration, the run folder, and the task's data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from composer.core import TimeUnit
from composer.utils import dist

from bertchen.algorithms import build_algorithms
from bertchen.config import Config
from bertchen.config.load import nearest
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.errors import UserError
from bertchen.model.configuration_mosaicbert import POOLINGS
from bertchen.stores import is_remote
from bertchen.tasks.data import TaskData, load_task_data
from bertchen.tasks.encoding import LONG_INPUTS
from bertchen.tasks.metrics import PRIMARY
from bertchen.train import builders
from bertchen.train.checks import (
    check_not_negative,
    check_positive,
    check_seed_and_betas,
    check_time,
    check_warmup,
    checked,
)
from bertchen.train.devices import resolve_precision
from bertchen.train.finetune_evaluation import metric_names
from bertchen.train.finetune_results import (
    DEV,
    PAPER,
    PROTOCOLS,
    TRAIN,
    config_hash,
    evaluated_splits,
    missing_splits,
    of_the_result,
    weights_time,
)
from bertchen.train.run_folder import CONFIG_FILE, check_run_folder, find_checkpoint

_RUNS = "runs"
_POSITIVE = (
    "global_train_batch_size",
    "microbatch_size",
    "eval_batch_tokens",
    "optimizer.lr",
    "encoding.max_length",
    "answers.n_best",
    "answers.max_answer_tokens",
)
_NOT_NEGATIVE = ("optimizer.weight_decay", "optimizer.eps", "encoding.stride", "data.dev_size", "data.test_size")
_TIMES = ("max_duration", "eval_interval", "console_log_interval")
# The others would have other weights evaluated than trained, or other layers than the model has.
_ALGORITHMS = ("gradient_clipping",)


@dataclass(frozen=True)
class Settings:
    """What the configuration alone decides.

    Attributes:
        precision: Composer's name.
        batch_per_device: inputs of a step on a device.
        hash: of what the results depend on.
        missing: splits that have no record in the results file yet; none: there is nothing to do.
        load_path: the checkpoint to go on from, if there is one.
    """

    precision: str
    batch_per_device: int
    hash: str
    missing: list[str]
    load_path: str | None


def check_settings(config: Config[FinetuneConfig]) -> Settings:
    """Checks everything but model and data, and sets `save_folder` where it is null.

    Raises:
        UserError: the first thing that is wrong.
    """
    cfg = config.value
    cfg.save_folder = cfg.save_folder or default_folder(cfg)
    if is_remote(cfg.save_folder):
        config.fail("save_folder", "should be a local folder")
    _check_numbers(config)
    _check_choices(config)
    precision = checked(config, "precision", resolve_precision, cfg.precision)
    devices = dist.get_world_size()
    if cfg.global_train_batch_size % devices:
        config.fail("global_train_batch_size", f"should be divisible by the number of processes, {devices}")
    hash_ = config_hash(config.to_dict())
    missing = evaluated_splits(cfg) if cfg.overwrite or cfg.dry_run else missing_splits(cfg, hash_)
    load_path = None
    if missing and not cfg.dry_run:
        check_run_folder(cfg.save_folder, cfg.autoresume, cfg.overwrite)
        load_path = _checkpoint_of(config, hash_) if cfg.autoresume else None
    return Settings(precision, cfg.global_train_batch_size // devices, hash_, missing, load_path)


def default_folder(cfg: FinetuneConfig) -> str:
    """`runs/<name>/<model>-<seed>`; what makes another run of it stands in the name too."""
    model = re.sub(r"[^\w.-]+", "-", cfg.model).strip("-.")
    kinds = ("-random" if cfg.random_weights else "") + ("-paper" if cfg.protocol == PAPER else "")
    return os.path.join(_RUNS, cfg.name, f"{model}{kinds}-{cfg.seed}")


def check_data(config: Config[FinetuneConfig]) -> TaskData:
    """Reads the splits and checks that they are what the protocol needs.

    Raises:
        UserError: a file is missing or wrong, there is nothing to train on or to evaluate, or early stopping can't be.
    """
    cfg = config.value
    data = load_task_data(config)
    if data.kind != cfg.task:
        config.fail("task", f"data.reader={cfg.data.reader} reads examples for {data.kind}")
    if TRAIN not in data.splits:
        config.fail("data.splits", "should name a file for train")
    if cfg.protocol != PAPER and len(evaluated_splits(cfg)) < 2:
        config.fail("data.splits", "should name a file for dev or test, or set data.dev_size or data.test_size")
    if cfg.early_stopping is not None:
        if DEV not in data.splits:
            config.fail("early_stopping", "needs dev, which it watches: name its file or set data.dev_size")
        known = metric_names(data, DEV)
        watched = stopping_metric(cfg)
        if watched not in known:
            config.fail("early_stopping.metric", f"unknown; {nearest(watched, known)}", watched)
    return data


def stopping_metric(cfg: FinetuneConfig) -> str:
    """The metric that early stopping watches."""
    assert cfg.early_stopping is not None
    return cfg.early_stopping.metric or PRIMARY[cfg.task]


def _check_numbers(config: Config[FinetuneConfig]) -> None:
    cfg = config.value
    check_positive(config, _POSITIVE)
    check_not_negative(config, _NOT_NEGATIVE)
    check_seed_and_betas(config)
    for key in _TIMES:
        check_time(config, key, (TimeUnit.BATCH, TimeUnit.EPOCH))
    check_warmup(config)
    if not 0 <= cfg.dropout < 1:
        config.fail("dropout", "should be a share from 0 to below 1")
    if cfg.early_stopping is not None:
        check_positive(config, ("early_stopping.patience",))


def _check_choices(config: Config[FinetuneConfig]) -> None:
    cfg = config.value
    _check_choice(config, "protocol", cfg.protocol, PROTOCOLS)
    _check_choice(config, "pooling", cfg.pooling, POOLINGS)
    _check_choice(config, "encoding.long_inputs", cfg.encoding.long_inputs, LONG_INPUTS)
    _check_choice(config, "optimizer.name", cfg.optimizer.name, builders.OPTIMIZERS)
    if cfg.early_stopping is not None and cfg.protocol == PAPER:
        config.fail("early_stopping", "watches dev, and protocol=paper evaluates the training set alone", "…")
    for name, arguments in cfg.algorithms.items():
        if name not in _ALGORITHMS and arguments is not None:
            config.fail(f"algorithms.{name}", f"has no place in fine-tuning; known: {', '.join(_ALGORITHMS)}", "…")
    build_algorithms(config)
    builders.build_scheduler(config)
    builders.named_callbacks(config, 1, None)
    if not cfg.name or not re.fullmatch(r"[\w.-]+", cfg.name):
        config.fail("name", "should be one word of letters, digits, _, - and .: files are named by it")


def _check_choice(config: Config[Any], key: str, value: str, known: Any) -> None:
    if value not in known:
        config.fail(key, f"unknown; {nearest(str(value), known)}")


def _checkpoint_of(config: Config[FinetuneConfig], hash_: str) -> str | None:
    """The checkpoint to go on from, which must be this very run's."""
    cfg = config.value
    assert cfg.save_folder is not None
    path = Path(cfg.save_folder) / CONFIG_FILE
    if not path.exists():
        return None
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: can't be read: {str(error).splitlines()[0]}") from None
    advice = "start anew with overwrite=true, or give another save_folder"
    if not isinstance(before, dict) or config_hash(before) != hash_:
        key = next(_differences(of_the_result(before or {}), of_the_result(config.to_dict())), "?")
        raise UserError(f"save_folder={cfg.save_folder} holds another run, which differs in {key}: {advice}")
    checkpoint = find_checkpoint(cfg.save_folder)
    if checkpoint is not None and weights_time(cfg) > os.stat(checkpoint).st_mtime:
        raise UserError(
            f"save_folder={cfg.save_folder} holds a run from before model={cfg.model} was written anew: {advice}"
        )
    return checkpoint


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted({*one, *other}):
        first, second = one.get(name), other.get(name)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            yield from _differences(first, second, f"{prefix}{name}.")
        elif first != second:
            yield f"{prefix}{name}"

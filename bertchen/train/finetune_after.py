"""`finetune_after`: the tasks that a model is fine-tuned for when its pretraining has ended, as in the paper."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import torch

from bertchen.config import Config, load_config
from bertchen.config.load import nearest
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.config.schema_train import TrainConfig
from bertchen.errors import UserError
from bertchen.train.finetune import finetune
from bertchen.train.finetune_checks import check_data, check_settings
from bertchen.train.finetune_tasks import as_overrides, find_task, task_names
from bertchen.train.run_folder import FINETUNE_FOLDER, LATEST_FILE

RESULTS_FILE = "results.jsonl"

# How a run shows itself and what it computes with is the same for what follows it.
_TAKEN_OVER = ("precision", "progress_bar", "console_log_interval")


def check_finetune_after(config: Config[TrainConfig]) -> None:
    """Checks each task as it will be run, so that nothing is missing when pretraining has ended.

    Raises:
        UserError: a YAML isn't there, a value in it is wrong, or its data isn't there.
    """
    cfg = config.value
    if not cfg.finetune_after:
        return
    for name in cfg.finetune_after:
        if cfg.finetune_after.count(name) > 1:
            config.fail("finetune_after", f"names {name} twice")
        task = _task_config(config, name, LATEST_FILE.format(rank=0))
        try:
            check_settings(task)
            check_data(task)
        except UserError as error:
            raise UserError(f"finetune_after, {name}: {error}") from error


def finetune_after(config: Config[TrainConfig]) -> None:
    """Runs the tasks one after the other on the last checkpoint. What a restart finds done isn't repeated."""
    cfg = config.value
    if cfg.dry_run:
        return
    for name in cfg.finetune_after:
        # By its own name and not by the link's, so that a pretraining that goes on gets results of its own.
        checkpoint = (Path(cfg.save_folder) / LATEST_FILE.format(rank=0)).resolve().name
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        finetune(_task_config(config, name, checkpoint))


def _task_config(config: Config[TrainConfig], name: str, checkpoint: str) -> Config[FinetuneConfig]:
    """A task's configuration: its YAML, and what the pretraining decides."""
    cfg = config.value
    yaml = find_task(name)
    if yaml is None:
        config.fail("finetune_after", f"no such YAML file; {nearest(name, task_names())}", name)
    folder = os.path.join(cfg.save_folder, FINETUNE_FOLDER)
    taken: dict[str, Any] = {key: getattr(cfg, key) for key in _TAKEN_OVER}
    given = {
        "model": os.path.join(cfg.save_folder, checkpoint),
        "save_folder": os.path.join(folder, f"{Path(yaml).stem}-{checkpoint.partition('-rank')[0]}"),
        "results": os.path.join(folder, RESULTS_FILE),
        "autoresume": True,
        **taken,
    }
    return load_config(FinetuneConfig, [yaml, *as_overrides(given)], "finetune_after: [germeval24, …]")

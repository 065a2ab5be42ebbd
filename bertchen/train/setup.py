"""What a training process sets before anything else."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist, get_device

from bertchen.config import Config
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.config.schema_train import TrainConfig
from bertchen.data.shared_memory import allow_open_files
from bertchen.train.checks import check_positive
from bertchen.train.parallelism import complete_environment


def set_up_process(config: Config[Any]) -> None:
    """Starts the process group, the logs, and PyTorch's settings for matrix products and compilation."""
    check_positive(config, ("dist_timeout",))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("bertchen").setLevel(logging.INFO)
    # The tokenizer isn't used once loaders fork; without this each worker warns.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for noise in (r".*is deprecated.*", r".*pkg_resources.*", r".*TF32.*", r".*dataloader.*divisible.*"):
        warnings.filterwarnings("ignore", message=noise)
    allow_open_files()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        # One graph for each sequence length, in training and in evaluation, and room for rows that fill up less.
        torch._dynamo.config.cache_size_limit = 64
    complete_environment()
    dist.initialize_dist(get_device(None), timeout=config.value.dist_timeout)


def run_name_of(cfg: TrainConfig | FinetuneConfig) -> str:
    """The run's name in the logs: `run_name`, or the name of its folder, behind that of a fine-tuning's task."""
    assert cfg.save_folder is not None
    folder = Path(cfg.save_folder).resolve().name
    if isinstance(cfg, FinetuneConfig):
        return f"{cfg.name}-{folder}"
    return cfg.run_name or folder

"""What a fine-tuning leaves in results.jsonl: which records belong to a configuration, and what stands in them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import composer
import torch
import transformers

import bertchen
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.tasks.results import Record, append_result, find_done, predictions_name, read_results, write_predictions
from bertchen.train.devices import device_name

HELD_OUT, PAPER = "held_out", "paper"
PROTOCOLS = (HELD_OUT, PAPER)
TRAIN, DEV = "train", "dev"
PREDICTIONS_FOLDER = "predictions"

# Where a run is kept and what it shows of itself; the results are the same.
_BESIDE_THE_RESULT = (
    "autoresume", "callbacks", "console_log_interval", "dry_run", "export", "loggers", "overwrite", "progress_bar",
    "results", "save_folder",
)  # fmt: skip
_HASH_DIGITS = 12
# What a run folder or an exported one keeps its weights in; the first that is there is what is loaded.
_WEIGHTS = ("latest-rank0.pt", "*.safetensors", "pytorch_model*.bin", "hf/*.safetensors")


def of_the_result(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that the results depend on."""
    return {key: value for key, value in config.items() if key not in _BESIDE_THE_RESULT}


def config_hash(config: Mapping[str, Any]) -> str:
    """12 hex digits that are the same for configurations which give the same results."""
    text = json.dumps(of_the_result(config), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]


def evaluated_splits(cfg: FinetuneConfig) -> list[str]:
    """The splits that get a record, in the order in which they are written: the training set, dev, the test sets."""
    if cfg.protocol == PAPER:
        return [TRAIN]
    named = [name for name, source in cfg.data.splits.items() if source is not None]
    dev = [DEV] if DEV in named or cfg.data.dev_size is not None else []
    tests = [name for name in named if name not in (TRAIN, DEV)]
    return [TRAIN, *dev, *(tests or (["test"] if cfg.data.test_size is not None else []))]


def missing_splits(cfg: FinetuneConfig, hash_: str) -> list[str]:
    """The splits whose record isn't in the results file yet; one from before the model was written anew isn't."""
    if not os.path.exists(cfg.results):
        return evaluated_splits(cfg)
    records = find_done(read_results(cfg.results), {"config_hash": hash_})
    done = {record.get("split") for record in records if _seconds(record) >= weights_time(cfg)}
    return [split for split in evaluated_splits(cfg) if split not in done]


def weights_time(cfg: FinetuneConfig) -> int:
    """When the weights of a local model were written [s since 1970]; 0 for a name on the Hub, and for random ones."""
    if cfg.random_weights:
        return 0
    path = Path(cfg.model).expanduser()
    found = [[path]] if path.is_file() else [list(path.glob(pattern)) for pattern in _WEIGHTS]
    files = next(filter(None, found), [])
    return int(max((file.stat().st_mtime for file in files), default=0))


def _seconds(record: Record) -> float:
    try:
        return datetime.fromisoformat(record["time"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return 0


@dataclass(frozen=True)
class RunFacts:
    """What all records of a run share.

    Attributes:
        config: resolved.
        fingerprint: of the encoder.
        parameters: of the encoder.
        seconds: of training, evaluations of dev and checkpoints included, over restarts.
        best_step: the step whose weights were evaluated; None for the last.
    """

    config: dict[str, Any]
    fingerprint: str
    parameters: int
    seconds: float
    best_step: int | None = None


def write_result(
    cfg: FinetuneConfig,
    facts: RunFacts,
    split: str,
    metrics: Mapping[str, float],
    baselines: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> Record:
    """Writes the predictions of a split, and then its line in the results file. Returns the record.

    A kill between the two leaves predictions that no line names; the next start writes others beside them.

    Raises:
        UserError: one of the files can't be written.
    """
    folder = Path(cfg.results).parent
    hash_ = config_hash(facts.config)
    name = predictions_name(cfg.name, split, cfg.model, cfg.seed, hash_)
    path = write_predictions(folder / PREDICTIONS_FOLDER, name, rows)
    record = {
        "task": cfg.name,
        "kind": cfg.task,
        "split": split,
        "model": cfg.model,
        "model_fingerprint": facts.fingerprint,
        "random_weights": cfg.random_weights,
        "seed": cfg.seed,
        "protocol": cfg.protocol,
        "metrics": dict(metrics),
        "baselines": dict(baselines),
        "examples": len(rows),
        "config_hash": hash_,
        "config": facts.config,
        "commit": commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(facts.seconds, 3),
        "device": device_name(),
        "versions": versions(),
        "predictions": os.path.relpath(path, folder),
        "parameters": facts.parameters,
        "best_step": facts.best_step,
    }
    append_result(cfg.results, record)
    return record


def commit() -> str | None:
    """The commit of this code, with `-dirty` where files differ from it; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(bertchen.__file__).parent, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "composer": composer.__version__,
        "transformers": transformers.__version__,
    }

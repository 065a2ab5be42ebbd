"""The end of a run: why it ended, what came of it, and the exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from composer import Trainer
from composer.utils import dist

from bertchen.callbacks import MetricsFile, RemoteCopy, StopAfter
from bertchen.config import Config
from bertchen.config.schema_train import TrainConfig
from bertchen.export import export_checkpoint
from bertchen.stores import hidden
from bertchen.train.resume import by_first
from bertchen.train.run_folder import EXPORT_FOLDER, LATEST_FILE
from bertchen.train.setup import run_name_of


def finish(config: Config[TrainConfig], trainer: Trainer) -> None:
    """Logs the reason, closes the loggers, exports the last checkpoint and prints a summary."""
    cfg = config.value
    state = trainer.state
    if state.previous_timestamp is None:  # a restart that found nothing left to do: what came last may be lost
        log_times(trainer)
        trainer.eval()
    reason = end_reason(trainer, cfg.max_duration)
    for logger in trainer.logger.destinations:
        if isinstance(logger, MetricsFile):
            logger.log_event(state.timestamp.batch.value, event="end", reason=reason)
    losses = {
        label: float(metrics["MaskedCrossEntropy"].compute())
        for label, metrics in state.eval_metrics.items()
        if metrics
    }
    remote = next((each for each in state.callbacks if isinstance(each, RemoteCopy)), None)
    if remote is not None:
        remote.waits_at_close = False
    trainer.close()
    folder = None
    if cfg.export and dist.get_global_rank() == 0:
        folder = str(Path(cfg.save_folder) / EXPORT_FOLDER)
        export_checkpoint(
            str(Path(cfg.save_folder) / LATEST_FILE.format(rank=0)), folder, name=run_name_of(cfg), overwrite=True
        )
    by_first(lambda: remote.finish(_exported(cfg.save_folder, folder)) if remote else None)
    if dist.get_global_rank() == 0:
        print(summary(cfg, reason, state, losses, folder), flush=True)
    dist.barrier()


def _exported(save_folder: str, folder: str | None) -> list[str]:
    """Names of the exported files below the run's folder."""
    return [] if folder is None else sorted(str(path.relative_to(save_folder)) for path in Path(folder).iterdir())


def has_ended(trainer: Trainer) -> bool:
    """Whether the checkpoint that was loaded is that of `max_duration`, with which Composer would not go on."""
    state = trainer.state
    return state.max_duration is not None and state.timestamp >= state.max_duration


def log_times(trainer: Trainer) -> None:
    """Logs what Composer logs after the last step."""
    timestamp = trainer.state.timestamp
    names = ("epoch", "batch", "sample", "batch_in_epoch", "sample_in_epoch", "token", "token_in_epoch")
    trainer.logger.log_metrics({f"time/{name}": getattr(timestamp, name).value for name in names})


def end_reason(trainer: Trainer, max_duration: str) -> str:
    """Why training ended."""
    reasons = [callback.reason for callback in trainer.state.callbacks if isinstance(callback, StopAfter)]
    return next((reason for reason in reasons if reason), f"max_duration={max_duration} reached")


def summary(cfg: TrainConfig, reason: str, state: Any, losses: dict[str, float], folder: str | None) -> str:
    """What a user wants to know when a run has ended."""
    lines = [
        "",
        f"ended: {reason}, after {state.timestamp.batch.value} steps and {state.timestamp.token.value:,} tokens",
        *(f"validation loss ({label}): {loss:.4f}" for label, loss in losses.items()),
        f"run folder: {cfg.save_folder}",
        *([f"copied to: {hidden(cfg.save_remote)}"] if cfg.save_remote else []),
    ]
    if folder:
        lines.append(f"exported model: {folder}")
    return "\n".join(lines)

"""The end of a fine-tuning: the weights that count, the exported model, and the evaluation of each split, once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer import Trainer
from composer.utils import dist

from bertchen.callbacks import MetricsFile, TaskEvaluation
from bertchen.config import Config
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.tasks.encoding import output_names
from bertchen.tasks.heads import export_finetuned
from bertchen.tasks.metrics import SHOWN
from bertchen.tasks.results import Record, find_done, read_results
from bertchen.train.finetune_checks import Settings
from bertchen.train.finetune_evaluation import Evaluator
from bertchen.train.finetune_results import PAPER, TRAIN, RunFacts, write_result
from bertchen.train.finish import log_times
from bertchen.train.run_folder import EXPORT_FOLDER


def finish_finetuning(
    config: Config[FinetuneConfig],
    settings: Settings,
    trainer: Trainer,
    evaluator: Evaluator,
    evaluation: TaskEvaluation | None,
) -> None:
    """Takes the best weights where dev has chosen them, exports, evaluates what has no record yet, and tells it."""
    cfg = config.value
    _close(trainer, evaluation, cfg.max_duration)
    best_step = evaluation.load_best() if evaluation else None
    folder = _export(cfg, evaluator)
    facts = RunFacts(
        config=config.to_dict(),
        fingerprint=evaluator.encoder.fingerprint,
        parameters=evaluator.encoder.parameters,
        seconds=trainer.state.timestamp.total_wct.total_seconds(),
        best_step=best_step,
    )
    for split in settings.missing:
        result = evaluator(split)
        if dist.get_global_rank() == 0:
            write_result(cfg, facts, split, result.metrics, evaluator.baselines(split), result.rows)
    show_results(config, settings.hash, f"ended: {_reason(evaluation, cfg.max_duration)}")
    if folder and dist.get_global_rank() == 0:
        print(f"exported model: {folder}", flush=True)
    dist.barrier()


def show_results(config: Config[FinetuneConfig], hash_: str, headline: str) -> None:
    """Prints the records of a configuration, the newest of each split, beside what guessing gives."""
    cfg = config.value
    if dist.get_global_rank() != 0:
        return
    newest = {record["split"]: record for record in find_done(read_results(cfg.results), {"config_hash": hash_})}
    lines = ["", f"{cfg.name}, {cfg.model}, seed {cfg.seed}: {headline}"]
    lines += [_in_words(record) for record in newest.values()]
    lines += [f"run folder: {cfg.save_folder}", f"results: {cfg.results}"]
    print("\n".join(lines), flush=True)


def split_label(split: str, protocol: str) -> str:
    """What a figure of a split is worth, in words."""
    if protocol == PAPER:
        return "training set, the paper's protocol"
    return "training set, for comparison only" if split == TRAIN else split


def _in_words(record: Record) -> str:
    shown = [name for name in SHOWN[record["kind"]] if name in record["metrics"]]
    line = f"{split_label(record['split'], record['protocol'])}: {_figures(record['metrics'], shown)}"
    for name, metrics in record["baselines"].items():
        line += f"; {name}: {_figures(metrics, shown)}"
    return line


def _figures(metrics: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name} {metrics[name]:.4f}" for name in names if metrics.get(name) is not None)


def _close(trainer: Trainer, evaluation: TaskEvaluation | None, max_duration: str) -> None:
    """Writes the last lines of metrics.jsonl, those that a kill may have cost too."""
    state = trainer.state
    files = [logger for logger in trainer.logger.destinations if isinstance(logger, MetricsFile)]
    if state.previous_timestamp is None:  # a restart that found training at its end
        for file in files:
            file.fit_start(state, trainer.logger)
        log_times(trainer)
    for file in files:
        file.log_event(state.timestamp.batch.value, event="end", reason=_reason(evaluation, max_duration))
    trainer.close()


def _reason(evaluation: TaskEvaluation | None, max_duration: str) -> str:
    if evaluation is not None and evaluation.stopping is not None and evaluation.progress.stopped:
        return (
            f"{evaluation.stopping.metric} on {evaluation.label} was no better in {evaluation.progress.waited} "
            f"evaluations than {evaluation.progress.best:.4f} at step {evaluation.progress.best_step}"
        )
    return f"max_duration={max_duration} reached"


def _export(cfg: FinetuneConfig, evaluator: Evaluator) -> str | None:
    if not cfg.export or dist.get_global_rank() != 0:
        return None
    assert cfg.save_folder is not None
    data = evaluator.data
    folder = str(Path(cfg.save_folder) / EXPORT_FOLDER)
    names = output_names(data)
    return export_finetuned(evaluator.model, evaluator.encoder, folder, names, overwrite=True)

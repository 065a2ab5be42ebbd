"""Trains what a YAML describes: `composer main.py yamls/pretrain.yaml key.sub=value …`, or plain `python main.py …`.

`task` names the recipe: `pretrain` is here, that of the tasks for a pretrained encoder in `bertchen/train/finetune.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from composer import Trainer
from composer.utils import dist

from bertchen.algorithms import build_algorithms
from bertchen.config import Config, load_config
from bertchen.config.load import read_choice
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.config.schema_train import TrainConfig
from bertchen.errors import naming_full_disk, user_errors
from bertchen.processes import ending_soon
from bertchen.signals import stop_signals
from bertchen.train import builders
from bertchen.train.curriculum import refuse_other_checkpoint
from bertchen.train.dry_run import dry_run
from bertchen.train.finetune import finetune
from bertchen.train.finetune_after import check_finetune_after, finetune_after
from bertchen.train.finish import finish, has_ended
from bertchen.train.parallelism import parallelism_config
from bertchen.train.peers import watched_peers
from bertchen.train.preflight import preflight
from bertchen.train.resume import forget_fetched, prepare_store
from bertchen.train.run_folder import adopt_checkpoints, prepare_run_folder
from bertchen.train.setup import run_name_of, set_up_process
from bertchen.train.stopping import saved_when_stopped


def pretrain(config: Config[TrainConfig]) -> None:
    """Masked language modelling, and then the tasks of `finetune_after`, when its model has left the memory."""
    train_masked_lm(config)
    finetune_after(config)


def train_masked_lm(config: Config[TrainConfig]) -> None:
    """Masked language modelling on MDS shards, from checks to export."""
    cfg = config.value
    checked = preflight(config)
    check_finetune_after(config)

    model = builders.build_model(config, checked)
    train_loader = builders.build_train_loader(config, checked)
    evaluators = builders.build_evaluators(config, checked)
    optimizer = builders.build_optimizer(config, model)
    scheduler = builders.build_scheduler(config)
    run_name = run_name_of(cfg)
    loggers = builders.build_loggers(config, run_name)
    callbacks = builders.build_callbacks(config, checked, model.facts["parameters"])
    curriculum = builders.build_curriculum(checked)
    callbacks += builders.build_stage_data(config, train_loader, curriculum)
    # Composer runs them from last to first after the loader: rows are cut, and then masked.
    algorithms = [builders.build_masking(config, checked, curriculum), curriculum, *build_algorithms(config)]
    refuse_other_checkpoint(checked.load_path, algorithms, cfg.data.stage_splits)

    if cfg.dry_run:
        dry_run(config, checked, model, optimizer, train_loader, algorithms)
        return
    if dist.get_global_rank() == 0:
        prepare_run_folder(cfg.save_folder, cfg.overwrite, config.to_dict())
    if checked.store is not None:
        prepare_store(cfg, checked.store)
    dist.barrier()

    trainer = Trainer(
        model=model,
        train_dataloader=train_loader,
        eval_dataloader=evaluators,
        optimizers=optimizer,
        schedulers=scheduler,
        algorithms=algorithms,
        callbacks=[*callbacks, *builders.build_saving(config, checked)],
        loggers=loggers,
        run_name=run_name,
        seed=cfg.seed,
        max_duration=cfg.max_duration,
        precision=checked.precision,
        parallelism_config=parallelism_config(config),
        device_train_microbatch_size=checked.blocks_per_device,  # the loader divides by microbatch_tokens itself
        load_path=checked.load_path,
        progress_bar=cfg.progress_bar,
        log_to_console=not cfg.progress_bar,
        console_log_interval=cfg.console_log_interval,
    )
    if cfg.autoresume:
        forget_fetched(cfg)
        if dist.get_global_rank() == 0:
            adopt_checkpoints(trainer.state.callbacks, cfg.save_folder, checked.load_path)
    with saved_when_stopped(trainer):
        if cfg.eval.at_start and trainer.state.timestamp.batch == 0:
            trainer.eval()
        if not has_ended(trainer):
            trainer.fit()
    finish(config, trainer)


@dataclass(frozen=True)
class Task:
    """What `task` names: the schema of its configuration, its recipe, and how it is called."""

    schema: type
    recipe: Callable[[Config[Any]], None]
    usage: str


_PRETRAIN = Task(
    TrainConfig, pretrain, "composer main.py yamls/pretrain.yaml data.local=… tokenizer=… save_folder=… key.sub=value …"
)
_FINETUNE = Task(FinetuneConfig, finetune, "composer main.py yamls/finetune/germeval24.yaml model=… key.sub=value …")
TASKS = {
    "pretrain": _PRETRAIN,
    "classification": _FINETUNE,
    "tagging": _FINETUNE,
    "question_answering": _FINETUNE,
}


def main(argv: list[str]) -> None:
    """Reads the configuration and runs its task."""
    task = TASKS[read_choice(argv, "task", TASKS, "pretrain", _PRETRAIN.usage)]
    config = load_config(task.schema, argv, task.usage)
    stop_signals.listen()
    set_up_process(config)
    with watched_peers(), naming_full_disk(config.value.save_folder):
        task.recipe(config)


if __name__ == "__main__":
    with ending_soon(), user_errors():
        main(sys.argv[1:])

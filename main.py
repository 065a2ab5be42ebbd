"""Trains what a YAML describes: `composer main.py yamls/pretrain.yaml key.sub=value …`, or plain `python main.py …`."""

from __future__ import annotations

import sys

from composer import Trainer
from composer.utils import dist

from bertchen.algorithms import build_algorithms
from bertchen.config import Config, load_config
from bertchen.config.schema_train import TrainConfig
from bertchen.errors import naming_full_disk, user_errors
from bertchen.train import builders
from bertchen.train.curriculum import refuse_other_checkpoint
from bertchen.train.dry_run import dry_run
from bertchen.train.finish import finish, has_ended
from bertchen.train.preflight import preflight
from bertchen.train.run_folder import CHECKPOINT_FILE, LATEST_FILE, adopt_checkpoints, prepare_run_folder
from bertchen.train.setup import run_name_of, set_up_process

USAGE = "composer main.py yamls/pretrain.yaml data.local=… tokenizer=… save_folder=… key.sub=value …"


def pretrain(config: Config[TrainConfig]) -> None:
    """Masked language modelling on MDS shards, from checks to export."""
    cfg = config.value
    checked = preflight(config)

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
    dist.barrier()

    trainer = Trainer(
        model=model,
        train_dataloader=train_loader,
        eval_dataloader=evaluators,
        optimizers=optimizer,
        schedulers=scheduler,
        algorithms=algorithms,
        callbacks=callbacks,
        loggers=loggers,
        run_name=run_name,
        seed=cfg.seed,
        max_duration=cfg.max_duration,
        precision=checked.precision,
        device_train_microbatch_size=checked.blocks_per_device,  # the loader divides by microbatch_tokens itself
        save_folder=cfg.save_folder,
        save_filename=CHECKPOINT_FILE,
        save_latest_filename=LATEST_FILE,
        save_interval=cfg.save_interval,
        save_num_checkpoints_to_keep=cfg.save_num_checkpoints_to_keep,
        save_overwrite=True,  # a kill can leave a checkpoint that no run goes on from
        load_path=checked.load_path,
        progress_bar=cfg.progress_bar,
        log_to_console=not cfg.progress_bar,
        console_log_interval=cfg.console_log_interval,
    )
    if cfg.autoresume and dist.get_global_rank() == 0:
        adopt_checkpoints(trainer.state.callbacks, cfg.save_folder, checked.load_path)
    if cfg.eval.at_start and trainer.state.timestamp.batch == 0:
        trainer.eval()
    if not has_ended(trainer):
        trainer.fit()
    finish(config, trainer)


TASKS = {"pretrain": pretrain}


def main(argv: list[str]) -> None:
    """Reads the configuration and runs its task."""
    config = load_config(TrainConfig, argv, USAGE)
    builders.check_task(config, list(TASKS))
    set_up_process()
    with naming_full_disk(config.value.save_folder):
        TASKS[config.value.task](config)


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])

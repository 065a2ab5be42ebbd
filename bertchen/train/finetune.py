"""Fine-tunes an encoder for a task and evaluates it: the recipe behind `main.py` where `task` is not `pretrain`."""

from __future__ import annotations

from composer import Trainer
from composer.utils import dist

from bertchen.algorithms import build_algorithms
from bertchen.config import Config
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.tasks.encoder import load_encoder
from bertchen.train import builders
from bertchen.train.checks import check_disk
from bertchen.train.devices import device_name, peak_flops
from bertchen.train.finetune_checks import check_data, check_settings
from bertchen.train.finetune_dry_run import dry_run_task
from bertchen.train.finetune_evaluation import Evaluator, build_evaluation
from bertchen.train.finetune_finish import finish_finetuning, show_results
from bertchen.train.finetune_model import build_task_loader, build_task_model
from bertchen.train.finish import has_ended
from bertchen.train.run_folder import CHECKPOINT_FILE, LATEST_FILE, adopt_checkpoints, prepare_run_folder
from bertchen.train.setup import run_name_of
from bertchen.train.stopping import saved_when_stopped


def finetune(config: Config[FinetuneConfig]) -> None:
    """Classification, tagging or question answering, from checks to results."""
    cfg = config.value
    settings = check_settings(config)
    if not settings.missing:
        show_results(config, settings.hash, "nothing to do, all results are there (overwrite=true runs it again)")
        return
    data = check_data(config)
    encoder = load_encoder(config)
    check_disk(config, encoder.parameters, 1, "choose another folder")

    model = build_task_model(config, data, encoder)
    train_loader = build_task_loader(config, settings.batch_per_device, data, encoder)
    optimizer = builders.build_optimizer(config, model)
    scheduler = builders.build_scheduler(config)
    run_name = run_name_of(cfg)
    loggers = builders.build_loggers(config, run_name)
    callbacks = builders.named_callbacks(config, encoder.parameters, peak_flops(device_name()))
    evaluator = Evaluator(config, settings.precision, data, encoder, model.model)
    evaluation = build_evaluation(config, evaluator)
    callbacks += [evaluation] if evaluation else []

    if cfg.dry_run:
        dry_run_task(config, settings, evaluator, model, train_loader)
        return
    if dist.get_global_rank() == 0:
        prepare_run_folder(cfg.save_folder, cfg.overwrite, config.to_dict())
    dist.barrier()

    trainer = Trainer(
        model=model,
        train_dataloader=train_loader,
        optimizers=optimizer,
        schedulers=scheduler,
        algorithms=build_algorithms(config),
        callbacks=callbacks,
        loggers=loggers,
        run_name=run_name,
        seed=cfg.seed,
        max_duration=cfg.max_duration,
        precision=settings.precision,
        device_train_microbatch_size=min(cfg.microbatch_size or settings.batch_per_device, settings.batch_per_device),
        save_folder=cfg.save_folder,
        save_filename=CHECKPOINT_FILE,
        save_latest_filename=LATEST_FILE,
        save_interval=cfg.eval_interval,
        save_num_checkpoints_to_keep=1,
        save_overwrite=True,  # a kill can leave a checkpoint that no run goes on from
        load_path=settings.load_path,
        progress_bar=cfg.progress_bar,
        log_to_console=not cfg.progress_bar,
        console_log_interval=cfg.console_log_interval,
    )
    if cfg.autoresume and dist.get_global_rank() == 0:
        adopt_checkpoints(trainer.state.callbacks, cfg.save_folder, settings.load_path)
    with saved_when_stopped(trainer):
        if not has_ended(trainer):
            trainer.fit()
    finish_finetuning(config, settings, trainer, evaluator, evaluation)

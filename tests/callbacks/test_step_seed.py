"""Dropout depends on seed, step and place in the global batch, not on what was drawn before, nor by whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Callback, State, Timestamp
from composer.devices import DeviceCPU
from composer.loggers import Logger
from composer.models import ComposerModel
from torch import Tensor

from bertchen.callbacks import StepSeed


def drawn(model: ComposerModel, seed: int, step: int, rows: int = 8, microbatch: int = 8) -> list[list[float]]:
    """What is drawn in each microbatch of a process."""
    state = State(model=model, rank_zero_seed=0, run_name="test", device=DeviceCPU())
    state.timestamp = Timestamp(batch=step)
    state.batch = {"input_ids": torch.zeros(rows, 4)}
    seeding, draws = StepSeed(seed), []
    seeding.batch_start(state, None)  # type: ignore[arg-type]
    for _ in range(0, rows, microbatch):
        state.batch = {"input_ids": torch.zeros(microbatch, 4)}
        seeding.before_forward(state, None)  # type: ignore[arg-type]
        draws.append(torch.rand(8).tolist())
    return draws


def test_a_step_draws_the_same_whatever_was_drawn_before(model: ComposerModel) -> None:
    first = drawn(model, 42, 3)
    torch.rand(1000)
    assert drawn(model, 42, 3) == first


def test_seeds_steps_and_microbatches_draw_differently(model: ComposerModel) -> None:
    draws = [draw for seed in (0, 1, 42) for step in (0, 1, 2) for draw in drawn(model, seed, step, microbatch=2)]
    assert len({tuple(draw) for draw in draws}) == len(draws) == 3 * 3 * 4


def test_processes_together_draw_what_one_draws(model: ComposerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = drawn(model, 42, 3, rows=16, microbatch=4)
    together = []
    for rank in range(2):
        monkeypatch.setattr("bertchen.callbacks.step_seed.dist.get_global_rank", lambda rank=rank: rank)
        together += drawn(model, 42, 3, rows=8, microbatch=4)
    assert together == alone


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        self.values.append(float(state.total_loss_dict["loss/train/total"]))


class Draws(Callback):
    """What evaluations, loaders and other libraries do between steps."""

    def batch_end(self, state: State, logger: Logger) -> None:
        torch.rand(state.timestamp.batch.value * 7)


def trained(
    make_trainer: Callable[..., Trainer], *callbacks: Callback, **options: Any
) -> tuple[list[float], list[Tensor]]:
    losses = Losses()
    trainer = make_trainer(callbacks=[*callbacks, losses], **options)
    trainer.fit()
    trainer.close()
    return losses.values, [parameter.detach().clone() for parameter in trainer.state.model.parameters()]


def test_training_is_the_same_after_other_draws(make_trainer: Callable[..., Trainer]) -> None:
    plain, weights = trained(make_trainer, StepSeed(42))
    disturbed, other_weights = trained(make_trainer, StepSeed(42), Draws())
    assert disturbed == plain
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))
    assert trained(make_trainer, Draws())[0] != plain, "without it they would matter"


def test_training_is_the_same_after_a_restart(make_trainer: Callable[..., Trainer], tmp_path: Any) -> None:
    options = {"save_folder": str(tmp_path), "save_interval": "4ba", "save_filename": "ba{batch}.pt"}
    whole, weights = trained(make_trainer, StepSeed(42), **options)
    rest, rest_weights = trained(make_trainer, StepSeed(42), load_path=str(tmp_path / "ba4.pt"))
    assert rest == whole[4:]
    assert all(torch.equal(a, b) for a, b in zip(weights, rest_weights, strict=True))

"""A training run of a second, and a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger
from composer.models import ComposerModel
from composer.optim import LinearWithWarmupScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

BATCHES_IN_EPOCH = 50


class Regression(ComposerModel):
    """Two linear layers with dropout between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.layers(batch["input_ids"])

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return outputs.square().mean()


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def runs(self, seconds_per_step: float) -> Callback:
        """A callback under which every step takes so long."""
        clock = self

        class Running(Callback):
            def after_train_batch(self, state: State, logger: Logger) -> None:
                clock.now += seconds_per_step

        return Running()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("bertchen.callbacks.stop_after.time", clock)
    return clock


@pytest.fixture
def model() -> ComposerModel:
    return Regression()


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    """A Trainer on batches of 2 rows of 4 numbers, 50 batches an epoch."""

    def make(max_duration: str = "10ba", **options: Any) -> Trainer:
        model = Regression()
        numbers = torch.randn(BATCHES_IN_EPOCH * 2, 4, generator=torch.Generator().manual_seed(1))
        return Trainer(
            model=model,
            train_dataloader=DataLoader([{"input_ids": row} for row in numbers], batch_size=2),
            optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
            schedulers=LinearWithWarmupScheduler("0.2dur", alpha_f=0.1),
            max_duration=max_duration,
            device="cpu",
            progress_bar=False,
            seed=1,
            **options,
        )

    return make

"""Tokens a second, model FLOPs utilization and time left, at times set by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from composer.core import State, Time, Timestamp, TimeUnit
from composer.devices import DeviceCPU
from composer.loggers import InMemoryLogger
from composer.models import ComposerModel

from bertchen.callbacks import Throughput
from bertchen.callbacks.throughput import elapsed_share, model_flops_utilization


class Run:
    """Lets a callback see steps that end at given times."""

    def __init__(self, model: ComposerModel, callback: Throughput, max_duration: str = "10ba") -> None:
        self.state = State(
            model=model, rank_zero_seed=0, run_name="test", device=DeviceCPU(), max_duration=max_duration
        )
        self.callback = callback
        self.batch = self.tokens = 0

    def step(self, at: float, tokens: int = 100) -> dict[str, Any]:
        """A step ends `at` seconds of training time, after `tokens` more; what was logged."""
        self.batch, self.tokens = self.batch + 1, self.tokens + tokens
        self.state.timestamp = Timestamp(batch=self.batch, token=self.tokens, total_wct=timedelta(seconds=at))
        logged: dict[str, Any] = {}
        logger = SimpleNamespace(log_metrics=logged.update)
        self.callback.batch_end(self.state, logger)  # type: ignore[arg-type]
        return logged


@pytest.mark.parametrize(
    ("tokens_per_second", "parameters", "devices", "peak", "percent"),
    [
        (250_000, 137e6, 1, 312e12, 65.87),
        (793_000, 137e6, 1, 989e12, 65.91),
        (500_000, 137e6, 2, 312e12, 65.87),
        (190_000, 110e6, 1, 312e12, 40.19),
    ],
)
def test_utilization_is_the_papers(
    tokens_per_second: float, parameters: float, devices: int, peak: float, percent: float
) -> None:
    """The paper's example: 250,000 tokens/s at 137 M parameters on an A100 are 65.87 %."""
    found = model_flops_utilization(tokens_per_second, int(parameters), devices, peak)
    assert round(100 * found, 2) == percent


def test_after_one_step_only_its_time_can_be_said(model: ComposerModel) -> None:
    assert Run(model, Throughput(1000, 1e12)).step(at=3.0) == {"throughput/seconds": 3.0}


def test_rates_and_utilization(model: ComposerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertchen.callbacks.throughput.dist.get_world_size", lambda: 4)
    run = Run(model, Throughput(1000, 1e6))
    run.step(at=10, tokens=999)
    logged = run.step(at=12, tokens=100)
    assert logged["throughput/tokens_per_sec"] == 50
    assert logged["throughput/mfu"] == pytest.approx(6 * 50 * 1000 / (4 * 1e6))


def test_without_a_peak_there_is_no_utilization(model: ComposerModel) -> None:
    run = Run(model, Throughput(1000, None))
    run.step(at=1)
    logged = run.step(at=2)
    assert set(logged) == {"throughput/seconds", "throughput/tokens_per_sec", "time/remaining_seconds"}


def test_rates_are_means_over_the_window(model: ComposerModel) -> None:
    """Steps that take 1, 2, 3, … seconds for 60 tokens each; the first of a run, which compiles, isn't in it."""
    ends = [sum(range(1, step + 1)) for step in range(1, 9)]
    for window in (1, 2, 3):
        run = Run(model, Throughput(1000, None, window))
        rates = [run.step(at=at, tokens=60).get("throughput/tokens_per_sec") for at in ends]
        assert rates[0] is None
        for step in range(1, 8):
            durations = range(2, 9)[max(0, step - window) : step]
            assert rates[step] == pytest.approx(60 * len(durations) / sum(durations))


def test_a_window_has_a_step_at_least(model: ComposerModel) -> None:
    with pytest.raises(ValueError, match="window=0"):
        Throughput(1000, None, 0)


def test_time_left_by_duration(model: ComposerModel) -> None:
    run = Run(model, Throughput(1000, None), "10ba")
    run.step(at=100)
    assert run.step(at=102)["time/remaining_seconds"] == pytest.approx(8 * 2)
    assert run.step(at=106)["time/remaining_seconds"] == pytest.approx(7 * 3), "the mean of 2 and 4 seconds a step"
    for step in range(4, 11):
        last = run.step(at=100 + 3 * (step - 1))
    assert last["time/remaining_seconds"] == 0


@pytest.mark.parametrize(("max_duration", "left"), [("1000tok", 8 * 2), ("20ba", 18 * 2)])
def test_time_left_in_other_units(model: ComposerModel, max_duration: str, left: float) -> None:
    run = Run(model, Throughput(1000, None), max_duration)
    run.step(at=0)
    assert run.step(at=2)["time/remaining_seconds"] == pytest.approx(left)


@pytest.mark.parametrize(("limit_leaves", "expected"), [(1000.0, 16), (5.0, 5), (-1.0, 0)])
def test_another_limit_can_be_nearer(model: ComposerModel, limit_leaves: float, expected: float) -> None:
    run = Run(model, Throughput(1000, None, seconds_left=lambda: limit_leaves), "10ba")
    run.step(at=0)
    assert run.step(at=2)["time/remaining_seconds"] == pytest.approx(expected)


def test_share_of_epochs_counts_their_batches(model: ComposerModel, make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer("4ep")
    state = trainer.state
    assert state.dataloader_len == Time(50, TimeUnit.BATCH)
    state.timestamp = Timestamp(epoch=1, batch=75, batch_in_epoch=25)
    assert elapsed_share(state) == pytest.approx(1.5 / 4)
    trainer.close()


def test_share_of_steps(model: ComposerModel) -> None:
    state = Run(model, Throughput(1000, None), "8ba").state
    state.timestamp = Timestamp(batch=2)
    assert elapsed_share(state) == 0.25
    state.max_duration = None
    assert elapsed_share(state) is None


def test_in_a_real_run_every_step_but_the_first_is_logged(make_trainer: Callable[..., Any]) -> None:
    memory = InMemoryLogger()
    trainer = make_trainer("6ba", callbacks=[Throughput(1000, 1e12)], loggers=[memory])
    trainer.fit()
    trainer.close()
    for name in ("throughput/tokens_per_sec", "throughput/mfu", "time/remaining_seconds"):
        values = memory.get_timeseries(name)[name]
        assert len(values) == 5
        assert (values >= 0).all()

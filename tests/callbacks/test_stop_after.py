"""The wall-clock limit: where it ends a run, that it counts over restarts, and that it leaves the schedule alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.callbacks import LRMonitor
from composer.core import Callback, State
from composer.loggers import InMemoryLogger, Logger

from bertchen.callbacks import StopAfter
from bertchen.callbacks.stop_after import has_run_out


@pytest.mark.parametrize(("elapsed", "limit", "over"), [(0, 1, False), (0.999, 1, False), (1, 1, True), (2, 1, True)])
def test_has_run_out(elapsed: float, limit: float, over: bool) -> None:
    assert has_run_out(elapsed, limit) is over


def fitted(trainer: Trainer) -> int:
    """Trains, and says after how many steps it ended."""
    trainer.fit()
    trainer.close()
    return trainer.state.timestamp.batch.value


@pytest.mark.parametrize("max_duration", ["10ba", "1ep", "800tok", "20sp"])
@pytest.mark.parametrize(("limit", "steps"), [(1, 1), (30, 3), (31, 4), (39.9, 4), (90, 9)])
def test_the_step_that_reaches_the_limit_is_the_last(
    make_trainer: Callable[..., Trainer], clock: Any, max_duration: str, limit: float, steps: int
) -> None:
    stop = StopAfter(limit, f"{limit}s")
    assert fitted(make_trainer(max_duration, callbacks=[clock.runs(10), stop])) == steps
    assert stop.reason == f"stop_after={limit}s reached at step {steps}"


def test_a_run_that_ends_before_gives_no_reason(make_trainer: Callable[..., Trainer], clock: Any) -> None:
    stop = StopAfter(1000, "1000s")
    assert fitted(make_trainer(callbacks=[clock.runs(10), stop])) == 10
    assert stop.reason is None


def test_time_before_training_does_not_count(make_trainer: Callable[..., Trainer], clock: Any) -> None:
    stop = StopAfter(30, "30s")
    trainer = make_trainer(callbacks=[clock.runs(10), stop])
    clock.now += 500  # compiling, loading, …
    assert fitted(trainer) == 3


def test_evaluation_and_checkpoints_count(make_trainer: Callable[..., Trainer], clock: Any) -> None:
    class Evaluates(Callback):
        def batch_checkpoint(self, state: State, logger: Logger) -> None:
            clock.now += 5

    assert fitted(make_trainer(callbacks=[clock.runs(10), Evaluates(), StopAfter(55, "55s")])) == 4


def learning_rates(trainer: Trainer) -> list[float]:
    (memory,) = [logger for logger in trainer.logger.destinations if isinstance(logger, InMemoryLogger)]
    series = memory.get_timeseries("lr-SGD/group0")
    return list(series["lr-SGD/group0"])


def test_the_schedule_is_that_of_the_whole_duration(make_trainer: Callable[..., Trainer], clock: Any) -> None:
    whole = make_trainer(callbacks=[LRMonitor()], loggers=[InMemoryLogger()])
    assert fitted(whole) == 10
    cut = make_trainer(callbacks=[clock.runs(10), LRMonitor(), StopAfter(60, "60s")], loggers=[InMemoryLogger()])
    assert fitted(cut) == 6
    assert len(learning_rates(cut)) == 6
    assert learning_rates(cut) == learning_rates(whole)[:6]


@pytest.mark.parametrize("max_duration", ["10ba", "1ep"])
def test_time_adds_up_over_restarts_but_not_between_them(
    make_trainer: Callable[..., Trainer], clock: Any, tmp_path: Any, max_duration: str
) -> None:
    options = {"save_folder": str(tmp_path), "save_interval": "3ba", "save_filename": "ba{batch}.pt"}
    first = StopAfter(45, "45s")
    assert fitted(make_trainer(max_duration, callbacks=[clock.runs(10), first], **options)) == 5
    assert first.elapsed() == 50
    clock.now += 10_000
    second = StopAfter(55, "55s")
    trainer = make_trainer(max_duration, callbacks=[clock.runs(10), second], load_path=str(tmp_path / "ba3.pt"))
    clock.now += 10_000
    assert fitted(trainer) == 6, "three steps before, three after"
    assert second.elapsed() == 60


def test_a_restart_with_more_time_goes_on_along_the_same_schedule(
    make_trainer: Callable[..., Trainer], clock: Any, tmp_path: Any
) -> None:
    whole = make_trainer(callbacks=[LRMonitor()], loggers=[InMemoryLogger()])
    fitted(whole)
    options = {"save_folder": str(tmp_path), "save_interval": "1ep", "save_filename": "ba{batch}.pt"}
    assert fitted(make_trainer(callbacks=[clock.runs(10), StopAfter(40, "40s")], **options)) == 4
    rest = make_trainer(
        callbacks=[clock.runs(10), LRMonitor(), StopAfter(70, "70s")],
        loggers=[InMemoryLogger()],
        load_path=str(tmp_path / "ba4.pt"),
    )
    assert fitted(rest) == 7
    assert learning_rates(rest) == pytest.approx(learning_rates(whole)[4:7])


def test_a_restart_without_time_left_makes_no_step(
    make_trainer: Callable[..., Trainer], clock: Any, tmp_path: Any
) -> None:
    options = {"save_folder": str(tmp_path), "save_interval": "1ep", "save_filename": "ba{batch}.pt"}
    first = make_trainer(callbacks=[clock.runs(10), StopAfter(40, "40s")], **options)
    assert fitted(first) == 4
    stop = StopAfter(40, "40s")
    again = make_trainer(callbacks=[clock.runs(10), stop], load_path=str(tmp_path / "ba4.pt"))
    assert fitted(again) == 4
    assert stop.reason == "stop_after=40s reached at step 4"
    for before, after in zip(first.state.model.parameters(), again.state.model.parameters(), strict=True):
        assert torch.equal(before, after)


def test_the_first_process_decides_for_all(
    make_trainer: Callable[..., Trainer], clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process's clock says 10 s, the first one's that the limit is reached."""
    module = "bertchen.callbacks.stop_after.dist"
    monkeypatch.setattr(f"{module}.broadcast", lambda over, src: over.fill_(1))
    stop = StopAfter(1000, "1000s")
    trainer = make_trainer(callbacks=[clock.runs(10), stop])
    state = trainer.state
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.get_world_size", lambda: 2)
        stop.batch_end(state, trainer.logger)
    trainer.close()
    assert stop.reason == "stop_after=1000s reached at step 0"

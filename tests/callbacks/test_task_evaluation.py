"""Early stopping as a function of the values, and the callback's state, its weights file and its intervals."""

from __future__ import annotations

import math
import random
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from composer.core import Event
from torch import nn

from bertchen.callbacks import EarlyStopping, TaskEvaluation
from bertchen.callbacks.task_evaluation import Progress, after_evaluation
from bertchen.errors import UserError


def watch(values: list[float], patience: int) -> tuple[Progress, int]:
    """The progress when training ends, and how many values were looked at."""
    progress = Progress()
    for step, value in enumerate(values):
        progress = after_evaluation(progress, step, value, patience)
        if progress.stopped:
            return progress, step + 1
    return progress, len(values)


@pytest.mark.parametrize("seed", range(20))
def test_stops_where_the_definition_says(seed: int) -> None:
    """Training ends at the first n such that the best of all values lies at least `patience` before it."""
    rng = random.Random(seed)
    values = [rng.randint(0, 8) / 8 for _ in range(30)]
    patience = rng.randint(1, 5)
    ends = (n for n in range(1, 31) if n - 1 - values.index(max(values[:n])) >= patience)
    expected = next(ends, 30)
    progress, looked_at = watch(values, patience)
    assert looked_at == expected
    assert (progress.best, progress.best_step) == (max(values[:expected]), values.index(max(values[:expected])))


def test_nan_is_never_better() -> None:
    progress, looked_at = watch([math.nan, 0.5, math.nan, math.nan, 0.9], patience=2)
    assert (looked_at, progress.best, progress.best_step) == (4, 0.5, 1)
    progress, looked_at = watch([math.nan] * 5, patience=2)
    assert (looked_at, progress.best_step) == (2, -1)


class Steps:
    """A state whose time is moved by hand; training of `length` steps an epoch, `epochs` of them."""

    def __init__(self, length: int, epochs: int) -> None:
        from composer.core import Time, Timestamp

        self.length, self.max_duration = length, Time.from_timestring(f"{epochs}ep")
        self.timestamp, self.previous_timestamp = Timestamp(), None
        self.stop_training = Mock()

    def get_elapsed_duration(self) -> object:
        return self.timestamp.get(self.max_duration.unit) / self.max_duration

    def step(self, *callbacks: TaskEvaluation, logger: Mock) -> None:
        self.previous_timestamp, self.timestamp = self.timestamp, self.timestamp.to_next_batch()
        for callback in callbacks:
            callback.run_event(Event.BATCH_END, self, logger)  # type: ignore[arg-type]
        if self.timestamp.batch_in_epoch.value == self.length:
            self.previous_timestamp, self.timestamp = self.timestamp, self.timestamp.to_next_epoch()
            for callback in callbacks:
                callback.run_event(Event.EPOCH_END, self, logger)  # type: ignore[arg-type]


def evaluated_steps(interval: str, length: int, epochs: int) -> list[int]:
    state, steps, logger = Steps(length, epochs), [], Mock()
    callback = TaskEvaluation(
        nn.Linear(1, 1), lambda: steps.append(state.timestamp.batch.value) or {"f1": 0.0}, "dev", interval
    )
    for _ in range(length * epochs):
        state.step(callback, logger=logger)
    assert [call.args[0] for call in logger.log_metrics.call_args_list] == [{"eval/dev/f1": 0.0}] * len(steps)
    return steps


@pytest.mark.parametrize(
    ("interval", "expected"),
    [("1ep", [4, 8, 12]), ("2ep", [8, 12]), ("3ba", [3, 6, 9, 12]), ("5ba", [5, 10, 12]), ("100ba", [12])],
)
def test_evaluates_each_interval_and_at_the_end_once(interval: str, expected: list[int]) -> None:
    assert evaluated_steps(interval, length=4, epochs=3) == expected


def test_a_restart_after_the_last_step_of_an_epoch_does_not_evaluate_it_again() -> None:
    """Composer's interval scheduler forgets what it has seen, and asks for the end of training at the epoch's end."""
    values = []
    state = Steps(length=4, epochs=1)
    before = TaskEvaluation(nn.Linear(1, 1), lambda: values.append(0) or {"f1": 0.5}, "dev", "4ba")
    for _ in range(3):
        state.step(before, logger=Mock())
    state.previous_timestamp, state.timestamp = state.timestamp, state.timestamp.to_next_batch()
    before.run_event(Event.BATCH_END, state, Mock())  # type: ignore[arg-type]
    after = TaskEvaluation(nn.Linear(1, 1), lambda: values.append(0) or {"f1": 0.5}, "dev", "4ba")
    after.load_state_dict(before.state_dict())
    state.previous_timestamp, state.timestamp = state.timestamp, state.timestamp.to_next_epoch()
    after.run_event(Event.EPOCH_END, state, Mock())  # type: ignore[arg-type]
    assert len(values) == 1


class TestBestWeights:
    """Early stopping over steps whose value and weight are both given."""

    VALUES = (0.1, 0.7, 0.3, 0.6, 0.7, 0.2, 0.9)

    def train(self, folder: Path, patience: int, steps: int) -> tuple[TaskEvaluation, nn.Linear, Steps]:
        model, state = nn.Linear(1, 1, bias=False), Steps(length=100, epochs=1)
        at = iter(self.VALUES)
        callback = TaskEvaluation(
            model, lambda: {"f1": next(at)}, "dev", "1ba", EarlyStopping("f1", patience, folder / "best_weights.pt")
        )
        for step in range(1, steps + 1):
            nn.init.constant_(model.weight, step)
            state.step(callback, logger=Mock())
            if state.stop_training.called:
                break
        return callback, model, state

    def test_training_ends_and_the_best_come_back(self, tmp_path: Path) -> None:
        callback, model, state = self.train(tmp_path, patience=3, steps=7)
        assert state.timestamp.batch.value == 5
        assert callback.load_best() == 2
        assert model.weight.item() == 2
        assert [path.name for path in tmp_path.iterdir()] == ["best_weights.pt"]

    def test_patience_lets_a_later_best_be_found(self, tmp_path: Path) -> None:
        callback, model, state = self.train(tmp_path, patience=6, steps=7)
        assert not state.stop_training.called
        assert callback.load_best() == 7
        assert model.weight.item() == 7

    def test_state_survives_a_restart(self, tmp_path: Path) -> None:
        callback, _, _ = self.train(tmp_path, patience=3, steps=7)
        model, state = nn.Linear(1, 1, bias=False), Mock()
        stopping = EarlyStopping("f1", 3, tmp_path / "best_weights.pt")
        other = TaskEvaluation(model, dict, "dev", "1ba", stopping)
        other.load_state_dict(callback.state_dict())
        assert other.progress == callback.progress
        other.fit_start(state, Mock())
        state.stop_training.assert_called_once()
        assert other.load_best() == 2

    def test_foreign_weights_are_refused(self, tmp_path: Path) -> None:
        callback, _, _ = self.train(tmp_path, patience=3, steps=7)
        torch.save({"step": 9, "model": {}}, tmp_path / "best_weights.pt")
        with pytest.raises(UserError, match=r"best_weights\.pt holds the weights of step 9, .* are those of step 2"):
            callback.load_best()
        (tmp_path / "best_weights.pt").unlink()
        with pytest.raises(UserError, match=r"best_weights\.pt: the best weights can't be read"):
            callback.load_best()

    def test_without_early_stopping_the_last_weights_count(self) -> None:
        assert TaskEvaluation(nn.Linear(1, 1), dict, "dev", "1ba").load_best() is None

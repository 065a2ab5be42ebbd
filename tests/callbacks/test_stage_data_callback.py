"""Which folder each step reads from, for stages of a given number of batches and a curriculum that counts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from composer.core import State, Timestamp
from composer.devices import DeviceCPU
from composer.loggers import Logger
from composer.models import ComposerModel

from bertchen.callbacks import MetricsFile
from bertchen.callbacks.stage_data import StageData


class Blocks:
    """Stands in for the loader: `batches` a stage, one taken each step."""

    def __init__(self, batches: list[int]) -> None:
        self.batches = batches
        self.left = list(batches)
        self.stage = 0

    @property
    def current(self) -> SimpleNamespace:
        return SimpleNamespace(split=f"train_{self.stage}")

    def has_run_out(self) -> bool:
        return self.left[self.stage] == 0

    def start_over(self) -> None:
        self.left[self.stage] = self.batches[self.stage]

    def take(self) -> int:
        self.left[self.stage] -= 1
        assert self.left[self.stage] >= 0
        return self.stage


class Counting:
    """A curriculum that is at these stages by its own rule, step by step, and never goes back behind a move."""

    def __init__(self, plan: list[int], last: int) -> None:
        self.plan = plan
        self.last = last
        self.step = 0
        self.moved_to = 0
        self.reasons: list[tuple[int, str]] = []

    @property
    def stage(self) -> int:
        return max(self.plan[self.step], self.moved_to)

    def move_on(self, state: State, logger: Logger, reason: str) -> bool:
        if self.stage == self.last:
            return False
        self.moved_to = self.stage + 1
        self.reasons.append((state.timestamp.batch.value, reason))
        return True


@pytest.fixture
def run(model: ComposerModel, tmp_path: Path):
    """Stages of all steps, reasons of the moves, and the events in metrics.jsonl."""

    def run(batches: list[int], plan: list[int], when: str) -> tuple[list[int], list[tuple[int, str]], list[dict]]:
        state = State(model=model, rank_zero_seed=0, run_name="test", device=DeviceCPU())
        metrics = MetricsFile(tmp_path / "metrics.jsonl")
        logger = Logger(state, destinations=[metrics])
        blocks, curriculum = Blocks(batches), Counting(plan, len(batches) - 1)
        callback = StageData(blocks, curriculum, when)  # type: ignore[arg-type]
        taken = []
        for step in range(len(plan)):
            state.timestamp = Timestamp(batch=step)
            curriculum.step = step
            callback.before_dataloader(state, logger)
            taken.append(blocks.take())
        metrics.flush()
        file = tmp_path / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return taken, curriculum.reasons, [json.loads(line) for line in lines]

    return run


def over(step: int, stage: int) -> dict:
    return {"step": step, "event": "data_starts_over", "split": f"train_{stage}"}


@pytest.mark.parametrize("when", ["next", "restart"])
def test_enough_data_leaves_it_to_the_curriculum(run, when: str) -> None:
    plan = [0, 0, 1, 2, 2, 1, 0]
    assert run([4, 4, 4], plan, when) == (plan, [], [])


def test_data_that_runs_out_moves_the_curriculum_on(run) -> None:
    taken, reasons, events = run([2, 3, 4], [0] * 7 + [1, 2], "next")
    assert taken == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert reasons == [(2, "the data of train_0 ran out"), (5, "the data of train_1 ran out")]
    assert events == []


def test_the_last_stage_starts_over(run) -> None:
    taken, reasons, events = run([1, 2], [0] * 8, "next")
    assert taken == [0] + [1] * 7
    assert reasons == [(1, "the data of train_0 ran out")]
    assert events == [over(3, 1), over(5, 1), over(7, 1)]


def test_every_stage_starts_over_if_asked_to(run) -> None:
    taken, reasons, events = run([2, 3], [0, 0, 0, 0, 0, 1, 1, 1, 1], "restart")
    assert taken == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert reasons == []
    assert events == [over(2, 0), over(4, 0), over(8, 1)]


def test_a_stage_that_is_used_up_when_it_comes_is_passed_over(run) -> None:
    taken, reasons, _ = run([2, 1, 3], [1, 0, 0, 0, 0, 0], "next")
    assert taken == [1, 0, 0, 2, 2, 2]
    assert [step for step, _ in reasons] == [3, 3]

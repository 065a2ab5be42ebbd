"""metrics.jsonl: a line a step, and after any restart the lines of a run that was never interrupted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.callbacks import LRMonitor
from composer.core import Callback, State
from composer.loggers import Logger
from hypothesis import given
from hypothesis import strategies as st

from bertchen.callbacks import MetricsFile, StepSeed
from bertchen.callbacks.metrics_file import keep_before


def lines_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> MetricsFile:
    return MetricsFile(tmp_path / "metrics.jsonl")


def test_what_is_logged_in_a_step_is_one_line_written_when_the_next_begins(file: MetricsFile) -> None:
    file.log_metrics({"a": 1}, step=3)
    file.log_metrics({"b": 2.5}, step=3)
    assert not file.path.exists()
    file.log_metrics({"a": 4}, step=4)
    assert lines_of(file.path) == [{"step": 3, "a": 1, "b": 2.5}]
    file.flush()
    file.flush()
    assert lines_of(file.path) == [{"step": 3, "a": 1, "b": 2.5}, {"step": 4, "a": 4}]


def test_the_later_of_two_values_counts(file: MetricsFile) -> None:
    file.log_metrics({"a": 1}, step=3)
    file.log_metrics({"a": 2}, step=3)
    file.flush()
    assert lines_of(file.path) == [{"step": 3, "a": 2}]


def test_without_a_step_nothing_is_logged(file: MetricsFile) -> None:
    file.log_metrics({"a": 1})
    file.flush()
    assert not file.path.exists()


def test_an_event_is_a_line_of_its_own_behind_that_of_its_step(file: MetricsFile) -> None:
    file.log_event(2, event="switch")
    file.log_metrics({"a": 1}, step=3)
    file.log_event(3, event="switch", reason="why")
    file.log_event(3, event="end")
    file.log_metrics({"b": 2}, step=3)
    file.log_metrics({"a": 3}, step=4)
    expected = [
        {"step": 2, "event": "switch"},
        {"step": 3, "a": 1, "b": 2},
        {"step": 3, "event": "switch", "reason": "why"},
        {"step": 3, "event": "end"},
    ]
    assert lines_of(file.path) == expected
    file.flush()
    assert lines_of(file.path) == [*expected, {"step": 4, "a": 3}]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, None),
        (torch.tensor(math.nan), None),
        (np.float32("nan"), None),
        (math.inf, "inf"),
        (torch.tensor([-math.inf]), "-inf"),
        (torch.tensor(2), 2),
        (torch.tensor([0.5]), 0.5),
        (torch.tensor([0.5, math.nan, math.inf]), [0.5, None, "inf"]),
        (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.array([0.5, 1.5]), [0.5, 1.5]),
        ([0.5, math.nan], [0.5, None]),
        (3, 3),
        (True, True),
        ("text", "text"),
    ],
)
def test_values_are_written_as_json_that_any_reader_takes(file: MetricsFile, value: Any, written: Any) -> None:
    file.log_metrics({"a": value}, step=1)
    file.flush()
    assert lines_of(file.path) == [{"step": 1, "a": written}]


def test_other_processes_write_nothing(file: MetricsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint holds the first process's pending values, and every process loads it."""
    monkeypatch.setattr("bertchen.callbacks.metrics_file.dist.get_global_rank", lambda: 1)
    file.load_state_dict({"pending": {"step": 3, "a": 1}, "events": [{"step": 3, "event": "switch"}]})
    file.log_metrics({"a": 1}, step=4)
    file.log_event(4, event="end")
    file.close(None, None)  # type: ignore[arg-type]
    assert not file.path.exists()


def test_pending_values_survive_a_restart(file: MetricsFile, tmp_path: Path) -> None:
    file.log_metrics({"a": 1.5}, step=3)
    file.log_event(3, event="switch")
    state = json.loads(json.dumps(file.state_dict()))
    file.log_metrics({"b": 2}, step=3)
    file.log_event(3, event="other")
    resumed = MetricsFile(tmp_path / "other.jsonl")
    resumed.load_state_dict(state)
    resumed.log_metrics({"c": 3}, step=3)
    resumed.flush()
    assert lines_of(resumed.path) == [{"step": 3, "a": 1.5, "c": 3}, {"step": 3, "event": "switch"}]


def as_lines(steps: list[int]) -> list[str]:
    return [json.dumps({"step": step, "loss": step / 2}) + "\n" for step in steps]


@given(st.lists(st.integers(0, 20)), st.integers(0, 21))
def test_lines_before_a_step_are_kept(steps: list[int], step: int) -> None:
    assert keep_before(as_lines(steps), step) == as_lines([kept for kept in steps if kept < step])


@given(st.integers(0, 10), st.data())
def test_a_line_cut_off_by_a_kill_is_dropped(count: int, data: st.DataObject) -> None:
    whole = as_lines(list(range(count)))
    last = as_lines([count])[0]
    cut = last[: data.draw(st.integers(0, len(last) - 2))]
    assert keep_before([*whole, cut] if cut else whole, 100) == whole


def test_a_whole_line_without_its_end_gets_one() -> None:
    """Else the next line would be written behind it."""
    assert keep_before(['{"step": 1}\n', '{"step": 2}'], 9) == ['{"step": 1}\n', '{"step": 2}\n']


@pytest.mark.parametrize("line", ["\n", "null\n", "[1]\n", "3\n", '{"loss": 1}\n', '{"step": "x"}\n', "\x00\x00"])
def test_a_line_that_is_none_of_ours_ends_the_file(line: str) -> None:
    assert keep_before([*as_lines([0, 1]), line, *as_lines([2])], 9) == as_lines([0, 1])


class LogsAtTheEnd(Callback):
    """Logs a tensor in every step, behind the step."""

    def batch_end(self, state: State, logger: Logger) -> None:
        logger.log_metrics({"seen": state.timestamp.sample.value})


@pytest.mark.parametrize("callbacks", [[], [LogsAtTheEnd, LRMonitor]], ids=["silent", "logging"])
@pytest.mark.parametrize("killed_at", [3, 4, 7])
def test_a_restart_leaves_the_lines_of_an_uninterrupted_run(
    make_trainer: Callable[..., Trainer], tmp_path: Path, callbacks: list[type[Callback]], killed_at: int
) -> None:
    """A run is killed at a step after its checkpoint of step 3, and goes on from that."""

    def run(path: Path, max_duration: str, **options: Any) -> None:
        trainer = make_trainer(
            max_duration,
            loggers=[MetricsFile(path)],
            callbacks=[StepSeed(1), *[kind() for kind in callbacks]],
            **options,
        )
        trainer.fit()
        trainer.close()

    run(tmp_path / "whole.jsonl", "10ba")
    # The scheduler must know the whole length, so the run is "killed" by cutting its file off at a later step.
    folder, path = str(tmp_path / "checkpoints"), tmp_path / "killed.jsonl"
    run(path, "10ba", save_folder=folder, save_interval="3ba", save_filename="ba{batch}.pt")
    kept = keep_before(path.read_text().splitlines(keepends=True), killed_at)
    path.write_text("".join(kept) + '{"step": 7, "loss/tra')
    run(path, "10ba", load_path=f"{folder}/ba3.pt")

    assert lines_of(path) == lines_of(tmp_path / "whole.jsonl")
    assert [line["step"] for line in lines_of(path)] == list(range(11))


def test_a_new_run_starts_a_new_file(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    path = tmp_path / "deep/metrics.jsonl"
    for _ in range(2):
        trainer = make_trainer("2ba", loggers=[MetricsFile(path)])
        trainer.fit()
        trainer.close()
        assert [line["step"] for line in lines_of(path)] == [0, 1, 2]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "no temporary file is left"


def test_loss_and_validation_of_a_step(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """Line n holds the loss of the step that begins after n steps."""
    path = tmp_path / "metrics.jsonl"
    trainer = make_trainer("3ba", loggers=[MetricsFile(path)], callbacks=[LogsAtTheEnd()])
    trainer.fit()
    trainer.close()
    lines = lines_of(path)
    assert [("loss/train/total" in line, line.get("seen")) for line in lines] == [
        (True, None),
        (True, 2),
        (True, 4),
        (False, 6),
    ]

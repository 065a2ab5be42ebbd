"""A bad step is found, named, and kept away from weights and optimizer; its restart comes to the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bertchen.algorithms.loss_guard import BadStep, LossGuard, Seen, after_good, what_is_wrong
from bertchen.algorithms.registry import build_algorithms
from bertchen.callbacks import FiniteLoss, MetricsFile
from bertchen.callbacks.metrics_file import forget_repeated
from bertchen.config import Config
from bertchen.errors import EXIT_CODE, Stop, UserError

BAD = 4  # steps that are done before the bad one
INFINITE = float("inf")


def test_the_mean_is_that_of_all_steps_until_there_are_enough() -> None:
    losses = [5.0, 4.0, 4.5, 3.0]
    seen = Seen()
    for count, loss in enumerate(losses, 1):
        seen = after_good(seen, loss, window=4)
        assert seen.mean == pytest.approx(sum(losses[:count]) / count)
    assert after_good(seen, 7.0, window=4).mean == pytest.approx(seen.mean * 3 / 4 + 7 / 4)


@pytest.mark.parametrize(
    ("loss", "norm", "word"),
    [
        (math.nan, 1.0, "loss"), (INFINITE, 1.0, "loss"), (-INFINITE, 1.0, "loss"), (2.0, math.nan, "gradient"),
        (2.0, INFINITE, "gradient"), (4.6, 1.0, "mean"), (4.5, 1.0, None), (0.0, 1e30, None),
    ],
)  # fmt: skip
def test_what_is_wrong(loss: float, norm: float, word: str | None) -> None:
    reason = what_is_wrong(Seen(mean=3.0, steps=10), loss, norm, window=10, max_jump=1.5)
    assert (reason is None) == (word is None)
    assert word is None or word in str(reason)


def test_no_jump_is_looked_for_before_the_window_is_full_or_without_a_limit() -> None:
    assert what_is_wrong(Seen(mean=3.0, steps=9), 99.0, 1.0, window=10, max_jump=1.5) is None
    assert what_is_wrong(Seen(mean=3.0, steps=99), 99.0, 1.0, window=10, max_jump=None) is None


class Regression(ComposerModel):
    """Two linear layers; `spoil` may change the loss of a step."""

    def __init__(self, spoil: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        self.spoil = spoil
        self.step = 0

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.layers(batch["input_ids"])

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return self.spoil(self.step, outputs.square().mean())


class Watching(Callback):
    """Tells the model the step, and keeps weights and optimizer as they were before and after each."""

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}
        self.after: dict[int, Any] = {}

    def batch_start(self, state: State, logger: Logger) -> None:
        state.model.step = state.timestamp.batch.value
        self.before[state.timestamp.batch.value] = snapshot(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        self.after[state.timestamp.batch.value - 1] = snapshot(state)


def snapshot(state: State) -> Any:
    return deepcopy((state.model.state_dict(), state.optimizers[0].state_dict()["state"]))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return all(map(equal, one, other))


def with_nan(step: int, loss: Tensor) -> Tensor:
    return loss * math.nan if step == BAD else loss


def with_infinite_gradient(step: int, loss: Tensor) -> Tensor:
    return loss + (0 * loss).sqrt() if step == BAD else loss  # the square root's slope at 0


def with_jump(step: int, loss: Tensor) -> Tensor:
    return loss + 50 if step == BAD else loss


def trainer(
    tmp_path: Path, spoil: Callable[[int, Tensor], Tensor], *guards: Any, watching: Watching | None = None,
    **options: Any,
) -> Trainer:  # fmt: skip
    model = Regression(spoil)
    numbers = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    return Trainer(
        model=model,
        train_dataloader=DataLoader([{"input_ids": row} for row in numbers], batch_size=4),
        optimizers=torch.optim.AdamW(model.parameters(), lr=0.01),
        algorithms=[each for each in guards if isinstance(each, LossGuard)],
        callbacks=[each for each in guards if isinstance(each, Callback)] + [watching or Watching()],
        loggers=[MetricsFile(tmp_path / "metrics.jsonl")],
        device_train_microbatch_size=2,
        max_duration="8ba",
        device="cpu",
        progress_bar=False,
        seed=1,
        **options,
    )


def bad_batches(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "bad_batches.jsonl").read_text().splitlines()]


@pytest.mark.fault("the loss becomes NaN or jumps")
@pytest.mark.parametrize("spoil", [with_nan, with_infinite_gradient, with_jump])
def test_a_step_that_is_skipped_leaves_weights_and_optimizer_as_they_were(
    tmp_path: Path, spoil: Callable[[int, Tensor], Tensor], attempt: int
) -> None:
    watching = Watching()
    run = trainer(tmp_path, spoil, LossGuard(tmp_path, max_jump=10, window=3), watching=watching)
    run.fit()
    run.close()
    for step, before in watching.before.items():
        assert equal(before, watching.after[step]) == (step == BAD)
    (line,) = bad_batches(tmp_path)
    assert (line["step"], line["action"], line["length"]) == (BAD, "skip", 4)
    events = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in events if each.get("event") == "bad_step"] == [BAD]


@pytest.mark.fault("the loss becomes NaN or jumps")
@pytest.mark.parametrize("resumed", [3, 5])
def test_resumed_before_or_after_a_skipped_step_all_is_the_same(tmp_path: Path, resumed: int, attempt: int) -> None:
    folder = {name: tmp_path / name for name in ("whole", "resumed")}
    saving = {"save_interval": "1ba", "save_filename": "ba{batch}.pt", "save_folder": str(folder["whole"])}
    ends = []
    for name, options in (
        ("whole", saving),
        ("resumed", {"load_path": str(folder["whole"] / f"ba{resumed}.pt")}),
    ):
        guard, watching = LossGuard(folder[name], max_jump=10, window=3), Watching()
        folder[name].mkdir(exist_ok=True)
        run = trainer(folder[name], with_nan, guard, watching=watching, **options)
        run.fit()
        run.close()
        ends.append((watching.after[7], guard.seen))
    assert equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert ends[0][1].steps == 7


def test_more_bad_steps_in_a_row_than_are_skipped_stop_before_the_next(tmp_path: Path) -> None:
    watching = Watching()
    spoil = lambda step, loss: loss * math.nan if step >= BAD else loss  # noqa: E731
    run = trainer(tmp_path, spoil, LossGuard(tmp_path, max_skips=2), watching=watching)
    with pytest.raises(BadStep, match="before step 7 after 2 that were skipped: the loss is nan") as stop:
        run.fit()
    assert stop.value.exit_code == EXIT_CODE
    assert stop.value.saves
    assert run.state.timestamp.batch == BAD + 2
    assert equal(snapshot(run.state), watching.after[BAD - 1])
    assert [line["action"] for line in bad_batches(tmp_path)] == ["skip", "skip", "stop"]


def test_on_bad_stop_stops_at_the_first(tmp_path: Path) -> None:
    run = trainer(tmp_path, with_nan, LossGuard(tmp_path, on_bad="stop"))
    with pytest.raises(BadStep):
        run.fit()
    assert run.state.timestamp.batch == BAD


def test_lines_of_steps_that_come_again_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "bad_batches.jsonl").write_text('{"step": 0}\n{"step": 5}\n{"step": 6, "lo')
    forget_repeated(LossGuard(tmp_path).path, 5)
    assert bad_batches(tmp_path) == [{"step": 0}]


def test_without_a_guard_no_step_follows_a_loss_that_is_no_number(tmp_path: Path) -> None:
    run = trainer(tmp_path, with_nan, FiniteLoss())
    with pytest.raises(Stop, match=f"the loss of step {BAD + 1} is nan") as stop:
        run.fit()
    assert stop.value.exit_code == EXIT_CODE
    assert not stop.value.saves


def test_it_sees_the_gradient_before_it_is_clipped(train_config: Callable[..., Config[Any]]) -> None:
    config = train_config("algorithms.loss_guard={on_bad: stop}")
    assert [type(algorithm).__name__ for algorithm in build_algorithms(config)] == ["GradientClipping", "LossGuard"]


@pytest.mark.parametrize("wrong", ["on_bad: go_on", "max_skips: -1", "max_jump: 0", "window: 0", "patience: 3"])
def test_wrong_arguments_are_refused_by_name(train_config: Callable[..., Config[Any]], wrong: str) -> None:
    with pytest.raises(UserError, match=rf"algorithms\.loss_guard.*{wrong.partition(':')[0]}"):
        build_algorithms(train_config(f"algorithms.loss_guard={{{wrong}}}"))

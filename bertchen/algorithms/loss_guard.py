"""Keeps a bad step away from the weights: one whose loss or gradient is no number, or whose loss jumps.

Notable: Composer calls it between the last backward pass and the optimizer's step. Gradients that are taken away there
leave weights and the optimizer's state as they are, bit for bit. What decides is the loss of the global batch, so all
processes decide alike; it is fetched from the device there, which has to wait for it in any case some lines later.
"""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist

from bertchen.callbacks.metrics_file import MetricsFile, forget_repeated
from bertchen.data.row_ids import BLOCKS, global_row_ids
from bertchen.errors import EXIT_CODE, Stop

log = logging.getLogger(__name__)

SKIP, STOP = "skip", "stop"
ON_BAD = (SKIP, STOP)
BAD_BATCHES_FILE = "bad_batches.jsonl"
_EVENTS = (Event.FIT_START, Event.BEFORE_TRAIN_BATCH, Event.AFTER_LOSS, Event.AFTER_TRAIN_BATCH)


class BadStep(Stop):
    """Training was stopped before a step that would spoil the weights."""


@dataclass(frozen=True)
class Seen:
    """What the good steps so far have shown.

    Attributes:
        mean: of their losses [nats]; those long ago count less.
        steps: how many are in it.
        length: of their rows; another length begins a new mean, for its losses are others.
        skipped: bad steps in a row up to now.
    """

    mean: float = 0.0
    steps: int = 0
    length: int = 0
    skipped: int = 0


def what_is_wrong(seen: Seen, loss: float, norm: float, window: int, max_jump: float | None) -> str | None:
    """Why a step with this loss and this norm of the gradient is bad; None if it is good.

    A jump is a loss of more than `max_jump` above the mean, once that is a mean of `window` steps.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the norm of the gradient is {norm}"
    if max_jump is not None and seen.steps >= window and loss > seen.mean + max_jump:
        return f"the loss, {loss:.4f}, is more than {max_jump} above the mean of those before, {seen.mean:.4f}"
    return None


def after_good(seen: Seen, loss: float, window: int) -> Seen:
    """With a good step more: the mean of all steps up to `window` of them, then a moving one with weight 1/`window`."""
    steps = seen.steps + 1
    return replace(seen, mean=seen.mean + (loss - seen.mean) / min(steps, window), steps=steps, skipped=0)


class LossGuard(Algorithm):
    """Skips bad steps, or stops training before the first.

    A step that is skipped counts as one: its batch, its place in the schedule of the learning rate and its line in
    metrics.jsonl are those that they would have been. Each bad step is a line of `bad_batches.jsonl` in the run's
    folder, with its loss and the numbers of its blocks, and an event in metrics.jsonl. Where training is stopped, the
    checkpoint is that of the steps before, and the exit code 2.

    Args:
        folder: of the run.
        on_bad: `skip` or `stop`.
        max_skips: bad steps in a row that are skipped; one more stops.
        max_jump: loss above the mean of the steps before [nats] that counts as bad; None looks for NaN and infinities
            only.
        window: steps of that mean.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        on_bad: str = SKIP,
        max_skips: int = 10,
        max_jump: float | None = None,
        window: int = 50,
    ) -> None:
        if on_bad not in ON_BAD:
            raise ValueError(f"on_bad={on_bad} should be {' or '.join(ON_BAD)}")
        if max_skips < 0:
            raise ValueError(f"max_skips={max_skips} should be 0 or more")
        if max_jump is not None and not max_jump > 0:
            raise ValueError(f"max_jump={max_jump} should be positive, or null")
        if window < 1:
            raise ValueError(f"window={window} should be at least 1")
        self.path = Path(folder, BAD_BATCHES_FILE)
        self.on_bad = on_bad
        self.max_skips = max_skips
        self.max_jump = max_jump
        self.window = window
        self.seen = Seen()
        self._losses: list[tuple[torch.Tensor, int]] = []

    def match(self, event: Event, state: State) -> bool:
        return event in _EVENTS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.FIT_START:
            if dist.get_global_rank() == 0 and self.path.exists():
                forget_repeated(self.path, state.timestamp.batch.value)
        elif event == Event.BEFORE_TRAIN_BATCH:
            self._losses = []
        elif event == Event.AFTER_LOSS:
            self._losses.append((state.loss.detach().mean(), len(state.batch["input_ids"])))
        else:
            self._judge(state, logger)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = Seen(**state)

    def _judge(self, state: State, logger: Logger) -> None:
        loss, norm = self._loss_and_norm(state)
        length = state.batch["input_ids"].shape[1]
        if self.max_jump is not None and length != self.seen.length:
            self.seen = Seen(length=length, skipped=self.seen.skipped)
        reason = what_is_wrong(self.seen, loss, norm, self.window, self.max_jump)
        if reason is None:
            self.seen = after_good(self.seen, loss, self.window)
            return
        step = state.timestamp.batch.value
        skips = self.on_bad == SKIP and self.seen.skipped < self.max_skips
        self._record(state, logger, {"step": step, "action": SKIP if skips else STOP, "reason": reason, "loss": loss})
        if not skips:
            row = f" after {self.seen.skipped} that were skipped" if self.seen.skipped else ""
            raise BadStep(
                f"stopped before step {step + 1}{row}: {reason}; its blocks are in {self.path}: look at them, lower "
                f"optimizer.lr, or have such steps skipped (algorithms.loss_guard: on_bad={SKIP}, max_skips)",
                EXIT_CODE,
            )
        self.seen = replace(self.seen, skipped=self.seen.skipped + 1)
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _loss_and_norm(self, state: State) -> tuple[float, float]:
        """The loss of the global batch, and a norm of the gradient that is finite if all of it is."""
        rows = sum(rows for _, rows in self._losses)
        loss = torch.stack([loss * (rows_ / rows) for loss, rows_ in self._losses]).sum()
        gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        both = torch.stack([loss.double(), norm.to(loss.device).double()]) / dist.get_world_size()
        dist.all_reduce(both)
        loss_, norm_ = both.tolist()
        return loss_, norm_

    def _record(self, state: State, logger: Logger, facts: dict[str, Any]) -> None:
        blocks = global_row_ids(state.batch) if BLOCKS in state.batch else []
        step = facts["step"]
        for destination in logger.destinations:
            if isinstance(destination, MetricsFile):
                destination.log_event(step, event="bad_step", action=facts["action"], reason=facts["reason"])
        if dist.get_global_rank() != 0:
            return
        log.warning("step %d: %s: %s", step + 1, facts["reason"], facts["action"])
        loss = facts["loss"] if math.isfinite(facts["loss"]) else str(facts["loss"])
        length = state.batch["input_ids"].shape[1]
        line = {**facts, "loss": loss, "mean": self.seen.mean, "length": length, "blocks": blocks}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

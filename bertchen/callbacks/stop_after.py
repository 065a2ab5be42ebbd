"""Ends training after some time by the wall clock, as in the paper's four hours on one GPU."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

log = logging.getLogger(__name__)


def has_run_out(elapsed: float, limit: float) -> bool:
    """Whether `elapsed` seconds have used up the `limit`."""
    return elapsed >= limit


class StopAfter(Callback):
    """Finishes the step in which the limit is reached; Composer then evaluates and saves as at any end.

    The schedule of the learning rate stays that of `max_duration`. Time spent before a restart counts, time between
    runs doesn't; evaluation and checkpoints do.

    Args:
        seconds: the limit.
        written: the limit as the user wrote it, for the message.

    Attributes:
        reason: why training ended, if it was this.
    """

    def __init__(self, seconds: float, written: str) -> None:
        self.seconds = seconds
        self.written = written
        self.reason: str | None = None
        self._before = 0.0
        self._started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds of training so far, over all restarts."""
        return self._before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = float(state["elapsed"])

    def fit_start(self, state: State, logger: Logger) -> None:
        self._started = time.monotonic()
        self._stop_if_over(state)  # a restart of a run whose time was used up makes no further step

    def batch_end(self, state: State, logger: Logger) -> None:
        self._stop_if_over(state)

    def _stop_if_over(self, state: State) -> None:
        # All processes must end at the same step, so the first one's clock decides.
        over = torch.tensor([has_run_out(self.elapsed(), self.seconds)], dtype=torch.uint8)
        if dist.get_world_size() > 1:
            over = state.device.tensor_to_device(over)
            dist.broadcast(over, src=0)
        if over.item() and not self.reason:
            self.reason = f"stop_after={self.written} reached at step {state.timestamp.batch.value}"
            log.info("%s", self.reason)
            state.stop_training()

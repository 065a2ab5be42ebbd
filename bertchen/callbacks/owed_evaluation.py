"""An evaluation that a stop cut short is made up for when the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from composer.core import Callback, Event, State, Timestamp
from composer.loggers import Logger


class OwedEvaluation(Callback):
    """Notes in checkpoints that the evaluation of their step isn't over, and makes it when training goes on from there.

    So a run may stop without waiting for its validation, and still ends as the one that wasn't stopped.

    Attributes:
        evaluate: evaluates what is due at an event; the Trainer's, to be set before training.
    """

    def __init__(self) -> None:
        self.evaluate: Callable[[Event], None] | None = None
        self._since: Timestamp | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"since": self._since and self._since.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["since"]:
            self._since = Timestamp()
            self._since.load_state_dict(state["since"])

    def fit_start(self, state: State, logger: Logger) -> None:
        if self._since is None or self.evaluate is None:
            return
        state.previous_timestamp = self._since  # intervals are asked with it whether they are over
        in_epoch = state.timestamp.batch_in_epoch.value > 0
        self.evaluate(Event.BATCH_END if in_epoch else Event.EPOCH_END)

    def eval_before_all(self, state: State, logger: Logger) -> None:
        self._since = state.previous_timestamp

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._since = None

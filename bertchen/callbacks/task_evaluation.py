"""Evaluates a split during fine-tuning, over the whole of it, and ends training when that brings nothing more."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.misc import create_interval_scheduler
from torch import nn

from bertchen.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What the evaluations so far have shown.

    Attributes:
        evaluated: the last step that was evaluated; -1 before the first.
        best: the best value of the metric that is watched, and the step that it was found at.
        waited: evaluations since then.
        stopped: training has ended for want of a better one.
    """

    evaluated: int = -1
    best: float = -torch.inf
    best_step: int = -1
    waited: int = 0
    stopped: bool = False


def after_evaluation(progress: Progress, step: int, value: float, patience: int) -> Progress:
    """What follows from a value: only a higher one is better; `patience` that aren't, in a row, end training.

    Nothing (NaN) is never better.
    """
    if value > progress.best:
        return Progress(step, value, step)
    waited = progress.waited + 1
    return Progress(step, progress.best, progress.best_step, waited, waited >= patience)


@dataclass(frozen=True)
class EarlyStopping:
    """Which metric is watched, for how many evaluations, and where the best weights are kept."""

    metric: str
    patience: int
    weights: Path


class TaskEvaluation(Callback):
    """Every `interval` and at the end, logs the metrics of a split under `eval/<label>/…`.

    With early stopping the weights of the best evaluation are written to a file, and training ends when `patience`
    evaluations in a row were no better. Every process evaluates a part and knows the whole's metrics, so that all
    decide alike.

    Args:
        model: that is trained; its weights are what is kept.
        evaluate: the metrics of the whole split with the model as it is.
        label: of the split.
        interval: as Composer's: 1ep, 100ba.
        stopping: None trains to the end.
    """

    def __init__(
        self,
        model: nn.Module,
        evaluate: Callable[[], Mapping[str, float]],
        label: str,
        interval: str,
        stopping: EarlyStopping | None = None,
    ) -> None:
        self.model = model
        self.evaluate = evaluate
        self.label = label
        self.stopping = stopping
        self.progress = Progress()
        ends = {Event.BATCH_END, Event.EPOCH_END}
        self._is_due = create_interval_scheduler(interval, checkpoint_events=False, final_events=ends)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.progress)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress = Progress(**state)

    def fit_start(self, state: State, logger: Logger) -> None:
        if self.progress.stopped:  # a restart of a run that had stopped makes no further step
            state.stop_training()

    def batch_end(self, state: State, logger: Logger) -> None:
        self._evaluate_if_due(state, logger, Event.BATCH_END)

    def epoch_end(self, state: State, logger: Logger) -> None:
        self._evaluate_if_due(state, logger, Event.EPOCH_END)

    def load_best(self) -> int | None:
        """Gives the model the best weights, if they were kept. Returns their step.

        Raises:
            UserError: the file is gone, or of another step than this run's best.
        """
        if self.stopping is None or self.progress.best_step < 0:
            return None
        path = self.stopping.weights
        try:
            kept = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise UserError(f"{path}: the best weights can't be read: {error.strerror}") from None
        if kept["step"] != self.progress.best_step:
            raise UserError(
                f"{path} holds the weights of step {kept['step']}, the best of this run are those of step "
                f"{self.progress.best_step}: another run wrote it; start anew with overwrite=true"
            )
        self.model.load_state_dict(kept["model"])
        return self.progress.best_step

    def _evaluate_if_due(self, state: State, logger: Logger, event: Event) -> None:
        step = state.timestamp.batch.value
        # Asked in any case, for it remembers; after a restart it may ask for the same step at both events.
        if not self._is_due(state, event) or step == self.progress.evaluated:
            return
        metrics = self.evaluate()
        logger.log_metrics({f"eval/{self.label}/{name}": value for name, value in metrics.items()})
        if self.stopping is None:
            self.progress = Progress(evaluated=step)
            return
        value = metrics[self.stopping.metric]
        self.progress = after_evaluation(self.progress, step, value, self.stopping.patience)
        if self.progress.best_step == step and dist.get_global_rank() == 0:
            _write(self.stopping.weights, {"step": step, "model": self.model.state_dict()})
        if self.progress.stopped:
            log.info(
                "no better %s on %s than %.4f at step %d in %d evaluations: training ends",
                self.stopping.metric, self.label, self.progress.best, self.progress.best_step, self.progress.waited,
            )  # fmt: skip
            state.stop_training()


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)

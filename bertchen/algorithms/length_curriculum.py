"""Cuts training batches to the length of the curriculum's stage, and goes to another stage when its rule says so.

Notable: when things happen in a step. Composer asks for a batch (BEFORE_DATALOADER), has it (AFTER_DATALOADER), trains,
counts the step (BATCH_END), evaluates if it is time (EVAL_AFTER_ALL, which an evaluation outside of training doesn't
reach), and saves. What depends on losses is decided right after they are known, so that a checkpoint holds the decision
with the loss; what depends on the time alone is decided when the batch is asked for, and is so again after a restart.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from composer.algorithms import SeqLengthWarmup
from composer.core import Algorithm, Event, State
from composer.loggers import ConsoleLogger, Logger
from composer.utils import dist

from bertchen.algorithms.curricula import Progress, Rule, StageState, Warmup, plain
from bertchen.callbacks.metrics_file import MetricsFile
from bertchen.callbacks.throughput import elapsed_share
from bertchen.data.cutting import cut_rows
from bertchen.errors import UserError

log = logging.getLogger(__name__)

Cut = Callable[[State, Logger, int], None]


def cut_batch(state: State, logger: Logger, length: int) -> None:
    """Cuts the rows of `state.batch` to `length`; no token is lost."""
    input_ids, row_ids = cut_rows(state.batch["input_ids"], state.batch["row_ids"], length)
    state.batch = {**state.batch, "input_ids": input_ids, "row_ids": row_ids}


def cut_by_warmup(warmup: SeqLengthWarmup) -> Cut:
    """Lets Composer's algorithm cut the rows to the length that it has come to.

    It wants values for each token only, so each gets a number; that of a row's first token is the row's id afterwards.
    """
    # It would train on the first batch, with labels that aren't there yet, to take the memory of the longest rows.
    warmup._activated = True

    def cut(state: State, logger: Logger, length: int) -> None:
        whole = state.batch
        input_ids, row_ids = whole["input_ids"], whole["row_ids"]
        positions = torch.arange(input_ids.shape[1], device=row_ids.device)
        state.batch = {"input_ids": input_ids, "row_ids": row_ids[:, None] * input_ids.shape[1] + positions}
        warmup.apply(Event.AFTER_DATALOADER, state, logger)
        state.batch = {**whole, **state.batch, "row_ids": state.batch["row_ids"][:, 0].contiguous()}

    return cut


class LengthCurriculum(Algorithm):
    """Sequence length by a rule; that of one length for runs without a curriculum.

    Logs `curriculum/length`, `curriculum/stage` and what the rule shows (`curriculum/waiting`, …) with each step. Each
    switch is an event in `metrics.jsonl`, a line on the console, and a row in a table for loggers that take tables.

    Args:
        rule: decides about stages; with a `metric` (`label/name`) it learns its value after every evaluation. A
            checkpoint of another rule is refused.
        name: the rule's, in messages.
    """

    def __init__(self, rule: Rule[Any], name: str) -> None:
        self.rule = rule
        self.name = name
        self.cut = cut_by_warmup(SeqLengthWarmup(**rule.arguments)) if isinstance(rule, Warmup) else cut_batch
        self.switches: list[dict[str, Any]] = []
        self._progress: StageState = rule.begin()
        self._ends = False

    @property
    def stage(self) -> int:
        """Number of the current stage."""
        return self._progress.stage

    @property
    def length(self) -> int:
        """That of the current stage."""
        return self.rule.lengths[self.stage]

    def stages_of_this_length(self) -> list[int]:
        """The stages whose rows are as long as the current one's."""
        return [stage for stage, length in enumerate(self.rule.lengths) if length == self.length]

    def match(self, event: Event, state: State) -> bool:
        return event in _HANDLERS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        _HANDLERS[event](self, state, logger)

    def move_on(self, state: State, logger: Logger, reason: str) -> bool:
        """Goes to the next stage, for a reason that isn't the rule's; False where none follows."""
        following = self.rule.next(self._progress, _progress(state))
        if following is not None:
            self._take(following, reason, state, logger)
        return following is not None

    def state_dict(self) -> dict[str, Any]:
        return {**self._described(), "progress": plain(self._progress), "switches": list(self.switches)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.refuse_other(state)
        self._progress = self.rule.restore(state["progress"])
        self.switches = list(state["switches"])

    def refuse_other(self, saved: dict[str, Any]) -> None:
        """Raises a UserError if a checkpoint's state is that of another curriculum."""
        refuse_other("curriculum", saved, self._described())

    def _described(self) -> dict[str, Any]:
        return {"name": self.name, "rule": plain(self.rule)}

    def _start(self, state: State, logger: Logger) -> None:
        self._ends = False

    def _before_step(self, state: State, logger: Logger) -> None:
        now = _progress(state)
        if now.share is None or now.share < 1:  # after the last batch of the last epoch another one is asked for
            self._take(*self.rule.before_step(self._progress, now), state, logger)

    def _cut(self, state: State, logger: Logger) -> None:
        self.cut(state, logger, self.length)
        shown = {"length": state.batch["input_ids"].shape[1], "stage": self.stage, **self.rule.shown(self._progress)}
        logger.log_metrics({f"curriculum/{name}": value for name, value in shown.items()})

    def _step_done(self, state: State, logger: Logger) -> None:
        loss = _agreed(state, state.total_loss_dict["loss/train/total"])
        if not math.isfinite(loss):  # of a step that was skipped; it would stay in a mean for good
            return
        self._take(*self.rule.after_step(self._progress, _progress(state), loss), state, logger)

    def _evaluated(self, state: State, logger: Logger) -> None:
        metric = getattr(self.rule, "metric", None)
        if metric is None or self._ends:  # made because training ends: a run that goes on doesn't have it
            return
        label, _, name = metric.partition("/")
        value = _agreed(state, float(state.eval_metrics[label][name].compute()))
        self._take(*self.rule.after_evaluation(self._progress, _progress(state), value), state, logger)

    def _end(self, state: State, logger: Logger) -> None:
        self._ends = True

    def _take(self, progress: StageState, reason: str | None, state: State, logger: Logger) -> None:
        """Remembers what came of something, and says so if it is another stage."""
        before, self._progress = self.length, progress
        if reason is None:
            return
        step = state.timestamp.batch.value
        switch = {"stage": self.stage, "length": self.length, "from_length": before, "reason": reason}
        self.switches.append({"step": step, **switch})
        rows = [list(each.values()) for each in self.switches]
        for destination in logger.destinations:
            if isinstance(destination, MetricsFile):
                destination.log_event(step, event="switch", **switch)
            elif not isinstance(destination, ConsoleLogger):  # it would need pandas, and has the line below
                destination.log_table(list(self.switches[0]), rows, "curriculum/switches", step)
        if dist.get_global_rank() == 0:
            log.info("step %d: from length %d to %d (stage %d): %s", step, before, self.length, self.stage, reason)


_HANDLERS: dict[Event, Callable[[LengthCurriculum, State, Logger], None]] = {
    Event.FIT_START: LengthCurriculum._start,
    Event.BEFORE_DATALOADER: LengthCurriculum._before_step,
    Event.AFTER_DATALOADER: LengthCurriculum._cut,
    Event.BATCH_END: LengthCurriculum._step_done,
    Event.EVAL_AFTER_ALL: LengthCurriculum._evaluated,
    Event.FIT_END: LengthCurriculum._end,
}


def refuse_other(section: str, saved: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raises a UserError unless all that `ours` holds is the same in a checkpoint's state."""
    theirs = {key: saved.get(key) for key in ours}
    if theirs != ours:
        raise UserError(
            f"{section}: the checkpoint is of {in_words(theirs)}; this run has {in_words(ours)}: give the same, or "
            "start anew with overwrite=true"
        )


def in_words(described: Any) -> str:
    """Names and values of a mapping in a line, without what wasn't given."""
    if not isinstance(described, dict):
        return str(described)
    given = {key: value for key, value in described.items() if value is not None and value != []}
    return ", ".join(f"{key} {in_words(value)}" for key, value in given.items()) or "another kind"


def _progress(state: State) -> Progress:
    return Progress(state.timestamp.batch.value, state.timestamp.token.value, elapsed_share(state))


def _agreed(state: State, value: float) -> float:
    """The first process's value, so that all decide alike."""
    if dist.get_world_size() == 1:
        return value
    shared = state.device.tensor_to_device(torch.tensor([value], dtype=torch.float64))
    dist.broadcast(shared, src=0)
    return shared.item()

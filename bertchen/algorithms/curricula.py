"""When a curriculum goes to another stage: pure functions, and the rules that a YAML can name.

A stage is the number of an entry in a curriculum's `lengths`. A rule is told of every finished step and every
evaluation; it returns what is to be remembered, and in words why the stage changed if it did.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Generic, TypeVar

UNITS = {"ba": "steps", "tok": "tokens", "dur": "share"}


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        steps: finished ones.
        tokens: seen in them.
        share: of `max_duration` that is over, 0 to 1; None if it isn't known.
    """

    steps: int
    tokens: int
    share: float | None = None


@dataclass(frozen=True)
class StageState:
    """What any curriculum remembers: its stage, and the number of finished steps when that began."""

    stage: int = 0
    began: int = 0

    def moved_to(self, stage: int, steps: int) -> StageState:
        """The state at the beginning of another stage."""
        return replace(self, stage=stage, began=steps)


@dataclass(frozen=True)
class PlateauState(StageState):
    """That of Algorithm 1: evaluations without an improvement in a row, and the best value of the run."""

    waiting: int = 0
    best: float = math.inf

    def moved_to(self, stage: int, steps: int) -> PlateauState:
        return replace(self, stage=stage, began=steps, waiting=0)


@dataclass(frozen=True)
class MotionState(StageState):
    """That of `dynamic`: steps of the stage, their smoothed loss, and the last of its values, oldest first."""

    steps: int = 0
    smoothed: float = 0.0
    recent: tuple[float, ...] = ()

    def moved_to(self, stage: int, steps: int) -> MotionState:
        return MotionState(stage, steps)


State = TypeVar("State", bound=StageState)


def static_stage(begins: Sequence[float], now: float) -> int:
    """The last stage that has begun: `begins` ascends from 0, in the unit of `now`."""
    return bisect_right(begins, now) - 1


def plateau(
    state: PlateauState, value: float, patience: int, delta: float, last_stage: int
) -> tuple[PlateauState, bool]:
    """The state after an evaluation by the paper's Algorithm 1 (Sadrieh, 2024), and whether the next stage begins.

    The number of switches so far is the stage. NaN is no improvement, nor is one of exactly `delta`.
    """
    if state.stage == last_stage:
        return state, False
    if value + delta < state.best:
        return replace(state, waiting=0, best=value), False
    if state.waiting + 1 < patience:
        return replace(state, waiting=state.waiting + 1), False
    return replace(state, stage=state.stage + 1, waiting=0), True


def dynamic(
    state: MotionState, loss: float, smoothing: float, window: int, threshold: float
) -> tuple[MotionState, bool]:
    """The state after a step with this training loss, and whether it is time for the other stage.

    The loss is smoothed by an exponential moving average that begins with the stage; one that isn't finite is left out.
    At stage 1, the longest, it is time when the average stands still: when it is at most `threshold` away from what it
    was `window` steps before. At stage 0 it is time when it moves. A stage's first `window` averages are of few steps
    and not compared with, so that it lasts more than two windows.
    """
    if not math.isfinite(loss):
        return state, False
    smoothed = smoothing * state.smoothed + (1 - smoothing) * loss if state.steps else loss
    recent = (*state.recent, smoothed)[-window - 1 :]
    state = replace(state, steps=state.steps + 1, smoothed=smoothed, recent=recent)
    if state.steps <= 2 * window:
        return state, False
    stands_still = abs(recent[-1] - recent[0]) <= threshold
    return state, stands_still == (state.stage == 1)


@dataclass(frozen=True)
class Rule(Generic[State]):
    """Stays at one stage; others say when theirs change.

    Attributes:
        lengths: of the rows, a stage each.
    """

    lengths: tuple[int, ...]

    def begin(self) -> State:
        """The state before the first step."""
        return StageState()  # type: ignore[return-value]

    def restore(self, saved: dict[str, Any]) -> State:
        """The state from `asdict` of it."""
        kind = type(self.begin())
        return kind(**{field.name: saved[field.name] for field in fields(kind)})

    def before_step(self, state: State, now: Progress) -> tuple[State, str | None]:
        """The state for the step that comes, and why its stage is another one. Asked twice it says the same."""
        return state, None

    def after_step(self, state: State, now: Progress, loss: float) -> tuple[State, str | None]:
        """The same after a step, with its training loss."""
        return state, None

    def after_evaluation(self, state: State, now: Progress, value: float) -> tuple[State, str | None]:
        """The same after an evaluation, with the value of `metric`, for a rule that has one."""
        return state, None

    def next(self, state: State, now: Progress) -> State | None:
        """The state with the next stage begun, for a reason that isn't the rule's; None where none follows."""
        return state.moved_to(state.stage + 1, now.steps) if state.stage < len(self.lengths) - 1 else None

    def shown(self, state: State) -> dict[str, float]:
        """What is logged of the state, besides its stage."""
        return {}


@dataclass(frozen=True)
class Static(Rule[StageState]):
    """Each length begins at a step (`ba`), a token (`tok`) or a share of the run (`dur`).

    Attributes:
        begins: a number each, ascending from 0.
        unit: of `begins`.
    """

    begins: tuple[float, ...]
    unit: str

    def before_step(self, state: StageState, now: Progress) -> tuple[StageState, str | None]:
        at = getattr(now, UNITS[self.unit])
        stage = state.stage if at is None else static_stage(self.begins, at)
        if stage <= state.stage:  # a stage that was left because its data ran out doesn't come back
            return state, None
        return state.moved_to(stage, now.steps), f"it begins at {self.begins[stage]:.10g}{self.unit}"


@dataclass(frozen=True)
class Hybrid(Rule[PlateauState]):
    """The paper's: the next length when the validation loss stands still, or at a limit of steps.

    Attributes:
        patience: evaluations in a row without an improvement.
        delta: what a value must be below the best one by to be an improvement, and more.
        metric: `label/name` of the value.
        max_steps: most steps of a stage.
    """

    patience: int
    delta: float
    metric: str
    max_steps: int | None

    def begin(self) -> PlateauState:
        return PlateauState()

    def before_step(self, state: PlateauState, now: Progress) -> tuple[PlateauState, str | None]:
        if self.max_steps is None or now.steps - state.began < self.max_steps:
            return state, None
        following = self.next(state, now)
        return (state, None) if following is None else (following, f"it had its limit of {self.max_steps} steps")

    def after_evaluation(self, state: PlateauState, now: Progress, value: float) -> tuple[PlateauState, str | None]:
        after, switched = plateau(state, value, self.patience, self.delta, len(self.lengths) - 1)
        if not switched:
            return after, None
        reason = f"{self.metric} is {value:.4f}; in {self.patience} evaluations it was not more than {self.delta:g} "
        return replace(after, began=now.steps), f"{reason}below the best, {state.best:.4f}"

    def shown(self, state: PlateauState) -> dict[str, float]:
        return {"waiting": state.waiting, "best": state.best}


@dataclass(frozen=True)
class Dynamic(Rule[MotionState]):
    """The longest length until the training loss stands still, then the shortest until it moves, and back.

    Attributes:
        lengths: the shortest and the longest.
        smoothing: weight of the past in the loss's moving average, 0 to below 1.
        window: steps over which it is looked at.
        threshold: a change over these of at most so much is standing still [nats].
    """

    smoothing: float
    window: int
    threshold: float

    def begin(self) -> MotionState:
        return MotionState(stage=1)

    def restore(self, saved: dict[str, Any]) -> MotionState:
        return super().restore({**saved, "recent": tuple(saved["recent"])})

    def after_step(self, state: MotionState, now: Progress, loss: float) -> tuple[MotionState, str | None]:
        state, switched = dynamic(state, loss, self.smoothing, self.window, self.threshold)
        if not switched:
            return state, None
        does = "stands still" if state.stage == 1 else "moves"
        change = state.recent[-1] - state.recent[0]
        reason = f"the smoothed training loss {does}: {change:+.4f} in {self.window} steps"
        return state.moved_to(1 - state.stage, now.steps), reason

    def next(self, state: MotionState, now: Progress) -> MotionState | None:
        return None  # the two lengths alternate

    def shown(self, state: MotionState) -> dict[str, float]:
        return {"smoothed_loss": state.smoothed} if state.steps else {}


@dataclass(frozen=True)
class Warmup(Rule[StageState]):
    """Lengths that Composer's `SeqLengthWarmup` sets: one stage, of the longest.

    Attributes:
        arguments: of Composer's algorithm.
    """

    arguments: dict[str, Any]


@dataclass(frozen=True)
class MaskingRate:
    """The share of tokens to hide: constant, a rate a stage, or one that falls linearly over the run.

    Attributes:
        mlm_probability: at the run's start; the only one where no other is given.
        final_rate: at its end, if it falls.
        stage_rates: of each stage, if they differ.
    """

    mlm_probability: float
    final_rate: float | None = None
    stage_rates: tuple[float, ...] = ()

    def at(self, stage: int, share: float | None) -> float:
        """The rate in a stage when `share` of the run is over."""
        if self.stage_rates:
            return self.stage_rates[stage]
        if self.final_rate is None:
            return self.mlm_probability
        if share is None:
            raise ValueError("a rate that falls over the run needs its length")
        return self.mlm_probability + (self.final_rate - self.mlm_probability) * min(share, 1.0)

    def highest(self, stages: Sequence[int]) -> float:
        """The highest rate that any of these stages has at any time."""
        if self.stage_rates:
            return max(self.stage_rates[stage] for stage in stages)
        return self.mlm_probability if self.final_rate is None else max(self.mlm_probability, self.final_rate)


def plain(value: StageState | Rule[Any] | MaskingRate) -> dict[str, Any]:
    """The fields of a state, a rule or a rate in plain containers, as JSON has them."""
    return {name: list(item) if isinstance(item, tuple) else item for name, item in asdict(value).items()}

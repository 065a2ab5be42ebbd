"""The rules of the curricula on sequences whose stages were worked out by hand, and against the paper's pseudocode."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertchen.algorithms.curricula import (
    Dynamic,
    Hybrid,
    MaskingRate,
    MotionState,
    PlateauState,
    Progress,
    Rule,
    Static,
    dynamic,
    plain,
    plateau,
    static_stage,
)

LENGTHS = (64, 128, 256, 512)
NAN, INF = math.nan, math.inf


def stages(values: list[float], patience: int, delta: float, last_stage: int = 3) -> list[int]:
    """The stage after each evaluation."""
    state, found = PlateauState(), []
    for value in values:
        before = state.stage
        state, switched = plateau(state, value, patience, delta, last_stage)
        assert switched == (state.stage == before + 1)
        found.append(state.stage)
    return found


# patience, delta, values, stage after each; `best` and `wait` of Algorithm 1 stand beside those that aren't plain.
WORKED_OUT: dict[str, tuple[int, float, list[float], list[int]]] = {
    # best 10, 8, 6, 4: always more than 1 below.
    "falls all the time": (2, 1.0, [10, 8, 6, 4], [0, 0, 0, 0]),
    # best 10; 9.5: wait 1; 9.2: wait 2, switch; 9.1: wait 1; 9.05: wait 2, switch; 8.9 + 1 < 10: best 8.9.
    "the paper's settings": (2, 1.0, [10, 9.5, 9.2, 9.1, 9.05, 8.9], [0, 0, 1, 1, 2, 2]),
    # 9 + 1 < 10 is false: no improvement.
    "an improvement of exactly delta": (2, 1.0, [10, 9, 9], [0, 0, 1]),
    "a little more than delta": (2, 1.0, [10, math.nextafter(9, 0), 9], [0, 0, 0]),
    # With delta 0 a tie is no improvement: 5 < 5 is false.
    "ties": (2, 0.0, [5, 5, 5, 5, 5, 5], [0, 0, 1, 1, 2, 2]),
    "rises": (1, 0.0, [5, 6, 7, 8], [0, 1, 2, 3]),
    # An improvement sets wait to 0: 10, 9.9 (1), 8 (0), 7.9 (1), 6 (0), 5.9 (1), 5.8 (2).
    "improvements in between": (2, 1.0, [10, 9.9, 8, 7.9, 6, 5.9, 5.8], [0, 0, 0, 0, 0, 0, 1]),
    # Measured at the best, not at the value before: best 10; 9.4: wait 1; 8.8: best; 8.2: wait 1; 7.6: best.
    "slow improvements add up": (2, 1.0, [10, 9.4, 8.8, 8.2, 7.6], [0, 0, 0, 0, 0]),
    "fewer evaluations than patience": (5, 1.0, [10, 10, 10, 10, 10], [0, 0, 0, 0, 0]),
    "as many as patience after the first": (5, 1.0, [10, 10, 10, 10, 10, 10], [0, 0, 0, 0, 0, 1]),
    "none": (2, 1.0, [], []),
    # NaN is never below: wait 1, 2.
    "NaN": (2, 1.0, [10, NAN, NAN, NAN, 5, NAN, NAN], [0, 0, 1, 1, 1, 1, 2]),
    # best is infinity still: NaN + 1 < infinity is false.
    "NaN from the start": (2, 1.0, [NAN, NAN, 10], [0, 1, 1]),
    # inf + 1 < inf is false.
    "infinity": (2, 1.0, [INF, INF, 10, INF, INF], [0, 1, 1, 1, 2]),
    # best is kept across switches: after the switch 9.5 is measured at 10, not at infinity.
    "best is kept": (1, 1.0, [10, 9.8, 9.5, 8.5, 8.4], [0, 1, 2, 2, 3]),
    "the third switch is the last": (1, 1.0, [10, 10, 10, 10, 10, 10, 10], [0, 1, 2, 3, 3, 3, 3]),
    # patience 1: each value without an improvement switches, the first never does.
    "patience of one": (1, 1.0, [10, 8, 8, 6], [0, 0, 1, 1]),
}


@pytest.mark.parametrize("name", WORKED_OUT)
def test_algorithm_1_on_sequences_worked_out_by_hand(name: str) -> None:
    patience, delta, values, expected = WORKED_OUT[name]
    assert stages(values, patience, delta) == expected


def test_after_the_last_switch_nothing_is_counted() -> None:
    """Algorithm 1 does nothing any more: neither best nor wait change."""
    state = PlateauState(stage=3, began=7, waiting=0, best=5.0)
    for value in (1.0, 9.0, 9.0, NAN):
        assert plateau(state, value, 1, 1.0, 3) == (state, False)


def test_what_algorithm_1_remembers() -> None:
    state, _ = plateau(PlateauState(), 10.0, 2, 1.0, 3)
    assert state == PlateauState(waiting=0, best=10.0)
    state, _ = plateau(state, 9.5, 2, 1.0, 3)
    assert state == PlateauState(waiting=1, best=10.0)
    state, switched = plateau(state, 9.5, 2, 1.0, 3)
    assert (state, switched) == (PlateauState(stage=1, waiting=0, best=10.0), True)


def as_printed(values: list[float], patience: int, delta: float, most_switches: int) -> list[int]:
    """The pseudocode as it is printed, with its own variables: the number of switches after each validation."""
    switches, wait, best, found = 0, 0, float("inf"), []
    for val_loss in values:
        if switches < most_switches:
            if val_loss + delta < best:
                wait = 0
                best = val_loss
            else:
                wait += 1
                if wait >= patience:
                    switches += 1
                    wait = 0
        found.append(switches)
    return found


@given(
    st.lists(st.one_of(st.integers(0, 12).map(lambda n: n / 4), st.just(NAN), st.just(INF)), max_size=40),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(1, 4),
)
def test_algorithm_1_is_the_pseudocode(values: list[float], patience: int, delta: float, last_stage: int) -> None:
    assert stages(values, patience, delta, last_stage) == as_printed(values, patience, delta, last_stage)


def hybrid(patience: int = 2, delta: float = 1.0, max_steps: int | None = None) -> Hybrid:
    return Hybrid(LENGTHS, patience, delta, "eval_512/MaskedCrossEntropy", max_steps)


def followed(
    rule: Rule[Any], steps: int, losses: dict[int, float] | None = None, evaluations: dict[int, float] | None = None
) -> list[tuple[int, int, str]]:
    """Step, stage and reason of each switch in a run that tells the rule of its events in Composer's order."""
    state, switches = rule.begin(), []
    for step in range(steps + 1):
        now = Progress(step, step * 100, step / steps)
        told: list[tuple[Any, str | None]] = []
        if step and losses is not None:
            told.append(rule.after_step(state, now, losses[step]))
            state = told[-1][0]
        if evaluations and step in evaluations:
            told.append(rule.after_evaluation(state, now, evaluations[step]))
            state = told[-1][0]
        if step < steps:
            told.append(rule.before_step(state, now))
            state = told[-1][0]
        switches += [(step, after.stage, reason) for after, reason in told if reason is not None]
        assert state.began == (switches[-1][0] if switches else 0)
        state = rule.restore(json.loads(json.dumps(plain(state))))  # a restart changes nothing
    return switches


def test_hybrid_tells_why() -> None:
    ((step, stage, reason),) = followed(hybrid(), 40, evaluations={10: 8.0, 20: 7.5, 30: 7.25})
    assert (step, stage) == (30, 1)
    assert reason == (
        "eval_512/MaskedCrossEntropy is 7.2500; in 2 evaluations it was not more than 1 below the best, 8.0000"
    )


def test_a_limit_of_steps() -> None:
    """Three switches at 10, 20 and 30, and the last stage has none."""
    assert [each[:2] for each in followed(hybrid(max_steps=10), 60)] == [(10, 1), (20, 2), (30, 3)]


def test_a_limit_counts_from_the_beginning_of_the_stage() -> None:
    """Evaluations at 4 (best), 6 (wait 1) and 8 (wait 2) switch at 8, and the limit 10 steps later."""
    switches = followed(hybrid(max_steps=10), 30, evaluations={4: 5.0, 6: 5.0, 8: 5.0})
    assert [each[:2] for each in switches] == [(8, 1), (18, 2), (28, 3)]
    assert switches[1][2] == "it had its limit of 10 steps"


def test_plateau_and_limit_in_one_step_are_one_switch() -> None:
    """The evaluation comes first, and the stage that it begins has the steps of its own."""
    switches = followed(hybrid(patience=1, max_steps=10), 19, evaluations={5: 3.0, 10: 3.0})
    assert [each[:2] for each in switches] == [(10, 1)]
    assert "evaluations" in switches[0][2]


def test_a_limit_starts_the_waiting_anew() -> None:
    """Wait 1 at 9; the limit at 10 sets it to 0; 12: 1; 14: 2, switch."""
    evaluations = {8: 5.0, 9: 5.0, 12: 5.0, 14: 5.0}
    assert [each[:2] for each in followed(hybrid(max_steps=10), 20, evaluations=evaluations)] == [(10, 1), (14, 2)]


@pytest.mark.parametrize(
    ("begins", "now", "stage"),
    [
        ((0, 5, 9), 0, 0),
        ((0, 5, 9), 4, 0),
        ((0, 5, 9), 5, 1),
        ((0, 5, 9), 8, 1),
        ((0, 5, 9), 9, 2),
        ((0, 5, 9), 10**9, 2),
        ((0.0, 0.25), 0.25, 1),
        ((0.0, 0.25), 0.2499, 0),
    ],
)
def test_static_stage(begins: tuple[float, ...], now: float, stage: int) -> None:
    assert static_stage(begins, now) == stage


@pytest.mark.parametrize(
    ("begins", "unit", "switches"),
    [
        ((0, 4, 6, 10), "ba", [(4, 1), (6, 2), (10, 3)]),
        ((0, 350, 600, 601), "tok", [(4, 1), (6, 2), (7, 3)]),
        ((0.0, 0.3, 0.55, 0.9), "dur", [(6, 1), (11, 2), (18, 3)]),
        ((0, 1, 2, 100), "ba", [(1, 1), (2, 2)]),
    ],
)
def test_static_in_steps_of_100_tokens(begins: tuple[float, ...], unit: str, switches: list[tuple[int, int]]) -> None:
    found = followed(Static(LENGTHS, begins, unit), 20)
    assert [each[:2] for each in found] == switches
    assert found[0][2] == f"it begins at {begins[1]}{unit}"


def test_a_stage_that_was_left_does_not_come_back() -> None:
    rule = Static(LENGTHS, (0, 10, 20, 30), "ba")
    moved = rule.next(rule.begin(), Progress(3, 300))
    assert moved is not None
    assert rule.before_step(moved, Progress(4, 400)) == (moved, None)
    assert rule.before_step(moved, Progress(20, 2000))[0].stage == 2


def test_the_next_stage_for_another_reason() -> None:
    now = Progress(7, 700)
    state = replace(hybrid().begin(), waiting=1, best=4.0)
    state = hybrid().next(state, now)
    assert state == PlateauState(stage=1, began=7, waiting=0, best=4.0)
    assert hybrid().next(replace(state, stage=3), now) is None
    assert Rule((64,)).next(Rule((64,)).begin(), now) is None
    alternating = Dynamic((64, 512), 0.9, 5, 0.1)
    assert alternating.next(alternating.begin(), now) is None


def told(losses: list[float], smoothing: float, window: int, threshold: float) -> list[tuple[int, int]]:
    """Step and stage of each switch of `dynamic`."""
    rule = Dynamic((64, 512), smoothing, window, threshold)
    found = followed(rule, len(losses), losses=dict(enumerate(losses, start=1)))
    return [each[:2] for each in found]


def test_dynamic_begins_at_the_longest() -> None:
    rule = Dynamic((64, 512), 0.9, 5, 0.1)
    assert rule.lengths[rule.begin().stage] == 512


def test_dynamic_on_a_sequence_worked_out_by_hand() -> None:
    """Without smoothing and over 2 steps: the 5th value of a stage is the first to be compared, with its 3rd.

    Stage 1 has 9 8 7 6 5 (5 to 7: moves), 4 (to 6: moves), 4 (to 5: moves), 4 (to 4: still) and ends after step 8.
    Stage 0 has 6 6 6 6 6 (still), 6 (still), 5 (to 6: moves), and ends after step 15. Stage 1 has 9 9 9 9 9 (still).
    """
    losses = [9, 8, 7, 6, 5, 4, 4, 4, 6, 6, 6, 6, 6, 6, 5, 9, 9, 9, 9, 9]
    assert told(losses, 0.0, 2, 0.5) == [(8, 0), (15, 1), (20, 0)]


def test_a_change_of_exactly_the_threshold_is_standing_still() -> None:
    assert told([4, 4, 4, 3.75, 3.5], 0.0, 2, 0.5) == [(5, 0)]
    assert told([4, 4, 4, 3.75, 3.25], 0.0, 2, 0.5) == []
    at_shortest = [4, 4, 4, 4, 4]
    assert told([*at_shortest, 4, 4, 4, 3.75, 3.5], 0.0, 2, 0.5) == [(5, 0)]
    assert told([*at_shortest, 4, 4, 4, 3.75, 3.25], 0.0, 2, 0.5) == [(5, 0), (10, 1)]


def test_a_rise_is_motion_too() -> None:
    assert told([4, 4, 4, 4, 4, 4, 4, 4, 4, 9], 0.0, 2, 0.5) == [(5, 0), (10, 1)]


def test_the_jump_between_lengths_is_no_motion() -> None:
    """Shorter rows have a higher loss from their first step on."""
    assert told([4] * 5 + [7] * 30, 0.0, 2, 0.5) == [(5, 0)]


def test_losses_that_are_not_finite_are_left_out() -> None:
    assert told([4, NAN, 4, 4, INF, 4, 4], 0.0, 2, 0.5) == [(7, 0)]
    assert told([NAN] * 30, 0.0, 2, 0.5) == []


def test_fewer_steps_than_two_windows() -> None:
    assert told([4.0] * 4, 0.0, 2, 0.5) == []
    assert told([4.0] * 100, 0.9, 50, 0.5) == []
    assert told([4.0] * 101, 0.9, 50, 0.5) == [(101, 0)]


@given(st.lists(st.floats(0, 12), min_size=1, max_size=40), st.sampled_from([0.0, 0.5, 0.9]), st.integers(1, 6))
def test_the_average_is_an_exponential_one(losses: list[float], smoothing: float, window: int) -> None:
    """With weights smoothing^age, of which the oldest has what all before it would have had."""
    state = MotionState(stage=1)
    for at, loss in enumerate(losses):
        state, switched = dynamic(state, loss, smoothing, window, -1.0)  # nothing is ever still
        assert not switched
        weights = [(1 - smoothing) * smoothing**age for age in range(at)] + [smoothing**at]
        expected = sum(weight * before for weight, before in zip(weights, losses[at::-1], strict=True))
        assert state.smoothed == pytest.approx(expected, abs=1e-9)
        assert state.recent[-1] == state.smoothed
        assert len(state.recent) == min(at + 1, window + 1)


def test_a_state_in_json() -> None:
    for rule in (hybrid(), Static(LENGTHS, (0, 1, 2, 3), "ba"), Dynamic((64, 512), 0.9, 5, 0.1), Rule((64,))):
        state = rule.begin()
        assert rule.restore(json.loads(json.dumps(plain(state)))) == state
    moving = MotionState(0, 12, 3, 1.5, (1.25, 1.5))
    assert Dynamic((64, 512), 0.9, 5, 0.1).restore(json.loads(json.dumps(plain(moving)))) == moving


def test_a_constant_rate() -> None:
    rate = MaskingRate(0.3)
    assert [rate.at(0, share) for share in (None, 0.0, 1.0)] == [0.3] * 3
    assert rate.highest([0]) == 0.3


def test_a_rate_a_stage() -> None:
    rate = MaskingRate(0.3, stage_rates=(0.3, 0.25, 0.2, 0.15))
    assert [rate.at(stage, 0.5) for stage in range(4)] == [0.3, 0.25, 0.2, 0.15]
    assert rate.highest([2]) == 0.2
    assert rate.highest([1, 3]) == 0.25, "stages of one length"


def test_a_rate_that_falls() -> None:
    rate = MaskingRate(0.3, final_rate=0.1)
    assert [rate.at(0, share) for share in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.3, 0.25, 0.2, 0.1])
    assert rate.at(3, 1.5) == pytest.approx(0.1), "an epoch that turned out longer"
    assert rate.highest([0]) == 0.3
    with pytest.raises(ValueError, match="needs its length"):
        rate.at(0, None)

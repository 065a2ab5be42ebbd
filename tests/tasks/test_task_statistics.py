"""Paired tests: cases worked out by hand, scipy's own tests, and how often they err where there is no difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bertchen.tasks.statistics import holm, mean_std, paired_test, sign_flip_test

SIMULATIONS = 300


def test_mean_and_sample_standard_deviation() -> None:
    assert mean_std([1, 2, 3, 4]) == (2.5, pytest.approx(math.sqrt(5 / 3)))
    mean, deviation = mean_std([0.7])
    assert mean == 0.7
    assert math.isnan(deviation)


def test_sign_flips_worked_out_by_hand() -> None:
    # Of the 8 signs of 1, 2, 3 only +++ and --- give a sum as far from 0 as 6.
    assert sign_flip_test([1, 2, 3]) == pytest.approx(2 / 8)
    # -1, 2, 3: sums as far as 4 have +++, -++ and their opposites.
    assert sign_flip_test([-1, 2, 3]) == pytest.approx(4 / 8)
    assert sign_flip_test([0, 1, 0, 2, 3, 0]) == pytest.approx(2 / 8)  # equal scores say nothing
    assert sign_flip_test([0, 0]) == 1


def test_sign_flips_of_equal_size_are_the_sign_test() -> None:
    differences = [1] * 9 + [-1] * 2 + [0] * 30
    assert sign_flip_test(differences) == pytest.approx(stats.binomtest(9, 11).pvalue)


@pytest.mark.parametrize("count", [9, 200])
def test_sign_flips_against_scipy(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.1, 1, count).round(1)
    reference = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=1999, rng=0)
    error = 4 * math.sqrt(reference.pvalue * (1 - reference.pvalue) / 1999) if count > 9 else 1e-9
    assert sign_flip_test(differences) == pytest.approx(reference.pvalue, abs=error)


def test_sign_flips_are_seeded() -> None:
    differences = np.random.default_rng(0).normal(0.2, 1, 60)
    assert sign_flip_test(differences, 1, 499) == sign_flip_test(differences, 1, 499)
    assert sign_flip_test(differences, 1, 499) == pytest.approx(sign_flip_test(differences, 2, 4999), abs=0.06)


def test_one_seed_is_the_paired_t_test() -> None:
    numbers = np.random.default_rng(1)
    first, second = numbers.normal(0.1, 1, (2, 80))
    result, reference = paired_test(first, second, resamples=999), stats.ttest_rel(first, second)
    interval = reference.confidence_interval()
    assert result.p_value == pytest.approx(reference.pvalue)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    assert result.difference == pytest.approx(first.mean() - second.mean())
    assert (result.seeds, result.examples) == (1, 80)


def test_seeds_that_differ_alike_everywhere_are_welchs_test_over_seeds() -> None:
    """Each seed adds the same to all examples: then the examples say nothing, however many there are."""
    first, second = [0.3, 0.5, 0.1], [0.1, 0.15, 0.05]
    result = paired_test(*(np.repeat(np.array([one]).T, 500, axis=1) for one in (first, second)), resamples=99)
    reference = stats.ttest_ind(first, second, equal_var=False)
    interval = reference.confidence_interval()
    assert result.p_value == pytest.approx(reference.pvalue)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    assert result.p_examples == pytest.approx(1 / 100)  # the least of 99 drawn


def test_equal_seeds_are_the_t_test_over_examples() -> None:
    """A second seed that repeats the first adds no evidence."""
    one = np.random.default_rng(2).normal(0.2, 1, 60)
    result = paired_test(np.stack([one, one]), np.zeros((2, 60)), resamples=99)
    assert result.p_value == pytest.approx(stats.ttest_1samp(one, 0).pvalue)


def test_crossed_errors_worked_out_by_hand() -> None:
    # First: means of seeds 1 and 3, of examples 1, 2, 3, nothing else; mean squares 3 * 2 = 6 and 2 * 1 = 2, rest 0.
    result = paired_test([[0, 1, 2], [2, 3, 4]], np.zeros((2, 3)))
    error, freedom = math.sqrt((6 + 2) / 6), (6 + 2) ** 2 / (6**2 / 1 + 2**2 / 2)
    assert result.difference == 2
    assert result.p_value == pytest.approx(2 * stats.t.sf(2 / error, freedom))
    assert result.high - result.difference == pytest.approx(stats.t.ppf(0.975, freedom) * error)


def test_models_change_places() -> None:
    numbers = np.random.default_rng(3)
    first, second = numbers.integers(0, 2, (2, 3, 50)).astype(float)
    one, two = paired_test(first, second, resamples=99), paired_test(second, first, resamples=99)
    assert (one.difference, one.low) == pytest.approx((-two.difference, -two.high))
    assert (one.p_value, one.p_examples) == pytest.approx((two.p_value, two.p_examples))


def test_equal_and_constantly_different_models() -> None:
    scores = np.random.default_rng(4).random((3, 20))
    same = paired_test(scores, scores)
    assert (same.difference, same.p_value, same.p_examples) == (0, 1, 1)
    assert same.high == -same.low >= 0
    better = paired_test(np.ones((3, 20)), np.zeros((3, 20)))
    assert (better.difference, better.p_value) == (1, 0)
    assert better.p_examples < 0.001


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        paired_test(np.ones((2, 5)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="2 examples"):
        paired_test([1.0], [0.0])


def simulated(seed_effect: float, seeds: int, examples: int, right_or_wrong: bool = True) -> list[tuple[float, float]]:
    """p values of models without a difference: of a new sample of seeds and examples each time."""
    numbers = np.random.default_rng(5)
    found = []
    for _ in range(SIMULATIONS):
        scores = [
            seed_effect * numbers.normal(size=(seeds, 1))
            + 0.5 * numbers.normal(size=(1, examples))
            + numbers.normal(size=(seeds, examples))
            for _ in range(2)
        ]
        result = paired_test(*((one > 0 if right_or_wrong else one) for one in scores), resamples=99)
        found.append((result.p_value, result.p_examples))
    return found


@pytest.mark.parametrize("seeds", [1, 3])
def test_without_seed_effects_the_p_values_over_examples_are_uniform(seeds: int) -> None:
    _, over_examples = zip(*simulated(0, seeds, 60, right_or_wrong=False), strict=True)
    assert stats.kstest(over_examples, stats.uniform.cdf).pvalue > 0.001  # they are multiples of 0.01


@pytest.mark.parametrize(("seed_effect", "seeds"), [(0.0, 3), (0.1, 3), (0.3, 3), (0.3, 5)])
def test_errors_are_as_rare_as_they_say_whatever_the_seeds_do(seed_effect: float, seeds: int) -> None:
    over_both, _ = zip(*simulated(seed_effect, seeds, 60), strict=True)
    for level in (0.05, 0.2):
        share = np.mean(np.array(over_both) <= level)
        assert share <= level + 3 * math.sqrt(level * (1 - level) / SIMULATIONS), (level, share)


def test_examples_alone_take_the_luck_of_seeds_for_a_difference() -> None:
    """Why p values count seeds: the test over examples alone errs far too often here, the other doesn't."""
    over_both, over_examples = (np.array(p) for p in zip(*simulated(0.3, 3, 200), strict=True))
    assert np.mean(over_examples <= 0.05) > 0.3
    assert np.mean(over_both <= 0.05) < 0.09


def test_a_difference_beyond_the_spread_of_seeds_is_found() -> None:
    numbers = np.random.default_rng(6)
    first = numbers.random((3, 1000)) < 0.85 + 0.01 * numbers.normal(size=(3, 1))
    second = numbers.random((3, 1000)) < 0.70 + 0.01 * numbers.normal(size=(3, 1))
    result = paired_test(first, second, resamples=999)
    assert result.p_value < 0.02
    assert 0 < result.low < 0.15 < result.high < 0.25


def test_holm_worked_out_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []

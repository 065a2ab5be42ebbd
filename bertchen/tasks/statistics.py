"""Means over seeds, and paired tests of two models on the same examples with the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 9_999
_CHUNK = 500


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, which is NaN for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class PairedTest:
    """The difference of two models, first minus second.

    Attributes:
        difference: of the means over examples and seeds.
        low, high: its 95 % interval, for new examples and, with two seeds or more, for new seeds as well.
        p_value: two-sided, of no difference, for the same population as the interval.
        p_examples: two-sided, of no difference on new examples between these very trained models.
        seeds, examples: how many were paired.
    """

    difference: float
    low: float
    high: float
    p_value: float
    p_examples: float
    seeds: int
    examples: int


def paired_test(first: npt.ArrayLike, second: npt.ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> PairedTest:
    """Tests whether two models differ.

    Examples and seeds are both samples, and a test over one alone takes the other's luck for an effect (Clark, 1973,
    "The language-as-fixed-effect fallacy"). The models share the examples, which are paired; a seed's luck isn't
    shared, since it begins other weights, so seeds are samples of their own in each model. With mean squares A of
    seeds (both models' added), B of examples (of the difference) and C of the rest, the squared error of the mean
    difference is (A + B - C) / (seeds * examples), with degrees of freedom after Welch and Satterthwaite. Where A or B
    isn't above C, that factor shows no effect of its own and the other's mean square alone counts. With one seed only
    examples can be counted: then it is the paired t-test.

    `p_examples` is by randomly exchanging the models in each example (a sign-flip permutation test of the differences,
    averaged over seeds), exact where there are few examples.

    Args:
        first, second: (seeds, examples) or (examples,): scores of the same examples with the same seeds, whose means
            are the metric (`bertchen.tasks.metrics.example_scores`).
        seed: of the permutations.
        resamples: permutations at most.
    """
    first, second = np.atleast_2d(np.asarray(first, float)), np.atleast_2d(np.asarray(second, float))
    if first.shape != second.shape or first.ndim != 2 or first.shape[1] < 2:
        raise ValueError(f"scores of shapes {first.shape} and {second.shape}: should be equal, with 2 examples or more")
    differences = first - second
    difference = float(differences.mean())
    error, freedom = _error(first, second)
    p_examples = sign_flip_test(differences.mean(axis=0), seed, resamples)
    if error == 0:
        p_value = 1.0 if difference == 0 else 0.0
        return PairedTest(difference, difference, difference, p_value, p_examples, *differences.shape)
    from scipy.stats import t

    margin = float(t.ppf(0.975, freedom)) * error
    p_value = float(2 * t.sf(abs(difference) / error, freedom))
    return PairedTest(difference, difference - margin, difference + margin, p_value, p_examples, *differences.shape)


def sign_flip_test(differences: npt.ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """Two-sided p value of mean 0: how often random signs give a mean as far from 0.

    All signs are tried where they are no more than `resamples`, else so many are drawn, of which the observed ones
    count as one more. (`scipy.stats.permutation_test` gives the same, in ten times the time.)
    """
    values = np.asarray(differences, float)
    values = values[values != 0]  # a sign changes nothing there
    total, count = values.sum(), len(values)
    least = abs(total) * (1 - 1e-12) - 1e-12 * np.abs(values).sum()  # rounding must not tell equal sums apart
    if count < 63 and 2**count <= resamples:
        signs = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float(np.mean(np.abs(total - 2 * (signs @ values)) >= least))
    generator, as_far = np.random.default_rng(seed), 1
    for begin in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - begin)
        drawn = np.frombuffer(generator.bytes(rows * -(-count // 8)), np.uint8).reshape(rows, -1)
        signs = np.unpackbits(drawn, axis=1, count=count)
        as_far += np.count_nonzero(np.abs(total - 2 * (signs @ values)) >= least)
    return as_far / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for the number of tests, in their order (Holm, 1979)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def _error(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Standard error of the difference of the means of two models (seeds, examples), and its degrees of freedom."""
    seeds, examples = first.shape
    by_example = seeds * (first - second).mean(axis=0).var(ddof=1)
    if seeds == 1:
        return float(np.sqrt(by_example / examples)), examples - 1
    each = [examples * scores.mean(axis=1).var(ddof=1) for scores in (first, second)]
    by_seed = sum(each)
    rest = sum(map(_rest, (first, second)))
    freedom_seeds = by_seed**2 * (seeds - 1) / sum(square**2 for square in each) if by_seed else seeds - 1
    if min(by_seed, by_example) > rest:
        total = by_seed + by_example - rest
        terms = by_seed**2 / freedom_seeds + by_example**2 / (examples - 1)
        freedom = total**2 / (terms + rest**2 / (2 * (seeds - 1) * (examples - 1)))
    elif by_example >= by_seed:
        total, freedom = by_example, examples - 1
    else:
        total, freedom = by_seed, freedom_seeds
    return float(np.sqrt(total / (seeds * examples))), float(freedom)


def _rest(scores: npt.NDArray[np.float64]) -> float:
    """Mean square of what neither the seed nor the example explains."""
    rest = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0, keepdims=True) + scores.mean()
    return float((rest**2).sum() / ((scores.shape[0] - 1) * (scores.shape[1] - 1)))

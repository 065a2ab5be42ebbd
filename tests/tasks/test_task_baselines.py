"""What guessing gives: worked out by hand, and against simulated guesses."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bertchen.tasks.baselines import classification_baselines, expected_metrics
from bertchen.tasks.metrics import classification_metrics

LABELS = ["a", "b", "c"]


def test_majority_is_that_of_training() -> None:
    majority = classification_baselines(["b", "b", "a"], ["a", "a", "a", "b"], LABELS)["majority"]
    assert majority["accuracy"] == pytest.approx(1 / 4)
    assert majority["f1/b"] == pytest.approx(2 / 5)
    assert majority["macro_f1"] == pytest.approx(1 / 5)


def test_on_a_tie_the_first_label_of_the_task_is_given() -> None:
    majority = classification_baselines(["c", "b", "c", "b"], ["b", "c", "c"], LABELS)["majority"]
    assert majority["accuracy"] == pytest.approx(1 / 3)


def test_expectations_worked_out_by_hand() -> None:
    # Two examples, a and b; each is guessed right with 1/2. Of the guesses aa, ab, ba, bb the label a has
    # precision 1/2, 1, 0, 0 and F1 2/3, 1, 0, 0.
    metrics = expected_metrics({"a": 0.5, "b": 0.5}, ["a", "b"])
    assert metrics["accuracy"] == metrics["micro_f1"] == pytest.approx(1 / 2)
    assert metrics["recall/a"] == pytest.approx(1 / 2)
    assert metrics["precision/a"] == pytest.approx(3 / 8)
    assert metrics["f1/a"] == metrics["f1/b"] == metrics["macro_f1"] == pytest.approx(5 / 12)


@pytest.mark.parametrize("gold_counts", [(30, 6, 4), (3, 1, 0), (1, 0, 0)])
def test_expectations_against_simulation(gold_counts: tuple[int, ...]) -> None:
    train = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    gold = [label for label, count in zip(LABELS, gold_counts, strict=True) for _ in range(count)]
    expected = classification_baselines(train, gold, LABELS)["random"]
    numbers = random.Random(0)
    drawn = [classification_metrics(gold, numbers.choices(train, k=len(gold)), LABELS) for _ in range(150)]
    assert drawn[0].keys() == expected.keys()
    for name, value in expected.items():
        values = [one[name] for one in drawn]
        assert np.mean(values) == pytest.approx(value, abs=5 * np.std(values) / 12 + 1e-9), name


def test_large_sets_are_no_trouble() -> None:
    gold = ["a"] * 70_000 + ["b"] * 30_000
    metrics = expected_metrics({"a": 0.7, "b": 0.3, "c": 0.0}, gold)
    # By the law of large numbers precision tends to the share of gold, recall to that of the guesses.
    assert metrics["f1/a"] == pytest.approx(0.7, abs=1e-4)
    assert metrics["macro_f1"] == pytest.approx(0.5, abs=1e-4)
    assert metrics["f1/c"] == 0

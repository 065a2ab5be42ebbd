"""What a classification gives without reading a text: the figures that stand beside every result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bertchen.tasks.metrics import classification_metrics

_TAIL = 1e-12


def classification_baselines(
    train_labels: Sequence[str], gold: Sequence[str], labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Metrics of guessing, by what the training set alone shows.

    Args:
        train_labels: labels of the training examples.
        gold: labels of the examples to be scored.
        labels: of the task.

    Returns:
        `majority`: the metrics of always giving the most frequent training label, the first in `labels` on a tie.
        `random`: the expected metrics of drawing each label by its training frequency; exact, not simulated.
    """
    counts = Counter(train_labels)
    most_frequent = max(labels, key=lambda label: counts[label])
    shares = {label: counts[label] / len(train_labels) for label in labels}
    return {
        "majority": classification_metrics(gold, [most_frequent] * len(gold), labels),
        "random": expected_metrics(shares, gold),
    }


def expected_metrics(shares: dict[str, float], gold: Sequence[str]) -> dict[str, float]:
    """The expectation of each of `classification_metrics` where each prediction is drawn by `shares`.

    Of n examples, k have a label that is drawn with probability p. Then true positives T ~ Binomial(k, p) and false
    positives F ~ Binomial(n - k, p) are independent, and the expectations of precision, T / (T + F), and F1,
    2 T / (T + F + k), are sums over both.
    """
    support = Counter(gold)
    metrics = {"accuracy": sum(support[label] * share for label, share in shares.items()) / len(gold)}
    metrics["micro_f1"] = metrics["accuracy"]
    metrics["macro_f1"] = 0.0
    for label, share in shares.items():
        precision, f1 = _expected_scores(support[label], len(gold), share)
        metrics[f"precision/{label}"] = precision
        metrics[f"recall/{label}"] = share if support[label] else 0.0
        metrics[f"f1/{label}"] = f1
        metrics[f"support/{label}"] = float(support[label])
        metrics["macro_f1"] += f1 / len(support)  # of labels that don't occur, f1 is 0
    return metrics


def _expected_scores(support: int, examples: int, share: float) -> tuple[float, float]:
    """Expected precision and F1 of a label; 0 / 0 counts as 0."""
    from scipy.stats import binom

    right, wrong = binom(support, share), binom(examples - support, share)
    # The values that occur, but for a tail too small to be seen: the square of n terms would not fit in memory.
    true = np.arange(int(right.ppf(_TAIL)), int(right.isf(_TAIL)) + 1)
    false = np.arange(int(wrong.ppf(_TAIL)), int(wrong.isf(_TAIL)) + 1)
    weights = np.outer(right.pmf(true), wrong.pmf(false))
    found = true[:, None] + false[None, :]
    precision = true[:, None] / np.maximum(found, 1)
    f1 = 2 * true[:, None] / np.maximum(found + support, 1)
    return float((weights * precision).sum()), float((weights * f1).sum())

"""Metrics over a whole set against a direct computation in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertchen.metrics import (
    IGNORE_INDEX,
    MaskedAccuracy,
    MaskedCrossEntropy,
    MaskedPerplexity,
    MaskedSums,
    masked_lm_metrics,
)

VOCAB_SIZE = 11
Batch = tuple[Tensor, Tensor]


def batch(tokens: int, seed: int = 0, padding: int = 0) -> Batch:
    """Logits and labels of some masked tokens, among them rows that only fill up, as the model returns them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens + padding, VOCAB_SIZE, generator=generator) * 3
    labels = torch.randint(VOCAB_SIZE, (tokens + padding,), generator=generator)
    order = torch.randperm(tokens + padding, generator=generator)
    labels[order[:padding]] = IGNORE_INDEX
    return logits, labels


def direct(batches: list[Batch]) -> tuple[float, float]:
    """Mean cross entropy and accuracy over all labelled tokens, from the definition, in float64."""
    losses, hits = [], []
    for logits, labels in batches:
        for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
            if label != -100:
                losses.append(math.log(math.fsum(map(math.exp, row))) - row[label])
                hits.append(max(range(VOCAB_SIZE), key=row.__getitem__) == label)
    return math.fsum(losses) / len(losses), sum(hits) / len(hits)


def computed(batches: list[Batch]) -> tuple[float, float, float]:
    metrics = masked_lm_metrics()
    for logits, labels in batches:
        for metric in metrics:
            metric.update(MaskedSums.of(logits, labels))
    entropy, perplexity, accuracy = (metric.compute().item() for metric in metrics)
    return entropy, perplexity, accuracy


def test_names_in_the_logs() -> None:
    assert [type(metric) for metric in masked_lm_metrics()] == [MaskedCrossEntropy, MaskedPerplexity, MaskedAccuracy]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), min_size=1, max_size=6))
def test_uneven_batches_count_by_their_tokens(sizes: list[tuple[int, int]]) -> None:
    batches = [batch(tokens, seed, padding) for seed, (tokens, padding) in enumerate([*sizes, (3, 0)])]
    entropy, accuracy = direct(batches)
    found = computed(batches)
    assert found == pytest.approx((entropy, math.exp(entropy), accuracy), rel=1e-6)


def test_perplexity_is_not_the_mean_of_perplexities() -> None:
    batches = [batch(2, 1), batch(20, 2)]
    apart = [math.exp(direct([one])[0]) for one in batches]
    _, perplexity, _ = computed(batches)
    assert perplexity == pytest.approx(math.exp(direct(batches)[0]), rel=1e-6)
    assert abs(perplexity - sum(apart) / 2) > 0.1


def test_rows_that_only_fill_up_do_not_count() -> None:
    logits, labels = batch(20, padding=10)
    real = labels != IGNORE_INDEX
    assert computed([(logits, labels)]) == pytest.approx(computed([(logits[real], labels[real])]), rel=1e-12)
    sums = MaskedSums.of(logits, labels)
    assert sums.tokens.item() == 20
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in sums)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted_is_nan() -> None:
    assert all(math.isnan(value) for value in computed([]))
    assert all(math.isnan(value) for value in computed([batch(0, padding=4)]))


def test_perfect_and_hopeless_predictions() -> None:
    labels = torch.arange(VOCAB_SIZE)
    right = torch.eye(VOCAB_SIZE) * 100
    assert computed([(right, labels)]) == pytest.approx((0, 1, 1), abs=1e-6)
    assert computed([(right.roll(1, 0), labels)]) == pytest.approx((100, math.exp(100), 0), rel=1e-4, abs=1e-6)
    even = computed([(torch.zeros(7, VOCAB_SIZE), torch.full((7,), 3))])
    assert even == pytest.approx((math.log(VOCAB_SIZE), VOCAB_SIZE, 0), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_full(dtype: torch.dtype) -> None:
    logits, labels = batch(500)
    halved = logits.to(dtype)
    entropy, accuracy = direct([(halved, labels)])
    found = computed([(halved, labels)])
    assert found[0] == pytest.approx(entropy, rel=1e-6)
    assert found[2] == accuracy


def test_many_tokens_do_not_drown_in_rounding() -> None:
    """A sum in float32 would stop growing at 2^24 tokens; each update here stands for a batch of 400,000."""
    metric = MaskedCrossEntropy()
    big = MaskedSums(*(torch.tensor(value, dtype=torch.float64) for value in (2.1e6 + 0.3, 1e5, 4e5)))
    for _ in range(100):
        metric.update(big)
    assert metric.compute().item() == pytest.approx((2.1e6 + 0.3) / 4e5, rel=1e-12)


def test_processes_add_up() -> None:
    """As torchmetrics merges processes: each state is reduced by summing what the processes hold."""
    shares = [[batch(3, 1), batch(8, 2)], [batch(1, 3)], []]
    together = computed([one for share in shares for one in share])
    for kind, expected in zip((MaskedCrossEntropy, MaskedPerplexity, MaskedAccuracy), together, strict=True):
        ranks = [kind() for _ in shares]
        for metric, share in zip(ranks, shares, strict=True):
            for logits, labels in share:
                metric.update(MaskedSums.of(logits, labels))
        merged = kind()
        for name, reduce in merged._reductions.items():
            setattr(merged, name, reduce(torch.stack([getattr(metric, name) for metric in ranks])))
        merged._update_count = 1
        assert merged.compute().item() == pytest.approx(expected, rel=1e-12)


def test_reset_forgets() -> None:
    metric = MaskedAccuracy()
    metric.update(MaskedSums.of(*batch(10, 1)))
    metric.reset()
    metric.update(MaskedSums.of(*batch(10, 2)))
    assert metric.compute().item() == pytest.approx(direct([batch(10, 2)])[1])

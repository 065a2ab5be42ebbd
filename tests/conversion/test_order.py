"""Orders out of core: against sorting in memory, and what makes a permutation a random one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertchen.conversion.order import in_key_order, permuted, places_of

# Even ones; ones that differ in one part of the bits only; many equal ones; both ends.
KEYS = st.lists(
    st.integers(0, 2**64 - 1)
    | st.integers(0, 3)
    | st.integers(0, 40).map(lambda n: n << 48)
    | st.integers(0, 40).map(lambda n: (7 << 48) + (n << 30))
    | st.sampled_from([0, 2**64 - 1, 2**63, 5]),
    max_size=80,
)


def entries_of(keys: np.ndarray, numbers: np.ndarray, size: int) -> Callable[[], Iterator[tuple]]:
    def entries() -> Iterator[tuple]:
        for start in range(0, len(keys), size):
            yield keys[start : start + size], numbers[start : start + size]

    return entries


@given(KEYS, st.integers(1, 20), st.integers(1, 7))
@settings(max_examples=200, deadline=None)
def test_in_key_order_sorts(keys: list[int], limit: int, size: int) -> None:
    array, numbers = np.array(keys, dtype=np.uint64), 1000 - 3 * np.arange(len(keys))
    pieces = list(in_key_order(entries_of(array, numbers, size), limit))
    found = [(int(key), int(number)) for piece in pieces for key, number in zip(*piece, strict=True)]
    assert found == sorted(zip(keys, numbers.tolist(), strict=True), key=lambda entry: entry[0])
    for piece_keys, _ in pieces:
        assert 0 < len(piece_keys) <= max(limit, size)
    # Equal keys are divided only if nothing else is with them.
    for (before, _), (after, _) in pairwise(pieces):
        assert before[-1] < after[0] or len({*before.tolist(), *after.tolist()}) == 1


def test_entries_that_were_given_may_disappear() -> None:
    keys = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64)
    is_there = np.ones(500, dtype=bool)

    def entries() -> Iterator[tuple]:
        for start in range(0, 500, 50):
            numbers = start + np.flatnonzero(is_there[start : start + 50])
            yield keys[numbers], numbers

    found = []
    for _, numbers in in_key_order(entries, 40):
        found += numbers.tolist()
        is_there[numbers] = False
    assert found == np.argsort(keys).tolist()


def test_a_few_first_ones_cost_two_passes() -> None:
    keys = np.random.default_rng(0).integers(0, 2**64, 10_000, dtype=np.uint64)
    passes = 0

    def entries() -> Iterator[tuple]:
        nonlocal passes
        passes += 1
        yield keys, np.arange(len(keys))

    next(in_key_order(entries, 100))
    assert passes == 2


def test_memory_of_in_key_order_is_bounded() -> None:
    keys, limit = np.random.default_rng(0).integers(0, 2**64, 2_000_000, dtype=np.uint64), 1 << 17
    keys[::2] = 77
    entries = entries_of(keys, np.arange(len(keys)), 1 << 13)
    tracemalloc.start()
    try:
        total = sum(len(numbers) for _, numbers in in_key_order(entries, limit))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == len(keys)
    assert peak < 60 * limit + (4 << 20)  # sorting all of them at once takes more than 64 MB


@pytest.mark.parametrize("counts", [range(1, 300), range(300, 2001, 17), [1023, 1024, 1025, 1999, 2000]])
def test_permuted_is_a_permutation(counts: list[int]) -> None:
    for count in counts:
        places = np.arange(count)
        numbers = permuted(places, count, 42, 1)
        assert np.array_equal(np.sort(numbers), places)
        assert np.array_equal(places_of(numbers, count, 42, 1), places)


@given(st.integers(1, 2**62), st.integers(0, 2**64 - 1), st.integers(0, 600), st.data())
@settings(max_examples=100, deadline=None)
def test_places_are_computed_one_by_one(count: int, seed: int, stream: int, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=20)), dtype=np.int64)
    numbers = permuted(places, count, seed, stream)
    assert len(set(numbers.tolist())) == len(places)
    assert ((numbers >= 0) & (numbers < count)).all()
    assert np.array_equal(places_of(numbers, count, seed, stream), places)
    assert [int(permuted(places[i : i + 1], count, seed, stream)[0]) for i in range(len(places))] == numbers.tolist()


def test_permuted_of_a_huge_count_is_even() -> None:
    count = (1 << 40) + 12345
    for first in (0, count - 40_000):
        numbers = permuted(np.arange(first, first + 40_000), count, 1, 0)
        assert len(np.unique(numbers)) == 40_000
        assert is_even(numbers, count)


@pytest.mark.parametrize("count", [100, 1000, 12_345, 200_000])
def test_neighbours_are_far_apart_at_random(count: int) -> None:
    """The distances of neighbours, over several seeds, are as those of a random order: any but 0 equally often."""
    distances = []
    for seed in range(max(3, 30_000 // count)):
        numbers = permuted(np.arange(count), count, seed, 0)
        distances.append(np.diff(numbers) % count - 1)
    assert is_even(np.concatenate(distances), count - 1)


def test_a_place_gets_any_number() -> None:
    numbers = np.array([permuted(np.array([3, 4]), 24, seed, 0) for seed in range(5000)])
    assert is_even(numbers[:, 0], 24)
    assert is_even((numbers[:, 1] - numbers[:, 0]) % 24 - 1, 23)


def test_seed_and_stream_choose_the_order() -> None:
    orders = {tuple(permuted(np.arange(50), 50, seed, stream).tolist()) for seed in range(20) for stream in range(20)}
    assert len(orders) == 400


def is_even(values: np.ndarray, bound: int) -> bool:
    """Whether a chi-square test has nothing against values drawn evenly from range(bound)."""
    bins = min(bound, 50)
    edges = np.array([-(-bound * step // bins) for step in range(bins + 1)])
    expected = len(values) * np.diff(edges) / bound
    counts = np.diff(np.searchsorted(np.sort(values), edges))
    # The value that chi-square exceeds with a probability of 1e-4, after Wilson and Hilferty (1931).
    freedom = bins - 1
    highest = freedom * (1 - 2 / (9 * freedom) + 3.719 * np.sqrt(2 / (9 * freedom))) ** 3
    return ((counts - expected) ** 2 / expected).sum() < highest

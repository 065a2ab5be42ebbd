"""Orders of more things than fit into memory: by a key, from files; and shuffled, computed place by place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from bertchen.conversion.segments import Integers

# Entries that are sorted in memory at a time, at about 50 bytes each.
LIMIT = 1 << 20

Keys = npt.NDArray[np.uint64]
Entries = Callable[[], Iterator[tuple[Keys, Integers]]]

_BITS = 16
_ROUNDS = 6


def in_key_order(entries: Entries, limit: int = LIMIT) -> Iterator[tuple[Keys, Integers]]:
    """Sorts by key what `entries()` gives, in bounded memory; entries of equal keys keep their order.

    The keys' leading bits are counted, and ranges of keys that hold at most `limit` entries are collected and sorted,
    one pass over the entries for each. A range is collected when it is asked for, so who needs the first ones only
    pays for these alone.

    Args:
        entries: gives pieces of (keys, numbers), the same at each call; it is called many times. Entries that were
            handed out already may be missing from later calls.
        limit: entries of a piece, unless more than these have the same key.

    Yields:
        (keys, numbers), never empty. Equal keys lie in one piece, or in several that have no other.
    """
    return _in_order(entries, limit, 0, 64 - _BITS)


def permuted(numbers: Integers, count: int, seed: int, stream: int) -> Integers:
    """What stands at places `numbers` of a random order of range(count).

    A Feistel network on mixed-radix digits (Black and Rogaway, 2002, "Ciphers with arbitrary finite domains"), so that
    every place is computed by itself. Seed and stream, both at least 0, choose the order.
    """
    return _walk(_Network(count, seed, stream).forward, numbers, count)


def places_of(numbers: Integers, count: int, seed: int, stream: int) -> Integers:
    """The inverse of `permuted`: the places at which `numbers` stand."""
    return _walk(_Network(count, seed, stream).backward, numbers, count)


def _in_order(entries: Entries, limit: int, low: int, shift: int) -> Iterator[tuple[Keys, Integers]]:
    """The entries with low <= key < low + 2^(shift + _BITS)."""
    counts = np.zeros(1 << _BITS, dtype=np.int64)
    for keys, _ in _in_range(entries, low, 1 << (shift + _BITS)):
        bins = (keys - np.uint64(low)) >> np.uint64(shift)
        counts += np.bincount(bins.astype(np.int64), minlength=len(counts))
    for first, last, total in _groups(counts, limit):
        low_here, span = low + (first << shift), (last - first) << shift
        if total <= limit:
            found = _collected(_in_range(entries, low_here, span), total)
            if len(found[0]):
                yield found
        elif shift:
            yield from _in_order(entries, limit, low_here, shift - _BITS)
        else:  # all of one key, so in order already
            yield from _in_range(entries, low_here, span)


def _in_range(entries: Entries, low: int, span: int) -> Iterator[tuple[Keys, Integers]]:
    for keys, numbers in entries():
        inside = np.flatnonzero(keys - np.uint64(low) <= np.uint64(span - 1))  # a key below `low` wraps around
        if len(inside):
            yield keys[inside], numbers[inside]


def _collected(pieces: Iterator[tuple[Keys, Integers]], total: int) -> tuple[Keys, Integers]:
    all_keys, all_numbers = np.empty(total, dtype=np.uint64), np.empty(total, dtype=np.int64)
    end = 0
    for keys, numbers in pieces:
        all_keys[end : end + len(keys)], all_numbers[end : end + len(keys)] = keys, numbers
        end += len(keys)
    order = np.argsort(all_keys[:end], kind="stable")
    return all_keys[order], all_numbers[order]


def _groups(counts: Integers, limit: int) -> Iterator[tuple[int, int, int]]:
    """Neighbouring bins as (first, last + 1, sum of counts), the sum at most `limit` unless it is one bin."""
    ends = np.append(0, np.cumsum(counts))
    first = 0
    while first < len(counts):
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + limit, side="right")) - 1)
        if total := int(ends[last] - ends[first]):
            yield first, last, total
        first = last


class _Network:
    """A permutation of range(rows * columns), the smallest such rectangle with `count` places or more."""

    def __init__(self, count: int, seed: int, stream: int) -> None:
        self._columns = math.isqrt(count - 1) + 1
        self._rows = -(-count // self._columns)
        self._round_keys = np.random.SeedSequence([seed, stream]).generate_state(_ROUNDS, np.uint64)

    def forward(self, values: Keys) -> Keys:
        row, column = np.divmod(values, np.uint64(self._columns))
        for turn, key in enumerate(self._round_keys):
            if turn % 2:
                row = _add(row, _below(self._rows, column + key), self._rows)
            else:
                column = _add(column, _below(self._columns, row + key), self._columns)
        return row * np.uint64(self._columns) + column

    def backward(self, values: Keys) -> Keys:
        row, column = np.divmod(values, np.uint64(self._columns))
        for turn, key in reversed(list(enumerate(self._round_keys))):
            if turn % 2:
                row = _add(row, np.uint64(self._rows) - _below(self._rows, column + key), self._rows)
            else:
                column = _add(column, np.uint64(self._columns) - _below(self._columns, row + key), self._columns)
        return row * np.uint64(self._columns) + column


def _walk(step: Callable[[Keys], Keys], numbers: Integers, count: int) -> Integers:
    """Goes on from places outside of range(count) until all are inside, which keeps it a permutation."""
    values = step(np.asarray(numbers).astype(np.uint64))
    outside = np.flatnonzero(values >= np.uint64(count))
    while len(outside):
        values[outside] = step(values[outside])
        outside = outside[values[outside] >= np.uint64(count)]
    return values.astype(np.int64)


def _below(bound: int, values: Keys) -> Keys:
    """Values in range(bound), which is below 2^32, by a hash: the finalizer of SplitMix64 (Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return ((values >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)


def _add(left: Keys, right: Keys, modulus: int) -> Keys:
    """The sum of `left`, below the modulus, and `right`, at most that, by the modulus."""
    total = left + right
    return total - np.uint64(modulus) * (total >= np.uint64(modulus))

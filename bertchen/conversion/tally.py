"""Where documents and their tokens went, by source: the figures of an arrangement."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertchen.conversion.segments import Integers
from bertchen.conversion.table import counted

PERCENTILES = {"min": 0, "p10": 10, "p50": 50, "p90": 90, "p99": 99, "max": 100}

# Blocks that are looked at together.
_BLOCKS = 1 << 18


@dataclass(frozen=True)
class Destinations:
    """Where the tokens of a stream go, block by block.

    Attributes:
        block_size: tokens of a block.
        splits: names of the splits that have blocks of the stream.
        reasons: why other tokens are in none.
        owners: for numbers of blocks the index into (*splits, *reasons) of each.
    """

    block_size: int
    splits: Sequence[str]
    reasons: Sequence[str]
    owners: Callable[[Integers], Integers]


class Tally:
    """Counts documents and tokens by split, and those that are in none by reason.

    What is given is all in splits or dropped, token by token. A document is in each split that has a token of it;
    it is dropped only if none has.
    """

    def __init__(self, sources: int) -> None:
        self._sources = sources
        # (2, sources): documents and tokens.
        self._read = np.zeros((2, sources), dtype=np.int64)
        self._kept = np.zeros((2, sources), dtype=np.int64)
        self._splits: dict[str, Integers] = defaultdict(lambda: np.zeros((2, sources), dtype=np.int64))
        self._dropped: dict[str, Integers] = defaultdict(lambda: np.zeros((2, sources), dtype=np.int64))
        # Of each source, how many documents have so many tokens, the separator not among them.
        self._lengths: list[Counter[int]] = [Counter() for _ in range(sources)]

    def drop(self, reason: str, documents: Integers, tokens: Integers) -> None:
        """Whole documents that are in no stream, both (sources,)."""
        self._read += (documents, tokens)
        self._dropped[reason] += (documents, tokens)

    def add(self, sources: Integers, whole: Integers, given: Integers, begin: int, to: Destinations, rest: str) -> None:
        """Some documents of a stream, in its order.

        Args:
            sources, whole: (documents,) the source of each, and its tokens, the separator included.
            given: (documents,) tokens of each that are in the stream, at least 1.
            begin: the place in the stream at which they begin.
            rest: the reason for tokens that aren't in the stream.
        """
        ends = begin + np.cumsum(given)
        first = 0
        while first < len(ends):
            last = max(first + 1, int(np.searchsorted(ends, begin + _BLOCKS * to.block_size)))
            self._add(sources[first:last], whole[first:last], begin, ends[first:last], to)
            first, begin = last, int(ends[last - 1])
        if (whole != given).any():
            self._dropped[rest][1] += counted(sources, self._sources, whole - given)

    def _add(self, sources: Integers, whole: Integers, begin: int, ends: Integers, to: Destinations) -> None:
        blocks = np.arange(begin // to.block_size, (ends[-1] - 1) // to.block_size + 1)
        # Cut where a document ends and where a block ends: each part has one document and one destination.
        part_ends = np.union1d(ends, blocks[1:] * to.block_size)
        part_begins = np.append(begin, part_ends[:-1])
        document = np.searchsorted(ends, part_begins, side="right")
        owner = to.owners(blocks)[part_begins // to.block_size - blocks[0]]

        shape = (len(to.splits) + len(to.reasons), self._sources)
        tokens = counted(owner * self._sources + sources[document], shape, part_ends - part_begins)
        is_kept = np.zeros(len(ends), dtype=bool)
        for index, name in enumerate(to.splits):
            inside = np.unique(document[owner == index])
            is_kept[inside] = True
            self._splits[name] += (counted(sources[inside], self._sources), tokens[index])
        reason = owner[np.searchsorted(document, np.arange(len(ends)))]  # of a document's first part
        for index, name in enumerate(to.reasons, start=len(to.splits)):
            lost = sources[~is_kept & (reason == index)]
            self._dropped[name] += (counted(lost, self._sources), tokens[index])
        self._read += (counted(sources, self._sources), counted(sources, self._sources, whole))
        self._kept += (counted(sources[is_kept], self._sources), tokens[: len(to.splits)].sum(axis=0))
        self._add_lengths(sources[is_kept], whole[is_kept] - 1)

    def _add_lengths(self, sources: Integers, lengths: Integers) -> None:
        for source in np.unique(sources).tolist():
            values, counts = np.unique(lengths[sources == source], return_counts=True)
            self._lengths[source].update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def figures(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain containers: the figures of all sources together, and under `sources` those of each.

        `read` and `kept` are documents and tokens; `read` = `kept` + the sum of `dropped`, and the tokens of `kept` are
        those of all `splits`.
        """
        return {
            **self._describe(list(range(self._sources))),
            "sources": {name: self._describe([index]) for index, name in enumerate(names)},
        }

    def _describe(self, sources: list[int]) -> dict[str, Any]:
        def both(counts: Integers) -> dict[str, int]:
            documents, tokens = counts[:, sources].sum(axis=1).tolist()
            return {"documents": documents, "tokens": tokens}

        lengths = sum((self._lengths[source] for source in sources), Counter())
        return {
            "read": both(self._read),
            "kept": both(self._kept),
            "splits": {name: both(counts) for name, counts in self._splits.items()},
            "dropped": {name: both(counts) for name, counts in self._dropped.items() if counts[:, sources].any()},
            "tokens_per_document": percentiles(lengths),
            "documents_by_length": powers_of_two(lengths),
        }


def percentiles(lengths: Counter[int]) -> dict[str, float] | None:
    """`PERCENTILES`, interpolated linearly, and the mean; None without documents.

    Args:
        lengths: how often each length occurs.
    """
    if not lengths:
        return None
    values = np.array(sorted(lengths))
    ends = np.cumsum([lengths[value] for value in values.tolist()])
    places = np.array(list(PERCENTILES.values())) / 100 * (ends[-1] - 1)
    below, above = (
        values[np.searchsorted(ends, rounded(places).astype(np.int64), side="right")] for rounded in (np.floor, np.ceil)
    )
    found = below + (above - below) * (places - np.floor(places))
    mean = sum(value * count for value, count in lengths.items()) / int(ends[-1])
    return {"mean": round(mean, 2), **dict(zip(PERCENTILES, found.round(2).tolist(), strict=True))}


def powers_of_two(lengths: Counter[int]) -> dict[str, int]:
    """How many documents have n to 2n - 1 tokens, by n, for n = 1, 2, 4, … up to the longest."""
    bins: Counter[int] = Counter()
    for length, count in lengths.items():
        bins[length.bit_length() - 1] += count
    return {str(1 << power): bins[power] for power in range(max(bins, default=-1) + 1)}

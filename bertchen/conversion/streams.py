"""Documents → streams: in which order they are joined, and the file of spans of tokens that comes of it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bertchen.config.schema_convert import ConvertConfig
from bertchen.conversion.choose import Validation
from bertchen.conversion.order import Entries, Keys, in_key_order
from bertchen.conversion.segments import Integers
from bertchen.conversion.table import DocumentTable

_HEADER_BYTES = 128


@dataclass(frozen=True)
class Piece:
    """Some documents of a stream, in its order.

    Attributes:
        numbers, lengths: (documents,) which they are, and all of their tokens.
        given: (documents,) how many of these the stream has.
        starts, spans: (spans,) the first token and the tokens of each span of the stream.
    """

    numbers: Integers
    lengths: Integers
    given: Integers
    starts: Integers
    spans: Integers

    @classmethod
    def whole(cls, numbers: Integers, starts: Integers, lengths: npt.NDArray) -> Piece:
        lengths = lengths.astype(np.int64)
        return cls(numbers, lengths, lengths, starts, lengths)


# Which documents, by their length.
Takes = Callable[[npt.NDArray], npt.NDArray[np.bool_]]
Order = Callable[[DocumentTable, Takes], Iterator[Piece]]


def all_documents(lengths: npt.NDArray) -> npt.NDArray[np.bool_]:
    return np.ones(len(lengths), dtype=bool)


def reading_or_mixed_order(settings: ConvertConfig) -> Order:
    """The order of the strategies that don't ask for one of their own."""
    return mixed_order if settings.interleave else reading_order


def reading_order(table: DocumentTable, takes: Takes) -> Iterator[Piece]:
    """The order of the input."""
    for numbers, (starts, lengths) in table.kept("start", "length"):
        taken = takes(lengths)
        if taken.any():
            yield Piece.whole(numbers[taken], starts[taken], lengths[taken])


def mixed_order(table: DocumentTable, takes: Takes) -> Iterator[Piece]:
    """Each source's documents, in their order, evenly over the whole: the j-th of n at (j + u) / n, 0 <= u < 1."""
    count = np.zeros(table.sources, dtype=np.int64)
    for numbers, (lengths,) in table.kept("length"):
        count += np.bincount(table.sources_of(numbers[takes(lengths)]), minlength=table.sources)

    def entries() -> Iterator[tuple[Keys, Integers]]:
        before = np.zeros(table.sources, dtype=np.int64)
        for numbers, (keys, lengths) in table.kept("key", "length"):
            taken = takes(lengths)
            numbers, keys = numbers[taken], keys[taken]
            sources = table.sources_of(numbers)
            # Documents of one source stand together: its first one here is found by searching.
            place = before[sources] + np.arange(len(numbers)) - np.searchsorted(sources, sources)
            before += np.bincount(sources, minlength=table.sources)
            # The lower half of the key: documents are chosen by the upper one, which is thus not even.
            share = (place + (keys & np.uint64(0xFFFFFFFF)) / 2.0**32) / count[sources]
            # Rounding may give 1.
            yield np.minimum(share * 2.0**53, 2.0**53 - 1).astype(np.uint64) << np.uint64(11), numbers

    yield from _in_key_order(table, entries)


def longest_first(table: DocumentTable, takes: Takes) -> Iterator[Piece]:
    """From the longest document to the shortest, those of one length in the order of the input."""

    def entries() -> Iterator[tuple[Keys, Integers]]:
        for numbers, (lengths,) in table.kept("length"):
            taken = takes(lengths)
            yield np.uint64(0xFFFFFFFF) - lengths[taken].astype(np.uint64), numbers[taken]

    yield from _in_key_order(table, entries)


def windows_of(table: DocumentTable, drawn: Validation, tokens: int) -> Piece:
    """Of each document at most a window, the separator at its end included; all together so many tokens."""
    separators = table.take(drawn.numbers, "start")[0] + drawn.lengths - 1
    window = np.minimum(drawn.lengths, drawn.window)
    # The lower half of the key: the documents were chosen by the upper one, which is thus not even.
    places = (drawn.keys & np.uint64(0xFFFFFFFF)).astype(np.int64) % (drawn.lengths - window + 1)
    starts = np.stack([separators - (drawn.lengths - 1) + places, separators], axis=1).ravel()
    spans = np.stack([window - 1, np.ones_like(window)], axis=1).ravel()
    spans = np.diff(np.minimum(np.cumsum(spans), tokens), prepend=0)
    return Piece(drawn.numbers, drawn.lengths, spans.reshape(-1, 2).sum(axis=1), starts, spans)


class RunWriter:
    """Writes spans of tokens, joined, as a stream: (runs, 2) int64, first token of a run and its end in the stream.

    Spans that lie side by side become one run, so documents in the order of the input are few of them. As a context it
    ends with a file that is whole and on the disk.

    Attributes:
        tokens: of all spans so far.
    """

    def __init__(self, path: Path) -> None:
        self.tokens = 0
        self._path = path
        self._runs = 0
        # The last run, which the next span may lengthen: its first token and its tokens, or nothing.
        self._open = np.empty((0, 2), dtype=np.int64)

    def __enter__(self) -> RunWriter:
        self._file = open(self._path, "wb")
        self._file.write(bytes(_HEADER_BYTES))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._write(self._open[:, 0], np.full(len(self._open), self.tokens))
                self._file.seek(0)
                self._file.write(self._header())
                self._file.flush()
                os.fsync(self._file.fileno())

    def add(self, starts: Integers, spans: Integers) -> None:
        """(spans,) first token and tokens of each; spans without tokens are passed over."""
        there = spans > 0
        found = np.concatenate([self._open, np.stack([starts[there], spans[there]], axis=1)])
        if not len(found):
            return
        begins = np.flatnonzero(np.append(True, found[1:, 0] != found[:-1].sum(axis=1)))
        runs = np.stack([found[begins, 0], np.add.reduceat(found[:, 1], begins)], axis=1)
        written = self.tokens - int(self._open[:, 1].sum())
        self.tokens += int(spans.sum())
        self._open = runs[-1:]
        self._write(runs[:-1, 0], written + np.cumsum(runs[:-1, 1]))

    def _write(self, starts: Integers, ends: Integers) -> None:
        self._runs += len(starts)
        self._file.write(np.stack([starts, ends], axis=1).astype("<i8").tobytes())

    def _header(self) -> bytes:
        """That of an .npy file, whose length doesn't depend on the number of runs."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (self._runs, 2)})
        if len(header.getvalue()) != _HEADER_BYTES:
            raise RuntimeError(f"NumPy's header has {len(header.getvalue())} bytes, not {_HEADER_BYTES}")
        return header.getvalue()


def _in_key_order(table: DocumentTable, entries: Entries) -> Iterator[Piece]:
    for _, numbers in in_key_order(entries, table.limit):
        starts, lengths = table.take(numbers, "start", "length")
        for first in range(0, len(numbers), table.stretch):
            part = slice(first, first + table.stretch)
            yield Piece.whole(numbers[part], starts[part], lengths[part])

"""Blocks, read from where their tokens lie in the segments.

A block is cut from a stream, and a stream is a list of runs: stretches of tokens that lie side by side in the segments.
Nothing here maps tokens into memory: what is touched of a map counts as the process's memory and grows with the corpus.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from bertchen.conversion.segments import DamagedWork, Integers, Segments

BATCH_TOKENS = 1 << 22

_OPEN_FILES = 128
_SEARCHED_BLOCKS = 1 << 12
_BUFFERS = 1024  # that one call of preadv takes


class TokenStore:
    """Reads tokens by their numbers in all segments; a context that closes its files."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self.dtype = segments.dtype
        self._files: OrderedDict[int, int] = OrderedDict()

    def __enter__(self) -> TokenStore:
        return self

    def __exit__(self, *_: Any) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def read(self, starts: Integers, lengths: Integers) -> npt.NDArray:
        """The tokens of spans, joined in the order in which the spans are given.

        Args:
            starts: (spans,) number of each span's first token.
            lengths: (spans,) its tokens; it may run over ends of segments.

        Returns:
            (tokens,) of the segments' type.

        Raises:
            IndexError: a span has tokens that there are not.
            DamagedWork: the file of a segment is missing or cut off.
        """
        tokens = np.empty(int(lengths.sum()), self.dtype)
        segments, begins, sizes, places = self._pieces(starts, lengths)
        if not len(begins):
            return tokens
        order = np.argsort(begins, kind="stable")
        segments, begins, sizes, places = segments[order], begins[order], sizes[order], places[order]
        # Pieces that lie side by side in a file are one call.
        breaks = (segments[1:] != segments[:-1]) | (begins[1:] != begins[:-1] + sizes[:-1])
        firsts = np.append(0, np.flatnonzero(breaks) + 1)
        in_segments = segments[firsts]
        nth_file = np.cumsum(np.append(0, in_segments[1:] != in_segments[:-1]))
        calls = zip(
            (nth_file // _OPEN_FILES).tolist(),
            in_segments.tolist(),
            (begins[firsts] - self.segments.token_starts[in_segments] * self.dtype.itemsize).tolist(),
            np.add.reduceat(sizes, firsts).tolist(),
            firsts.tolist(),
            [*firsts[1:].tolist(), len(order)],
            strict=True,
        )
        buffer = tokens.view(np.uint8).data
        at, until = places.tolist(), (places + sizes).tolist()
        for _, some in groupby(calls, itemgetter(0)):  # of files that can be open together
            reads = [(self._file(segment), segment, *rest) for _, segment, *rest in some]
            for file, _, offset, size, *_ in reads:
                _announce(file, offset, size)
            for file, segment, offset, size, first, last in reads:
                views = [buffer[at[piece] : until[piece]] for piece in range(first, last)]
                if _read_into(file, views, offset) != size:
                    raise _damaged(self.segments, segment)
        return tokens

    def _pieces(self, starts: Integers, lengths: Integers) -> tuple[Integers, Integers, Integers, Integers]:
        """Spans, cut where segments end: (segment, first byte in all segments, bytes, first byte in the result)."""
        bounds = self.segments.token_starts
        ends = starts + lengths
        if len(starts) and (starts.min() < 0 or lengths.min() < 0 or ends.max() > bounds[-1]):
            raise IndexError(f"there are {bounds[-1]} tokens; asked for {starts.min()} to {ends.max()}")
        first = np.searchsorted(bounds, starts, side="right") - 1
        counts = np.maximum(np.searchsorted(bounds, ends, side="left") - first, 0)
        span = np.repeat(np.arange(len(starts)), counts)
        segments = first[span] + _counted(counts)
        begins = np.maximum(starts[span], bounds[segments])
        sizes = np.minimum(ends[span], bounds[segments + 1]) - begins
        places = (np.cumsum(lengths) - lengths)[span] + begins - starts[span]
        some = sizes > 0
        width = self.dtype.itemsize
        return segments[some], begins[some] * width, sizes[some] * width, places[some] * width

    def _file(self, segment: int) -> int:
        if segment in self._files:
            self._files.move_to_end(segment)
            return self._files[segment]
        if len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        try:
            file = os.open(self.segments.token_path(segment), os.O_RDONLY)
        except FileNotFoundError:
            raise _damaged(self.segments, segment) from None
        self._files[segment] = file
        return file


@dataclass(frozen=True)
class Spans:
    """Where the tokens of some blocks lie.

    Attributes:
        starts, lengths: (spans,) number of the first token in all segments, and tokens; at least one.
        firsts: (blocks,) the place of each block's first span.
    """

    starts: Integers
    lengths: Integers
    firsts: Integers


def block_spans(runs: Integers, numbers: Integers, block_size: int) -> Spans:
    """Finds blocks of a stream in the segments.

    Args:
        runs: (runs, 2) of each run the number of its first token in all segments, and where it ends in the stream; may
            be mapped into memory, of which little is kept if the numbers ascend.
        numbers: (blocks,) of the blocks in the stream; the stream must hold them whole.
    """
    parts = [(np.empty(0, np.int64),) * 3]
    for at in range(0, len(numbers), _SEARCHED_BLOCKS):
        parts.append(_spans(runs, numbers[at : at + _SEARCHED_BLOCKS] * block_size, block_size))
    starts, lengths, counts = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Spans(starts, lengths, np.cumsum(counts) - counts)


def read_blocks(
    store: TokenStore,
    runs: Integers,
    numbers: Integers,
    block_size: int,
    on_spans: Callable[[Spans], None] = lambda _: None,
) -> npt.NDArray:
    """Blocks of a stream by their numbers, as (blocks, block_size) of the segments' type.

    Beside the result, memory is bounded.

    Args:
        runs: see `block_spans`.
        on_spans: called with the spans of all blocks, some at a time, in no particular order.
    """
    blocks = np.empty((len(numbers), block_size), store.dtype)
    step = max(1, BATCH_TOKENS // block_size)
    for at in range(0, len(numbers), step):
        order = np.argsort(numbers[at : at + step], kind="stable")
        spans = block_spans(runs, numbers[at : at + step][order], block_size)
        on_spans(spans)
        blocks[at + order] = store.read(spans.starts, spans.lengths).reshape(-1, block_size)
    return blocks


class SourceTally:
    """Counts tokens and blocks by source.

    Attributes:
        tokens: (sources,) of the blocks that were added.
        blocks: (sources,) that have a token of the source; a block can count for several.
    """

    def __init__(self, segments: Segments) -> None:
        sources = np.array([info.source for info in segments.infos], dtype=np.int64)
        firsts = np.flatnonzero(np.append(True, sources[1:] != sources[:-1]))
        self._bounds = segments.token_starts[firsts]
        self._sources = sources[firsts]
        self._sizes = np.diff(np.append(self._bounds, segments.token_starts[-1]))
        self.tokens = np.zeros(int(sources.max()) + 1, np.int64)
        self.blocks = np.zeros_like(self.tokens)

    def add(self, spans: Spans) -> None:
        for source in range(len(self.tokens)):
            tokens = self._up_to(spans.starts + spans.lengths, source) - self._up_to(spans.starts, source)
            self.tokens[source] += tokens.sum()
            self.blocks[source] += np.count_nonzero(np.add.reduceat(tokens, spans.firsts))

    def _up_to(self, positions: Integers, source: int) -> Integers:
        """How many of the tokens before each position are of the source."""
        mine = self._sizes * (self._sources == source)
        stretch = np.searchsorted(self._bounds, positions, side="right") - 1
        within = (positions - self._bounds[stretch]) * (self._sources[stretch] == source)
        return (np.cumsum(mine) - mine)[stretch] + within


def _spans(runs: Integers, begins: Integers, block_size: int) -> tuple[Integers, Integers, Integers]:
    """Of blocks by where they begin in the stream: (starts, lengths, spans of each block)."""
    ends = begins + block_size
    first = np.searchsorted(runs[:, 1], begins, side="right")
    counts = np.searchsorted(runs[:, 1], ends, side="left") - first + 1
    block = np.repeat(np.arange(len(begins)), counts)
    rows = first[block] + _counted(counts)
    run_starts, run_ends = runs[rows, 0], runs[rows, 1]
    run_begins = np.where(rows > 0, runs[rows - 1, 1], 0)
    span_begins = np.maximum(begins[block], run_begins)
    lengths = np.minimum(ends[block], run_ends) - span_begins
    if isinstance(runs.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        runs.base.madvise(mmap.MADV_DONTNEED)  # the pages stay in the file system's cache, but not in this process
    return run_starts + span_begins - run_begins, lengths, counts


def _counted(counts: Integers) -> Integers:
    """0, 1, … for each count, joined."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _announce(file: int, offset: int, size: int) -> None:
    """Lets the system read from many places of the disk at a time, not one after the other."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_WILLNEED)


def _read_into(file: int, views: list[memoryview], offset: int) -> int:
    if len(views) <= _BUFFERS:
        return os.preadv(file, views, offset)
    done = 0
    for at in range(0, len(views), _BUFFERS):
        done += os.preadv(file, views[at : at + _BUFFERS], offset + done)
    return done


def _damaged(segments: Segments, segment: int) -> DamagedWork:
    path = segments.token_path(segment)
    return DamagedWork(f"{path} is missing or cut off: throw the interrupted conversion away with restart=true")

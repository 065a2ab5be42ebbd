"""Units of input → segments: reads, sends chunks to worker processes, writes what comes back in the input's order."""

from __future__ import annotations

import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bertchen.conversion.admission import Admission
from bertchen.conversion.segments import SegmentInfo, document_type, load_documents, segments_of_unit, write_segment
from bertchen.conversion.tokens import ALL_KEYS, ChunkTokenizer, Recipe, Tokenized
from bertchen.errors import UserError
from bertchen.processes import hide_torch, worker_pool
from bertchen.text.readers import Chunk, read_chunks
from bertchen.text.sources import Source

CHUNKS_AHEAD = 4
REMOTE_READERS = 4
_PARALLELISM = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True)
class Unit:
    """A stretch of the input that is tokenized by itself: some files of one source.

    Attributes:
        number: its place among all units.
        source: index of its source.
        first, files: the first of the source's files that it has, and how many.
    """

    number: int
    source: int
    first: int
    files: int


def make_units(sources: Sequence[Source], unit_bytes: int) -> list[Unit]:
    """Units of at least `unit_bytes` as stored, in the order of the input; a large file is one by itself."""
    units: list[Unit] = []
    for index, source in enumerate(sources):
        first = size = 0
        for number, file in enumerate(source.files):
            size += file.bytes
            if size >= unit_bytes or number + 1 == len(source.files):
                units.append(Unit(len(units), index, first, number + 1 - first))
                first, size = number + 1, 0
    return units


@dataclass(frozen=True)
class Progress:
    """Work done, or found done (not `is_new`): `stored_bytes` of the input, `documents` and `tokens` of it."""

    stored_bytes: int
    documents: int
    tokens: int
    is_new: bool = True


def tokenize_units(
    units: Sequence[Unit],
    sources: Sequence[Source],
    recipe: Recipe,
    folder: Path,
    segment_characters: int,
    skip_bad_rows: bool,
    workers: int,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Makes those segments of the units that aren't in `folder` yet.

    They are the same for any number of workers and after any interruption, but for documents that a sample of so many
    `documents` or `tokens` makes superfluous, which may or may not be among them.

    Args:
        segment_characters: a segment ends with the chunk that brings it to so many characters.
        skip_bad_rows: count bad rows instead of raising.
        workers: processes; 1 works in this one.
        on_progress: called for each segment that was there, then for each chunk.

    Raises:
        UserError: a bad row, a file that can't be read, a worker that was killed.
    """
    admissions = [Admission.of(source) for source in sources]
    open_segments: list[_OpenSegment] = []
    for unit in units:
        there = segments_of_unit(folder, unit.number)
        for info in there:
            on_progress(Progress(info.stored_bytes, info.documents, info.tokens, is_new=False))
            admissions[unit.source].add(lambda info=info: load_documents(folder, info))
        if not (there and there[-1].last):
            open_segments.append(_OpenSegment(unit, folder, recipe, there[-1] if there else None))
    if not open_segments:
        return

    finished = 0

    def finish_before(segment: _OpenSegment | None) -> None:
        """Closes what is complete when the first chunk of another unit arrives; a unit may have no chunk at all."""
        nonlocal finished
        while finished < len(open_segments) and open_segments[finished] is not segment:
            open_segments[finished].close(last=True)
            finished += 1

    is_remote = any("://" in file.path for source in sources for file in source.files[:1])
    with (
        _tokenizers(recipe, workers) as tokenize,
        _read_ahead(open_segments, sources, REMOTE_READERS if is_remote else 1) as chunks,
    ):
        pending: deque[tuple[_OpenSegment, _Place, Future[Tokenized]]] = deque()

        def take() -> None:
            segment, place, future = pending.popleft()
            result = future.result()
            finish_before(segment)
            if result.error is not None and not skip_bad_rows:
                raise UserError(result.error)
            admissions[segment.unit.source].add(lambda: result.documents)
            segment.add(place, result)
            if segment.characters >= segment_characters:
                segment.close(last=False)
            on_progress(Progress(place.stored_bytes, len(result.documents), len(result.tokens)))

        unreadable: UserError | None = None
        while True:
            try:
                segment, file, chunk = next(chunks)
            except StopIteration:
                break
            except UserError as error:
                unreadable = error  # raised when what stands before it is done, so that it isn't lost
                break
            source, admission = sources[segment.unit.source], admissions[segment.unit.source]
            below = ALL_KEYS if source.fraction is None else int(source.fraction * ALL_KEYS)
            future = tokenize(chunk, below, admission.at_most)
            pending.append((segment, _Place(file, chunk.next_row, chunk.stored_bytes), future))
            if len(pending) > 2 * workers:
                take()
        while pending:
            take()
        if unreadable is not None:
            raise unreadable
        finish_before(None)


@dataclass(frozen=True)
class _Place:
    file: int
    next_row: int
    stored_bytes: int


class _OpenSegment:
    """The segment of a unit that is being filled; once closed, the next one."""

    def __init__(self, unit: Unit, folder: Path, recipe: Recipe, before: SegmentInfo | None) -> None:
        self.unit = unit
        self._folder, self._recipe = folder, recipe
        self._number = before.number + 1 if before else 0
        self.file, self.row = (before.file, before.row) if before else (0, 0)
        self._clear()

    def _clear(self) -> None:
        self._tokens: list[npt.NDArray] = []
        self._documents: list[npt.NDArray] = []
        self._read = self.characters = self._stored_bytes = 0
        self._bad: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._by_file: Counter[str] = Counter()

    def add(self, place: _Place, result: Tokenized) -> None:
        self.file, self.row = place.file, place.next_row
        self._stored_bytes += place.stored_bytes
        self._tokens.append(result.tokens)
        self._documents.append(result.documents)
        self._read += result.read
        self.characters += result.characters
        for counts, more in ((self._bad, result.bad), (self._dropped, result.dropped), (self._by_file, result.by_file)):
            counts.update(more)

    def close(self, last: bool) -> None:
        tokens = np.concatenate(self._tokens or [np.empty(0, self._recipe.dtype)])
        documents = np.concatenate(self._documents or [np.empty(0, document_type(self._recipe.bands))])
        info = SegmentInfo(
            unit=self.unit.number, number=self._number, source=self.unit.source, file=self.file, row=self.row,
            last=last, tokens=len(tokens), documents=len(documents), read=self._read, characters=self.characters,
            stored_bytes=self._stored_bytes, bad=dict(sorted(self._bad.items())),
            dropped=dict(sorted(self._dropped.items())), by_file=dict(self._by_file),
        )  # fmt: skip
        write_segment(self._folder, info, tokens, documents)
        self._number += 1
        self._clear()


@contextmanager
def _tokenizers(recipe: Recipe, workers: int) -> Iterator[Callable[[Chunk, int, int], Future[Tokenized]]]:
    """A function that sends a chunk to be tokenized."""
    if workers == 1:
        tokenize = ChunkTokenizer(recipe)
        before = _one_thread_only()

        def at_once(chunk: Chunk, below: int, at_most: int) -> Future[Tokenized]:
            future: Future[Tokenized] = Future()
            future.set_result(tokenize(chunk, below, at_most))
            return future

        try:
            yield at_once
        finally:
            _put_back(before)
        return
    with worker_pool(workers, _begin_worker, (recipe,)) as pool:
        yield lambda chunk, below, at_most: pool.submit(_tokenize_in_worker, chunk, below, at_most)


_in_worker: ChunkTokenizer | None = None


def _begin_worker(recipe: Recipe) -> None:
    global _in_worker
    hide_torch()  # a slow tokenizer needs Transformers
    _one_thread_only()
    _in_worker = ChunkTokenizer(recipe)


def _tokenize_in_worker(chunk: Chunk, below: int, at_most: int) -> Tokenized:
    assert _in_worker is not None
    return _in_worker(chunk, below, at_most)


def _one_thread_only() -> str | None:
    """Keeps the tokenizers library from threads of its own: there is a process for each core. Gives what was set."""
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"
    return before


def _put_back(before: str | None) -> None:
    if before is None:
        del os.environ[_PARALLELISM]
    else:
        os.environ[_PARALLELISM] = before


@contextmanager
def _read_ahead(
    segments: Sequence[_OpenSegment], sources: Sequence[Source], readers: int
) -> Iterator[Iterator[tuple[_OpenSegment, int, Chunk]]]:
    """The chunks of the units in order, as (segment, place of the file in the unit, chunk).

    Read by threads, each at a unit of its own, a few chunks ahead: decompression leaves the interpreter's lock, and
    one connection rarely fills a line.
    """
    stop = threading.Event()
    started: queue.Queue[queue.Queue[Any]] = queue.Queue()
    turn = threading.Semaphore(readers)

    def put(into: queue.Queue[Any], item: Any) -> None:
        while not stop.is_set():
            try:
                into.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def read(segment: _OpenSegment, first_file: int, first_row: int, into: queue.Queue[Any]) -> None:
        try:
            source = sources[segment.unit.source]
            for place in range(first_file, segment.unit.files):
                path = source.files[segment.unit.first + place].path
                for chunk in read_chunks(path, source.rules, first_row if place == first_file else 0):
                    put(into, (segment, place, chunk))
                    if stop.is_set():
                        return
            put(into, None)
        except BaseException as error:
            put(into, error)
        finally:
            turn.release()

    def read_all() -> None:
        for segment in segments:
            turn.acquire()
            if stop.is_set():
                return
            into: queue.Queue[Any] = queue.Queue(CHUNKS_AHEAD)
            started.put(into)
            threading.Thread(target=read, args=(segment, segment.file, segment.row, into), daemon=True).start()

    def in_order() -> Iterator[tuple[_OpenSegment, int, Chunk]]:
        for _ in segments:
            into = started.get()
            while (item := into.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item

    threading.Thread(target=read_all, daemon=True).start()
    try:
        yield in_order()
    finally:
        stop.set()
        turn.release()

"""What the arrangement knows of every document, in files: read in stretches, never held whole.

A column is a file of numbers, one for each document, in the order of the input:

    length   tokens, the separator included
    start    number of its first token among all tokens
    key      see `bertchen.conversion.segments.document_type`
    fate     whether it is kept, and if not, why: `Fate`
    band0 …  its MinHash bands, where near duplicates are sought
    linked   1 if it has a band in common with another, from when that is known
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bertchen.conversion.order import LIMIT, Keys, in_key_order
from bertchen.conversion.segments import Integers, Segments


class Fate(IntEnum):
    """What becomes of a document."""

    KEPT = 0
    NOT_SAMPLED = 1
    EXACT_DUPLICATE = 2
    NEAR_DUPLICATE = 3
    VALIDATION = 4
    COPY_OF_VALIDATION = 5


_TYPES = {"length": "<u4", "start": "<i8", "key": "<u8", "fate": "u1", "linked": "u1"}
_FROM_SEGMENTS = ("length", "start", "key", "fate")


@dataclass(frozen=True)
class DocumentTable:
    """The documents of all sources; those of one source stand together.

    Attributes:
        folder: where the columns lie.
        source_starts: (sources + 1,) number of the first document of each source, and of all documents.
        bands: number of columns of MinHash bands.
        limit: documents that are sorted in memory at a time.
    """

    folder: Path
    source_starts: Integers
    bands: int
    limit: int = LIMIT

    @classmethod
    def build(cls, segments: Segments, sources: int, folder: Path, limit: int = LIMIT) -> DocumentTable:
        """Copies what the segments, at least one, say of their documents into columns, in the empty folder `folder`."""
        starts = np.searchsorted([info.source for info in segments.infos], np.arange(sources + 1))
        bands = segments.documents(0).dtype["bands"].shape[0]
        table = cls(folder, segments.document_starts[starts], bands, limit)
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(open(folder / name, "wb")) for name in (*_FROM_SEGMENTS, *table.band_columns)
            }
            for _, first_token, _, documents in segments.each():
                ends = first_token + np.cumsum(documents["length"], dtype=np.int64)
                values = {
                    "length": documents["length"],
                    "start": ends - documents["length"],
                    "key": documents["key"],
                    "fate": np.full(len(documents), Fate.KEPT),
                    **{name: documents["bands"][:, band] for band, name in enumerate(table.band_columns)},
                }
                for name, file in files.items():
                    # Not ndarray.tofile, whose OSError doesn't say that the disk is full.
                    file.write(np.ascontiguousarray(values[name], dtype=table.type_of(name)).tobytes())
        return table

    @property
    def documents(self) -> int:
        return int(self.source_starts[-1])

    @property
    def sources(self) -> int:
        return len(self.source_starts) - 1

    @property
    def band_columns(self) -> list[str]:
        return [f"band{band}" for band in range(self.bands)]

    @property
    def stretch(self) -> int:
        """Documents that are read at a time."""
        return max(8, self.limit >> 4)

    def type_of(self, column: str) -> np.dtype:
        return np.dtype(_TYPES.get(column, "<u8"))

    def sources_of(self, numbers: Integers) -> Integers:
        """The source of each document."""
        return np.searchsorted(self.source_starts, numbers, side="right") - 1

    def read(self, start: int, stop: int, *columns: str) -> list[npt.NDArray]:
        """The columns' values for documents start to stop."""
        return [
            np.fromfile(
                self.folder / name, self.type_of(name), stop - start, offset=start * self.type_of(name).itemsize
            )
            for name in columns
        ]

    def stretches(
        self, *columns: str, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Integers, list[npt.NDArray]]]:
        """Numbers of the documents from start to stop, and the columns' values, a stretch at a time."""
        stop = self.documents if stop is None else stop
        for first in range(start, stop, self.stretch):
            last = min(stop, first + self.stretch)
            yield np.arange(first, last), self.read(first, last, *columns)

    def kept(
        self, *columns: str, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Integers, list[npt.NDArray]]]:
        """`stretches` of the documents that are kept alone."""
        for numbers, (fates, *values) in self.stretches("fate", *columns, start=start, stop=stop):
            kept = np.flatnonzero(fates == Fate.KEPT)
            if len(kept):
                yield numbers[kept], [value[kept] for value in values]

    def sorted_by(self, column: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[Keys, Integers]]:
        """(values, numbers) of the documents that are kept, ascending by value and number, in pieces.

        While it is read, only documents that it has given already may get another fate.
        """

        def entries() -> Iterator[tuple[Keys, Integers]]:
            for numbers, (values,) in self.kept(column, start=start, stop=stop):
                yield values, numbers

        return in_key_order(entries, self.limit)

    def take(self, numbers: Integers, *columns: str) -> list[npt.NDArray]:
        """The columns' values for documents in any order."""
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        taken = [np.empty(len(numbers), self.type_of(name)) for name in columns]
        for first, part in self._by_stretch(ordered):
            values = self.read(first, min(self.documents, first + self.stretch), *columns)
            for into, value in zip(taken, values, strict=True):
                into[order[part]] = value[ordered[part] - first]
        return taken

    def add_flags(self, column: str) -> None:
        """Makes a column of bytes, all 0."""
        with open(self.folder / column, "wb") as file:
            file.truncate(self.documents)

    def put(self, column: str, numbers: Integers, value: int) -> None:
        """Sets a column of bytes for documents in any order."""
        ordered = np.sort(numbers)
        with open(self.folder / column, "r+b") as file:
            for first, part in self._by_stretch(ordered):
                file.seek(first)
                values = np.frombuffer(bytearray(file.read(self.stretch)), np.uint8)
                values[ordered[part] - first] = value
                file.seek(first)
                file.write(values.tobytes())

    def put_where(
        self,
        condition: Callable[..., npt.NDArray[np.bool_]],
        fate: Fate,
        *columns: str,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        """Sets the fate of those documents that are kept and for which `condition(numbers, *values)` is true."""
        for numbers, values in self.kept(*columns, start=start, stop=stop):
            chosen = numbers[condition(numbers, *values)]
            if len(chosen):
                self.put("fate", chosen, fate)

    def totals(self) -> tuple[Integers, Integers]:
        """Documents, and tokens, by source and fate: both (sources, fates)."""
        shape = (self.sources, len(Fate))
        documents, tokens = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for numbers, (fates, lengths) in self.stretches("fate", "length"):
            cells = self.sources_of(numbers) * len(Fate) + fates
            documents += counted(cells, shape)
            tokens += counted(cells, shape, lengths)
        return documents, tokens

    def _by_stretch(self, ordered: Integers) -> Iterator[tuple[int, slice]]:
        """Ascending numbers by the stretch that they fall in: its first document, and the part of them."""
        bounds = np.searchsorted(ordered, np.arange(0, self.documents + self.stretch, self.stretch))
        for index in np.flatnonzero(np.diff(bounds)).tolist():
            yield index * self.stretch, slice(bounds[index], bounds[index + 1])


def counted(cells: Integers, shape: Any, weights: npt.NDArray | None = None) -> Integers:
    """How often each flat index into an array of this shape occurs, or the sum of its weights, which are whole."""
    size = int(np.prod(shape))
    if weights is not None:
        # Sums are exact in float64, as they stay below 2^53.
        return np.bincount(cells, weights, size).astype(np.int64).reshape(shape)
    return np.bincount(cells, minlength=size).reshape(shape)

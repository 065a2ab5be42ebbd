"""Segments: the tokenized documents of a stretch of input, written once and never changed.

A segment is three files in the work folder of a conversion, named by unit of input and number within it:

    000012-000003.tokens   raw token ids, document after document, each followed by the separator
    000012-000003.docs.npy (documents,) of the type `document_type(bands)`
    000012-000003.json     where it stands in the input, and what was read and left out: `SegmentInfo`

The JSON file is written last, so a segment whose JSON is there is whole. Where a segment ends depends on the text
alone, so an interrupted conversion goes on behind the last whole segment and comes to the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bertchen.errors import UserError

Integers = npt.NDArray[np.int64]


class DamagedWork(UserError):
    """What an interrupted conversion has left lacks something, so nothing can go on from it."""


def document_type(bands: int) -> np.dtype:
    """A document of a segment.

    `length`: its tokens, the separator included; at least 2. `key`: a hash of seed and text, evenly distributed over
    64 bits, the same wherever the text stands. `bands`: its MinHash bands, none where near duplicates aren't sought.
    """
    return np.dtype([("length", "<u4"), ("key", "<u8"), ("bands", "<u8", (bands,))])


@dataclass(frozen=True)
class SegmentInfo:
    """What a segment says of itself.

    Attributes:
        unit, number: which stretch of the input, and which part of it; both from 0.
        source: index of the source.
        file, row: where the segment ends: the file's place in its unit, and the row in it with which the next begins.
        last: whether it is the last of its unit.
        tokens, documents: what it holds; separators count as tokens.
        read: documents that the input offered, those included that were left out.
        characters: of the documents that it holds.
        stored_bytes: of the input, read for it.
        bad: bad rows that were skipped, by reason.
        dropped: documents that were left out on request, by reason.
        by_file: documents that it holds, by the path of their file.
    """

    unit: int
    number: int
    source: int
    file: int
    row: int
    last: bool
    tokens: int
    documents: int
    read: int
    characters: int
    stored_bytes: int
    bad: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    by_file: dict[str, int] = field(default_factory=dict)


def write_segment(folder: Path, info: SegmentInfo, tokens: npt.NDArray, documents: npt.NDArray) -> None:
    """Writes a segment into the folder, so that it is there whole or not at all, even after a loss of power."""
    name = _name(info)
    with _replacing(folder / f"{name}.tokens") as path, open(path, "wb") as file:
        # Not ndarray.tofile, whose OSError doesn't say that the disk is full.
        file.write(memoryview(np.ascontiguousarray(tokens)).cast("B"))
        _sync(file)
    with _replacing(folder / f"{name}.docs.npy") as path, open(path, "wb") as file:
        np.save(file, documents)
        _sync(file)
    with _replacing(folder / f"{name}.json") as path, open(path, "w", encoding="utf-8") as file:
        json.dump(asdict(info), file, ensure_ascii=False)
        _sync(file)


def segments_of_unit(folder: Path, unit: int) -> list[SegmentInfo]:
    """The whole segments of one unit, from its beginning on, in order."""
    found: list[SegmentInfo] = []
    while (path := folder / f"{unit:06d}-{len(found):06d}.json").exists():
        found.append(SegmentInfo(**json.loads(path.read_text(encoding="utf-8"))))
    return found


def load_documents(folder: Path, info: SegmentInfo) -> npt.NDArray:
    """(documents,) of a segment, of the type `document_type`.

    Raises:
        DamagedWork: they are missing.
    """
    path = folder / f"{_name(info)}.docs.npy"
    try:
        return np.load(path)
    except FileNotFoundError:
        raise DamagedWork(f"{path} is missing: throw the interrupted conversion away with restart=true") from None


@dataclass(frozen=True)
class Segments:
    """The segments of a whole input, in its order. Tokens and documents are numbered through all of them.

    Attributes:
        folder: where they lie.
        dtype: of the token ids.
        infos: (segments,)
    """

    folder: Path
    dtype: np.dtype
    infos: list[SegmentInfo]

    @classmethod
    def load(cls, folder: Path, dtype: np.dtype, units: int) -> Segments:
        return cls(folder, dtype, [info for unit in range(units) for info in segments_of_unit(folder, unit)])

    @cached_property
    def token_starts(self) -> Integers:
        """(segments + 1,) number of the first token of each segment, and of all tokens."""
        return np.cumsum([0, *(info.tokens for info in self.infos)], dtype=np.int64)

    @cached_property
    def document_starts(self) -> Integers:
        """(segments + 1,) number of the first document of each segment, and of all documents."""
        return np.cumsum([0, *(info.documents for info in self.infos)], dtype=np.int64)

    def documents(self, index: int) -> npt.NDArray:
        """(documents,) of one segment, of the type `document_type`."""
        return load_documents(self.folder, self.infos[index])

    def token_path(self, index: int) -> Path:
        return self.folder / f"{_name(self.infos[index])}.tokens"

    def each(self) -> Iterator[tuple[SegmentInfo, int, int, npt.NDArray]]:
        """Each segment with the numbers of its first token and first document, and its documents."""
        for index, info in enumerate(self.infos):
            yield info, int(self.token_starts[index]), int(self.document_starts[index]), self.documents(index)


class _replacing:
    """Gives a temporary path beside `path`; it is renamed to it if the body succeeds."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f"{path.name}.tmp")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _name(info: SegmentInfo) -> str:
    return f"{info.unit:06d}-{info.number:06d}"

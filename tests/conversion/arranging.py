"""Arranges small corpora for tests, on tokens that are their own numbers: a token tells where it comes from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from bertchen.config.schema_convert import ConvertConfig, SourceConfig
from bertchen.conversion.pack import FILE, Arrangement, Split, arrange, load_arrangement
from bertchen.conversion.segments import Integers, SegmentInfo, Segments, document_type
from bertchen.errors import UserError
from bertchen.text.documents import RowRules
from bertchen.text.sources import Source

BLOCK = 8


@dataclass(frozen=True)
class Document:
    """A document: the number of its text, which gives its key, its tokens, and its source."""

    text: int
    length: int
    source: int = 0

    @property
    def key(self) -> int:
        return key_of(self.text)


@cache
def key_of(text: int) -> int:
    return int(np.random.default_rng(text).integers(0, 1 << 64, dtype=np.uint64))


@dataclass(frozen=True)
class SegmentsInMemory(Segments):
    """Segments whose documents aren't in files, and that have no tokens.

    Attributes:
        arrays: the documents of each.
    """

    arrays: list[np.ndarray]

    def documents(self, index: int) -> np.ndarray:
        return self.arrays[index]


@dataclass(frozen=True)
class Arranged:
    """An arrangement with its streams, so that blocks can be looked at.

    Attributes:
        documents: what was arranged.
        streams: numbers of the tokens of each.
        runs: the streams as they were written.
    """

    documents: list[Document]
    arrangement: Arrangement
    streams: dict[str, list[int]]
    runs: dict[str, Integers]
    seed: int

    @property
    def splits(self) -> dict[str, Split]:
        return self.arrangement.splits

    @property
    def figures(self) -> dict[str, Any]:
        return self.arrangement.figures

    @property
    def owner(self) -> Integers:
        """The document of each token."""
        return np.repeat(np.arange(len(self.documents)), [document.length for document in self.documents])

    def blocks(self, name: str) -> Integers:
        """(blocks, BLOCK) in the order in which they are written."""
        split = self.splits[name]
        numbers = split.block_numbers(0, split.blocks, self.seed)
        assert len(numbers) == split.blocks
        return np.array(self.streams[split.stream], dtype=np.int64)[numbers[:, None] * BLOCK + np.arange(BLOCK)]

    def documents_in(self, name: str) -> set[int]:
        return set(self.owner[self.blocks(name).ravel()].tolist())

    def spans(self) -> list[range]:
        """Numbers of each document's tokens."""
        ends = accumulate(document.length for document in self.documents)
        return [range(end - each.length, end) for end, each in zip(ends, self.documents, strict=True)]


def from_lengths(lengths: list[int]) -> list[Document]:
    """Documents of different texts."""
    return [Document(number, length) for number, length in enumerate(lengths)]


def pack(
    documents: list[Document],
    sources: list[Source] | None = None,
    limit: int = 1 << 12,
    bands: list[list[int]] | None = None,
    **options: Any,
) -> Arranged:
    """Arranges documents, those of one source together and the sources in order, in several segments each."""
    names = sources or [Source("s", (), RowRules())]
    named = {source.name: SourceConfig() for source in names} if len(names) > 1 else {}
    config = ConvertConfig(**{"block_size": BLOCK, "val_blocks": 2, "sources": named, **options})  # type: ignore[arg-type]
    width = len(bands[0]) if bands else 0
    infos, arrays = [], []
    for index in range(len(names)):
        some = [(number, each) for number, each in enumerate(documents) if each.source == index]
        for start in range(0, max(1, len(some)), 7):
            rows = [(each.length, each.key, bands[number] if bands else []) for number, each in some[start : start + 7]]
            arrays.append(np.array(rows, dtype=document_type(width)))
            tokens = int(arrays[-1]["length"].sum())
            infos.append(SegmentInfo(len(infos), 0, index, 0, 0, True, tokens, len(rows), len(rows), 0, 0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrangement"
        segments = SegmentsInMemory(Path(folder), np.dtype(np.uint32), infos, arrays)
        with mock.patch("os.fsync"):  # without waiting for the disk
            arrangement = arrange(segments, names, config, path, limit)
        assert load_arrangement(path) == arrangement
        names_of_streams = {split.stream for split in arrangement.splits.values()}
        assert {each.name for each in path.iterdir()} == {FILE, *(f"{name}.npy" for name in names_of_streams)}
        runs = {name: np.load(path / f"{name}.npy") for name in names_of_streams}
    streams = {name: read_runs(each) for name, each in runs.items()}
    for split in arrangement.splits.values():
        assert len(streams[split.stream]) == split.stream_tokens
        assert 0 < split.blocks <= split.stream_blocks <= split.stream_tokens // BLOCK
    return Arranged(documents, arrangement, streams, runs, config.seed)


def read_runs(runs: Integers) -> list[int]:
    """The numbers of a stream's tokens."""
    assert runs.dtype == np.int64
    tokens: list[int] = []
    for first, end in runs.tolist():
        assert end > len(tokens)
        tokens += range(first, first + end - len(tokens))
    return tokens


def try_pack(documents: list[Document], sources: list[Source] | None = None, **options: Any) -> Arranged:
    """`pack`, in a test of a property: corpora that are too small for the options are passed over."""
    try:
        return pack(documents, sources, **options)
    except UserError:
        assume(False)
        raise


LENGTHS = st.lists(st.integers(2, 12) | st.integers(2, 300), min_size=1, max_size=40)
LIMITS = st.sampled_from([2, 5, 20, 400])
STAGES = st.sampled_from([{}, {2: 0.15, 4: 0.15, 1: 0.15, 8: 0.55}, {8: 0.5, 4: 0.5}, {4: 1.0}])


@st.composite
def corpora(draw: st.DrawFn) -> list[Document]:
    """Documents of two sources, those of the first one first, with some texts more than once."""
    texts = draw(st.lists(st.integers(0, 60), min_size=3, max_size=60))
    lengths = draw(st.lists(st.integers(2, 40) | st.sampled_from([4, 8]), min_size=61, max_size=61))
    of_first = draw(st.integers(0, len(texts)))
    return [Document(text, lengths[text], int(number >= of_first)) for number, text in enumerate(texts)]


TWO = [Source("a", (), RowRules()), Source("b", (), RowRules())]

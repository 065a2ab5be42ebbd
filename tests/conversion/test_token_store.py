"""Reading of blocks: whatever lies where, it is what joining everything and cutting gives."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bertchen.conversion import token_store
from bertchen.conversion.segments import SegmentInfo, Segments, document_type, write_segment
from bertchen.conversion.token_store import SourceTally, TokenStore, block_spans, read_blocks
from bertchen.errors import UserError

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=8)
REPEATED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_tokens(folder: Path, sizes: list[int], sources: list[int] | None = None, dtype: Any = np.uint16) -> Segments:
    """Segments of random tokens: one for each size."""
    folder.mkdir(exist_ok=True)
    numbers = np.random.default_rng(len(sizes))
    for unit, size in enumerate(sizes):
        source = sources[unit] if sources else 0
        info = SegmentInfo(unit, 0, source, 0, 0, True, size, 1, 1, size, size)
        tokens = numbers.integers(0, np.iinfo(dtype).max, size, dtype=dtype, endpoint=True)
        write_segment(folder, info, tokens, np.zeros(1, document_type(0)))
    return Segments.load(folder, np.dtype(dtype), len(sizes))


def all_tokens(segments: Segments) -> np.ndarray:
    return np.concatenate([np.fromfile(segments.token_path(at), segments.dtype) for at in range(len(segments.infos))])


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[int], np.ndarray, int]:
    """Sizes of segments, runs of a stream in them, and a block size of which the stream holds a block at least."""
    sizes = draw(SIZES)
    cuts = sorted(draw(st.sets(st.integers(0, sum(sizes)), min_size=2, max_size=20)))
    spans = draw(st.permutations(list(pairwise(cuts))))
    spans = spans[: draw(st.integers(1, len(spans)))]
    lengths = [end - start for start, end in spans]
    runs = np.stack([[start for start, _ in spans], np.cumsum(lengths)], axis=1).astype(np.int64)
    return sizes, runs, draw(st.integers(1, sum(lengths)))


def stream_of(tokens: np.ndarray, runs: np.ndarray) -> np.ndarray:
    lengths = np.diff(runs[:, 1], prepend=0)
    return np.concatenate([tokens[start : start + size] for start, size in zip(runs[:, 0], lengths, strict=True)])


@given(SIZES, st.data(), st.sampled_from([np.uint16, np.uint32]))
@REPEATED
def test_spans_are_read_in_their_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject, dtype: Any
) -> None:
    segments = write_tokens(tmp_path_factory.mktemp("segments"), sizes, dtype=dtype)
    span = st.tuples(st.integers(0, sum(sizes)), st.integers(0, sum(sizes))).map(sorted)
    spans = np.array(data.draw(st.lists(span, max_size=10)), np.int64).reshape(-1, 2)
    tokens = all_tokens(segments)
    with TokenStore(segments) as store:
        found = store.read(spans[:, 0], spans[:, 1] - spans[:, 0])
    assert found.dtype == dtype
    assert (found == np.concatenate([tokens[:0], *(tokens[start:end] for start, end in spans)])).all()


@given(streams(), st.randoms(), st.booleans())
@example(([5], np.array([[0, 5]]), 5), None, True)
@REPEATED
def test_blocks_are_those_of_the_joined_stream(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[list[int], np.ndarray, int], random: Any, is_mapped: bool
) -> None:
    sizes, runs, block_size = drawn
    folder = tmp_path_factory.mktemp("segments")
    segments = write_tokens(folder, sizes)
    stream = stream_of(all_tokens(segments), runs)
    expected = stream[: len(stream) // block_size * block_size].reshape(-1, block_size)
    if is_mapped:
        np.save(folder / "runs.npy", runs)
        runs = np.load(folder / "runs.npy", mmap_mode="r")
    numbers = list(range(len(expected)))
    if random:
        random.shuffle(numbers)
    with TokenStore(segments) as store:
        assert (read_blocks(store, runs, np.array(numbers), block_size) == expected[numbers]).all()


@given(streams(), st.data())
@REPEATED
def test_tally_counts_each_token_for_its_source(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[list[int], np.ndarray, int], data: st.DataObject
) -> None:
    sizes, runs, block_size = drawn
    sources = data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    segments = write_tokens(tmp_path_factory.mktemp("segments"), sizes, sources)
    stream = stream_of(np.repeat(sources, sizes), runs)
    blocks = stream[: len(stream) // block_size * block_size].reshape(-1, block_size)
    tally = SourceTally(segments)
    tally.add(block_spans(runs, np.arange(len(blocks)), block_size))
    every = range(max(sources) + 1)
    assert tally.tokens.tolist() == [int((blocks == source).sum()) for source in every]
    assert tally.blocks.tolist() == [int((blocks == source).any(axis=1).sum()) for source in every]


def test_many_blocks_are_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_store, "BATCH_TOKENS", 100)
    monkeypatch.setattr(token_store, "_SEARCHED_BLOCKS", 3)
    segments = write_tokens(tmp_path / "segments", [500, 700, 300])
    numbers = np.random.default_rng(0).permutation(150)
    seen: list[int] = []
    with TokenStore(segments) as store:
        found = read_blocks(store, np.array([[0, 1500]]), numbers, 10, lambda spans: seen.append(len(spans.firsts)))
        nothing = read_blocks(store, np.array([[0, 1500]]), numbers[:0], 10)
    assert (found == all_tokens(segments).reshape(150, 10)[numbers]).all()
    assert seen == [10] * 15
    assert nothing.shape == (0, 10)


def test_thousands_of_spans_side_by_side(tmp_path: Path) -> None:
    segments = write_tokens(tmp_path / "segments", [5000])
    places = np.random.default_rng(0).permutation(5000)
    with TokenStore(segments) as store:
        assert (store.read(places, np.ones_like(places)) == all_tokens(segments)[places]).all()


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_store, "_OPEN_FILES", 4)
    segments = write_tokens(tmp_path / "segments", [3] * 20)
    before = psutil.Process().num_fds()
    with TokenStore(segments) as store:
        for _ in range(3):
            assert (store.read(np.array([0]), np.array([60])) == all_tokens(segments)).all()
            assert psutil.Process().num_fds() == before + 4
    assert psutil.Process().num_fds() == before


def test_of_mapped_runs_little_stays_in_memory(tmp_path: Path) -> None:
    if not Path("/proc/self/smaps").exists():
        pytest.skip("/proc/self/smaps is not here")
    count = 2_000_000
    np.save(tmp_path / "runs.npy", np.stack([np.arange(count)[::-1] * 7, np.arange(1, count + 1) * 7], axis=1))
    runs = np.load(tmp_path / "runs.npy", mmap_mode="r")
    assert int(runs[::100, 1].sum()) > 0  # touches every page
    block_spans(runs, np.sort(np.random.default_rng(0).permutation(count * 7 // 16)[:20_000]), 16)
    (resident,) = re.findall(r"runs\.npy\n.*?^Rss: *(\d+) kB", Path("/proc/self/smaps").read_text(), re.DOTALL | re.M)
    assert int(resident) < 1000


def test_tokens_that_there_are_not(tmp_path: Path) -> None:
    segments = write_tokens(tmp_path / "segments", [10, 10])
    with TokenStore(segments) as store:
        with pytest.raises(IndexError, match="there are 20 tokens; asked for 15 to 21"):
            store.read(np.array([15]), np.array([6]))
        with pytest.raises(IndexError, match="asked for -1"):
            store.read(np.array([-1]), np.array([6]))
        with pytest.raises(IndexError):
            read_blocks(store, np.array([[0, 20]]), np.array([4]), 5)


@pytest.mark.parametrize("content", [None, b"12345"])
def test_damaged_segment(tmp_path: Path, content: bytes | None) -> None:
    segments = write_tokens(tmp_path / "segments", [10, 10])
    segments.token_path(1).unlink()
    if content:
        segments.token_path(1).write_bytes(content)
    with TokenStore(segments) as store:
        assert len(store.read(np.array([0]), np.array([10]))) == 10
        with pytest.raises(UserError, match=r"000001-000000\.tokens is missing or cut off.*restart=true"):
            store.read(np.array([5]), np.array([10]))

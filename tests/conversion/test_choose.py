"""Decisions over all documents, against the same decisions made in memory, one document at a time."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arranging import SegmentsInMemory
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bertchen.config.schema_convert import ConvertConfig, SourceConfig
from bertchen.conversion.choose import (
    MIN_VAL_DOCUMENTS,
    choose_documents,
    choose_validation,
    drop_exact_duplicates,
    drop_near_duplicates,
)
from bertchen.conversion.segments import SegmentInfo, document_type
from bertchen.conversion.table import DocumentTable, Fate
from bertchen.errors import UserError
from bertchen.text.documents import RowRules
from bertchen.text.sources import Source

# (text, tokens): a text has one key and one length.
TEXTS = st.lists(st.integers(0, 25), min_size=1, max_size=60)
LIMITS = st.integers(1, 40)


@cache
def key_of(text: int, seed: int = 0) -> int:
    return int(np.random.default_rng([seed, text]).integers(0, 1 << 64, dtype=np.uint64))


def length_of(text: int) -> int:
    return 2 + text * 7 % 23 + (text % 5 == 0) * 60


@contextmanager
def table_of(
    sources: list[list[int]], limit: int = 1 << 12, seed: int = 0, bands: list[list[int]] | None = None
) -> Iterator[DocumentTable]:
    """A table of the sources' texts, in segments of up to 5 documents."""
    width = len(bands[0]) if bands else 0
    kept_bands = iter(bands or [[] for source in sources for _ in source])
    infos, arrays = [], []
    for index, texts in enumerate(sources):
        for start in range(0, max(1, len(texts)), 5):
            some = [(length_of(text), key_of(text, seed), next(kept_bands)) for text in texts[start : start + 5]]
            arrays.append(np.array(some, dtype=document_type(width)))
            tokens = int(arrays[-1]["length"].sum())
            infos.append(SegmentInfo(len(infos), 0, index, 0, 0, True, tokens, len(some), len(some), 0, 0))
    with tempfile.TemporaryDirectory() as folder:
        segments = SegmentsInMemory(Path(folder), np.dtype(np.uint16), infos, arrays)
        yield DocumentTable.build(segments, len(sources), Path(folder), limit)


def fates(table: DocumentTable) -> list[Fate]:
    return [Fate(fate) for fate in table.read(0, table.documents, "fate")[0].tolist()]


def kept(table: DocumentTable) -> list[int]:
    return [number for number, fate in enumerate(fates(table)) if fate == Fate.KEPT]


def source(name: str = "s", **options: Any) -> Source:
    return Source(name, (), RowRules(), **options)


def convert_config(names: str = "", **options: Any) -> ConvertConfig:
    return ConvertConfig(sources={name: SourceConfig() for name in names}, **options)


def smallest_keys(texts: list[int], first: int, wanted: Fraction | int, by_tokens: bool, seed: int = 0) -> list[int]:
    """Numbers, from `first` on, of the documents with the smallest keys that are so many or hold so many tokens."""
    chosen, held = [], 0
    for place in sorted(range(len(texts)), key=lambda place: (key_of(texts[place], seed), place)):
        if held >= wanted:
            break
        held += length_of(texts[place]) if by_tokens else 1
        chosen.append(first + place)
    return sorted(chosen)


@given(TEXTS, TEXTS, LIMITS, st.booleans(), st.data())
@settings(max_examples=100, deadline=None)
def test_samples_are_the_documents_with_the_smallest_keys(
    texts: list[int], others: list[int], limit: int, by_tokens: bool, data: st.DataObject
) -> None:
    there = sum(map(length_of, texts)) if by_tokens else len(texts)
    wanted = data.draw(st.integers(1, there))
    sampled = source("b", **{"tokens" if by_tokens else "documents": wanted})
    with table_of([others, texts], limit) as table:
        choose_documents(table, [source("a"), sampled], convert_config("ab"))
        assert kept(table) == [*range(len(others)), *smallest_keys(texts, len(others), wanted, by_tokens)]
        assert set(fates(table)) <= {Fate.KEPT, Fate.NOT_SAMPLED}


@given(st.lists(TEXTS, min_size=1, max_size=4), LIMITS, st.data())
@settings(max_examples=100, deadline=None)
def test_mixtures_are_as_large_as_they_can_be(sources: list[list[int]], limit: int, data: st.DataObject) -> None:
    weights = data.draw(
        st.lists(st.floats(0.01, 10), min_size=len(sources), max_size=len(sources))
        | st.lists(st.sampled_from([0.1, 0.2, 0.7]), min_size=len(sources), max_size=len(sources))
    )
    with table_of(sources, limit) as table:
        named = [source(name, weight=weight) for name, weight in zip("abcd", weights, strict=False)]
        choose_documents(table, named, convert_config("abcd"))
        there = [sum(map(length_of, texts)) for texts in sources]
        shares = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
        total = min(tokens / share for tokens, share in zip(there, shares, strict=True))
        expected, first = [], 0
        for texts, share in zip(sources, shares, strict=True):
            expected += smallest_keys(texts, first, int(share * total), by_tokens=True)
            first += len(texts)
        assert kept(table) == expected
        # The source that is used up is there whole.
        assert any(set(range(start, start + len(texts))) <= set(expected) for texts, start in spans(sources))


def spans(sources: list[list[int]]) -> list[tuple[list[int], int]]:
    starts = np.cumsum([0, *map(len, sources)]).tolist()
    return list(zip(sources, starts, strict=False))


def test_a_sample_is_mixed() -> None:
    sources = [[text % 26 for text in range(100)], [text % 26 for text in range(50)]]
    named = [source("a", documents=30, weight=1.0), source("b", weight=2.0)]
    with table_of(sources) as table:
        choose_documents(table, named, convert_config("ab"))
        first = {number for number in kept(table) if number < 100}
        assert first <= set(smallest_keys(sources[0], 0, 30, by_tokens=False))
    with table_of(sources) as table:
        choose_documents(table, [named[0], source("b")], convert_config("ab"))
        assert len([number for number in kept(table) if number < 100]) == 30


@given(TEXTS, TEXTS, LIMITS, st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_input_has_no_part_in_a_sample(
    texts: list[int], others: list[int], limit: int, random: Any
) -> None:
    sources = [source("a", documents=(len(texts) + 1) // 2, weight=1.0), source("b", weight=3.0)]
    chosen = []
    for _ in range(2):
        with table_of([texts, others], limit) as table:
            choose_documents(table, sources, convert_config("ab", clean={"exact_duplicates": {}}))
            together = [*texts, *others]
            chosen.append(sorted(together[number] for number in kept(table)))
        random.shuffle(texts)
        random.shuffle(others)
    assert chosen[0] == chosen[1]


@given(st.lists(TEXTS, min_size=1, max_size=3), LIMITS)
@settings(max_examples=100, deadline=None)
def test_the_first_of_equal_documents_stays(sources: list[list[int]], limit: int) -> None:
    together = [text for texts in sources for text in texts]
    with table_of(sources, limit) as table:
        drop_exact_duplicates(table)
        expected = [number for number, text in enumerate(together) if text not in together[:number]]
        assert kept(table) == expected
        assert set(fates(table)) <= {Fate.KEPT, Fate.EXACT_DUPLICATE}


# Few values, so that chains of documents arise that have a band in common; the last one is rarely shared.
BANDS = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 12) | st.integers(0, 2**64 - 1), min_size=width, max_size=width),
        min_size=1,
        max_size=60,
    )
)


@given(BANDS, LIMITS)
@settings(max_examples=150, deadline=None)
def test_the_first_of_a_cluster_of_near_duplicates_stays(bands: list[list[int]], limit: int) -> None:
    with table_of([list(range(len(bands)))], limit, bands=bands) as table:
        drop_near_duplicates(table)
        assert kept(table) == firsts_of_clusters(bands, list(range(len(bands))))
        assert set(fates(table)) <= {Fate.KEPT, Fate.NEAR_DUPLICATE}


def firsts_of_clusters(bands: list[list[int]], numbers: list[int]) -> list[int]:
    """By a search from each document, in order, through all that it reaches."""
    having = defaultdict(list)
    for number in numbers:
        for place, band in enumerate(bands[number]):
            having[place, band].append(number)
    seen: set[int] = set()
    firsts = []
    for number in numbers:
        if number not in seen:
            firsts.append(number)
        waiting = [number]
        while waiting:
            reached = waiting.pop()
            if reached not in seen:
                seen.add(reached)
                for place, band in enumerate(bands[reached]):
                    waiting += having[place, band]
    return firsts


def test_long_chains_and_large_clusters_of_near_duplicates() -> None:
    count = 3000
    order = np.random.default_rng(0).permutation(count).tolist()
    chain = [[0, 0] for _ in range(count)]
    for step, (here, there) in enumerate(pairwise(order)):
        chain[here][step % 2] = chain[there][step % 2] = step + 1
    chain[order[0]][1], chain[order[-1]][(count - 1) % 2] = 2 * count, 3 * count
    for bands in (chain, [[7, number] for number in range(count)]):
        with table_of([[0] * count], 700, bands=bands) as table:
            drop_near_duplicates(table)
            assert kept(table) == [0]


def test_a_band_that_more_documents_share_than_are_sorted_together() -> None:
    bands = [[100 + number, 200 + number] for number in range(40)]
    for number in (3, 15, 30):
        bands[number][0] = 7
    bands[2][1] = bands[30][1] = 8
    with table_of([list(range(40))], limit=1, bands=bands) as table:
        drop_near_duplicates(table)
        assert kept(table) == [number for number in range(40) if number not in (3, 15, 30)]


def test_documents_that_are_left_out_already_link_nothing() -> None:
    """Not sampled and exact duplicates come first: near duplicates are sought among the others."""
    texts = list(range(10))
    left_out = max(texts, key=key_of)
    # A chain through the document that isn't sampled.
    before, after = (text for text in (0, 9) if text != left_out) if left_out in (0, 9) else (0, 9)
    bands = [[100 + text, 200 + text] for text in texts]
    bands[before][0] = bands[left_out][0]
    bands[after][1] = bands[left_out][1]
    with table_of([texts], bands=bands) as table:
        options = {"exact_duplicates": {}, "near_duplicates": {}}
        choose_documents(table, [source(documents=9)], convert_config(clean=options))
        assert kept(table) == [text for text in texts if text != left_out]
    with table_of([texts], bands=bands) as table:
        choose_documents(table, [source()], convert_config(clean=options))
        assert len(kept(table)) == 8


def test_only_what_is_asked_for_is_dropped() -> None:
    with table_of([[1, 1, 2], [2, 1]]) as table:
        choose_documents(table, [source("a"), source("b")], convert_config("ab", clean={"exact_duplicates": None}))
        assert kept(table) == [0, 1, 2, 3, 4]


def expected_validation(texts: list[int], val_blocks: int, block_size: int, seed: int) -> tuple[list[int], int] | None:
    """Texts in the order of drawing, and the window; None if there are too few."""
    needed = val_blocks * block_size
    by_key = sorted(set(texts), key=lambda text: key_of(text, seed))
    total = sum(map(length_of, texts))
    window = min(needed, max(block_size, needed // MIN_VAL_DOCUMENTS))
    while True:
        drawn: list[int] = []
        while len(drawn) < len(by_key) and sum(min(length_of(text), window) for text in drawn) < needed:
            drawn.append(by_key[len(drawn)])
        is_filled = sum(min(length_of(text), window) for text in drawn) >= needed
        lost = sum(length_of(text) for text in texts if text in drawn)
        if window == needed or (is_filled and lost <= total / 10):
            break
        window = min(needed, 2 * window)
    return (drawn, window) if is_filled and total - lost >= block_size else None


@given(st.lists(st.integers(0, 60), min_size=1, max_size=150), LIMITS, st.integers(1, 30), st.integers(2, 9), st.data())
@settings(max_examples=200, deadline=None)
def test_validation_documents(
    texts: list[int], limit: int, val_blocks: int, block_size: int, data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 5))
    config = convert_config(val_blocks=val_blocks, block_size=block_size)
    expected = expected_validation(texts, val_blocks, block_size, seed)
    with table_of([texts], limit, seed) as table:
        if expected is None:
            with pytest.raises(UserError, match=f"val_blocks={val_blocks}: {len(set(texts))} different documents are"):
                choose_validation(table, config)
            return
        drawn = choose_validation(table, config)
        names, window = expected
        assert [texts[number] for number in drawn.numbers.tolist()] == names
        assert drawn.window == window
        assert drawn.lengths.tolist() == [length_of(text) for text in names]
        assert drawn.keys.tolist() == [key_of(text, seed) for text in names]
        for number, fate in enumerate(fates(table)):
            if texts[number] not in names:
                assert fate == Fate.KEPT
            elif texts.index(texts[number]) == number:
                assert fate == Fate.VALIDATION
            else:
                assert fate == Fate.COPY_OF_VALIDATION


@given(st.lists(st.integers(0, 60), min_size=20, max_size=150), LIMITS, st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_input_has_no_part_in_validation(texts: list[int], limit: int, random: Any) -> None:
    assume(expected_validation(texts, 4, 8, 0) is not None)
    drawn = []
    for _ in range(2):
        with table_of([texts], limit) as table:
            found = choose_validation(table, convert_config(val_blocks=4, block_size=8))
            drawn.append(([texts[number] for number in found.numbers.tolist()], found.window))
        random.shuffle(texts)
    assert drawn[0] == drawn[1]


def test_a_sample_of_more_than_there_is() -> None:
    tokens = sum(map(length_of, (1, 2, 3)))
    with table_of([[1, 2, 3]]) as table, pytest.raises(UserError) as error:
        choose_documents(table, [source(documents=4)], convert_config())
    assert str(error.value).startswith(
        f"source.sample.documents=4: the source has 3 documents of together {tokens} tokens, separators included: "
    )
    with (
        table_of([[5], [1, 2, 3]]) as table,
        pytest.raises(UserError, match=rf"^sources\.b\.sample\.tokens={tokens + 1}: the source has 3 documents of"),
    ):
        choose_documents(table, [source("a"), source("b", tokens=tokens + 1)], convert_config("ab"))


def test_an_empty_source_in_a_mixture() -> None:
    with (
        table_of([[1, 2], []]) as table,
        pytest.raises(UserError, match=r"sources\.b\.weight=0\.5: the source has no documents to mix in: leave it out"),
    ):
        choose_documents(table, [source("a", weight=1.0), source("b", weight=0.5)], convert_config("ab"))

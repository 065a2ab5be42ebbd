"""Figures of arrangements, counted in their blocks, token by token."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from arranging import BLOCK, LIMITS, TWO, Document, corpora, key_of, pack, try_pack
from hypothesis import given, settings
from hypothesis import strategies as st

from bertchen.conversion.tally import percentiles, powers_of_two


@given(
    corpora(),
    LIMITS,
    st.sampled_from(
        [
            {"split_by": "block"},
            {"split_by": "document"},
            {"split_by": "block", "strategy": "sorted"},
            {"split_by": "document", "strategy": "sorted"},
            {"split_by": "document", "interleave": True},
            {"strategy": "not_packed", "lengths": [4, 8]},
        ]
    ),
    st.sampled_from([{}, {2: 0.2, 8: 0.8}]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_figures_are_what_the_blocks_hold(
    documents: list[Document],
    limit: int,
    options: dict,
    stages: dict,
    clean: bool,
    sample: bool,
    near: bool,
) -> None:
    if options.get("strategy") == "not_packed":
        documents = documents + [Document(1000 + number, 4 + number % 2 * 4, 1) for number in range(8)]
    else:
        options = {**options, "stages": stages}
    sources = [TWO[0], replace(TWO[1], documents=max(1, sum(each.source for each in documents) // 2))]
    done = try_pack(
        documents,
        sources if sample else TWO,
        limit=limit,
        bands=[[each.text // 2] for each in documents] if near else None,
        clean={"exact_duplicates": {}} if clean else {},
        **options,
    )
    owner, figures = done.owner, done.figures
    tokens = {name: Counter(owner[done.blocks(name).ravel()].tolist()) for name in done.splits}
    is_kept = set().union(*tokens.values())
    for index, described in enumerate([figures["sources"]["a"], figures["sources"]["b"], figures]):
        mine = {number for number, each in enumerate(documents) if index in (2, each.source)}
        assert described["read"] == count(Counter({number: documents[number].length for number in mine}), mine)
        assert described["kept"]["documents"] == len(mine & is_kept)
        for name, held in tokens.items():
            found = {key: value for key, value in described["splits"][name].items() if key != "blocks"}
            assert found == count(held, mine)
        dropped = described["dropped"].values()
        for unit in ("documents", "tokens"):
            assert described["read"][unit] == described["kept"][unit] + sum(lost[unit] for lost in dropped)
        assert described["kept"]["tokens"] == sum(split["tokens"] for split in described["splits"].values())
        lengths = Counter(documents[number].length - 1 for number in mine & is_kept)
        assert described["tokens_per_document"] == percentiles(lengths)
        assert described["documents_by_length"] == powers_of_two(lengths)
    for name, split in done.splits.items():
        assert figures["splits"][name]["blocks"] == split.blocks
        assert figures["splits"][name]["tokens"] == split.blocks * BLOCK
    assert json.loads(json.dumps(figures)) == figures


def count(tokens: Counter[int], numbers: set[int]) -> dict[str, int]:
    return {
        "documents": len(tokens.keys() & numbers),
        "tokens": sum(held for number, held in tokens.items() if number in numbers),
    }


def test_each_token_that_is_dropped_has_its_reason() -> None:
    by_key = sorted(range(20), key=key_of)
    texts = [*range(20), by_key[0], by_key[1], *range(100, 107)]
    documents = [Document(text, 51, int(number >= 20)) for number, text in enumerate(texts)]
    bands = [[text] for text in texts]
    bands[by_key[2]] = bands[by_key[3]]
    clean = {"exact_duplicates": {}, "near_duplicates": {}}
    done = pack(documents, [replace(TWO[0], documents=19), TWO[1]], bands=bands, clean=clean)
    drawn = len(done.documents_in("val"))
    in_train = (29 - 1 - 2 - 1 - drawn) * 51
    assert done.figures["dropped"] == {
        "not sampled": {"documents": 1, "tokens": 51},
        "exact duplicate": {"documents": 2, "tokens": 102},
        "near duplicate": {"documents": 1, "tokens": 51},
        "rest of a validation document": {"documents": 0, "tokens": 51 * drawn - 16},
        "remainder of train": {"documents": 0, "tokens": in_train % 8},
    }
    assert in_train % 8
    assert done.figures["sources"]["a"]["dropped"]["not sampled"] == {"documents": 1, "tokens": 51}
    assert done.figures["sources"]["b"]["dropped"]["exact duplicate"] == {"documents": 2, "tokens": 102}


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=50))
@settings(max_examples=60, deadline=None)
def test_percentiles_of_lengths(lengths: list[int]) -> None:
    found = percentiles(Counter(lengths))
    assert found is not None
    names = ("min", "p10", "p50", "p90", "p99", "max")
    wanted = dict(zip(names, np.percentile(lengths, [0, 10, 50, 90, 99, 100]), strict=True))
    assert found == pytest.approx({"mean": round(float(np.mean(lengths)), 2), **wanted}, abs=0.0051)
    bins = powers_of_two(Counter(lengths))
    assert sum(bins.values()) == len(lengths)
    for least, number in bins.items():
        assert number == sum(int(least) <= length < 2 * int(least) for length in lengths)

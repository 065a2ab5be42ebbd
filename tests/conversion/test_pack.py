"""Arrangements, held against a packing in memory, document by document, and against what must hold of any."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arranging import (
    BLOCK,
    LENGTHS,
    LIMITS,
    STAGES,
    TWO,
    Document,
    SegmentsInMemory,
    corpora,
    from_lengths,
    key_of,
    pack,
    try_pack,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bertchen.config.schema_convert import ConvertConfig
from bertchen.conversion.choose import MIN_VAL_DOCUMENTS
from bertchen.conversion.pack import FILE, arrange, load_arrangement
from bertchen.conversion.segments import SegmentInfo, Segments, document_type, write_segment
from bertchen.errors import UserError

# --- split_by=block ------------------------------------------------------------------------------------------------


@given(LENGTHS, st.integers(1, 20), st.integers(0, 5), st.sampled_from(["naive", "sorted"]), STAGES, LIMITS)
@settings(max_examples=150, deadline=None)
def test_split_by_block_gives_every_token_once(
    lengths: list[int], val_blocks: int, seed: int, strategy: str, stages: dict, limit: int
) -> None:
    assume(sum(lengths) >= 8 * (val_blocks + 1))
    options = {"split_by": "block", "val_blocks": val_blocks, "seed": seed, "strategy": strategy, "stages": stages}
    done = try_pack(from_lengths(lengths), limit=limit, **options)
    assert done.splits["val"].blocks == val_blocks
    together = np.concatenate([done.blocks(name) for name in done.splits])
    stream = done.streams["all"]
    assert sorted(map(tuple, together.tolist())) == sorted(
        tuple(stream[start : start + BLOCK]) for start in range(0, len(stream) // BLOCK * BLOCK, BLOCK)
    )
    if strategy == "naive":
        assert stream == list(range(sum(lengths)))
        assert len(done.runs["all"]) == 1
    else:
        by_length = sorted(zip([-length for length in lengths], done.spans(), strict=True), key=lambda each: each[0])
        assert stream == [token for _, span in by_length for token in span]


# --- split_by=document ---------------------------------------------------------------------------------------------


@given(LENGTHS, st.integers(1, 20), st.integers(0, 5), LIMITS)
@settings(max_examples=150, deadline=None)
def test_split_by_document_has_no_document_on_both_sides(
    lengths: list[int], val_blocks: int, seed: int, limit: int
) -> None:
    done = try_pack(from_lengths(lengths), val_blocks=val_blocks, seed=seed, limit=limit)
    train, val = done.streams["train"], done.streams["val"]
    in_val = set(done.owner[val].tolist())
    assert not set(done.owner[train].tolist()) & in_val
    assert len(val) == 8 * val_blocks
    for name in ("train", "val"):
        blocks, stream = done.blocks(name), done.streams[name]
        numbers = [stream.index(block[0]) // BLOCK for block in blocks]
        assert sorted(numbers) == list(range(len(stream) // BLOCK))

    # Training is the other documents, whole and in order.
    spans = done.spans()
    assert train == [token for number, span in enumerate(spans) if number not in in_val for token in span]

    # Validation is one window of each document and its separator; the last one may be cut.
    for number in in_val:
        places = [place for place in val if done.owner[place] == number]
        if number == done.owner[val[-1]] and places[-1] != spans[number][-1]:
            assert places == list(range(places[0], places[0] + len(places)))
        else:
            assert places[-1] == spans[number][-1]
            assert places[:-1] == list(range(places[0], places[0] + len(places) - 1))


def test_copies_of_a_validation_document_are_in_neither_split() -> None:
    documents = [Document(number % 50, 20 + 10 * (number % 2)) for number in range(100)]
    done = pack(documents, val_blocks=20)
    drawn = {number for number in range(100) if number in set(done.owner[done.streams["val"]].tolist())}
    texts = {documents[number].text for number in drawn}
    assert len(drawn) == len(texts)
    assert set(done.owner[done.streams["train"]].tolist()) == {n for n in range(100) if documents[n].text not in texts}
    assert done.figures["dropped"]["copy of a validation document"]["documents"] == len(drawn)


def test_a_long_document_gives_a_small_part_of_validation() -> None:
    for shift in range(20):
        documents = [Document(2000 * shift + number, 4000 if number < 5 else 40) for number in range(1005)]
        done = pack(documents, val_blocks=100)
        given_by = Counter(done.owner[done.streams["val"]].tolist())
        assert max(given_by.values()) <= 800 // MIN_VAL_DOCUMENTS
        assert len(given_by) >= MIN_VAL_DOCUMENTS


def test_windows_lie_anywhere_in_long_documents() -> None:
    done = pack(from_lengths([1000] * 400), val_blocks=100)
    stream = done.streams["val"]
    places = [after % 1000 for before, after in pairwise([-2, *stream]) if after != before + 1 and after % 1000 < 999]
    assert len(places) >= MIN_VAL_DOCUMENTS
    assert min(places) < 300
    assert max(places) > 600


def test_a_corpus_of_few_long_documents_is_not_used_up_by_validation() -> None:
    done = pack(from_lengths([8000] * 10), val_blocks=40)
    assert len(done.documents_in("val")) <= 2
    assert len(done.documents_in("train")) >= 8


@given(corpora(), st.sampled_from(["naive", "sorted"]), st.sampled_from(["document", "block"]), st.randoms())
@settings(max_examples=60, deadline=None)
def test_validation_depends_neither_on_stages_nor_on_the_order_of_the_input(
    documents: list[Document], strategy: str, split_by: str, random: Any
) -> None:
    options = {"strategy": strategy, "split_by": split_by}
    documents = [replace(document, source=0) for document in documents]
    plain = try_pack(documents, **options)
    staged = try_pack(documents, **options, stages={4: 0.5, 8: 0.5})
    assert np.array_equal(plain.blocks("val"), staged.blocks("val"))
    if split_by == "document":
        shuffled = random.sample(documents, len(documents))
        other = pack(shuffled, **options)
        texts = [
            [
                (done.documents[n].text, token - done.spans()[n][0])
                for token in done.streams["val"]
                for n in [owner[token]]
            ]
            for done, owner in ((plain, plain.owner), (other, other.owner))
        ]
        assert texts[0] == texts[1]


# --- orders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split_by", ["document", "block"])
def test_seed_changes_the_order_and_not_the_content(split_by: str) -> None:
    first, again, other = (pack(from_lengths([50] * 40), split_by=split_by, seed=seed) for seed in (1, 1, 2))
    for name in ("train", "val"):
        assert (first.blocks(name) == again.blocks(name)).all()
    one, two = (done.blocks("train")[:, 0].tolist() for done in (first, other))
    assert one != two
    if split_by == "document":  # the keys, and so the validation documents, are the same here
        assert sorted(one) == sorted(two)
    assert one != sorted(one)


@given(corpora(), LIMITS, STAGES)
@settings(max_examples=100, deadline=None)
def test_sorted_is_from_the_longest_to_the_shortest(documents: list[Document], limit: int, stages: dict) -> None:
    done = try_pack(documents, TWO, strategy="sorted", limit=limit, stages=stages)
    stream = done.streams["train"]
    order = list(dict.fromkeys(done.owner[stream].tolist()))
    assert order == sorted(order, key=lambda number: (-documents[number].length, number))
    assert stream == [token for number in order for token in done.spans()[number]]
    # The shortest length has the end of it, and each stage keeps the order.
    names = [f"train_{length}" for length in sorted(stages, reverse=True)] or ["train"]
    blocks = np.concatenate([done.blocks(name) for name in names])
    assert blocks.ravel().tolist() == stream[: len(stream) // BLOCK * BLOCK]


@given(LENGTHS, st.integers(1, 5), st.sampled_from([{}, {4: 0.3, 8: 0.7}]))
@settings(max_examples=60, deadline=None)
def test_sorted_keeps_its_order_around_validation_blocks(lengths: list[int], val_blocks: int, stages: dict) -> None:
    options = {"strategy": "sorted", "split_by": "block", "val_blocks": val_blocks}
    done = try_pack(from_lengths(lengths), **options, stages=stages)
    stream = done.streams["all"]
    first = {tuple(block) for block in done.blocks("val").tolist()}
    cut = [tuple(stream[start : start + BLOCK]) for start in range(0, len(stream) // BLOCK * BLOCK, BLOCK)]
    names = ["train_8", "train_4"] if stages else ["train"]
    train = [tuple(block) for name in names for block in done.blocks(name).tolist()]
    assert train == [block for block in cut if block not in first]
    # Validation is drawn from all over the stream, not its end.
    drawn = pack(from_lengths([20] * 200), **{**options, "val_blocks": 20})
    numbers = drawn.splits["val"].block_numbers(0, 20, drawn.seed)
    assert numbers.min() < 150
    assert numbers.max() > 350


@given(st.integers(0, 40), st.integers(0, 40), LIMITS)
@settings(max_examples=60, deadline=None)
def test_interleaved_sources_are_even_everywhere(first: int, second: int, limit: int) -> None:
    documents = [Document(number, 8, int(number >= first)) for number in range(first + second)]
    done = try_pack(documents, TWO, interleave=True, limit=limit, split_by="block")
    order = [token // 8 for token in done.streams["all"][::8]]
    assert sorted(order) == list(range(first + second))
    for source, start, count in ((0, 0, first), (1, first, second)):
        mine = [number for number in order if documents[number].source == source]
        assert mine == list(range(start, start + count))  # each source keeps its own order
    # The place as the exact fraction that it is.
    place = {
        number: (number - (first if number >= first else 0) + (key_of(number) & 0xFFFFFFFF) / 2**32)
        / (second if number >= first else first)
        for number in range(first + second)
    }
    assert order == sorted(order, key=lambda number: (place[number], number))


def test_interleaving_is_of_the_documents_that_are_kept() -> None:
    """Half of the first source isn't sampled; of the others, the first source's lie over the whole stream."""
    documents = [Document(number, 8, int(number >= 400)) for number in range(500)]
    sources = [replace(TWO[0], documents=100), TWO[1]]
    done = pack(documents, sources, interleave=True, split_by="block")
    order = [documents[token // 8].source for token in done.streams["all"][::8]]
    for start in range(0, 200, 20):
        assert 8 <= sum(order[start : start + 20]) <= 12


def test_naive_makes_few_runs() -> None:
    documents = from_lengths([20] * 2000)
    done = pack(documents, limit=64)
    drawn = len(done.documents_in("val"))
    assert len(done.runs["train"]) <= drawn + 1
    assert len(pack(documents, limit=64, split_by="block").runs["all"]) == 1


# --- stages --------------------------------------------------------------------------------------------------------


@given(corpora(), STAGES, st.sampled_from(["document", "block"]), st.sampled_from(["naive", "sorted"]))
@settings(max_examples=100, deadline=None)
def test_stages_divide_the_training_blocks(
    documents: list[Document], stages: dict, split_by: str, strategy: str
) -> None:
    assume(stages)
    options = {"split_by": split_by, "strategy": strategy}
    whole, parts = try_pack(documents, TWO, **options), try_pack(documents, TWO, **options, stages=stages)
    lengths = sorted(stages, reverse=strategy == "sorted")
    assert set(parts.splits) == {"val", *(f"train_{length}" for length in lengths)}
    together = np.concatenate([parts.blocks(f"train_{length}") for length in lengths])
    assert np.array_equal(together, whole.blocks("train"))
    for length, share in stages.items():
        assert abs(parts.splits[f"train_{length}"].blocks - share * len(together)) <= 1


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({4: 0.5, 8: 0.4}, r"stages: the shares \[0.5, 0.4\] sum to 0.9"),
        ({4: 1.5, 8: -0.5}, r"stages: the shares \[1.5, -0.5\] sum to 1: they should be positive"),
        ({3: 1.0}, "stages: 3 doesn't divide a block of block_size=8"),
        ({4: 0.001, 8: 0.999}, "stages: 0.001 of 45 training blocks is no block for 4: raise its share"),
    ],
)
def test_wrong_stages(stages: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack(from_lengths([20] * 20), stages=stages)


# --- not_packed ----------------------------------------------------------------------------------------------------


@given(corpora(), LIMITS, st.booleans(), st.sampled_from([[4, 8], [2], [8, 2, 4]]))
@settings(max_examples=100, deadline=None)
def test_not_packed_has_documents_of_exactly_the_lengths(
    documents: list[Document], limit: int, interleave: bool, lengths: list[int]
) -> None:
    extra = [Document(1000 + number, lengths[number % len(lengths)], 1) for number in range(30)]
    documents = documents + extra
    options = {"strategy": "not_packed", "lengths": lengths, "interleave": interleave}
    done = try_pack(documents, TWO, **options, limit=limit)
    assert set(done.splits) == {"val", *(f"train_{length}" for length in lengths)}
    starts = {span[0] for span in done.spans()}
    for length in lengths:
        parts = done.blocks(f"train_{length}").reshape(-1, length)
        assert len(parts) == sum(each.length == length for each in documents) // (BLOCK // length) * (BLOCK // length)
        for part in parts.tolist():
            assert part[0] in starts
            assert part == list(range(part[0], part[0] + length))
            assert documents[done.owner[part[0]]].length == length
        assert len({part[0] for part in parts.tolist()}) == len(parts)
    others = [n for n, each in enumerate(documents) if each.length not in lengths]
    assert sorted(done.streams["val"]) == [token for number in others for token in done.spans()[number]]
    assert len({tuple(block) for block in done.blocks("val").tolist()}) == 2


def test_not_packed_takes_validation_from_anywhere() -> None:
    done = pack(from_lengths([8] * 10 + [16] * 200), strategy="not_packed", lengths=[8], val_blocks=20)
    numbers = done.splits["val"].block_numbers(0, 20, done.seed)
    assert numbers.min() < 150
    assert numbers.max() > 250


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([4] * 3 + [20] * 9, {"lengths": [4, 8]}, "lengths: 0 documents have exactly 8 tokens"),
        ([4] + [20] * 9, {"lengths": [4]}, "lengths: 1 documents have exactly 4 tokens, .* takes 2: leave 4 out"),
        ([8] * 9 + [5], {"lengths": [8]}, r"val_blocks=2: the documents of other lengths than \[8\] are only 0 blocks"),
        ([8] * 9, {"lengths": [8], "stages": {8: 1.0}}, "stages: strategy=not_packed makes a folder for each"),
        ([8] * 9, {"lengths": [8, 5]}, "lengths: 5 doesn't divide a block of block_size=8"),
    ],
)
def test_not_packed_without_enough(lengths: list[int], options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack(from_lengths(lengths), strategy="not_packed", **options)


# --- what is there and what isn't ----------------------------------------------------------------------------------


def test_too_few_blocks() -> None:
    for strategy in ("naive", "sorted"):
        with pytest.raises(UserError, match=r"val_blocks=2: the corpus has 20 tokens, 2 blocks of 8, .*lower val_bl"):
            pack(from_lengths([10, 10]), strategy=strategy)
    with pytest.raises(UserError, match=r"val_blocks=2: the corpus has 5 tokens, 0 blocks of 8"):
        pack(from_lengths([5]))


def test_too_few_documents() -> None:
    with pytest.raises(UserError, match=r"1 different documents are too few.*split_by=block"):
        pack(from_lengths([1000]))
    with pytest.raises(UserError, match="1 different documents are too few"):
        pack([Document(7, 1000), Document(7, 1000)])
    assert pack(from_lengths([1000]), split_by="block").documents_in("train") == {0}


def test_nothing_is_left() -> None:
    info = SegmentInfo(0, 0, 0, 0, 0, True, 0, 0, 12, 0, 0, bad={"empty": 2}, dropped={"language": 10})
    with tempfile.TemporaryDirectory() as folder:
        segments = SegmentsInMemory(Path(folder), np.dtype(np.uint16), [info], [np.empty(0, document_type(0))])
        with pytest.raises(UserError, match=r"no document is left of the 12 that were read \(language: 10, empty: 2\)"):
            arrange(segments, TWO[:1], ConvertConfig(), Path(folder) / "arrangement")
        assert not (Path(folder) / "arrangement").exists()


def test_real_segments_and_an_arrangement_that_was_interrupted(tmp_path: Path) -> None:
    lengths = [[20, 3, 40], [2, 2], [90]]
    tokens = iter(range(1000))
    for unit, some in enumerate(lengths):
        documents = np.array([(length, key_of(10 * unit + length), []) for length in some], dtype=document_type(0))
        info = SegmentInfo(unit, 0, 0, 0, 0, True, sum(some), len(some), len(some), 0, 0)
        write_segment(tmp_path, info, np.array([next(tokens) for _ in range(sum(some))], np.uint16), documents)
    segments = Segments.load(tmp_path, np.dtype(np.uint16), 3)
    folder = tmp_path / "arrangement"
    assert load_arrangement(folder) is None
    (folder / "table").mkdir(parents=True)
    (folder / "table" / "fate").write_bytes(b"\3" * 100)
    (folder / "all.npy").write_bytes(b"half of")
    assert load_arrangement(folder) is None
    config = ConvertConfig(block_size=8, val_blocks=2, split_by="block")
    done = arrange(segments, TWO[:1], config, folder)
    assert np.load(folder / "all.npy", mmap_mode="r").tolist() == [[0, 157]]
    assert load_arrangement(folder) == done
    assert sorted(path.name for path in folder.iterdir()) == ["all.npy", FILE]


def test_many_kinds_of_documents_through_all_decisions_at_once() -> None:
    """Sample, mixture, duplicates, validation: each on what the ones before it have left."""
    texts = [number % 300 for number in range(1000)]
    documents = [Document(text, 3 + text % 17, int(number >= 600)) for number, text in enumerate(texts)]
    sources = [replace(TWO[0], tokens=4000, weight=0.5), replace(TWO[1], weight=0.5)]
    clean = {"exact_duplicates": {}, "near_duplicates": {}}
    bands = [[text // 3, text] for text in texts]
    done = pack(documents, sources, bands=bands, clean=clean, limit=50)

    kept: list[int] = []
    budget = min(4000, sum(each.length for each in documents if each.source == 1))
    for source, wanted in ((0, 4000), (1, None)):
        by_key = sorted((n for n in range(1000) if documents[n].source == source), key=lambda n: (documents[n].key, n))
        for limit in (wanted, budget):
            if limit is not None:
                ends = list(accumulate(documents[number].length for number in by_key))
                by_key = by_key[: next((n + 1 for n, end in enumerate(ends) if end >= limit), len(ends))]
        kept += by_key
    seen: dict[str, set[int]] = defaultdict(set)
    remaining = []
    for number in sorted(kept):
        text = texts[number]
        if text in seen["text"] or text // 3 in seen["band"]:
            seen["text"].add(text)
            continue
        seen["text"].add(text)
        seen["band"].add(text // 3)
        remaining.append(number)
    owners = set(done.owner[done.streams["train"]].tolist()) | set(done.owner[done.streams["val"]].tolist())
    assert owners == set(remaining)

"""Packing, on a token file whose tokens are their own positions: every token tells where it comes from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bertchen.config.schema_convert import ConvertConfig
from bertchen.data.pack import MIN_VAL_DOCUMENTS, Split, pack_naive
from bertchen.errors import UserError

LENGTHS = st.lists(st.integers(2, 12) | st.integers(2, 300), min_size=1, max_size=40)


def keys_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 64, count, dtype=np.uint64)


def pack(lengths: list[int], keys: np.ndarray | None = None, **options: object) -> dict[str, Split]:
    config = ConvertConfig(**{"block_size": 8, "val_blocks": 2, **options})  # type: ignore[arg-type]
    return pack_naive(np.array(lengths), keys_of(len(lengths)) if keys is None else keys, config)


def blocks_of(split: Split, total: int, block_size: int = 8) -> np.ndarray:
    """The split's blocks of positions, as they are written: (blocks, block_size)."""
    return np.concatenate(list(split.batches(np.arange(total), block_size)))


def unshuffled(split: Split, total: int, block_size: int = 8) -> list[int]:
    """The split's tokens in the order of its stream."""
    return blocks_of(split, total, block_size)[np.argsort(split.order)].ravel().tolist()


def spans(lengths: list[int]) -> list[range]:
    """Positions of each document in the token file."""
    ends = np.cumsum(lengths).tolist()
    return [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def try_pack(lengths: list[int], keys: np.ndarray | None = None, **options: object) -> dict[str, Split]:
    try:
        return pack(lengths, keys, **options)
    except UserError:
        assume(False)
        raise


@given(LENGTHS, st.integers(1, 20), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_split_by_block_gives_every_token_once(lengths: list[int], val_blocks: int, seed: int) -> None:
    total = sum(lengths)
    assume(total >= 8 * (val_blocks + 1))
    splits = pack(lengths, split_by="block", val_blocks=val_blocks, seed=seed)
    train, val = (blocks_of(splits[name], total) for name in ("train", "val"))
    assert len(val) == val_blocks
    together = np.concatenate([train, val])
    in_order = together[np.argsort(together[:, 0])].ravel()
    assert in_order.tolist() == list(range(total // 8 * 8))


@given(LENGTHS, st.integers(1, 20), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_split_by_document_has_no_document_on_both_sides(lengths: list[int], val_blocks: int, seed: int) -> None:
    total = sum(lengths)
    splits = try_pack(lengths, keys_of(len(lengths), seed), val_blocks=val_blocks, seed=seed)
    train, val = (unshuffled(splits[name], total) for name in ("train", "val"))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    in_val = set(owner[val].tolist())
    assert not set(owner[train].tolist()) & in_val
    assert len(val) == 8 * val_blocks

    # Training is the other documents, whole and in order, up to the remainder.
    expected = [place for number, span in enumerate(spans(lengths)) if number not in in_val for place in span]
    assert train == expected[: len(expected) // 8 * 8]

    # Validation is one window of each document and its separator; the last one may be cut.
    for number in in_val:
        places = [place for place in val if owner[place] == number]
        if number == owner[val[-1]] and places[-1] != spans(lengths)[number][-1]:
            assert places == list(range(places[0], places[0] + len(places)))
        else:
            assert places[-1] == spans(lengths)[number][-1]
            assert places[:-1] == list(range(places[0], places[0] + len(places) - 1))


@given(LENGTHS, st.integers(1, 20), st.sampled_from(["document", "block"]))
@settings(max_examples=100, deadline=None)
def test_documents_of_a_split_are_counted(lengths: list[int], val_blocks: int, split_by: str) -> None:
    splits = try_pack(lengths, val_blocks=val_blocks, split_by=split_by)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for split in splits.values():
        assert split.documents(8) == len(set(owner[blocks_of(split, sum(lengths)).ravel()].tolist()))


@pytest.mark.parametrize("split_by", ["document", "block"])
def test_seed_changes_the_order_and_not_the_content(split_by: str) -> None:
    lengths = [50] * 40
    first, again, other = (pack(lengths, split_by=split_by, seed=seed) for seed in (1, 1, 2))
    for name in ("train", "val"):
        assert (blocks_of(first[name], 2000) == blocks_of(again[name], 2000)).all()
    one, two = (blocks_of(splits["train"], 2000) for splits in (first, other))
    assert one.tolist() != two.tolist()
    if split_by == "document":  # the keys, and so the validation documents, are the same here
        assert sorted(one.tolist()) == sorted(two.tolist())
    assert one[:, 0].tolist() != sorted(one[:, 0].tolist())


def test_validation_documents_do_not_depend_on_the_order_of_the_documents() -> None:
    lengths, keys = np.array([20 + number for number in range(50)]), keys_of(50)
    turned = np.random.default_rng(1).permutation(50)
    here, there = pack(lengths.tolist(), keys), pack(lengths[turned].tolist(), keys[turned])
    assert here["val"].stream.documents.tolist() == turned[there["val"].stream.documents].tolist()
    assert here["val"].stream.lengths.tolist() == there["val"].stream.lengths.tolist()


def test_copies_of_a_validation_document_are_in_neither_split() -> None:
    lengths, keys = [20, 30] * 50, np.tile(keys_of(50), 2)
    splits = pack(lengths, keys, val_blocks=20)
    drawn = set(splits["val"].stream.documents.tolist())
    trained = set(splits["train"].stream.documents.tolist())
    copies = {number % 50 for number in drawn}
    assert len(drawn) == len(copies)
    assert trained == {number for number in range(100) if number % 50 not in copies}


def test_a_long_document_gives_a_small_part_of_validation() -> None:
    lengths = [4000] * 5 + [40] * 1000
    for seed in range(20):
        keys = keys_of(len(lengths), seed)
        val = pack(lengths, keys, val_blocks=100)["val"]
        given_by = np.bincount(val.stream.documents, val.stream.lengths)
        assert given_by.max() <= 800 // MIN_VAL_DOCUMENTS
        assert len(np.unique(val.stream.documents)) >= MIN_VAL_DOCUMENTS


def test_windows_lie_anywhere_in_long_documents() -> None:
    keys = keys_of(400)
    val = pack([1000] * 400, keys, val_blocks=100)["val"]
    places = val.stream.starts[::2] % 1000  # every second span is a separator
    assert len(places) == MIN_VAL_DOCUMENTS
    assert places.min() < 300
    assert places.max() > 600


def test_a_corpus_of_few_long_documents_is_not_used_up_by_validation() -> None:
    splits = pack([8000] * 10, val_blocks=40)
    assert splits["val"].documents(8) <= 2
    assert splits["train"].documents(8) >= 8


def test_too_few_blocks() -> None:
    with pytest.raises(UserError, match=r"val_blocks=2: the corpus has 20 tokens, 2 blocks of 8"):
        pack([10, 10])
    with pytest.raises(UserError, match=r"val_blocks=2: the corpus has 5 tokens, 0 blocks of 8"):
        pack([5])


def test_too_few_documents() -> None:
    with pytest.raises(UserError, match=r"1 different documents are too few.*split_by=block"):
        pack([1000])
    with pytest.raises(UserError, match="1 different documents are too few"):
        pack([1000, 1000], np.array([7, 7], dtype=np.uint64))
    assert pack([1000], split_by="block")["train"].documents(8) == 1

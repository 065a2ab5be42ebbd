"""Datasets and loaders over real shards: every block once, after a restart and for any number of processes too."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from streaming import MDSWriter
from torch import Tensor

from bertchen.data.blocks import (
    PADDING_INDEX,
    BlockDataset,
    EvaluationBatches,
    deal_blocks,
    to_batch,
    train_loader,
)
from bertchen.data.manifest import MANIFEST
from bertchen.data.masking import IGNORE_INDEX, MaskingVocabulary, mask_tokens, max_masked_per_row
from bertchen.data.streams import fetch_manifest
from bertchen.errors import UserError

BLOCK = 16
TRAIN, VAL = 45, 11
RATE = 0.3
# Token 0 is an ordinary one here: what fills up batches must not be told by its tokens.
MASKING = partial(mask_tokens, vocabulary=MaskingVocabulary.build(100, [1, 2], 3), rate=RATE, seed=42)


def block(split: str, number: int) -> np.ndarray:
    """Tokens that tell their block: no two blocks are alike."""
    return (np.arange(BLOCK) * 7 + number * 3 + (50 if split == "val" else 0)).astype(np.uint16) % 95 + 4


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 training and 11 validation blocks of 16 tokens, several shards each."""
    folder = tmp_path_factory.mktemp("shards")
    for split, blocks in (("train", TRAIN), ("val", VAL)):
        columns = {"input_ids": f"ndarray:uint16:{BLOCK}"}
        with MDSWriter(out=str(folder / split), columns=columns, size_limit=400, hashes=["xxh64"]) as writer:
            for number in range(blocks):
                writer.write({"input_ids": block(split, number)})
        assert len(json.loads((folder / split / "index.json").read_text())["shards"]) > 1
    (folder / MANIFEST).write_text('{"version": 1}')
    return folder


@pytest.fixture
def dataset(shards: Path, shared_memory_given_back: None) -> Callable[..., BlockDataset]:
    def make(split: str = "train", batch_size: int = 4, **options: Any) -> BlockDataset:
        options = {"shuffle": split == "train", "shuffle_seed": 1, "num_canonical_nodes": 1, **options}
        return BlockDataset(local=str(shards), split=split, batch_size=batch_size, **options)

    return make


def test_blocks_are_read_by_their_numbers_in_any_order(dataset: Callable[..., BlockDataset]) -> None:
    data = dataset()
    assert len(data) == TRAIN
    assert [data[number] for number in (0, 7)] == [0, 7]
    numbers = [TRAIN - 1, 0, 7, 8, 0, 30]
    blocks = data.read(numbers)
    assert blocks.dtype == np.uint16
    assert np.array_equal(blocks, np.stack([block("train", number) for number in numbers]))


@pytest.mark.parametrize("seq_len", [4, 8, 16])
def test_a_batch_of_cut_blocks(seq_len: int) -> None:
    blocks = np.stack([block("train", number) for number in (5, 2, 9)])
    batch = to_batch(blocks, [5, 2, 9], seq_len)
    pieces = BLOCK // seq_len
    assert batch["input_ids"].dtype == batch["row_ids"].dtype == torch.int64
    assert batch["input_ids"].shape == (3 * pieces, seq_len)
    assert batch["input_ids"].flatten().tolist() == blocks.flatten().tolist()
    assert batch["row_ids"].tolist() == [number * pieces + piece for number in (5, 2, 9) for piece in range(pieces)]


def test_a_batch_keeps_ids_that_need_32_bits() -> None:
    batch = to_batch(np.array([[70_000, 2**32 - 1]], dtype=np.uint32), [2**40], 2)
    assert batch["input_ids"].tolist() == [[70_000, 2**32 - 1]]
    assert batch["row_ids"].tolist() == [2**40]


@given(st.integers(0, 200), st.integers(1, 30), st.integers(1, 9))
def test_dealing_gives_every_block_once_and_all_ranks_the_same_number_of_batches(
    blocks: int, blocks_per_batch: int, world_size: int
) -> None:
    dealt = [deal_blocks(blocks, blocks_per_batch, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in dealt}) == 1
    assert all(len(batch) == blocks_per_batch for batches in dealt for batch in batches)
    flat = [at for batches in dealt for batch in batches for at in batch]
    assert sorted(at for at in flat if at != PADDING_INDEX) == list(range(blocks))
    assert len(flat) - blocks < blocks_per_batch * world_size, "no more padding than it takes"


def evaluation(
    data: BlockDataset,
    seq_len: int = BLOCK,
    per_batch: int = 4,
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
) -> EvaluationBatches:
    return EvaluationBatches(data, BLOCK, seq_len, per_batch, MASKING, RATE, rank, world_size, limit)


def reference(seq_len: int, blocks: int = VAL) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Rows and labels of the whole set, by masking it at once."""
    rows = torch.from_numpy(np.stack([block("val", number) for number in range(blocks)]).astype(np.int64))
    rows = rows.reshape(-1, seq_len)
    return counted([MASKING(rows, torch.arange(len(rows)), step=0)])


def counted(batches: Any) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    pairs = (
        (tuple(row), tuple(label))
        for ids, labels in batches
        for row, label in zip(ids.tolist(), labels.tolist(), strict=True)
    )
    return Counter(pairs)


def without_padding(batches: EvaluationBatches) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        real = (batch["labels"] != IGNORE_INDEX).any(dim=1)
        yield batch["input_ids"][real], batch["labels"][real]


@pytest.mark.parametrize("seq_len", [4, 8, 16])
@pytest.mark.parametrize(("per_batch", "world_size"), [(1, 1), (4, 1), (VAL, 1), (50, 1), (1, 2), (2, 3), (4, 8)])
def test_evaluation_sees_the_whole_set_once_over_all_ranks(
    dataset: Callable[..., BlockDataset], seq_len: int, per_batch: int, world_size: int
) -> None:
    data = dataset("val", per_batch)
    ranks = [evaluation(data, seq_len, per_batch, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(len(list(batches)) == len(batches) for batches in ranks)
    pairs = [pair for batches in ranks for pair in without_padding(batches)]
    assert counted(pairs) == reference(seq_len)


def test_every_batch_has_one_shape_and_padding_rows_have_no_labels(dataset: Callable[..., BlockDataset]) -> None:
    seq_len, per_batch = 8, 4
    batches = list(evaluation(dataset("val"), seq_len, per_batch))
    assert len(batches) == 3
    rows = per_batch * BLOCK // seq_len
    for batch in batches:
        assert batch["input_ids"].shape == batch["labels"].shape == (rows, seq_len)
        assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
        assert batch["max_masked_per_row"] == max_masked_per_row(RATE, seq_len)
        assert (batch["labels"] != IGNORE_INDEX).sum(dim=1).max() <= batch["max_masked_per_row"]
    real = [(batch["labels"] != IGNORE_INDEX).any(dim=1).sum().item() for batch in batches]
    assert real == [rows, rows, (VAL - 8) * BLOCK // seq_len]


def test_each_evaluation_is_the_same(dataset: Callable[..., BlockDataset]) -> None:
    data = dataset("val")
    batches = evaluation(data, 8)
    first, second, anew = (list(source) for source in (batches, batches, evaluation(data, 8)))
    for other in (second, anew):
        assert len(other) == len(first)
        assert all(
            torch.equal(a[key], b[key]) for a, b in zip(first, other, strict=True) for key in ("input_ids", "labels")
        )


def test_an_evaluation_that_was_broken_off_does_not_spoil_the_next(dataset: Callable[..., BlockDataset]) -> None:
    batches = evaluation(dataset("val"))
    whole = list(evaluation(dataset("val")))
    next(iter(batches))
    again = list(batches)
    assert len(again) == len(whole)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(again, whole, strict=True))


@pytest.mark.parametrize(("limit", "blocks"), [(1, 1), (5, 5), (1000, VAL)])
def test_a_limit_takes_the_first_blocks(dataset: Callable[..., BlockDataset], limit: int, blocks: int) -> None:
    batches = evaluation(dataset("val"), limit=limit)
    assert counted(without_padding(batches)) == reference(BLOCK, blocks)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("seq_len", [4, 16])
def test_training_batches(dataset: Callable[..., BlockDataset], seq_len: int, workers: int) -> None:
    per_device = 4
    loader = train_loader(dataset(), per_device, seq_len, workers)
    assert len(loader) == TRAIN // per_device, "the last batch isn't full, and is dropped"
    batches = list(loader)
    assert len(batches) == TRAIN // per_device
    pieces = BLOCK // seq_len
    for batch in batches:
        assert batch["input_ids"].shape == (per_device * pieces, seq_len)
        blocks = batch["row_ids"].reshape(per_device, pieces)[:, 0] // pieces
        expected = np.stack([block("train", number) for number in blocks.tolist()])
        assert batch["input_ids"].reshape(per_device, BLOCK).tolist() == expected.tolist()
    seen = torch.cat([batch["row_ids"] for batch in batches]).tolist()
    assert len(set(seen)) == len(seen) == len(batches) * per_device * pieces


def order_of(loader: Any) -> list[list[int]]:
    return [batch["row_ids"].tolist() for batch in loader]


def test_epochs_are_shuffled_anew_and_the_seed_repeats_them(dataset: Callable[..., BlockDataset]) -> None:
    loader = train_loader(dataset(), 4, BLOCK, 0)
    first, second = order_of(loader), order_of(loader)
    assert first != second
    again = train_loader(dataset(), 4, BLOCK, 0)
    assert [order_of(again), order_of(again)] == [first, second]
    assert order_of(train_loader(dataset(shuffle_seed=2), 4, BLOCK, 0)) != first
    assert order_of(train_loader(dataset(shuffle=False), 4, BLOCK, 0))[0] == [0, 1, 2, 3]


@pytest.mark.parametrize(("epoch", "batches_done"), [(0, 3), (1, 5)])
def test_a_restart_in_mid_epoch_gives_the_rest(
    dataset: Callable[..., BlockDataset], epoch: int, batches_done: int
) -> None:
    """As Composer does it: the state is taken with the samples of the epoch so far, counted in blocks."""
    data = dataset()
    loader = train_loader(data, 4, BLOCK, 0)
    for _ in range(epoch):
        order_of(loader)
    running = iter(loader)
    for _ in range(batches_done):
        next(running)
    state = json.loads(json.dumps(data.state_dict(batches_done * 4, True)))
    rest = order_of(running)
    following = order_of(loader)

    resumed = dataset()
    resumed.load_state_dict(state)
    loader = train_loader(resumed, 4, BLOCK, 0)
    assert order_of(loader) == rest
    assert order_of(loader) == following


@pytest.mark.parametrize("workers", [0, 1])
def test_starting_a_loader_leaves_pytorchs_generator_alone(dataset: Callable[..., BlockDataset], workers: int) -> None:
    loader = train_loader(dataset(), 4, BLOCK, workers)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    iterator = iter(loader)
    next(iterator)
    assert torch.equal(torch.get_rng_state(), state)
    del iterator


def test_making_evaluation_batches_leaves_pytorchs_generator_alone(dataset: Callable[..., BlockDataset]) -> None:
    batches = evaluation(dataset("val"))
    state = torch.get_rng_state()
    list(batches)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_manifest_is_fetched(shards: Path, tmp_path: Path, ending: str) -> None:
    cache = tmp_path / "deep/cache"
    fetch_manifest(f"{shards}{ending}", str(cache), 10, 0)
    assert (cache / MANIFEST).read_bytes() == (shards / MANIFEST).read_bytes()
    assert [path.name for path in cache.iterdir()] == [MANIFEST]


def test_a_manifest_in_the_cache_is_kept(shards: Path, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("mine")
    fetch_manifest("s3://not-asked", str(tmp_path), 10, 0)
    assert (tmp_path / MANIFEST).read_text() == "mine"


@pytest.mark.parametrize("remote", ["/no/such/place", "unknown://bucket/data"])
def test_a_manifest_that_cannot_be_fetched_names_the_remote(tmp_path: Path, remote: str) -> None:
    with pytest.raises(UserError) as caught:
        fetch_manifest(remote, str(tmp_path / "cache"), 1, 0)
    assert str(caught.value).startswith(f"data.remote={remote}: ")
    assert not (tmp_path / "cache" / MANIFEST).exists()


def test_a_remote_serves_the_same_blocks_through_the_cache(
    shards: Path, dataset: Callable[..., BlockDataset], tmp_path: Path
) -> None:
    remote, cache = tmp_path / "remote", tmp_path / "cache"
    shutil.copytree(shards, remote)
    options = {"shuffle": True, "shuffle_seed": 1, "num_canonical_nodes": 1, "validate_hash": "xxh64"}
    fetched = BlockDataset(local=str(cache), remote=str(remote), split="train", batch_size=4, **options)
    assert order_of(train_loader(fetched, 4, BLOCK, 0)) == order_of(train_loader(dataset(), 4, BLOCK, 0))
    assert np.array_equal(fetched.read([3])[0], block("train", 3))
